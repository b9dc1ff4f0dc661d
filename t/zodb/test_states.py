"""Arrays: states of other versions, new ones, parallel appends."""

import numpy as np
import pytest
import transaction
from support.clients import BLK, FIRST, N, fill, in_database
from ZODB.POSException import ConflictError, ConnectionStateError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.file_zodb import ZBigFile


@pytest.mark.parametrize("less", [[], ["_zblk_fmt"], ["_zblk_fmt", "_order"]])
@pytest.mark.parametrize("more", [False, True])
def test_states_of_other_versions(root, testdb, monkeypatch, less, more):
    """Golden databases are read in test_formats.py."""
    monkeypatch.delenv("WENDELIN_CORE_ZBLK_FMT", raising=False)
    A = fill(root, "ZBlk0")
    getstate = ZBigArray.__getstate__

    def state(self):
        attributes, slots = getstate(self)
        for name in less:
            attributes.pop(name, None)
        return attributes | ({"_later": 1} if more else {}), slots

    with monkeypatch.context() as patch:
        patch.setattr(ZBigArray, "__getstate__", state)
        A._p_changed = True
        transaction.commit()
    testdb.close(root)
    A = testdb.open()["A"]
    assert np.array_equal(A[:], FIRST)
    A.append([1])
    A[0] = 0
    transaction.commit()
    assert np.array_equal(in_database(A)[1:-1], FIRST[1:])
    assert type(A.zfile.blktab[0]).__name__ == ("ZBlk1" if less else "ZBlk0")


def test_an_array_before_it_belongs_to_a_connection(root, fmt):
    A = ZBigArray((N * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
    touches = [
        lambda: A[:],
        lambda: A[0],
        lambda: A.__setitem__(0, 1),
        lambda: A.append([1]),
        A.read,
        A.prefetch,
        lambda: np.asarray(A),
        lambda: np.sum(A),
        lambda: np.mean(A),
    ]
    told = r"once the array belongs to a Connection.*conn\.add\(A\)"
    for touch in touches:
        with pytest.raises(ConnectionStateError, match=told):
            touch()
    assert A[0:0].shape == (0,)
    assert A.shape == (N * BLK,)
    with pytest.raises(ConnectionStateError, match="file does not belong to a Connection"):
        ZBigFile(BLK).fileh_open()
    A.resize(2 * BLK)
    root._p_jar.add(A)
    assert not A[:].any()
    A[3] = 5
    root["A"] = A
    transaction.commit()
    assert A.shape == (2 * BLK,)
    assert A[:5].tolist() == [0, 0, 0, 5, 0]
    A[0] = 1
    transaction.commit()
    assert in_database(A).sum() == 6


def test_two_appends_in_parallel(A, other):
    """Each client appends many blocks: both split the only bucket of the table."""
    B = other["A"]
    many = 40 * BLK
    tried = 0
    for attempt in other.tm.attempts(3):
        with attempt:
            tried += 1
            assert len(B) == N * BLK + (tried - 1) * many
            B.append(np.full(many, 2, "u1"))
            if tried == 1:
                A.append(np.full(many, 1, "u1"))
                transaction.commit()
    assert tried == 2
    expected = np.concatenate([FIRST, np.full(many, 1), np.full(many, 2)])
    transaction.begin()
    for data in (A[:], B[:], in_database(A)):
        assert np.array_equal(data, expected)


@pytest.mark.parametrize("many", [1, 50])
def test_two_clients_fill_holes_in_parallel(root, A, other, many):
    """The arrays do not conflict. The table may: BTrees resolves that, or a retry does."""
    A.resize((N + 2 * many) * BLK)
    transaction.commit()
    other.tm.begin()
    a, b = A[N * BLK :], other["A"][N * BLK :]
    assert a.sum() == b.sum() == 0

    def change():
        b[many * BLK :: BLK] = 2

    change()
    a[: many * BLK : BLK] = 1
    transaction.commit()
    try:
        other.tm.commit()
    except ConflictError:
        other.tm.abort()
        assert b.sum() == many
        other.tm.run(change)
    transaction.begin()
    expected = np.repeat([1, 2], many)
    for data in (a, b, in_database(A)[N * BLK :]):
        assert np.array_equal(data[::BLK], expected)
