"""The mapping of a view that is gone is kept for the next one; a strided reader reads no others."""

import numpy as np
import pytest
from support.child import check_child

from wendelin.bigarray.indexing import page_runs
from wendelin.bigarray.memory import strides_of

SETUP = """
import gc, os
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigarray import BigArray
from wendelin.bigfile import ram_reclaim
from wendelin.bigfile.virtmem.handle import counts, is_shown
from wendelin.bigfile.virtmem.mapping import mappings
BLK = 1 << 16
def array(rows=64, handle=None):
    return BigArray((rows, BLK), "u1", handle or RAMFile(BLK).fileh_open())
def is_mapped(at):
    with open("/proc/self/maps") as f:
        spans = [[int(x, 16) for x in line.split()[0].split("-")] for line in f]
    return any(start <= at < stop for start, stop in spans)
def at(view):
    return view.__array_interface__["data"][0]
"""


def test_the_next_view_of_the_same_pages_has_the_same_mapping():
    check_child(
        SETUP
        + """
A = array()
fileh = A._fileh()
assert not A[:, 3].any()
where, faults = at(A[:, 0]), counts(fileh)[0]
for k in range(50):
    assert at(A[:, k]) == where + k and not A[:, k].any()
assert counts(fileh)[0] == faults           # it still shows what it showed
assert not is_shown(fileh)                  # to nobody
A[5, 7] = 9
assert A[:, 7].sum() == 9
fileh.invalidate_page(5)
assert A[:, 7].sum() == 0
A.resize((65, BLK))                         # other pages: the old mapping goes
assert not A[:, 7].any()
assert not is_mapped(where) or at(A[:]) == where
"""
    )


def test_few_mappings_are_kept_and_they_go_with_their_handles():
    check_child(
        SETUP
        + """
arrays = [array() for _ in range(40)]
for A in arrays:
    A[:]
assert 1 <= mappings() <= 16, mappings()
del A, arrays
gc.collect()
assert mappings() == 0, mappings()
A = array()
a, b = A[:], A[:32]
kept = at(A[:])
assert kept == at(a)
del a, b
B = array(32, A._fileh())
assert not B[:].any()
pid = os.fork()
if pid == 0:
    del A, B
    gc.collect()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert not A[:].any() and not B[:].any()
"""
    )


@pytest.mark.database
@pytest.mark.only("fs")
def test_a_column_reads_no_heads_of_other_blocks(tmp_path):
    check_child(
        """
    import ctypes, mmap, os, sys
    import numpy as np
    import transaction
    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.lib.zodb import dbclose, dbopen
    TILE, N, WIDE = 1 << 17, 24, 16
    path = sys.argv[1]
    root = dbopen(path)
    root["A"] = A = ZBigArray((N, WIDE, TILE), "u1", blksize=TILE)
    transaction.commit()
    A[:] = np.random.default_rng(0).integers(1, 255, (N, WIDE, TILE), "u1")
    transaction.commit()
    dbclose(root)
    def cold():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    def cached():
        "How many of the tiles have a page in the page cache: of the head and the first bytes."
        libc = ctypes.CDLL(None, use_errno=True)
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            m = np.memmap(path, "u1", "r")
            pages = np.zeros(-(-size // mmap.PAGESIZE), "u1")
            assert libc.mincore(ctypes.c_void_p(m.ctypes.data), ctypes.c_size_t(size),
                                pages.ctypes.data_as(ctypes.c_void_p)) == 0
        step = len(pages) / (N * WIDE)
        return sum(bool((pages[int(i * step) : int((i + 1) * step)] & 1).any())
                   for i in range(N * WIDE))
    cold()
    if cached() > 8:
        print("the page cache of this file system cannot be dropped")
        sys.exit()
    root = dbopen(path)
    A = root["A"]
    A.shape
    cold()
    before = cached()
    column = A[:, 5]
    assert cached() - before <= 5 * N, (cached() - before, N * WIDE)
    assert all(column[i, 0] for i in range(N))  # around these, the kernel reads as it is set to
    del column
    dbclose(root)
    # nor does a copy, whose blocks are whole, read others
    for idx in ((slice(None), 5), (slice(None), 5, 7), (slice(None, None, 3),)):
        root = dbopen(path)
        A = root["A"]
        A.shape
        cold()
        before = cached()
        copy = A.read(idx)
        wanted = N * WIDE // 3 if len(idx) == 1 else N
        assert cached() - before <= 3 * N + wanted, (idx, cached() - before, N * WIDE)
        assert np.array_equal(copy, A[:][idx])
        dbclose(root)
    """,
        str(tmp_path / "x.fs"),
    )


