"""Blocks that are mapped from Data.fs, known ahead, and read ahead."""

import os
import shutil
import subprocess
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import transaction
from child import check_child
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, ram_reclaim
from wendelin.bigfile.virtmem import (
    HOLE,
    WRITEOUT_MARKSTORED,
    WRITEOUT_STORE,
    BigFile,
    ram_stat,
)
from wendelin.lib.filestorage import AlignedFileStorage
from wendelin.lib.zodb import dbclose, dbopen

MIB = 1 << 20
BLK = 2 * MIB
N = 24


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "x.fs")


@pytest.fixture
def values():
    return np.random.default_rng(3).random(N * BLK // 8)


def make(path, values, storage=None, **kw):
    """Write an array, and return the opened root."""
    root = DB(storage(path)).open().root() if storage else dbopen(path)
    root["A"] = ZBigArray(values.shape, values.dtype, **kw)
    transaction.commit()
    root["A"][:] = values
    transaction.commit()
    return root


def maps(path):
    """Return how many mappings of a file this process has."""
    return Path("/proc/self/maps").read_text().count(f"{path}\n")


def clean_and_dirty():
    return ram_stat()[1:]


# ---- what is mapped ----


def test_blocks_are_mapped_and_cost_no_memory(path, values):
    dbclose(make(path, values))
    ram_reclaim()
    before = clean_and_dirty()
    root = dbopen(path)
    a = root["A"][:]
    assert np.array_equal(a, values)
    assert maps(path) == N
    assert clean_and_dirty() == before
    dbclose(root)


def test_after_an_ingest_there_is_no_copy_of_what_was_written(path, values):
    ram_reclaim()
    before = clean_and_dirty()
    root = dbopen(path)
    root["A"] = A = ZBigArray((0,), "f8")
    transaction.commit()
    view = None
    for part in np.split(values, 4):
        A.append(part)
        view = A[:]
        assert np.array_equal(view[-len(part) :], part)
        transaction.commit()
        assert clean_and_dirty() == before
    assert np.array_equal(view, values)
    assert clean_and_dirty() == before
    assert maps(path) == N
    dbclose(root)


@pytest.mark.parametrize("dtype", ["i8", "u4", "i2", "f4"])
def test_small_numbers_end_in_zeros_and_are_mapped(path, dtype):
    values = np.arange(2 * BLK // np.dtype(dtype).itemsize).astype(dtype) % 100 + 1
    root = make(path, values)
    a = root["A"][:]
    ram_reclaim()
    assert np.array_equal(a, values)
    assert maps(path) == 2
    dbclose(root)


def test_what_is_cut_short_is_copied(path, values):
    root = make(path, values)
    root["A"][-3 * BLK // 2 // 8 :] = 0
    transaction.commit()
    values[-3 * BLK // 2 // 8 :] = 0
    ram_reclaim()
    before = clean_and_dirty()
    a = root["A"][:]
    assert np.array_equal(a, values)
    assert maps(path) == N - 2  # one is cut, one is empty
    assert clean_and_dirty() == (before[0] + BLK, before[1])
    dbclose(root)


def test_a_write_to_a_mapped_block_changes_memory_and_not_the_file(path, values):
    root = make(path, values)
    a = root["A"][:]
    b = root["A"]._fileh().mmap(0, N)
    b = np.frombuffer(b, "f8")
    before = Path(path).read_bytes()
    _, dirty = clean_and_dirty()
    a[5 * BLK // 8 + 1] = 7
    values[5 * BLK // 8 + 1] = 7
    assert np.array_equal(a, values)
    assert np.array_equal(b, values)
    assert Path(path).read_bytes() == before
    assert clean_and_dirty()[1] == dirty + BLK
    transaction.abort()
    assert a[5 * BLK // 8 + 1] != 7
    a[0] = 8
    transaction.commit()
    assert clean_and_dirty()[1] == dirty
    assert a[0] == b[0] == 8
    dbclose(root)


def test_stock_filestorage_reads_it_and_the_other_way_round(path, values, tmp_path):
    dbclose(make(path, values))
    stock = DB(FileStorage(path))
    A = stock.open().root()["A"]
    assert np.array_equal(A[:], values)
    for blk, zblk in A.zfile.blktab.items():
        zblk._p_activate()
        assert zblk._v_data == values.tobytes()[blk * BLK : (blk + 1) * BLK]
    stock.close()
    old = str(tmp_path / "old.fs")
    make(old, values, FileStorage)._p_jar.db().close()
    root = dbopen(old)
    a = root["A"][:]
    ram_reclaim()
    assert np.array_equal(a, values)
    assert maps(old) == 0  # nothing is aligned: all is copied
    assert ram_stat()[1] >= BLK
    root._p_jar.db().pack()
    transaction.begin()
    ram_reclaim()
    assert np.array_equal(a, values)
    assert maps(old) == N
    dbclose(root)


def test_other_clients_see_their_own_moment(path, values):
    root = make(path, values)
    tm = transaction.TransactionManager()
    other = root._p_jar.db().open(tm).root()
    a, b = root["A"][:], other["A"][:]
    assert np.array_equal(a, b)
    _, dirty = clean_and_dirty()
    a[:: BLK // 8] = -1
    transaction.commit()
    assert np.array_equal(b, values)
    tm.begin()
    assert np.array_equal(a, b)
    assert clean_and_dirty()[1] == dirty
    tm.abort()
    other._p_jar.close()
    dbclose(root)


def test_history(path, values):
    root = make(path, values)
    db = root._p_jar.db()
    at = db.lastTransaction()
    a = root["A"][:]
    a[:] = 0
    transaction.commit()
    old = db.open(at=at, transaction_manager=transaction.TransactionManager())
    b = old.root()["A"][:]
    assert np.array_equal(b, values)
    assert maps(path) == N
    assert not a.any()
    old.close()
    dbclose(root)


def test_undo(path, values):
    root = make(path, values)
    a = root["A"][:]
    a[:] = 0
    transaction.commit()
    assert a.sum() == 0
    root._p_jar.db().undo(root._p_jar.db().undoLog(0, 1)[0]["id"])
    transaction.commit()
    assert np.array_equal(a, values)
    assert maps(path) == N
    dbclose(root)


def test_pack_under_open_views(path, values):
    root = make(path, values)
    a = root["A"][:]
    a[: BLK // 8] = 1
    transaction.commit()
    values[: BLK // 8] = 1
    assert np.array_equal(a, values)
    root._p_jar.db().pack()
    assert np.array_equal(a, values)  # of the old file
    assert maps(path + ".old") == N
    os.unlink(path + ".old")
    assert np.array_equal(a, values)
    transaction.begin()
    assert np.array_equal(a, values)
    assert maps(path) == N
    assert maps(path + ".old (deleted)") == 0
    open_files = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    ]
    assert not any(name.startswith(path + ".old") for name in open_files)
    a[0] = 5
    transaction.commit()
    assert a[0] == 5
    dbclose(root)


@pytest.mark.parametrize("storage", [AlignedFileStorage, FileStorage])
def test_touches_at_the_boundary_after_a_pack_read_the_old_file(path, values, storage):
    """Its descriptor is not closed, and another file's, before the last page has let go of it."""
    make(path, values, storage)._p_jar.db().close()
    root = dbopen(path)
    root["A"][: BLK // 8] = values[: BLK // 8] = 1
    transaction.commit()
    transaction.begin()
    a = root["A"][:]
    a[3 * BLK // 8]
    handle = root["A"]._fileh()
    file = handle.zfile
    old = [weakref.ref(f) for f in file.mapped_from]
    fd = old[0]().fd
    root._p_jar.db().pack()
    others, got = [], []

    def while_dropping():  # any thread may touch a page then
        type(handle).invalidate_loading(handle)
        others.extend(os.open("/dev/zero", os.O_RDONLY) for _ in range(9))
        got.extend(a[i * BLK // 8 + 1] for i in range(6))

    handle.invalidate_loading = while_dropping
    transaction.begin()
    for other in others:
        os.close(other)
    assert fd not in others
    assert got == [values[i * BLK // 8 + 1] for i in range(6)]
    del handle.invalidate_loading
    assert np.array_equal(a, values)
    assert [ref() for ref in old] == [None]  # its number may be the new one's
    dbclose(root)


def test_wherever_reads_go_the_bytes_are_right(path, values):
    """Each view and order: rows, backwards, random, two threads' worth of strides."""
    dbclose(make(path, values))
    rng = np.random.default_rng(5)
    orders = [
        range(N),
        range(N)[::-1],
        rng.permutation(N),
        [*range(0, N, 2), *range(1, N, 2)],
        [0, 5, 6, 7, 8, 9, 10, 3, 4, 5],
    ]
    for order in orders:
        root = dbopen(path)
        a = root["A"][:]
        for blk in order:
            part = slice(blk * BLK // 8, (blk + 1) * BLK // 8)
            assert np.array_equal(a[part], values[part])
        dbclose(root)


def test_a_file_that_is_cut_raises_and_does_not_kill(path, values):
    dbclose(make(path, values))
    check_child(
        """
        import os, sys, transaction, numpy as np
        from wendelin.bigfile import BlockLoadError
        from wendelin.lib.zodb import dbopen
        path, = sys.argv[1:]
        root = dbopen(path)
        a = root["A"][:]
        a[0]
        a[-1]
        size = os.path.getsize(path)
        content = open(path, "rb").read()
        os.truncate(path, size // 2)
        for i in range(2):
            try:
                np.sum(a)
            except BlockLoadError as e:
                print(e)
            else:
                raise AssertionError
        try:
            a[len(a) - 1] = 2
            for i in range(1000): pass
        except Exception as e:
            print(type(e).__name__, e)
        else:
            raise AssertionError
        open(path, "r+b").write(content)
        transaction.abort()
        print(a[-1], a.sum())
        """,
        path,
    )


# ---- without Python ----

C = """
#include <pthread.h>
static pthread_t threads[4];
static const double *data;
static long count;
static double sums[4];
static void *run(void *arg) {
    long i, which = (long)arg;
    for (i = which; i < count; i += 4 * 512)        /* each OS page */
        sums[which] += data[i];
    return 0;
}
double sum(const double *d, long n) {
    long i; double s = 0;
    data = d; count = n;
    for (i = 0; i < 4; i++) pthread_create(&threads[i], 0, run, (void *)i);
    for (i = 0; i < 4; i++) { pthread_join(threads[i], 0); s += sums[i]; }
    return s;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("storage", ["AlignedFileStorage", "FileStorage"])
def test_workers_fault_while_their_caller_holds_the_gil(path, values, tmp_path, storage):
    """As BLAS and OpenMP do: what is known is mapped, or copied, without Python."""
    source = tmp_path / "c.c"
    source.write_text(C)
    library = str(tmp_path / "c.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-lpthread"], check=True)
    make(path, values, {"FileStorage": FileStorage}.get(storage))._p_jar.db().close()
    check_child(
        """
        import ctypes, sys
        from wendelin.lib.zodb import dbopen
        path, library = sys.argv[1:]
        call = ctypes.PyDLL(library).sum        # PyDLL: with the GIL
        call.restype = ctypes.c_double
        call.argtypes = [ctypes.c_void_p, ctypes.c_long]
        a = dbopen(path)["A"][:]
        for blk in 3, 7, 15, 23:                # looks 4, 8, 16, 32 blocks ahead, or around
            a[blk * (2 << 20) // 8]
        got = call(a.ctypes.data, len(a))
        want = sum(a[i::4 * 512].sum() for i in range(4))
        assert abs(got - want) < 1e-6, (got, want)
        """,
        path,
        library,
    )


def test_known_blocks_are_loaded_again_without_asking(path, values):
    make(path, values, FileStorage)._p_jar.db().close()
    root = dbopen(path)
    a = root["A"][:]
    assert np.array_equal(a, values)
    file = root["A"]._fileh().file
    file.mapblk = file.loadblk = None  # calling it is an error
    for _ in range(2):
        assert ram_reclaim() >= N
        assert np.array_equal(a, values)
    dbclose(root)


class Ahead(BigFile):
    """A file that knows all of its blocks ahead."""

    def __init__(self, path, blksize=4096):
        super().__init__(blksize)
        self.fd = os.open(path, os.O_RDONLY)
        self.asked = []
        self.ahead = lambda start, stop: {
            blk: (self.fd, blk * blksize) for blk in range(start, min(stop, 64))
        }

    def __del__(self):
        os.close(self.fd)

    def mapblk(self, blk):
        self.asked.append(blk)
        return (self.fd, blk * self.blksize) if blk < 64 else HOLE

    def mapahead(self, start, stop):
        return self.ahead(start, stop)


@pytest.fixture
def numbered(tmp_path):
    """A file of 64 pages, each filled with its number."""
    path = tmp_path / "numbered"
    path.write_bytes(np.repeat(np.arange(64, dtype="u1"), 4096).tobytes())
    return str(path)


def view_of(file, n=64):
    handle = file.fileh_open()
    return handle, np.frombuffer(handle.mmap(0, n), "u1")


def test_each_look_ahead_is_longer(numbered):
    file = Ahead(numbered)
    _, a = view_of(file)
    assert (a.reshape(64, 4096) == np.arange(64)[:, None]).all()
    assert file.asked == [0, 4, 12, 28, 60]


def test_random_touches_soon_know_everything(numbered):
    file = Ahead(numbered)
    _, a = view_of(file)
    for blk in np.random.default_rng(1).permutation(64):
        assert a[blk * 4096] == blk
    assert len(file.asked) < 16


def test_what_is_invalidated_during_a_look_is_not_believed(numbered, tmp_path):
    file = Ahead(numbered)
    handle, a = view_of(file)
    other = tmp_path / "other"
    other.write_bytes(bytes([99]) * 64 * 4096)
    fd = os.open(other, os.O_RDONLY)

    def ahead(start, stop):
        found = {blk: (file.fd, blk * 4096) for blk in range(start, stop)}
        handle.invalidate_page(2)  # somebody changed it while we were looking
        file.mapblk = lambda blk: (fd, blk * 4096)
        file.ahead = lambda start, stop: {}
        return found

    file.ahead = ahead
    assert a[0] == 0
    assert a[2 * 4096] == 99
    assert a[3 * 4096] == 99
    os.close(fd)


@pytest.mark.parametrize(
    "bad", [{1: (-1, 0)}, {1: (0, 5)}, {1: (0, 0, 4097)}, {"x": HOLE}, 5, {1: None}, {1: (0,)}]
)
def test_a_bad_look_ahead_does_not_harm(numbered, bad):
    file = Ahead(numbered)
    _, a = view_of(file)
    file.ahead = lambda start, stop: bad
    assert (a.reshape(64, 4096) == np.arange(64)[:, None]).all()


@pytest.mark.parametrize("bad", [(-1, 0), (0, 5), (0, 0, 4097), (0,), 5, (0, -4096)])
def test_a_bad_place_is_an_error(numbered, bad):
    file = Ahead(numbered)
    handle, _ = view_of(file)
    file.mapblk = lambda blk: bad
    with pytest.raises(BlockLoadError, match=r"mapblk|unpack|object of type"):
        handle.load(0, 1)


def test_unaligned_and_short_places_are_copied(numbered):
    file = Ahead(numbered)
    _, a = view_of(file, 4)
    file.ahead = lambda start, stop: {
        1: (file.fd, 4096 * 10 - 100, 4096),
        2: (file.fd, 4096 * 20 + 5, 7),
        3: (file.fd, 4096, 0),
    }
    assert a[0] == 0
    assert (a[4096:4196] == 9).all()
    assert (a[4196:8192] == 10).all()
    assert (a[8192:8199] == 20).all()
    assert not a[8199:].any()
    assert file.asked == [0]


def test_a_known_block_that_cannot_be_read(numbered):
    file = Ahead(numbered)
    handle, a = view_of(file, 4)
    file.ahead = lambda start, stop: {1: (file.fd, 64 * 4096 - 10, 4096)}
    assert a[0] == 0
    with pytest.raises(BlockLoadError, match="Input/output error"):
        handle.load(1, 1)
    assert not handle.failed
    with pytest.raises(BlockLoadError, match="disk failed, or the file was cut"):
        a[4096]
        for _ in range(1000):
            pass
    assert len(handle.failed) == 1
    handle.dirty_discard()
    handle.invalidate_page(1)
    assert a[4096] == 1


def test_a_place_that_was_invalidated_and_closed_during_the_load_is_asked_for_again(numbered):
    file = Ahead(numbered)
    handle, a = view_of(file, 4)
    file.ahead = lambda start, stop: {}
    closed = os.open(numbered, os.O_RDONLY)
    os.close(closed)
    places = [(closed, 4096 * 5, 4096), (file.fd, 4096 * 7, 4096)]

    def mapblk(blk):
        if len(places) == 2:
            handle.invalidate_page(blk)
        return places.pop(0)

    file.mapblk = mapblk
    assert a[1] == 7
    assert not handle.failed
    assert not places


class Stored(Ahead):
    """A file that keeps what is stored in another one, and can be cut."""

    def __init__(self, path):
        super().__init__(path)
        self.other = os.open(path + ".stored", os.O_RDWR | os.O_CREAT)
        self.stored = set()

    def __del__(self):
        super().__del__()
        os.close(self.other)

    def storeblk(self, blk, buf):
        os.pwrite(self.other, buf, blk * self.blksize)
        self.stored.add(blk)

    def mapblk(self, blk):
        return (self.other if blk in self.stored else self.fd, blk * self.blksize)

    def truncate(self, blk):
        pass


def test_a_stored_page_is_not_where_it_was(numbered):
    file = Stored(numbered)
    handle, a = view_of(file)
    file.ahead = lambda start, stop: {}
    a[5 * 4096]
    handle.know({6: (file.fd, 6 * 4096 + 1, 4096 - 1)}, handle.epoch())  # copied
    a[5 * 4096 : 7 * 4096] = 99
    handle.dirty_writeout(WRITEOUT_STORE | WRITEOUT_MARKSTORED)
    ram_reclaim()
    assert (a[5 * 4096 : 7 * 4096] == 99).all()


def test_a_write_by_another_view_after_it_was_stored_is_a_change(numbered):
    handle, a = view_of(Stored(numbered))
    b = np.frombuffer(handle.mmap(0, 64), "u1")
    a[0] = 1
    handle.dirty_writeout(WRITEOUT_STORE)
    assert not handle.isdirty()
    assert b[0] == 1  # it is shown, and not to be written without us
    b[0] = 2
    assert handle.isdirty()
    handle.dirty_writeout(WRITEOUT_MARKSTORED)
    assert handle.dirty_blocks() == [0]


def test_what_is_past_the_end_is_not_known_ahead(numbered):
    handle, a = view_of(Stored(numbered))
    handle.truncate(2)
    a[0]  # looks at [0, 4)
    assert not a[2 * 4096 :].any()
    handle.dirty_discard()
    assert a[3 * 4096] == 3


def test_mappings_stay_within_the_kernels_limit(tmp_path):
    """More mapped blocks than a process may have mappings: the oldest are given back."""
    blocks = 70_000
    path = tmp_path / "many"
    with open(path, "wb") as f:
        for i in range(blocks):  # every second page, so that no two mappings are one
            f.seek(i * 8192)
            f.write(i.to_bytes(8, "little"))
        f.truncate(blocks * 8192)
    check_child(
        """
        import os, sys, numpy as np
        from wendelin.bigfile.virtmem import BigFile
        path, blocks = sys.argv[1], int(sys.argv[2])

        class File(BigFile):
            fd = os.open(path, os.O_RDONLY)
            def mapblk(self, blk): return self.fd, blk * 8192
            def mapahead(self, start, stop):
                return {b: (self.fd, b * 8192) for b in range(start, min(stop, blocks))}

        handle = File(4096).fileh_open()
        a = np.frombuffer(handle.mmap(0, blocks), "u8")[::512]
        count = lambda: open("/proc/self/maps").read().count(path)
        limit = int(open("/proc/sys/vm/max_map_count").read()) // 2
        assert (a == np.arange(blocks)).all()
        assert limit // 2 < count() <= limit + 1024, count()
        assert (a[::-1] == np.arange(blocks)[::-1]).all()
        order = np.random.default_rng(1).permutation(blocks)
        assert (a[order] == order).all()
        assert count() <= limit + 1024, count()
        # what was read last is still there, and what was read first is not
        handle2 = File(4096).fileh_open()
        b = np.frombuffer(handle2.mmap(0, blocks), "u8")[::512]
        assert (b == np.arange(blocks)).all()
        """,
        str(path),
        str(blocks),
    )


def test_a_child_has_no_mapping_of_ours(numbered):
    """Whatever was shown, and is, and whatever a storer keeps: it could be changed there."""
    check_child(
        """
        import os, sys, warnings, numpy as np
        from wendelin.bigfile.virtmem import HOLE, BigFile, ram_reclaim
        warnings.simplefilter("ignore")     # of fork() in a process with threads
        path, = sys.argv[1:]

        class File(BigFile):
            fd = os.open(path, os.O_RDONLY)
            def loadblk(self, blk, buf): buf[:] = b"x" * 4096
            def mapblk(self, blk):
                return [None, HOLE, (self.fd, 0), (self.fd, 7, 4096)][blk % 4]

        handle = File(4096).fileh_open()
        a = np.frombuffer(handle.mmap(0, 16), "u1")
        a.sum()
        a[: 8 * 4096 : 4096] = 1            # all kinds of them are written to
        kept = handle.page_buffer(0)
        ram_reclaim()                       # and others are taken away
        a[12 * 4096]
        handle.invalidate_page(14)          # FILE -> NONE
        handle.invalidate_page(13)          # ZERO -> NONE
        def ours():
            lines = open("/proc/self/maps").read().splitlines()
            return [m for m in lines if "memfd:wendelin.core" in m or path in m]
        assert ours()
        if os.fork() == 0:
            os._exit(len(ours()))
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        """,
        numbered,
    )


def test_the_program_itself_uses_up_the_kernels_mappings(numbered):
    """Ours are given back when mmap() says ENOMEM, too."""
    check_child(
        """
        import ctypes, mmap, os, sys, numpy as np
        from wendelin.bigfile.virtmem import BigFile
        path, = sys.argv[1:]

        class File(BigFile):
            fd = os.open(path, os.O_RDONLY)
            def mapblk(self, blk): return self.fd, blk % 64 * 4096

        handle = File(4096).fileh_open()
        blocks = 4096
        a = np.frombuffer(handle.mmap(0, blocks), "u1")[::4096]
        order = np.random.default_rng(1).permutation(blocks)
        assert (a[order] == order % 64).all()

        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        limit = int(open("/proc/sys/vm/max_map_count").read())
        filler = mmap.mmap(-1, limit * 2 * 4096, prot=0, flags=mmap.MAP_PRIVATE)
        at = np.frombuffer(filler, "u1").ctypes.data
        n = 0
        while libc.mprotect(at + n * 8192, 4096, mmap.PROT_READ) == 0:
            n += 1
        assert ctypes.get_errno() == 12 and n > 1000, n
        handle2 = File(4096).fileh_open()
        libc.mprotect(at, 8192 * 16, mmap.PROT_READ)    # room for an area, and its handle
        b = np.frombuffer(handle2.mmap(0, blocks), "u1")[::4096]
        assert (b[order] == order % 64).all()
        assert (a == np.arange(blocks) % 64).all()
        assert not handle.failed and not handle2.failed
        """,
        numbered,
    )


# ---- read ahead ----


def test_read_ahead_threads_end_and_come_again_also_after_a_fork(path, values):
    dbclose(make(path, values))
    check_child(
        """
        import os, sys, time, numpy as np
        from wendelin.lib.zodb import dbopen
        path, = sys.argv[1:]
        threads = lambda: len(os.listdir("/proc/self/task"))
        root = dbopen(f"file://{path}?read_only=true")
        before = threads()
        a = root["A"][:]
        s = a.sum()
        assert threads() > before
        pid = os.fork()
        root2 = dbopen(f"file://{path}?read_only=true")
        assert root2["A"][:].sum() == s
        if pid == 0:
            os._exit(threads() == 1)
        assert os.waitpid(pid, 0)[1] == 0
        deadline = time.monotonic() + 30
        while threads() > before:
            assert time.monotonic() < deadline, threads()
            time.sleep(0.05)
        assert dbopen(f"file://{path}?read_only=true")["A"][:].sum() == s
        """,
        path,
        PYTHONWARNINGS="ignore",
    )


@pytest.mark.parametrize("url", ["{}", "file://{}?align=false"])
def test_sequential_reads_under_little_memory(path, values, url):
    """What is read ahead stays within the limit, and is right."""
    make(path, values, FileStorage)._p_jar.db().close()
    check_child(
        """
        import sys, numpy as np
        from wendelin.bigfile.virtmem import ram_stat
        from wendelin.lib.zodb import dbopen
        values = np.random.default_rng(3).random(int(sys.argv[2]))
        a = dbopen(sys.argv[1])["A"][:]
        for i in range(3):
            assert np.array_equal(a, values)
            limit, clean, dirty = ram_stat()
            assert clean + dirty <= limit
        """,
        url.format(path),
        str(len(values)),
        WENDELIN_CORE_RAM="16M",
    )


def test_blocks_of_other_storages_are_read_ahead_in_threads(path, values):
    make(path, values, FileStorage)._p_jar.db().close()
    root = dbopen(f"file://{path}?align=false")
    file = root["A"]._fileh().file
    threads = set()
    load = file.load
    file.load = lambda oid: (threads.add(threading.current_thread().name), load(oid))[1]
    assert np.array_equal(root["A"][:], values)
    assert any("prefetch" in name for name in threads)
    assert len(root._p_jar._cache.lru_items()) < N  # no block is in the Connection's cache
    dbclose(root)


def test_readers_in_threads_of_their_own(path, values):
    from concurrent.futures import ThreadPoolExecutor

    make(path, values, FileStorage)._p_jar.db().close()
    for storage in AlignedFileStorage, FileStorage:
        root = DB(storage(path)).open().root()
        a = root["A"][:]
        parts = np.split(np.arange(len(values)), 6)
        with ThreadPoolExecutor(6) as pool:
            got = list(pool.map(lambda p, a=a: a[p[0] : p[-1] + 1].sum(), parts))
        assert np.allclose(got, [values[p].sum() for p in parts])
        root._p_jar.db().close()
