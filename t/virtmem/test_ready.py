"""Views that are ready when the caller gets them, and A.load().

A system call reads only pages that are shown: where a page is not shown, os.write() of a view fails
with EFAULT, or is short. The tests check with os.write(), and with the count of faults.
"""

import os
import pickle
import threading

import numpy as np
import pytest
import transaction
from support import storages
from support.child import check_child
from support.ramfile import RAMFile

from wendelin.bigarray import BigArray
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import HOLE, BigFile, BlockLoadError, ram_reclaim
from wendelin.bigfile.virtmem import blocked
from wendelin.bigfile.virtmem.handle import counts
from wendelin.bigfile.virtmem.pins import pinned
from wendelin.bigfile.virtmem.writeout import check_failures

BLK = 65536  # bytes of a block
N = 40  # blocks

# without a limit of time: a busy machine does not get far in the default, 0.1 s
pytestmark = pytest.mark.usefixtures("without_limit")
on_touch_only = os.environ.get("WENDELIN_CORE_READY") == "0"
local = pytest.mark.skipif(
    on_touch_only or storages.kind() is not storages.FileStorageDatabase,
    reason="only what lies in a file is mapped, and nothing where views are shown on touch",
)


def written(a):
    """Return what the kernel reads of a view, in one system call, without our help."""
    with open(os.memfd_create("x"), "w+b", buffering=0) as f:
        n = f.write(memoryview(a).cast("B"))
        assert n == a.nbytes, f"{n} of {a.nbytes} bytes"
        return np.frombuffer(os.pread(f.fileno(), n, 0), a.dtype)


@pytest.fixture
def without_limit(monkeypatch):
    if not on_touch_only:
        monkeypatch.setenv("WENDELIN_CORE_READY", "100")


def faults(A):
    return counts(A._fileh())[0]


