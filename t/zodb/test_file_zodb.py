"""ZBigArray and ZBigFile: what is saved, what is discarded, what others see."""

import gc
import io
import threading

import numpy as np
import pytest
import transaction
from support.clients import Manager, newest, stored, zeros
from ZODB.POSException import ConnectionStateError
from ZODB.utils import load_current
from zodbpickle.pickle import Unpickler

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, DoomedError, ram_reclaim
from wendelin.bigfile.file_zodb import ZBigFile, ZBlk1
from wendelin.lib.zodb import dbclose, dbopen

BLK = 4096  # block size of most arrays here [bytes]


@pytest.fixture
def A(root):
    return zeros(root)


def blocks(A):
    """Return {block: bytes} of the database, read without the code under test."""
    storage = newest(A._p_jar.db().storage)

    def state(obj):
        unpickler = Unpickler(io.BytesIO(load_current(storage, obj._p_oid)[0]))
        unpickler.load()
        return bytes(unpickler.load())

    result = {}
    for blk, zblk in A.zfile.blktab.items():
        if isinstance(zblk, ZBlk1):  # its only chunk is as large as the block
            result[blk] = b"".join(state(chunk) for chunk in zblk.chunktab.values())
        else:
            result[blk] = state(zblk)
    return result


@pytest.fixture
def A0(root):
    return zeros(root, "ZBlk0")


# ---- one Connection ----


def test_commit_saves_and_abort_discards_in_all_views(root, A):
    a, b = A[:], A[5 * BLK :]
    a[6 * BLK] = 1
    assert b[BLK] == 1
    transaction.abort()
    assert a[6 * BLK] == b[BLK] == 0
    b[BLK] = 2
    transaction.commit()
    assert a[6 * BLK] == 2
    ram_reclaim()
    assert a[6 * BLK] == b[BLK] == 2
    assert a.sum() == 2
    assert blocks(A) == {6: b"\2"}


def test_an_array_is_read_after_the_database_is_opened_again(testdb):
    root = testdb.open()
    root["A"] = A = ZBigArray((3, 1000), ">f8", "F")
    transaction.commit()
    A[:] = np.arange(3000).reshape(3, 1000)
    transaction.commit()
    A.append(np.ones((3, 5)))
    transaction.commit()
    testdb.close(root)
    A = testdb.open()["A"]
    assert A.shape == (3, 1005)
    assert A.dtype == np.dtype(">f8")
    assert A.strides == (8, 24)
    assert (A[:, :1000] == np.arange(3000).reshape(3, 1000)).all()
    assert (A[:, 1000:] == 1).all()


def test_the_creation_of_an_array_is_aborted(root):
    root["A"] = A = ZBigArray((10,), "u1")
    root._p_jar.add(A)
    a = A[:]
    a[3] = 5
    transaction.abort()
    assert "A" not in root
    assert a.tolist() == [0] * 10
    with pytest.raises(ConnectionStateError):
        A[:]
    root["A"] = A
    transaction.commit()
    assert A[:].tolist() == [0] * 10
    A[1] = 1
    transaction.commit()
    assert A[:2].tolist() == [0, 1]


@pytest.mark.parametrize("phase", ["tpc_begin", "commit", "tpc_vote"])
@pytest.mark.parametrize("key", ["", "~"])
def test_a_commit_that_fails_leaves_nothing_behind(root, A, phase, key):
    """Another manager fails, before ours or after it."""
    a = A[:]
    a[0] = 1
    transaction.commit()
    storage = root._p_jar.db().storage
    size = storage.getSize()
    a[:BLK] = 7
    a[5 * BLK] = 7
    A.append([7, 7])
    root["x"] = 1

    def fail():
        raise RuntimeError(f"no {phase}")

    transaction.get().join(Manager(phase, fail, key))
    with pytest.raises(RuntimeError, match=phase):
        transaction.commit()
    transaction.abort()
    assert a.sum() == 1
    assert A.shape == (20 * BLK,)
    assert "x" not in root
    if not hasattr(storage, "poll_invalidations"):  # RelStorage's has what PostgreSQL frees later
        assert storage.getSize() == size
    # and the next commit works
    a[5 * BLK] = 8
    transaction.commit()
    ram_reclaim()
    assert a.sum() == 9
    assert blocks(A) == {0: b"\1", 5: b"\x08"}


