"""wendelin.bigarray.dask and joblib: arrays go to workers by reference.

Dask and joblib are an extra: the tox environment `docs` installs them, and runs this module.
"""

import logging
import pickle
import threading
from functools import partial
from pickle import PicklingError

import numpy as np
import pytest
import transaction
from support import storages
from support.child import check_child
from support.clients import Client
from ZEO.Exceptions import ClientDisconnected
from ZODB.Connection import Connection
from ZODB.POSException import ConflictError, ReadOnlyError, ReadOnlyHistoryError

from wendelin.bigarray.array_ram import RAMArray
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.file_zodb import ZBigFileH
from wendelin.lib.storage.shared import zconn_now
from wendelin.lib.zodb import dbclose, dbopen, zstor_2zurl

pytest.importorskip("dask", reason="Dask is not installed: tox -e docs")
pytest.importorskip("distributed", reason="Dask distributed is not installed: tox -e docs")

import dask
import dask.array as da

from wendelin.bigarray import dask as ours
from wendelin.bigarray import workers
from wendelin.bigarray.dask import from_array, to_array

VALUES = np.arange(60 * 1000, dtype="i4").reshape(60, 1000)


@pytest.fixture(params="CF")
def A(root, request):
    """Return an array with VALUES, in blocks of less than a row."""
    order = request.param
    root["A"] = A = ZBigArray(VALUES.shape, "i4", order, blksize=4096)
    transaction.commit()
    A[...] = VALUES
    transaction.commit()
    return A


@pytest.fixture
def B(root, A):
    """Return an array of zeros, of the same shape."""
    root["B"] = B = ZBigArray(A.shape, "f8", A._order, blksize=8192)
    transaction.commit()
    return B


# ---- from_array ----


def test_a_dask_array_shows_the_array_as_it_was(A):
    x = from_array(A, chunks=(17, 300))
    assert (x.shape, x.dtype, x.numblocks) == (A.shape, A.dtype, (4, 4))
    A[...] = 7
    A.resize((70, 1000))
    transaction.commit()
    assert np.array_equal(x.compute(), VALUES)
    for idx in (
        np.s_[5],
        np.s_[::-7, 3:900:5],
        np.s_[59, 999],
        np.s_[3:3],
        np.s_[:, -1],
        np.s_[5:0:-1],
    ):
        assert np.array_equal(x[idx].compute(), VALUES[idx])
    assert x.sum().compute() == VALUES.sum()
    assert from_array(A).sum().compute() == 7 * 60 * 1000
    assert x.compute().flags.writeable


def test_one_moment_has_one_name(A):
    x = from_array(A)
    assert x.name == from_array(A).name
    A[0, 0] = 5
    transaction.commit()
    assert x.name != from_array(A).name


def test_other_chunks_have_another_name(A):
    x, y = from_array(A, chunks=(10, 10)), from_array(A, chunks=(20, 10))
    assert dask.compute(x[:10].sum(), y[:20].sum()) == (VALUES[:10].sum(), VALUES[:20].sum())
    assert x.name == from_array(A, chunks=(10, (10,) * 100)).name


def test_what_is_sent_is_small(A):
    assert len(pickle.dumps(from_array(A, chunks=(60, 1000)))) < 5000


def test_chunks_are_whole_blocks(root):
    for order, shape, blocks in (
        ("C", (5000, 1000), (4, 1000)),
        ("F", (1000, 5000), (1000, 4)),
        ("C", (3, 100_000), (1, 100_000)),
        ("C", (1 << 30,), (1 << 12,)),
        ("C", (), ()),
    ):
        root["X"] = X = ZBigArray(shape, "i8", order, blksize=1 << 15)
        transaction.commit()
        assert ours._blocks(X) == blocks
        with dask.config.set({"array.chunk-size": "1MiB"}):
            x = from_array(X)
        for sizes, n in zip(x.chunks, blocks, strict=True):
            assert all(size % n == 0 for size in sizes[:-1])
        assert max(1, x.nbytes // 3_000_000) <= x.npartitions <= x.nbytes // 500_000 + 3


def test_chunks_are_for_the_memory_of_the_workers(root, monkeypatch):
    root["L"] = L = ZBigArray((1 << 27,), "f8")  # 1 GiB
    transaction.commit()
    mib = 1 << 17  # elements

    def largest():
        return max(from_array(L).chunks[0]) / mib

    assert workers.chunk_limit() > 0
    monkeypatch.setattr(workers, "memory_limit", lambda: 64 << 30)
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 2)
    assert 100 < largest() <= 128  # as Dask prefers
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 200)
    assert 20 <= largest() <= 40
    monkeypatch.setattr(workers, "memory_limit", lambda: 1 << 20)
    assert largest() == 2  # a block
    assert max(from_array(L, chunks="64MiB").chunks[0]) / mib > 32  # as the caller says
    assert from_array(L, chunks=5 * mib).chunks[0][0] == 5 * mib


