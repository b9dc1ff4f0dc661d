"""Databases that are not written: opened read-only, or below a DemoStorage."""

import pytest
import transaction
from ZODB.DB import DB
from ZODB.DemoStorage import DemoStorage
from ZODB.POSException import ReadOnlyError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen

SIZE = 8 * 4096


@pytest.fixture
def url(tmp_path):
    """Return the URL, read-only, of a database with an array of ones."""
    root = dbopen(tmp_path / "x.fs")
    root["A"] = A = ZBigArray((SIZE,), "u1", blksize=4096)
    transaction.commit()
    A[:] = 1
    transaction.commit()
    dbclose(root)
    return f"file://{tmp_path}/x.fs?read_only=1"


def test_demo_storage_over_a_file(url):
    db = DB(DemoStorage(base=dbstoropen(url)))
    A = db.open().root()["A"]
    assert A[:].sum() == SIZE
    A[0] = 2
    transaction.commit()
    A.append([3])
    transaction.commit()
    assert A[:].sum() == SIZE + 4
    transaction.abort()
    db.close()
    root = dbopen(url)
    assert root["A"][:].sum() == SIZE
    dbclose(root)


def test_read_only(url):
    root = dbopen(url)
    a = root["A"][:]
    assert a.sum() == SIZE
    for change in lambda: a.fill(5), lambda: root["A"].append([1]), lambda: root["A"].resize(3):
        with pytest.raises(ValueError, match="read-only"):
            change()
    root["x"] = 1
    with pytest.raises(ReadOnlyError):
        transaction.commit()
    transaction.abort()
    assert a.sum() == SIZE
    dbclose(root)