def test_abort_brings_back_what_resize_and_append_did(root, A):
    a = A[:]
    a[:] = 1
    transaction.commit()
    A.resize(BLK + 10)
    assert a.sum() == BLK + 10
    A.append(np.full(5 * BLK, 3, "u1"))
    transaction.abort()
    assert A.shape == (20 * BLK,)
    assert a.sum() == A[:].sum() == 20 * BLK


def test_shrink_and_grow(root, A):
    a = A[:]
    a[:] = 1
    transaction.commit()
    A.resize(BLK + 10)
    A.resize(20 * BLK)
    assert A[:].sum() == BLK + 10
    transaction.commit()
    ram_reclaim()
    assert A[:].sum() == a.sum() == BLK + 10
    assert set(blocks(A)) == {0, 1}
    a[10 * BLK] = 1
    transaction.commit()
    ram_reclaim()
    assert A[:].sum() == BLK + 11


def test_only_what_changed_is_stored(root, A0):
    A = A0
    storage = root._p_jar.db().storage
    a = A[:]
    a[:] = 1
    transaction.commit()

    a[3 * BLK] = a[7 * BLK] = 2
    transaction.commit()
    assert stored(storage) == ["ZBlk0", "ZBlk0"]
    # equal bytes are not stored again
    tid = storage.lastTransaction()
    a[3 * BLK] = 1
    a[3 * BLK] = 2
    a[7 * BLK] = 3
    transaction.commit()
    assert stored(storage) == ["ZBlk0"]
    # holes stay holes
    A.resize(40 * BLK)
    A[30 * BLK :] = 0
    transaction.commit()
    assert set(blocks(A)) == set(range(20))
    assert storage.lastTransaction() > tid
    # nothing changed: nothing is stored
    tid = storage.lastTransaction()
    transaction.commit()
    assert storage.lastTransaction() == tid


def test_trailing_zeros_are_cut(root, A):
    A[: 3 * BLK] = 5
    A[BLK + 100 : 2 * BLK] = 0
    A[2 * BLK : 3 * BLK - 1] = 0
    transaction.commit()
    assert {blk: len(data) for blk, data in blocks(A).items()} == {0: BLK, 1: 100, 2: BLK}
    A[BLK : 2 * BLK] = 0
    transaction.commit()
    assert blocks(A)[1] == b""
    ram_reclaim()
    assert A[:].sum() == 5 * BLK + 5


def test_an_array_is_never_a_ghost_and_keeps_its_pages(root, A):
    a = A[:]
    a[0] = 1
    root._p_jar.cacheMinimize()
    assert A._p_changed is False
    transaction.commit()
    root._p_jar.cacheMinimize()
    assert a[0] == 1
    A[1] = 2
    root._p_jar.cacheMinimize()
    transaction.commit()
    ram_reclaim()
    assert a[:3].tolist() == [1, 2, 0]


def test_a_dropped_view_does_not_drop_changes(root):
    root["A"] = ZBigArray((10,), "u1")
    transaction.commit()
    root["A"][:] = 3
    gc.collect()
    root._p_jar.cacheMinimize()
    transaction.commit()
    ram_reclaim()
    assert root["A"][:].sum() == 30


def test_reads_leave_no_objects_in_the_cache(root, A):
    A[:] = 1
    transaction.commit()
    conn = root._p_jar
    a = A[:]
    conn.cacheMinimize()
    gc.collect()
    ram_reclaim()
    before = len(conn._cache)
    assert a.sum() == 20 * BLK
    assert len(conn._cache) == before


def test_close_refuses_to_lose_changes(testdb):
    root = testdb.open()
    root["A"] = A = ZBigArray((10,), "u1")
    transaction.commit()
    A[0] = 1
    with pytest.raises(ConnectionStateError):
        dbclose(root)
    transaction.abort()


@pytest.mark.parametrize("align", [True, False])
def test_views_outlive_the_connection(tmp_path, align):
    root = dbopen(f"file://{tmp_path}/x.fs?align={align}")
    n = 3  # blocks
    root["A"] = A = ZBigArray((n * BLK,), "u1", blksize=BLK)
    transaction.commit()
    A[:] = 1
    transaction.commit()
    ram_reclaim()
    a = A[:]
    assert a[0] == 1
    dbclose(root)
    assert a[0] == 1  # in memory
    if align:
        assert np.sum(a) == len(a)  # its file is open, and the places of its blocks are known
    else:
        with pytest.raises(BlockLoadError):
            np.sum(a)
    with pytest.raises(DoomedError, match="closed"):
        a[0] = 2
        for _ in range(1000):
            pass
    del a, A