def test_shapes(root):
    for shape in (), (0,), (3, 0, 5), (1, 1, 1), (2, 3, 4, 5):
        root["X"] = X = ZBigArray(shape, "c8", blksize=4096)
        transaction.commit()
        X[...] = 3j
        transaction.commit()
        assert np.array_equal(from_array(X).compute(), X)


def test_a_chunk_is_read_in_pieces(root, monkeypatch):
    rows = 3 * ours.PIECE // 80_000
    root["L"] = L = ZBigArray((rows, 10_000), "u8")
    transaction.commit()
    L[:, 7] = np.arange(rows)
    transaction.commit()
    read = []
    monkeypatch.setattr(ZBigArray, "read", lambda self, idx: read.append(idx) or self[idx].copy())
    part = from_array(L, chunks=L.shape)[::-3, 5:]
    assert np.array_equal(part.compute()[:, 2], np.arange(rows)[::-3])
    assert len(read) >= 2


def test_what_cannot_be_sent(root, A):
    A[0] = 1
    with pytest.raises(PicklingError, match="commit"):
        from_array(A)
    with pytest.raises(PicklingError, match="commit"):
        to_array(da.zeros(A.shape), A)
    for no_array in RAMArray((3,), "u1"), VALUES:
        with pytest.raises(TypeError, match=type(no_array).__name__):
            from_array(no_array)
        with pytest.raises(TypeError, match=type(no_array).__name__):
            to_array(da.zeros((3,)), no_array)


# ---- to_array ----


@pytest.mark.parametrize("chunks", [(60, 1000), (7, 300), (30, 500)])
def test_what_is_stored_is_there_in_the_next_transaction(B, A, chunks):
    to_array(from_array(A, chunks=chunks) * 1.5, B, batch=50_000)
    transaction.begin()
    assert np.array_equal(B, VALUES * 1.5)


def test_a_transaction_has_a_batch_of_chunks(root, A, B):
    x = from_array(A, chunks=(10, 1000)).astype("f8")
    for batch, number in ((10 * 8000, 6), (20 * 8000, 3), (1 << 30, 1), (1, 6)):
        batches = list(ours.batches(x, B._order, batch))
        assert len(batches) == number
        assert sum(len(places) for places, _ in batches) == 6


def test_to_array_can_wait(A, B):
    later = to_array(from_array(A), B, compute=False)
    transaction.begin()
    assert not B[...].any()
    later.compute()
    transaction.begin()
    assert np.array_equal(B, VALUES)


def test_to_array_refuses_another_shape(B):
    with pytest.raises(ValueError, match=r"\(60, 999\).*\(60, 1000\)"):
        to_array(da.zeros((60, 999)), B)


def test_what_cannot_be_changed(root, A, testdb):
    past = pickle.loads(pickle.dumps(A))
    with pytest.raises(ReadOnlyHistoryError, match="past state"):
        to_array(da.full(A.shape, 7), past)
    with pytest.raises(ValueError, match="own"):
        ours.share(past._p_jar.db())
    transaction.begin()
    assert np.array_equal(A, VALUES)
    client = Client(root, at=A._p_serial)
    with pytest.raises(ReadOnlyHistoryError, match="past state"):
        to_array(da.full(A.shape, 7), client["A"])
    client.close()


def test_a_database_that_is_read_only(tmp_path):
    root = dbopen(tmp_path / "a.fs")
    root["A"] = ZBigArray((5,), "u1")
    transaction.commit()
    dbclose(root)
    root = dbopen(tmp_path / "a.fs", read_only=True)
    with pytest.raises(ReadOnlyError, match="opened read-only"):
        to_array(da.ones(5), root["A"])
    dbclose(root)


