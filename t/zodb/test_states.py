"""What arrays keep and forget: memory, sizes, states of other versions, and kinds of storage."""

import gc
import tracemalloc

import numpy as np
import pytest
import transaction
from support.clients import BLK, FIRST, Client, N, changed, fill, in_database
from ZODB.DB import DB
from ZODB.DemoStorage import DemoStorage
from ZODB.POSException import (
    ConflictError,
    ConnectionStateError,
    ReadOnlyError,
    ReadOnlyHistoryError,
)

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import ram_reclaim
from wendelin.bigfile.file_zodb import ZBigFile, ZData
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen

# ---- memory ----


def test_a_commit_takes_little_memory_besides_the_pages(root, fmt):
    blksize = 3 << 17
    size = 48 * blksize  # some MB are taken whatever the size is
    root["A"] = A = ZBigArray((size,), "u1", blksize=blksize, zblk_fmt=fmt)
    transaction.commit()
    a = A[:]
    for value in (1, 2):  # new blocks, and such as were there
        a[:] = value
        gc.collect()
        tracemalloc.start()
        try:
            transaction.commit()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < size
    assert (in_database(A) == 2).all()


def test_no_ghosts_are_left(root, fmt, testdb):
    fill(root, fmt)
    testdb.close(root)
    A = testdb.open()["A"]

    def objects():
        gc.collect()
        everything = gc.get_objects()
        return len(A._p_jar._cache), sum(isinstance(obj, ZData) for obj in everything)

    a = A[:]
    before = objects()
    assert np.array_equal(a, FIRST)
    assert objects() == before
    for i in range(3):  # a commit needs objects while it runs
        A[i : 3 * BLK] += 1
        transaction.commit()
        after = objects()
        if i == 0:
            known, chunks = after  # nodes of the block table, and ghosts of blocks in it
            assert known <= before[0] + N + 3
            assert chunks <= before[1]
        assert after == (known, chunks)
        assert A._p_jar._cache.cache_non_ghost_count < 8


# ---- arrays ----


@pytest.mark.parametrize("between", ["nothing", "a commit", "a reclaim"])
def test_what_was_past_the_end_does_not_come_back(root, A, testdb, between):
    a = A[:]
    size = BLK + 100
    expected = changed((slice(size, None), 0))
    A.resize(size)
    if between == "a commit":
        transaction.commit()
    if between == "a reclaim":
        ram_reclaim()
    assert np.array_equal(a, expected)
    A.resize(N * BLK)
    assert np.array_equal(A[:], expected)
    transaction.commit()
    ram_reclaim()
    assert np.array_equal(A[:], expected)
    A[-1] = 1
    transaction.commit()
    expected[-1] = 1
    assert np.array_equal(in_database(A), expected)
    testdb.close(root)
    assert np.array_equal(testdb.open()["A"][:], expected)


@pytest.mark.parametrize("less", [[], ["_zblk_fmt"], ["_zblk_fmt", "_order"]])
@pytest.mark.parametrize("more", [False, True])
def test_states_of_other_versions(root, testdb, monkeypatch, less, more):
    """Golden databases are read in test_formats.py."""
    monkeypatch.delenv("WENDELIN_CORE_ZBLK_FMT", raising=False)
    A = fill(root, "ZBlk1")
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
    assert type(A.zfile.blktab[0]).__name__ == ("ZBlk0" if less else "ZBlk1")


def test_before_it_belongs_to_a_connection(root, fmt):
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
    ]
    for touch in touches:
        with pytest.raises(ConnectionStateError, match=r"once the array belongs to a Connection"):
            touch()
    assert A.shape == (N * BLK,)
    with pytest.raises(ConnectionStateError, match="file does not belong to a Connection"):
        ZBigFile(BLK).fileh_open()
    A.resize(2 * BLK)
    root["A"] = A
    transaction.commit()
    assert not A[:].any()
    A[0] = 1
    transaction.commit()
    assert in_database(A).sum() == 1


def test_two_appends_in_parallel(A, other):
    """Each many blocks: both split the one bucket of the table."""
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
def test_two_fill_holes_in_parallel(root, A, other, many):
    """No conflict of the arrays: BTrees resolve it, or raise, and then a retry does."""
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


# ---- storages ----


@pytest.mark.parametrize(
    "url", ["memory://", "demo:(memory://)/(memory://)", "demo:(file://{}/x.fs)/(memory://)"]
)
def test_databases_in_memory(tmp_path, fmt, url):
    root = dbopen(url.format(tmp_path))
    A = fill(root, fmt)
    client = Client(root)
    b = client["A"][:]
    assert np.array_equal(b, FIRST)
    A[0] = A[-1] = 1
    transaction.commit()
    A[BLK] = 9
    transaction.abort()
    ram_reclaim()
    root._p_jar.cacheMinimize()
    assert np.array_equal(A[:], changed((0, 1), (-1, 1)))
    assert np.array_equal(b, FIRST)
    client.tm.begin()
    assert np.array_equal(b, A[:])
    client.close()
    dbclose(root)


def test_a_past_state(root, A):
    at = root._p_jar.db().lastTransaction()
    A[0] = A[-1] = 1
    A.append([7])
    transaction.commit()
    old = Client(root, at=at)
    B = old["A"]
    b = B[:]
    assert np.array_equal(b, FIRST)
    A[BLK] = 2
    transaction.commit()
    old.tm.begin()
    ram_reclaim()
    assert np.array_equal(b, FIRST)
    assert np.array_equal(B[:], FIRST)
    b[0] = 3
    with pytest.raises((ReadOnlyHistoryError, ReadOnlyError)):
        old.tm.commit()
    old.tm.abort()
    assert np.array_equal(b, FIRST)
    with pytest.raises((ReadOnlyHistoryError, ReadOnlyError)):
        B.append([3])
        old.tm.commit()
    old.close()


@pytest.mark.parametrize("demo", [False, True])
def test_a_storage_that_is_only_read(tmp_path, fmt, demo):
    root = dbopen(tmp_path / "x.fs")
    fill(root, fmt)
    dbclose(root)
    storage = dbstoropen(f"file://{tmp_path}/x.fs?read_only=1")
    db = DB(DemoStorage(base=storage) if demo else storage)
    A = db.open().root()["A"]
    a = A[:]
    assert np.array_equal(a, FIRST)
    a[0] = a[-1] = 1
    A.append([2])
    if demo:
        transaction.commit()
        assert np.array_equal(in_database(A), np.append(changed((0, 1), (-1, 1)), [2]))
    else:
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
