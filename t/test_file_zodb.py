"""ZBigArray and ZBigFile: what is saved, what is discarded, what others see."""

import gc
import io
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import storages
import transaction
from BTrees.IOBTree import IOBTree
from BTrees.LOBTree import LOBTree
from persistent import Persistent
from ZODB.POSException import ConflictError, ConnectionStateError, ReadOnlyHistoryError
from ZODB.utils import get_pickle_metadata, load_current
from zodbpickle.pickle import Unpickler

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, DoomedError, ram_reclaim
from wendelin.bigfile.file_zodb import ZBigFile, ZBlk0, ZBlk1
from wendelin.lib.zodb import dbclose, dbopen

DATA = Path(__file__).parent / "data"
BLK = 4096  # block size of most arrays here


@pytest.fixture
def root(testdb):
    return testdb.open()


@pytest.fixture
def A(root):
    """Return a committed array of 20 blocks of zeros."""
    root["A"] = A = ZBigArray((20 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    return A


class Client:
    """Another Connection of the same database, with its own transactions."""

    def __init__(self, root, **kw):
        self.tm = transaction.TransactionManager()
        self.conn = root._p_jar.db().open(self.tm, **kw)
        self.root = self.conn.root()

    def close(self):
        self.tm.abort()
        self.conn.close()


@pytest.fixture
def other(root, A):
    client = Client(root)
    yield client
    client.close()


def blocks(A):
    """Return {block: bytes} as the database has them, past the code under test."""
    storage = A._p_jar.db().storage
    result = {}
    for blk, zblk in A.zfile.blktab.items():
        unpickler = Unpickler(io.BytesIO(load_current(storage, zblk._p_oid)[0]))
        unpickler.load()
        result[blk] = bytes(unpickler.load())
    return result


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


def test_a_later_process_sees_it(testdb):
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


def test_data_before_the_array_belongs_to_a_connection(root):
    A = ZBigArray((10,), "u1")
    for touch in (lambda: A[:], lambda: A.append([1]), A.read, lambda: np.mean(A)):
        with pytest.raises(ConnectionStateError, match=r"conn\.add\(A\)"):
            touch()
    assert A[0:0].shape == (0,)
    A.resize(20)
    root._p_jar.add(A)
    A[3] = 5
    root["A"] = A
    transaction.commit()
    assert A[:5].tolist() == [0, 0, 0, 5, 0]
    assert A.shape == (20,)


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


class Voter:
    """A data manager that fails in one phase."""

    def __init__(self, phase):
        self.phase = phase

    transaction_manager = transaction.manager

    def sortKey(self):
        return "~" if self.phase != "tpc_begin" else "\0"

    def at(self, phase):
        if phase == self.phase:
            raise RuntimeError(f"no {phase}")

    def tpc_begin(self, txn):
        self.at("tpc_begin")

    def commit(self, txn):
        self.at("commit")

    def tpc_vote(self, txn):
        self.at("tpc_vote")

    def tpc_finish(self, txn):
        pass

    def tpc_abort(self, txn):
        pass

    def abort(self, txn):
        pass


@pytest.mark.parametrize("phase", ["tpc_begin", "commit", "tpc_vote"])
def test_a_commit_that_fails_leaves_nothing_behind(root, A, phase):
    a = A[:]
    a[0] = 1
    transaction.commit()
    size = os.path.getsize(root._p_jar.db().storage.getName())
    a[:BLK] = 7
    a[5 * BLK] = 7
    A.append([7, 7])
    root["x"] = 1
    transaction.get().join(Voter(phase))
    with pytest.raises(RuntimeError, match=phase):
        transaction.commit()
    transaction.abort()
    assert a.sum() == 1
    assert A.shape == (20 * BLK,)
    assert "x" not in root
    assert os.path.getsize(root._p_jar.db().storage.getName()) == size
    # and the next one works
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


def test_only_what_changed_is_stored(root, A):
    storage = root._p_jar.db().storage
    a = A[:]
    a[:] = 1
    transaction.commit()

    def stored():
        """Return the classes of what the last transaction stored."""
        tid = storage.lastTransaction()
        transactions = storage.iterator(tid, tid)
        last = next(transactions)
        classes = sorted(get_pickle_metadata(record.data)[1] for record in last)
        transactions.close()
        return classes

    a[3 * BLK] = a[7 * BLK] = 2
    transaction.commit()
    assert stored() == ["ZBlk0", "ZBlk0"]
    # equal bytes are not stored again
    tid = storage.lastTransaction()
    a[3 * BLK] = 1
    a[3 * BLK] = 2
    a[7 * BLK] = 3
    transaction.commit()
    assert stored() == ["ZBlk0"]
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


def test_it_is_never_a_ghost_and_keeps_its_pages(root, A):
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
    root["A"] = A = ZBigArray((4 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    A[:] = 1
    transaction.commit()
    ram_reclaim()
    a = A[:]
    assert a[0] == 1
    dbclose(root)
    assert a[0] == 1  # in memory
    if align:
        assert np.sum(a) == len(a)  # its file is open, and where its blocks are, is known
    else:
        with pytest.raises(BlockLoadError):
            np.sum(a)
    with pytest.raises(DoomedError, match="closed"):
        a[0] = 2
        for _ in range(1000):
            pass
    del a, A


def test_deleting_an_array_frees_its_handle(root, no_leaks):
    for i in range(20):
        root["A"] = A = ZBigArray((10,), "u1")
        transaction.commit()
        A[:] = i
        transaction.commit()
        del A, root["A"]
        transaction.commit()
        root._p_jar.cacheMinimize()
        gc.collect()


# ---- several Connections ----


def test_others_see_it_at_their_next_transaction(root, A, other):
    a, b = A[:], other.root["A"][:]
    assert b.sum() == 0
    a[3 * BLK] = 1  # a hole becomes a block
    transaction.commit()
    assert b.sum() == 0
    other.tm.begin()
    assert b.sum() == 1
    a[3 * BLK] = 2  # a block changes
    a[4 * BLK] = 2
    transaction.commit()
    other.tm.begin()
    assert b.sum() == 4
    A.resize(4 * BLK)  # a block becomes a hole
    transaction.commit()
    other.tm.begin()
    assert b.sum() == 2
    assert other.root["A"].shape == (4 * BLK,)


def test_pages_that_did_not_change_stay(root, A, other):
    A[:] = 1
    transaction.commit()
    other.tm.begin()
    B = other.root["A"]
    b = B[:]
    assert b.sum() == 20 * BLK
    handle = B._fileh()
    dropped = []
    drop = handle.invalidate_page
    handle.invalidate_page = lambda blk: (dropped.append(blk), drop(blk))
    A.append(np.full(BLK, 2, "u1"))
    A[7 * BLK] = 5
    transaction.commit()
    other.tm.begin()
    assert B[:].sum() == 22 * BLK + 4
    assert 7 in dropped
    assert {7, 20}.issuperset(dropped)  # 20 may have been known as a hole


def test_conflicts(root, A, other):
    a, b = A[:], other.root["A"][:]
    a[0] = 1
    b[0] = 2
    b[9 * BLK] = 2
    transaction.commit()
    with pytest.raises(ConflictError):
        other.tm.commit()
    other.tm.abort()
    assert b[0] == 1
    assert b.sum() == 1
    for attempt in other.tm.attempts(3):
        with attempt:
            b[0] += 5
            if b[0] == 6 and a[1] == 0:
                a[0] = a[1] = 2
                transaction.commit()
    transaction.begin()
    assert a[:2].tolist() == [7, 2]


@pytest.mark.parametrize("change", [False, True])
def test_what_was_zeros_past_the_end_is_asked_for_after_the_commit(root, A, other, change):
    A.resize((30 * BLK,))
    a = A[:]
    assert a[25 * BLK] == 0
    if change:  # dirty, and nothing to store
        a[25 * BLK] = 0
    transaction.commit()
    assert a[25 * BLK] == 0
    other.tm.begin()
    other.root["A"][25 * BLK] = 1
    other.tm.commit()
    transaction.begin()
    assert a[25 * BLK] == 1


def test_a_block_that_was_stored_here_and_goes_away_there(root, A, other):
    A.append(np.ones(BLK, "u1"))  # nothing was ever looked up
    a = A[20 * BLK :]
    transaction.commit()
    other.tm.begin()
    other.root["A"].resize((0,))
    other.root["A"].resize((21 * BLK,))
    other.tm.commit()
    transaction.begin()
    assert a.sum() == 0


def test_many_blocks_and_a_table_that_splits(root, other):
    root["B"] = B = ZBigArray((3000 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    other.tm.begin()
    view = other.root["B"][:]
    b = B[:]
    rng = np.random.default_rng(3)
    model = np.zeros(3000, "u1")
    for _ in range(6):
        for blk in rng.integers(0, 3000, 200).tolist():
            model[blk] = b[blk * BLK] = rng.integers(1, 255)
        transaction.commit()
        other.tm.begin()
        assert (view[::BLK] == model).all()
        other.conn.cacheMinimize()


def test_a_past_state_is_readable_and_not_writable(root, A):
    A[0] = 1
    transaction.commit()
    at = root._p_jar.db().lastTransaction()
    A[0] = 2
    A[5 * BLK] = 2
    transaction.commit()
    old = Client(root, at=at)
    a = old.root["A"][:]
    assert a.sum() == 1
    a[0] = 3
    with pytest.raises(ReadOnlyHistoryError):
        old.tm.commit()
    old.tm.abort()
    assert a.sum() == 1
    old.close()


# ---- what is on disk ----


def test_records_are_as_the_existing_system_has_them(root, A):
    A[BLK] = 1
    transaction.commit()
    storage = root._p_jar.db().storage

    def record(obj):
        return get_pickle_metadata(load_current(storage, obj._p_oid)[0])

    assert record(A) == ("wendelin.bigarray.array_zodb", "ZBigArray")
    assert record(A.zfile) == ("wendelin.bigfile.file_zodb", "ZBigFile")
    assert record(A.zfile.blktab) == ("BTrees.LOBTree", "LOBTree")
    assert record(A.zfile.blktab[1]) == ("wendelin.bigfile.file_zodb", "ZBlk0")
    attributes, slots = A.__getstate__()
    assert attributes == {
        "_dtype": np.dtype("u1"),
        "_shape": (20 * BLK,),
        "_order": "C",
        "_stridev": (1,),
    }
    assert slots == {"zfile": A.zfile}
    assert A.zfile.__getstate__() == (BLK, A.zfile.blktab)
    assert type(A.zfile.blktab) is LOBTree


@pytest.mark.parametrize(
    "name", ["py37-0.13-1", "py310-2.0a4-1", "3.0-ZBlk0", "3.0-ZBlk1", "3.0-auto"]
)
@pytest.mark.parametrize("fmt", ["ZBlk0", "ZBlk1", "auto"])
def test_databases_are_read_and_changed(name, fmt, tmp_path, monkeypatch):
    monkeypatch.setenv("WENDELIN_CORE_ZBLK_FMT", fmt)
    path = shutil.copy(DATA / f"{name}.fs", tmp_path)
    root = dbopen(path)
    with np.load(DATA / f"{name}.npz") as expected:
        for n in expected.files:
            a = root[n][:]
            assert a.dtype == expected[n].dtype
            assert a.tobytes("A") == expected[n].tobytes("A")
            assert np.array_equal(a, expected[n])
            # and can be changed
            flat = a.reshape(-1, order=root[n]._order)
            flat[0] = flat[-1]
    transaction.commit()
    dbclose(root)
    root = dbopen(path)
    with np.load(DATA / f"{name}.npz") as expected:
        for n in expected.files:
            e = expected[n].reshape(-1, order=root[n]._order).copy()
            e[0] = e[-1]
            assert root[n][:].tobytes("A") == e.tobytes()
    dbclose(root)


def chunks(A):
    """Return {block: {offset: bytes}} of an array in ZBlk1."""
    for zblk in A.zfile.blktab.values():
        assert type(zblk) is ZBlk1
        assert type(zblk.chunktab) is IOBTree
    return {
        blk: {start: bytes(chunk.__getstate__()) for start, chunk in zblk.chunktab.items()}
        for blk, zblk in A.zfile.blktab.items()
    }


@pytest.mark.parametrize("name", ["py37-0.13-1", "py310-2.0a4-1"])
def test_chunks_are_as_the_existing_system_has_them(name, tmp_path):
    root = dbopen(shutil.copy(DATA / f"{name}.fs", tmp_path))
    theirs = [n for n in root if n.endswith("_ZBlk1")]
    assert len(theirs) == 5
    for n in theirs:
        A = root[n]
        root["B"] = B = ZBigArray(A.shape, A.dtype, A._order, A.zfile.blksize, zblk_fmt="ZBlk1")
        transaction.commit()
        B[:] = A[:]
        transaction.commit()
        assert chunks(B) == chunks(A)
    dbclose(root)


@pytest.mark.parametrize("name", ["py2_pickle1", "py2_pickle2", "py2_pickle3", "py3_pickle3"])
@pytest.mark.parametrize("align", [True, False])
def test_early_databases_are_read(name, align, tmp_path):
    path = shutil.copy(DATA / f"zblk-{name}.fs", tmp_path)
    before = Path(path).read_bytes()
    blksize = 2 << 20
    block1, block3 = np.zeros(blksize, "u1"), np.zeros(blksize, "u1")
    block1[: 16 << 10] = np.arange(4 << 10, dtype=">u4").view("u1")
    block3[: 128 << 10] = np.arange(32 << 10, dtype=">u4").view("u1")
    block3[-128 << 10 :] = block3[: 128 << 10][::-1]

    root = dbopen(f"file://{path}?read_only=1&align={align}")
    fileh = root["zbigf"].fileh_open()
    view = np.asarray(fileh.mmap(0, 6)).reshape(6, blksize)
    for blk, expected in {0: 0, 1: block1, 2: 0, 3: block3, 5: 0}.items():
        assert np.array_equal(view[blk], np.broadcast_to(expected, blksize)), blk
    dbclose(root)
    assert Path(path).read_bytes() == before

    # to see what refers to what ZODB would unpickle blocks, and fail at those of Python 2
    root = dbopen(f"file://{path}?align={align}&pack_gc=0")
    view = np.asarray(root["zbigf"].fileh_open().mmap(0, 6)).reshape(6, blksize)
    view[3, 7] = view[1, 7] = view[0, 7] = 1
    transaction.commit()
    block3[7] = block1[7] = 1
    storage = root._p_jar.db().storage
    assert len(list(storage.iterator())) >= 2
    root._p_jar.db().pack()
    root._p_jar.sync()
    assert np.array_equal(view[1], block1)
    assert np.array_equal(view[3], block3)
    dbclose(root)


def test_a_format_that_is_not_there_is_refused_by_name(root, A, monkeypatch):
    monkeypatch.setenv("WENDELIN_CORE_ZBLK_FMT", "ZBlk9")
    A[0] = 1
    with pytest.raises(ValueError, match=r"'ZBlk9'.*ZBlk0"):
        transaction.commit()
    transaction.abort()
    assert A[0] == 0


def test_a_foreign_object_in_the_block_table_is_refused_by_name(root, A):
    from persistent.mapping import PersistentMapping

    A.zfile.blktab[3] = PersistentMapping()
    transaction.commit()
    A._fileh().invalidate_page(3)
    A._fileh().zfile.table.drop()
    with pytest.raises(BlockLoadError, match=r"PersistentMapping.*no block format") as e:
        A.read()
    assert e.value.blk == 3


class Foreign(Persistent):
    """Not a block, though its state is bytes, as many as a block has."""

    __module__ = "t_foreign"

    def __getstate__(self):
        return b"x" * BLK


def test_a_foreign_object_of_bytes_is_not_mapped(root, A, monkeypatch):
    monkeypatch.setitem(sys.modules, "t_foreign", sys.modules[__name__])
    A.zfile.blktab[3] = Foreign()
    transaction.commit()
    A._fileh().invalidate_page(3)
    A._fileh().zfile.table.drop()
    with pytest.raises(BlockLoadError, match=r"Foreign.*no block format"):
        A.read()


def test_a_block_that_is_too_long_is_refused(root, A):
    class Page:
        takes_records = False

        def page_buffer(self, blk):
            return memoryview(b"1" * (BLK + 1))

    A.zfile.blktab[0] = zblk = ZBlk0()
    root._p_jar.add(zblk)
    zblk.store_from(Page(), 0, None)
    transaction.commit()
    with pytest.raises(BlockLoadError, match=f"{BLK + 1} bytes, more than the block size"):
        A.read()


def test_a_missing_record(root, A):
    A[0] = 1
    transaction.commit()
    A._fileh().file.made_of.clear()
    A._fileh().invalidate_page(0)
    record = A._fileh().file.load

    def load(oid):
        if oid == A.zfile.blktab[0]._p_oid:
            from ZODB.POSException import POSKeyError

            raise POSKeyError(oid)
        return record(oid)

    A._fileh().file.load = load
    A._fileh().file.mapblk = lambda blk: None
    with pytest.raises(BlockLoadError, match="POSKeyError"):
        np.sum(A[:])
    with pytest.raises(DoomedError, match="block 0"):
        transaction.commit()
    transaction.abort()
    del A._fileh().file.load
    assert A[:].sum() == 1


def test_blksize_is_checked():
    for bad in (0, -4096, 1000):
        with pytest.raises(ValueError, match=str(bad)):
            ZBigArray((3,), "u1", blksize=bad)
    with pytest.raises(TypeError, match="str"):
        ZBigFile("x")


def test_a_commit_after_a_savepoint_stores_the_bytes(root, A):
    """The Connection writes into a temporary storage then, which takes pickles only."""
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


def test_a_block_that_does_not_come_to_its_storage_stops_the_commit(root, A):
    A[:] = 7
    handle = A._fileh()
    handle.watch.store = None
    store = type(root._p_jar._normal_storage).store
    instance = root._p_jar._normal_storage
    instance.store = lambda *args: store(instance, *args)  # somebody else's idea
    with pytest.raises(RuntimeError, match="did not come to the storage"):
        transaction.commit()
    transaction.abort()
    assert not A[:].any()


# ---- other threads touch pages while changes of others are sorted out ----


class Touching(bytes):
    """An oid that runs something when it is looked for in a set: as other threads might then."""

    run = staticmethod(lambda: None)

    def __hash__(self):
        Touching.run()
        return super().__hash__()


@pytest.fixture
def long(root):
    """Return a committed array of 2200 blocks of ones, but for one hole."""
    root["L"] = A = ZBigArray((2200 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    a = A[:]
    a[:] = 1
    a[2000 * BLK : 2001 * BLK] = 0
    transaction.commit()
    return A


@pytest.mark.parametrize("where", ["pages", "table"])
def test_a_touch_while_the_changed_pages_are_looked_for(long, other, where, monkeypatch):
    transaction.begin()
    a = long[:]
    file = long._fileh().zfile
    file.follow(None, set(), long._fileh())
    a[0]
    if where == "pages":
        file.made_of[0] = Touching(file.made_of[0])
    else:
        file.table._nodes = {Touching(oid): node for oid, node in file.table._nodes.items()}
    b = other.root["L"][:]
    b[0] = b[3 * BLK] = 5
    other.tm.commit()
    monkeypatch.setattr(Touching, "run", lambda: a[1500 * BLK])
    transaction.begin()
    monkeypatch.undo()
    assert a[0] == a[3 * BLK] == 5
    assert a[1500 * BLK] == 1


@pytest.fixture
def reader(long, other):
    client = Client(other.root)
    yield client
    client.close()


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_a_touch_that_asked_the_table_of_before(long, other, reader):
    """It is answered when changes of others are sorted out already."""
    A = reader.root["L"]
    a, file = A[:], A._fileh().zfile
    a[1990 * BLK]
    known, changed, lookup = file.made_of, file.table.changed, file.lookup
    assert 2000 not in known
    asked, go = threading.Event(), threading.Event()
    threads = []

    def slow_lookup(blk):
        oid = lookup(blk)
        if not asked.is_set():
            asked.set()
            assert go.wait(30)
        return oid

    def touch_before(oids):
        file.lookup = slow_lookup
        threads.append(in_thread(lambda: a[2000 * BLK]))
        assert asked.wait(30)
        return changed(oids)

    other.root["L"][2000 * BLK :][0] = 7
    other.tm.commit()
    file.table.changed = touch_before
    reader.tm.begin()
    go.set()
    threads[0].join()
    assert a[2000 * BLK] == 7


@pytest.mark.skipif(
    storages.kind() is storages.CopiedFileStorageDatabase, reason="blocks of it are not looked at"
)
def test_a_look_ahead_that_asked_the_table_of_before(long, other, reader):
    """What it says is not what pages that were loaded meanwhile are made of."""
    A = reader.root["L"]
    a, file = A[:], A._fileh().zfile
    for blk in 0, 4, 12, 28, 60, 124, 252, 508:
        a[blk * BLK]
    between = file.table.between
    asked, go = threading.Event(), threading.Event()

    def slow_between(root, start, stop):
        found = between(root, start, stop)
        if (start, stop) == (1020, 2044) and not asked.is_set():
            asked.set()
            assert go.wait(30)
        return found

    file.table.between = slow_between
    thread = in_thread(lambda: a[1020 * BLK])
    assert asked.wait(30)
    for value in 7, 8:
        other.root["L"][2000 * BLK :][0] = value
        other.tm.commit()
        reader.tm.begin()
        assert a[2000 * BLK] == value
        go.set()
        thread.join()


def look_ahead(A):
    """Do what a thread does that has loaded one of the first 20 blocks, to which others are near."""
    handle = A._fileh()
    epoch = handle.epoch()
    handle.know(handle.zfile.mapahead(0, 20), epoch)


def test_a_look_ahead_while_a_commit_becomes_clean_pages(root, A):
    """It must not find holes where blocks were stored just now."""
    a, file = A[:], A._fileh().zfile
    assert a[::BLK].sum() == 0
    committed = file.committed

    def slow_committed(handle):
        in_thread(lambda: look_ahead(A)).join()
        return committed(handle)

    a[3 * BLK :] = 7
    file.committed = slow_committed
    transaction.commit()
    del file.committed
    assert (a[3 * BLK :] == 7).all()
    transaction.begin()
    assert (a[3 * BLK :] == 7).all()


def test_a_look_ahead_that_knows_before_we_do(root):
    """What pages in memory are made of is not what it finds, after blocks became holes again."""
    size = 16 * 4096  # so that they are mapped
    root["M"] = M = ZBigArray((20 * size,), "u1", blksize=size)
    transaction.commit()
    a, file = M[:], M._fileh().zfile
    other = Client(root)
    other.root["M"][3 * size :] = 7
    other.tm.commit()
    transaction.begin()
    assert (a[3 * size :] == 7).all()
    db = root._p_jar.db()
    db.undo(db.undoLog(0, 1)[0]["id"], other.tm.get())
    other.tm.commit()
    other.close()
    changed = file.table.changed

    def changed_and_a_look(oids):
        moved = changed(oids)
        in_thread(lambda: look_ahead(M)).join()
        return moved

    file.table.changed = changed_and_a_look
    transaction.begin()
    file.table.changed = changed
    assert not a.any()
