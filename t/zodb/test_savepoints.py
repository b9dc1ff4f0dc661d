"""Savepoints of arrays: what a rollback takes back, and what a commit after it stores."""

import numpy as np
import pytest
import transaction
from support import clients
from support.clients import changed, in_database
from support.numbered import BLK, FIRST, N, fill, of
from transaction.interfaces import TransactionError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, ram_reclaim


@pytest.fixture
def A(root):
    return fill(root)


def test_rollback_takes_back_what_came_after(A):
    a = A[:]
    a[0] = 1
    first = transaction.savepoint()
    a[0], a[BLK], a[2 * BLK] = 2, 2, 2
    second = transaction.savepoint()
    a[0], a[3 * BLK] = 3, 3
    assert of(A) == [3, 2, 2, 3, *FIRST[4:]]
    second.rollback()
    assert of(A) == [2, 2, 2, *FIRST[3:]]
    a[4 * BLK] = 4
    second.rollback()  # once more
    assert of(A) == [2, 2, 2, *FIRST[3:]]
    first.rollback()
    assert of(A) == [1, *FIRST[1:]]
    a[5 * BLK] = 5
    third = transaction.savepoint()
    a[5 * BLK] = 6
    third.rollback()
    transaction.commit()
    assert of(A) == [1, *FIRST[1:5], 5, *FIRST[6:]]
    assert (A[1:BLK] == 0).all()


@pytest.mark.parametrize("before", ["changes", "nothing"])
def test_what_is_rolled_back_is_gone_from_the_pages(root, fmt, before):
    A = clients.fill(root, fmt)
    a, kept = A[:], clients.FIRST
    if before == "changes":
        a[0] = a[-1] = 1
        kept = changed((0, 1), (-1, 1))
    savepoint = transaction.savepoint()
    a[0] = a[1] = a[-2] = a[clients.BLK] = 2
    savepoint.rollback()
    assert np.array_equal(a, kept)
    a[2] = 3
    transaction.commit()
    kept = changed((2, 3), of=kept)
    assert np.array_equal(a, kept)
    assert np.array_equal(in_database(A), kept)


@pytest.mark.parametrize("before", ["changes", "nothing"])
def test_sizes_are_rolled_back_with_the_pages(root, fmt, before):
    size, blk = clients.N * clients.BLK, clients.BLK
    A = clients.fill(root, fmt)
    kept = clients.FIRST
    if before == "changes":
        A[0] = 1
        kept = changed((0, 1))
    savepoint = transaction.savepoint()
    A.resize(blk // 2)
    A[0] = 2
    A.append(np.full(3 * blk, 7, "u1"))
    later = transaction.savepoint()
    savepoint.rollback()
    assert not later.valid
    assert A.shape == (size,)
    assert np.array_equal(A[:], kept)
    A.resize(blk // 2)
    A.resize(size)
    A[3 * blk] = 4
    shrunk = changed((slice(blk // 2, None), 0), (3 * blk, 4), of=kept)
    for act in lambda: A.__setitem__(2 * blk, 1), lambda: A.resize((0,)):
        savepoint = transaction.savepoint()
        act()
        savepoint.rollback()
        assert np.array_equal(A[:], shrunk)
    transaction.commit()
    ram_reclaim()
    assert np.array_equal(A[:], shrunk)
    assert np.array_equal(in_database(A), shrunk)


def test_a_savepoint_between_creation_and_data(root):
    root["B"] = B = ZBigArray((N * BLK,), "u1", blksize=BLK)
    transaction.savepoint()
    b = B[:]
    b[0] = 1
    savepoint = transaction.savepoint()
    root._p_jar.cacheMinimize()
    b[BLK] = 2
    ram_reclaim()
    assert b.sum() == 3
    savepoint.rollback()
    assert b.sum() == 1
    root["C"] = C = ZBigArray((N,), "u1", blksize=BLK)
    root._p_jar.add(C)
    C[0] = 9
    savepoint.rollback()
    assert "C" not in root
    assert root["B"][:].sum() == 1
    transaction.commit()
    assert root["B"][:].sum() == 1


def test_commit_after_savepoints_stores_all(root, A, testdb):
    A[0] = 1
    transaction.savepoint()
    A[BLK] = 2
    transaction.savepoint(optimistic=True)
    transaction.commit()
    transaction.abort()
    assert of(A) == [1, 2, *FIRST[2:]]
    testdb.close(root)
    assert of(testdb.open()["A"]) == [1, 2, *FIRST[2:]]


def test_abort_after_a_savepoint(A):
    A[0] = 1
    transaction.savepoint()
    transaction.abort()
    assert of(A) == FIRST
    transaction.commit()
    assert of(A) == FIRST


def test_savepoints_leave_no_files(A, no_leaks):
    for _ in range(3):
        A[0] += 1
        savepoint = transaction.savepoint()
        A[0] += 1
        savepoint.rollback()
        transaction.commit()
    assert A[0] == 103


def test_a_rollback_that_cannot_load_fails_the_transaction(A):
    A[0] = 1
    savepoint = transaction.savepoint()
    file = A._fileh().file

    def load(oid):
        raise OSError("gone")

    file.records.load = load
    file.mapblk = lambda blk: None
    with pytest.raises(BlockLoadError, match="gone"):
        savepoint.rollback()
    with pytest.raises(TransactionError):
        transaction.commit()
    del file.records.load, file.mapblk
    transaction.abort()
    assert of(A) == FIRST