def add_and_delete(root, value):
    root["A"] = A = ZBigArray((10,), "u1")
    transaction.commit()
    A[:] = value
    transaction.commit()
    del A, root["A"]
    transaction.commit()
    root._p_jar.cacheMinimize()
    gc.collect()


@pytest.fixture
def read_root(root):
    """Return a root after a first read, for which the storage opens its file once more (holds)."""
    add_and_delete(root, 1)
    return root


def test_deleting_an_array_frees_its_handle(read_root, no_leaks):
    for i in range(20):
        add_and_delete(read_root, i)


def test_a_missing_record(on_touch, root, A):
    A[0] = 1
    transaction.commit()
    A._fileh().file.made_of.clear()
    A._fileh().invalidate_page(0)
    record = A._fileh().file.records.load

    def load(oid):
        if oid == A.zfile.blktab[0]._p_oid:
            from ZODB.POSException import POSKeyError

            raise POSKeyError(oid)
        return record(oid)

    A._fileh().file.records.load = load
    A._fileh().file.mapblk = lambda blk: None
    with pytest.raises(BlockLoadError, match="POSKeyError"):
        np.sum(A[:])
    with pytest.raises(DoomedError, match="block 0"):
        transaction.commit()
    transaction.abort()
    del A._fileh().file.records.load
    assert A[:].sum() == 1


def test_blksize_is_checked():
    for bad in (0, -4096, 1000):
        with pytest.raises(ValueError, match=str(bad)):
            ZBigArray((3,), "u1", blksize=bad)
    with pytest.raises(TypeError, match="str"):
        ZBigFile("x")


def test_a_commit_after_a_savepoint_stores_the_bytes(root, A0):
    """After a savepoint the Connection writes to a temporary storage, which takes only pickles."""
    A = A0
    root["x"] = 1
    transaction.savepoint()
    A[:] = 7
    root["x"] = 2
    transaction.commit()
    zblk = A.zfile.blktab[3]
    zblk._p_activate()
    assert zblk._v_data == bytes([7]) * BLK
    ram_reclaim()
    assert (A[:] == 7).all()


@pytest.mark.only("fs", "fscopy", "zeo", "neo")
def test_a_block_that_does_not_come_to_its_storage_stops_the_commit(root, A0):
    A = A0
    A[:] = 7
    handle = A._fileh()
    handle.watch.store = None
    store = type(root._p_jar._normal_storage).store
    instance = root._p_jar._normal_storage
    instance.store = lambda *args: store(instance, *args)  # another library's patch
    with pytest.raises(RuntimeError, match="did not come to the storage"):
        transaction.commit()
    transaction.abort()
    assert not A[:].any()


def test_reading_ahead_leaves_ghosts_alone(root, A):
    """A thread of its own reads ahead; there may be no handle any more."""
    A[0] = 1
    transaction.commit()
    zfile, file = A.zfile, A._fileh().file
    for _ in range(3):  # a round drops the array, the next ones its handle, and the file
        root._p_jar.cacheMinimize()
        gc.collect()
    assert zfile._p_changed is None
    file.find(0, 9)
    assert zfile._p_changed is None


def test_a_touch_while_the_file_reads_its_state_anew(root, monkeypatch):
    """Another thread touches a page: it does not need the state of the file."""
    root["A"] = A = ZBigArray((9 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    A[::BLK] = np.arange(9)
    transaction.commit()
    ram_reclaim()
    a, got = A[:], []
    assert a[4 * BLK] == 4
    setstate = ZBigFile.__setstate__

    def touched_meanwhile(self, state):
        thread = threading.Thread(target=lambda: got.append(a[8 * BLK]))
        thread.start()
        thread.join(60)
        setstate(self, state)

    monkeypatch.setattr(ZBigFile, "__setstate__", touched_meanwhile)
    A.zfile._p_invalidate()
    assert got == [8]
    assert a[0] == 0