@pytest.mark.parametrize("chunks", [(60, 10), (1, 1000), (30, 1000), (60, 1000)])
def test_a_transaction_changes_no_more_than_some_of_the_blocks(B, chunks, monkeypatch):
    changed = []
    commit = ZBigFileH.commit
    monkeypatch.setattr(
        ZBigFileH, "commit", lambda h, txn: changed.append(len(h.dirty_blocks())) or commit(h, txn)
    )
    to_array(da.from_array(VALUES, chunks), B, batch=64 << 10)
    transaction.begin()
    assert np.array_equal(B, VALUES)
    assert max(changed) <= (64 << 10) // 8192 + 1


class Once:
    """A chunk that waits, when it is first taken, until the others are taken, too."""

    def __init__(self, values, barrier):
        self.values, self.barrier = values, barrier

    def __array__(self, dtype=None, copy=None):
        if self.barrier is not None:
            self.barrier.wait(30)
            self.barrier = None
        return np.asarray(self.values, dtype)


def test_a_transaction_with_a_conflict_is_done_again(root, B, caplog):
    caplog.set_level(logging.INFO, "wendelin.bigarray.dask")
    url = ours.share(root._p_jar.db())
    barrier = threading.Barrier(3)
    places = [np.s_[0:1, 0:300], np.s_[0:1, 300:600], np.s_[0:1, 600:1000]]
    if B._order == "F":
        places = [np.s_[0:20, 0:1], np.s_[20:40, 0:1], np.s_[40:60, 0:1]]
    expected = np.zeros(B.shape)
    threads = []
    for i, place in enumerate(places):
        expected[place] = i + 1
        block = Once(np.full(expected[place].shape, i + 1), barrier)
        args = (url, B._p_oid, ours.BATCH, [place], [block])
        threads.append(threading.Thread(target=ours._store, args=args))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    transaction.begin()
    assert np.array_equal(B, expected)
    assert caplog.text.count("again") >= 2


@pytest.mark.parametrize("fmt", ["ZBlk0", "ZBlk1", "auto"])
def test_tasks_that_fill_different_holes_have_no_conflict(root, fmt, caplog, monkeypatch):
    """Else most of them store twice: the table of an array that is filled grows all the time."""
    caplog.set_level(logging.INFO, "wendelin.bigarray.dask")
    monkeypatch.setattr(ours, "RESERVED", 100)
    values = np.random.default_rng(1).integers(0, 255, 256 * 4096 - 7, np.uint8)
    values[5 * 4096 : 9 * 4096] = 0
    root["H"] = H = ZBigArray(values.shape, "u1", blksize=4096, zblk_fmt=fmt)
    transaction.commit()
    with dask.config.set(scheduler="threads", num_workers=4):
        to_array(da.from_array(values, chunks=8 * 4096), H, batch=8 * 4096)
    transaction.begin()
    assert np.array_equal(H, values)
    assert not caplog.records
    assert {type(b).__name__ for b in H.zfile.blktab.values()} == {fmt.replace("auto", "ZBlk0")}
    assert list(H.zfile.blktab) == list(range(256))


def test_a_conflict_that_stays(root, B):
    client = Client(root)

    class Changed:
        """While it is stored, another client changes the same block."""

        def __array__(self, dtype=None, copy=None):
            client.tm.begin()
            client["B"][0, 0] += 1
            client.tm.commit()
            return np.ones((1, 5))

    values = [(np.s_[0:1, 0:5], np.s_[:, :], Changed())]
    with pytest.raises(ConflictError), zconn_now(ours.share(root._p_jar.db())) as conn:
        ours.in_transaction(conn, partial(ours._assign, conn, B._p_oid, values), tries=3)
    client.tm.begin()
    assert client["B"][0, 0] == 3
    assert client["B"][0, 1] == 0
    client.close()


def test_a_transaction_that_cannot_begin_now_begins_again(root, B, monkeypatch):
    begin, fails = Connection.newTransaction, [ClientDisconnected("gone")]

    def flaky(self, transaction, sync=True):
        if sync and self is not root._p_jar and fails:  # this call asks the server
            raise fails.pop()
        return begin(self, transaction, sync)

    monkeypatch.setattr(Connection, "newTransaction", flaky)
    to_array(da.ones(B.shape), B)
    assert not fails
    transaction.begin()
    assert (B[...] == 1).all()


# ---- processes ----