def test_page_runs_have_the_pages_of_rows_and_none_between():
    rng = np.random.default_rng(5)
    for _ in range(300):
        blksize, itemsize = int(rng.choice([16, 64, 256])), int(rng.choice([1, 2, 8]))
        shape = tuple(int(n) for n in rng.integers(1, 9, rng.integers(0, 4)))
        order = str(rng.choice(["C", "F"]))
        strides = strides_of(shape, itemsize, order)
        rows = []
        for n in shape:
            lo = int(rng.integers(0, n + 1))
            rows.append((lo, int(rng.integers(lo, n + 1))))
        offsets = np.zeros((1,), int)
        for (lo, hi), stride in zip(rows, strides, strict=True):
            offsets = (offsets[:, None] + np.arange(lo, hi) * stride).ravel()
        wanted = {int(at + i) // blksize for at in offsets for i in (0, itemsize - 1)}
        runs = page_runs(rows, strides, itemsize, blksize)
        pages = [page for first, n in runs for page in range(first, first + n)]
        assert wanted <= set(pages), (rows, shape, runs)
        assert pages == sorted(set(pages)), (rows, shape, runs)
        if wanted:
            assert pages[0] == min(wanted)
            assert pages[-1] == max(wanted)
    rows = [(0, 100), (5, 6)]
    assert page_runs(rows, (1600, 100), 4, 100) == [(16 * i + 5, 1) for i in range(100)]
    assert page_runs([(0, 1 << 40), (0, 1)], (1600, 100), 4, 100) == [(0, 16 * ((1 << 40) - 1) + 1)]


def test_what_is_kept_gives_way_to_views():
    """Many large areas of holes are kept; a new view is ready for a system call all the same."""
    check_child(
        """
    import os
    import numpy as np
    from wendelin.bigarray import BigArray
    from wendelin.bigfile.virtmem.backend import HOLE, BigFile

    class Holes(BigFile):
        def mapblk(self, blk): return HOLE
        def mapahead(self, start, stop): return {blk: HOLE for blk in range(start, stop)}

    MIB = 1 << 20
    arrays = [BigArray((n * MIB,), "u1", Holes(64 << 10).fileh_open()) for n in [8] * 12 + [24]]
    null = os.open("/dev/null", os.O_WRONLY)
    r, w = os.pipe()
    for _ in range(3):
        for A in arrays:
            view = A[:]
            for at in range(0, len(view), 64 << 10):
                assert os.write(w, view[at : at + 8]) == 8 and len(os.read(r, 8)) == 8
            del view
    """,
        WENDELIN_CORE_RAM="2M",
        WENDELIN_CORE_READY="100",
    )


def test_page_tables_of_what_is_kept_are_few(tmp_path):
    """The kernel counts the pages they show as memory of the process: Dask would end it."""
    (tmp_path / "block").write_bytes(bytes(2 << 20))
    check_child(
        """
    import sys
    import numpy as np
    from wendelin.bigarray import BigArray
    from wendelin.bigfile.virtmem.backend import BigFile

    MIB = 1 << 20
    f = open(sys.argv[1], "rb")

    class File(BigFile):
        def mapblk(self, blk): return f.fileno(), 0

    def shared():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[2]) << 12

    A = BigArray((320 * MIB,), "u1", File(2 * MIB).fileh_open())
    before, first = shared(), None
    for at in range(0, len(A), 16 * MIB):
        view = A[:]
        first = first or view.ctypes.data
        assert view.ctypes.data == first        # and it is the same mapping
        assert not view[at : at + 16 * MIB].any()
        del view
        assert shared() - before < 160 * MIB, (at, shared(), before)
    """,
        str(tmp_path / "block"),
    )