@pytest.fixture
def values():
    return np.arange(N * BLK // 8) * 7 % 1009


def opened(testdb, values, zblk_fmt):
    """Return an array with data, of a database that was just opened again."""
    root = testdb.open()
    root["B"] = ZBigArray(values.shape, values.dtype, blksize=BLK, zblk_fmt=zblk_fmt)
    transaction.commit()
    root["B"][:] = values
    transaction.commit()
    testdb.close(root)
    return testdb.open()["B"]


@pytest.fixture
def B(testdb, values):
    """Return an array whose blocks were written in bulk, in the default format."""
    return opened(testdb, values, None)


@local
def test_a_view_is_ready_when_it_is_given_out(B, values):
    assert np.array_equal(written(B[:]), values)
    assert np.array_equal(written(B[BLK:-BLK]), values[BLK:-BLK])
    assert np.array_equal(written(np.asarray(B)), values)
    assert faults(B) == 0


def test_a_view_that_is_not_ready_is_not_written(on_touch, B):
    """This proves that the check can fail."""
    with pytest.raises(OSError, match="Bad address"):
        written(B[:])


@local
def test_holes_are_ready(testdb):
    root = testdb.open()
    root["H"] = H = ZBigArray((32 << 30,), np.uint8)
    transaction.commit()
    H[5 << 30] = 7
    transaction.commit()
    a = H[:]
    part = a[(5 << 30) - (3 << 20) : (5 << 30) + (5 << 20)]
    before = faults(H)
    assert written(part).sum() == 7
    assert faults(H) == before


def test_threads_of_the_pager_are_not_among_those_that_block_sigsegv():
    check_child(
        """
        import sys
        import numpy as np
        from support.ramfile import RAMFile
        from wendelin.bigarray import BigArray
        from wendelin.bigfile.virtmem.blocked import blocked_threads
        A = BigArray((1 << 20,), np.uint8, RAMFile(65536).fileh_open())
        A[:].sum()
        assert blocked_threads() == [], blocked_threads()
        """
    )


def test_a_thread_of_the_pager_that_has_no_name_yet_is_no_reason_to_warn(monkeypatch, caplog):
    looks = [["python"], []]
    monkeypatch.setattr(blocked, "blocked_threads", lambda: looks.pop(0))
    monkeypatch.setattr(blocked, "_next_look", 0.0)
    blocked.warn_of_blocked_threads("A")
    assert not looks
    assert not caplog.records


@local
def test_short_blocks_are_ready(testdb):
    """The last block of most arrays is short: it cannot be mapped, and is copied."""
    root = testdb.open()
    root["S"] = S = ZBigArray((10 * BLK + 100,), np.uint8, blksize=BLK)
    transaction.commit()
    S[:] = 3
    S[5 * BLK + 7 : 6 * BLK] = 0
    transaction.commit()
    testdb.close(root)
    S = testdb.open()["S"]
    a = S[:]
    expected = 3 * S.shape[0] - 3 * (BLK - 7)
    assert written(a).astype(int).sum() == expected
    manager = transaction.TransactionManager()
    conn = S._p_jar.db().open(manager)
    conn.root()["S"][-1] = 4
    manager.commit()
    transaction.begin()
    assert written(a).astype(int).sum() == expected + 1
    ram_reclaim()
    assert written(S[:]).astype(int).sum() == expected + 1
    assert faults(S) == 0
    conn.close()


@local
def test_views_are_ready_after_a_commit_and_an_abort(B, values):
    a = B[:]
    a[::BLK] = -1
    values[::BLK] = -1
    transaction.commit()
    assert np.array_equal(written(a), values)
    before = faults(B)
    a[5 * BLK // 8] = 3
    transaction.abort()
    assert np.array_equal(written(a), values)
    assert faults(B) == before + 1
    a.sum()
    assert faults(B) == before + 1


@local
def test_views_are_ready_after_the_commit_of_another_client(B, values):
    a, rest = B[:], B[10 * BLK // 8 :]
    a.sum()
    manager = transaction.TransactionManager()
    conn = B._p_jar.db().open(manager)
    theirs = conn.root()["B"]
    theirs[3 * BLK // 8] = theirs[30 * BLK // 8] = -5
    manager.commit()
    before = faults(B)
    transaction.begin()
    values[3 * BLK // 8] = values[30 * BLK // 8] = -5
    assert np.array_equal(written(a), values)
    assert np.array_equal(written(rest), values[10 * BLK // 8 :])
    theirs.append(np.arange(BLK))
    manager.commit()
    transaction.begin()
    assert np.array_equal(written(a), values)
    assert faults(B) == before
    conn.close()


@local
@pytest.mark.parametrize("n", [1, 16, N])
def test_some_blocks_in_chunks_are_ready(testdb, values, n):
    """A block with a small change is stored in chunks, and not mapped: 16 such are loaded."""
    B = opened(testdb, values, "auto")
    B[: n * BLK // 8 : BLK // 8] = values[: n * BLK // 8 : BLK // 8] = -5
    transaction.commit()
    testdb.close(B._p_jar.root())
    B = testdb.open()["B"]
    assert np.array_equal(written(B[: min(n, 16) * BLK // 8]), values[: min(n, 16) * BLK // 8])
    if n > 16:
        B.load()
    assert np.array_equal(written(B[:]), values)
    assert faults(B) == 0


@local
def test_a_small_array_is_ready(testdb):
    root = testdb.open()
    root["S"] = S = ZBigArray((100,), "i4")
    transaction.commit()
    S[:] = np.arange(100)
    transaction.commit()
    testdb.close(root)
    S = testdb.open()["S"]
    assert np.array_equal(written(S[:]), np.arange(100))
    assert faults(S) == 0


@local
def test_views_are_ready_after_a_pack(B, values):
    a = B[:]
    B._p_jar.db().pack()
    transaction.begin()
    assert np.array_equal(written(a), values)


@local
def test_a_write_in_one_view_leaves_another_one_ready(B, values):
    a, b = B[:], None
    B._v_vma = None  # so that the next view is of another mapping
    b = B[:]
    a[7] = values[7] = -3
    assert np.array_equal(written(b), values)
    transaction.abort()


def test_what_is_ready_is_of_the_transaction(B, values):
    """After another client's commit, blocks lie elsewhere. Earlier views then show nothing old."""
    a = B[:]
    manager = transaction.TransactionManager()
    conn = B._p_jar.db().open(manager)
    theirs = conn.root()["B"]
    for i in range(20):
        blk = i * 3 % N
        theirs[blk * BLK // 8 : (blk + 1) * BLK // 8] = i
        values[blk * BLK // 8 : (blk + 1) * BLK // 8] = i
        if i % 5 == 4:
            theirs.resize(values.shape[0] - BLK)
            theirs.resize(values.shape[0])
            values[-BLK:] = 0
        manager.commit()
        transaction.begin()
        assert np.array_equal(a, values)
    conn.close()


# ---- load ----


@pytest.fixture(params=["RAM", "ZODB"])
def L(request, values):
    """Return an array whose blocks are copied, or one of the database."""
    if request.param == "ZODB":
        yield request.getfixturevalue("B")
        return
    file = RAMFile(BLK)
    file.blocks = {i: values.view(np.uint8)[i * BLK :][:BLK].tobytes() for i in range(N)}
    yield BigArray(values.shape, values.dtype, file.fileh_open())


def test_load_lasts(L, values):
    with L.load() as a:
        for _ in range(3):
            ram_reclaim()
            assert np.array_equal(written(a), values)
            assert np.array_equal(written(L[BLK:]), values[BLK:])
    a = L[:]
    with L.load(slice(0, BLK)), L.load(slice(BLK // 2, 2 * BLK)) as both:
        ram_reclaim()
        assert np.array_equal(written(both), values[BLK // 2 : 2 * BLK])
        assert np.array_equal(written(a[:BLK]), values[:BLK])


def test_load_ends(values):
    file = RAMFile(BLK)
    A = BigArray(values.shape, values.dtype, file.fileh_open())
    loaded = A.load(slice(0, 10 * BLK // 8))
    A.load(slice(5 * BLK // 8, 15 * BLK // 8))
    assert ram_reclaim() == 0
    loaded.release()
    loaded.release()
    assert not loaded.holds
    assert ram_reclaim() == 5
    A._fileh().dirty_discard()
    assert ram_reclaim() == 10


def test_load_ends_with_the_transaction(B):
    for end in transaction.commit, transaction.abort, transaction.begin:
        loaded = B.load(slice(0, 3))
        assert loaded.holds
        end()
        assert not loaded.holds
        loaded.release()


def test_load_of_one_element_and_of_none(L, values):
    with L.load(3) as x:
        assert x == values[3]
    with L.load(slice(3, 3)) as none:
        assert none.shape == (0,)
    with L.load((slice(None, None, -BLK),)) as back:
        assert np.array_equal(back, values[::-BLK])


def test_load_to_write(L, values):
    data = values[::-1].copy()
    with L.load(write=True) as a:
        with open(os.memfd_create("x"), "w+b", buffering=0) as f:
            f.write(data)
            f.seek(0)
            assert f.readinto(a) == a.nbytes
        assert np.array_equal(a, data)
    assert np.array_equal(L[:], data)
    if isinstance(L, ZBigArray):
        transaction.abort()
        assert np.array_equal(L[:], values)
        with L.load(slice(0, 10), write=True) as a:
            a[:] = -1
        transaction.commit()
        assert np.array_equal(L[:11], [*[-1] * 10, values[10]])


def test_what_is_loaded_to_write_and_not_written_is_not_stored(B):
    conn = B._p_jar
    oids = [block._p_oid for block in B.zfile.blktab.values()]
    before = [conn._storage.load(oid)[1] for oid in oids]
    B.load(write=True)
    transaction.commit()
    assert [conn._storage.load(oid)[1] for oid in oids] == before


@pytest.mark.skipif(on_touch_only, reason="it is not shown before it is touched")
def test_a_view_of_another_mapping_is_ready_after_a_load_and_a_reclaim(B, values):
    """The view is taken after the load, and it is of another mapping."""
    B.load(slice(0, 4 * BLK // 8))
    B._v_vma = None
    a = B[: 4 * BLK // 8]
    ram_reclaim()
    assert np.array_equal(written(a), values[: 4 * BLK // 8])


def test_load_of_what_cannot_be_loaded(values):
    class Broken(RAMFile):
        def loadblk(self, blk, buf):
            if blk == 3:
                raise OSError("a bad disk")
            super().loadblk(blk, buf)

    A = BigArray(values.shape, values.dtype, Broken(BLK).fileh_open())
    with pytest.raises(BlockLoadError, match=r"block 3 .*a bad disk"):
        A.load()
    assert pinned(A._fileh()) == []
    assert ram_reclaim() >= 3
    check_failures(A._fileh())


def test_load_of_a_read_only_array(B):
    past = pickle.loads(pickle.dumps(B))
    with past.load() as a:
        assert len(a)
    with pytest.raises(ValueError, match="read-only"):
        past.load(write=True)


def test_load_of_more_than_page_memory():
    out = check_child(
        """
        import numpy as np
        from support.ramfile import RAMFile
        from wendelin.bigarray import BigArray
        from wendelin.bigfile import PageMemoryError, ram_reclaim
        from wendelin.bigfile.virtmem.pins import pinned
        A = BigArray((256 << 20,), np.uint8, RAMFile(1 << 20).fileh_open())
        for write in False, True:
            try:
                A.load(write=write)
            except PageMemoryError as e:
                print(e)
            assert pinned(A._fileh()) == []
            A._fileh().dirty_discard()
        with A.load(slice(0, 32 << 20)) as a, A.load(slice(0, 32 << 20)):
            assert A[:].sum() == 0  # the others go round in what is left
            ram_reclaim()
        with A.load(slice(64 << 20, 96 << 20)):
            pass
        """,
        WENDELIN_CORE_RAM="64M",
        WENDELIN_CORE_SPOOL="0",
    )
    first, second = out.splitlines()
    assert "268435456 bytes, cannot be kept accessible: 58720256 bytes of page memory" in first
    assert "the limit is 67108864" in first
    assert "WENDELIN_CORE_RAM" in second


def test_load_of_more_than_the_kernels_mappings(tmp_path):
    """Blocks with data and holes alternate. Loaded ones stay; the others take turns."""
    path = tmp_path / "ones"
    path.write_bytes(b"\1" * 4096)

    class Alternating(BigFile):
        def __init__(self, file):
            super().__init__(4096)
            self.file = file

        def mapblk(self, blk):
            return HOLE if blk % 2 else (self.file.fileno(), 0)

        def mapahead(self, start, stop):
            return {blk: self.mapblk(blk) for blk in range(start, min(stop, 60000))}

    with open(path, "rb") as file:
        check_load_of_alternating(BigArray((60000 * 4096,), "u1", Alternating(file).fileh_open()))


def check_load_of_alternating(M):
    with pytest.raises(MemoryError, match=r"mapping of the kernel, which has .*vm.max_map_count"):
        M.load()
    with M.load(slice(0, 4000 * 4096)) as some:
        a = M[:]
        assert a[::4096].sum() == 30000
        assert written(some)[::4096].sum() == 2000


def test_load_in_the_child_of_a_fork():
    check_child(
        """
        import os, numpy as np
        from support.ramfile import RAMFile
        from wendelin.bigarray import BigArray
        from wendelin.bigfile import ForkError, ram_reclaim
        A = BigArray((1 << 20,), np.uint8, RAMFile(65536).fileh_open())
        loaded = A.load()
        pid = os.fork()
        if pid == 0:
            loaded.release()
            try:
                A.load()
            except ForkError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert ram_reclaim() == 0
        loaded.release()
        assert ram_reclaim() == 16
        """
    )


# ---- threads that block SIGSEGV ----


def test_threads_that_block_sigsegv_are_named_once(on_touch, B, caplog, monkeypatch):
    import ctypes
    import signal

    monkeypatch.setattr(blocked, "_next_look", 0.0)
    monkeypatch.setattr(blocked, "_said", set())
    began, end = threading.Event(), threading.Event()

    def work():
        ctypes.CDLL(None).prctl(15, b"deaf one")  # PR_SET_NAME
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        began.set()
        end.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    began.wait(30)
    try:
        for _ in range(2):
            B[:]
            monkeypatch.setattr(blocked, "_next_look", 0.0)
    finally:
        end.set()
        thread.join()
    (message,) = [r.getMessage() for r in caplog.records if "deaf one" in r.getMessage()]
    assert "A.load" in message


# ---- loads and NumPy ----


def test_functions_of_numpy_take_arrays(L, values):
    assert np.mean(L) == np.mean(values)
    assert np.array_equal(np.concatenate([L, L]), np.concatenate([values, values]))
    assert np.array_equal(np.where(np.greater(L, 500), L, 0), np.where(values > 500, values, 0))
    assert np.array_equal(np.percentile(a=L, q=[5, 50]), np.percentile(values, [5, 50]))


def test_page_memory_is_as_before(L):
    """A load that has ended keeps no page in memory."""
    for write in False, True:
        with L.load(write=write):
            pass
    if isinstance(L, ZBigArray):
        transaction.abort()
    else:
        L._fileh().dirty_discard()
    ram_reclaim()
    _, _, _, resident, dirty, *_ = counts(L._fileh())
    assert (resident, dirty) == (0, 0)
