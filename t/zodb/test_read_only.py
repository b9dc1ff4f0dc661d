"""Databases that are not written: opened read-only, or below a DemoStorage."""

import numpy as np
import pytest
import transaction
from support.clients import BLK, FIRST, N, changed, fill, in_database
from ZODB.DB import DB
from ZODB.DemoStorage import DemoStorage
from ZODB.POSException import ReadOnlyError

from wendelin.lib.zodb import dbclose, dbopen, dbstoropen


@pytest.mark.parametrize("demo", [False, True])
def test_a_storage_that_is_only_read(tmp_path, fmt, demo):
    root = dbopen(tmp_path / "x.fs")
    fill(root, fmt)
    dbclose(root)
    storage = dbstoropen(f"file://{tmp_path}/x.fs?read_only=1")
    db = DB(DemoStorage(base=storage) if demo else storage)
    conn = db.open()
    A = conn.root()["A"]
    a = A[:]
    assert np.array_equal(a, FIRST)
    if demo:
        a[0] = a[-1] = 1
        transaction.commit()
        A.append([2])
        transaction.commit()
        expected = np.append(changed((0, 1), (-1, 1)), [2])
        assert np.array_equal(A[:], expected)
        assert np.array_equal(in_database(A), expected)
    else:
        for change in lambda: a.fill(5), lambda: A.append([2]), lambda: A.resize(3):
            with pytest.raises(ValueError, match="read-only"):
                change()
        transaction.commit()
        conn.root()["x"] = 1
        with pytest.raises(ReadOnlyError):
            transaction.commit()
        transaction.abort()
        assert A.shape == (N * BLK,)
        assert np.array_equal(a, FIRST)
    transaction.abort()
    db.close()
    root = dbopen(tmp_path / "x.fs")
    assert np.array_equal(root["A"][:], FIRST)
    dbclose(root)