CLUSTER = """
import os, sys
import numpy as np
import transaction
from distributed import Client, LocalCluster
from wendelin.bigarray import ArrayRef
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigarray.dask import from_array, to_array
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.lib.storage import shared
from wendelin.lib.zodb import dbopen, dbclose

MIB = 1 << 20
LIMIT = int(sys.argv[2]) * MIB
N = LIMIT * 5 // 4 // 8

def state():
    with open("/proc/self/status") as status:   # ru_maxrss has that of the parent, too
        peak = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    return os.getpid(), peak, sum(ram_stat()[1:]), len(shared._databases)

def total(A):
    return int(A[:].sum())

def found(A, ref):
    part = ref.deref()
    return type(A).__name__, A.shape, int(A[N - 1]), part.shape, part[::3].tolist()

if __name__ == "__main__":
    root = dbopen(sys.argv[1])
    M = N // 4
    root["A"], root["B"] = A, B = [ZBigArray((n,), "i8") for n in (N, M)]
    transaction.commit()
    for i in range(0, N, 4 * MIB):
        A[i : i + 4 * MIB] = np.arange(i, min(N, i + 4 * MIB))
        transaction.commit()
    assert A.nbytes > LIMIT
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=None
    )
    with cluster, Client(cluster) as client:
        before = client.run(state)
        # a task that has the array as it is, before any chunk was read
        assert client.submit(total, A).result() == N * (N - 1) // 2
        x = from_array(A)
        assert x.chunks[0][0] <= MIB, x.chunks[0][0]     # 8 MiB of a worker of 300
        assert int(x.sum().compute()) == N * (N - 1) // 2
        got = client.submit(found, A, ArrayRef(A[5:12])).result()
        assert got == ("ZBigArray", (N,), N - 1, (7,), [5, 8, 11]), got
        if sys.argv[3] == "write":
            b = B[:]
            to_array((x[:M] + 1).rechunk(777_777), B)
            assert not b.any()
            transaction.begin()
            assert int(b.sum()) == M * (M + 1) // 2
        after = client.run(state)
    # they are the workers they were, and none had the array
    assert [s[0] for s in before.values()] == [s[0] for s in after.values()]
    for _, peak, pages, databases in after.values():
        assert peak < LIMIT, (peak, LIMIT)
        assert pages <= LIMIT // 4, (pages, LIMIT)
        assert databases <= (2 if sys.argv[3] == "write" else 1)
    dbclose(root)
"""


def test_a_sum_of_more_than_the_memory_of_each_worker(testdb):
    served = storages.kind().has_server
    root = testdb.open()
    url = zstor_2zurl(root._p_jar.db().storage)
    if not served:
        testdb.close(root)  # a file has one writer: the program, and not its workers
    # a worker has 170 MiB before it does anything: Dask imports xarray and pandas if they are there
    check_child(CLUSTER, url, "300", "write" if served else "read", timeout=200)


LOCKED = """
import sys, warnings
import dask
import dask.array as da
import transaction
from distributed import Client, LocalCluster
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigarray.dask import to_array
from wendelin.lib.zodb import dbopen, dbclose

if __name__ == "__main__":
    root = dbopen(sys.argv[1])
    root["A"] = A = ZBigArray((1000,), "i8")
    transaction.commit()
    with LocalCluster(n_workers=1, dashboard_address=None) as cluster, Client(cluster):
        try:
            to_array(da.ones(1000, "i8"), A)
        except Exception as e:
            print(type(e).__name__, e, *getattr(e, "__notes__", []))
    dbclose(root)
"""


def test_workers_cannot_write_to_a_file_that_is_open(tmp_path):
    out = check_child(LOCKED, str(tmp_path / "a.fs"), timeout=100)
    assert "LockError" in out
    assert "one process" in out


JOBLIB = """
import sys
import transaction
from support import reftasks
from joblib import Parallel, delayed
from wendelin.bigarray import ArrayRef
from wendelin.lib.zodb import dbopen, dbclose

if __name__ == "__main__":
    root = dbopen(sys.argv[1])
    A = root["A"]
    totals = Parallel(n_jobs=2)(delayed(reftasks.total)(ArrayRef(A[i:])) for i in range(10))
    assert totals == [int(A[i:].sum()) for i in range(10)]
    dbclose(root)
"""


def test_joblib(testdb):
    pytest.importorskip("joblib", reason="joblib is not installed: tox -e docs")
    root = testdb.open()
    root["A"] = A = ZBigArray((1000,), "i8", blksize=4096)
    transaction.commit()
    A[:] = np.arange(1000)
    transaction.commit()
    url = zstor_2zurl(root._p_jar.db().storage)
    if not storages.kind().has_server:
        testdb.close(root)
    check_child(JOBLIB, url, timeout=100)
