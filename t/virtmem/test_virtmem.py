"""BigFile, BigFileH and VMA: pages, their states, and what is written out."""

import gc
import weakref

import numpy as np
import pytest
from support.conformance import BLK, BOTH, view
from support.ramfile import RAMFile, ReturningFile

from wendelin.bigfile import (
    HOLE,
    VMA,
    WRITEOUT_MARKSTORED,
    WRITEOUT_STORE,
    BigFile,
    BigFileH,
    BlockLoadError,
    DoomedError,
    ram_reclaim,
)
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.bigfile.virtmem.writeout import page_buffer, transaction_ended, writeout_end

# ---- pages ----


def test_views_of_a_handle_are_one_memory_and_handles_are_not():
    file = RAMFile()
    fileh = file.fileh_open()
    a, b = view(fileh, 0, 8), view(fileh, 3, 3)
    a[4 * BLK] = 1  # b does not show the page yet
    assert b[BLK] == 1
    b[2 * BLK] = 2
    assert a[5 * BLK] == 2
    b[2 * BLK + 1] = 3  # a shows it read-only, or not at all
    a[5 * BLK + 2] = 4
    assert b[2 * BLK :][:3].tolist() == [2, 3, 4]
    assert not view(file.fileh_open()).any()


def test_a_page_is_loaded_once():
    file = RAMFile()
    fileh = file.fileh_open()
    a, b = view(fileh), view(fileh)
    assert a.sum() == b.sum() == 0
    a[0] = 1
    assert sorted(file.loads) == list(range(8))
    fileh.invalidate_page(3)
    assert a.sum() == 1
    assert file.loads[8:] == [3]


def test_holes_cost_no_page_memory():
    ram_reclaim()
    before = ram_stat()[1:]
    fileh = ReturningFile(1 << 20).fileh_open()
    a = view(fileh, 0, 64)
    assert not a.any()
    assert ram_stat()[1:] == before
    a[5] = 1
    assert ram_stat()[2] == before[1] + (1 << 20)
    fileh.dirty_discard()
    assert ram_stat()[1:] == before


def test_clean_pages_are_given_back_and_dirty_ones_are_not():
    ram_reclaim()
    file = RAMFile()
    file.blocks = dict.fromkeys(range(8), b"\x01" * BLK)
    fileh = file.fileh_open()
    a = view(fileh)
    assert a.sum() == 8 * BLK
    a[3 * BLK] = 5
    assert ram_reclaim() == 7
    assert ram_reclaim() == 0
    assert a[3 * BLK] == 5
    assert a.sum() == 8 * BLK + 4
    assert file.loads[8:] == [0, 1, 2, 4, 5, 6, 7]


def test_a_change_between_store_and_markstored_stays():
    file = RAMFile()
    fileh = file.fileh_open()
    a = view(fileh)
    a[0] = a[BLK] = a[2 * BLK] = 1
    fileh.dirty_writeout(WRITEOUT_STORE)
    a[BLK] = 2
    a[3 * BLK] = 3
    fileh.dirty_writeout(WRITEOUT_MARKSTORED)
    assert fileh.dirty_blocks() == [1, 3]
    fileh.dirty_writeout(BOTH)
    assert [file.blocks[i][0] for i in range(4)] == [1, 2, 1, 3]
    assert file.stores == [0, 1, 2, 1, 3]
    assert not fileh.isdirty()


def test_a_store_that_fails_leaves_pages_dirty():
    class Failing(RAMFile):
        broken = True

        def storeblk(self, blk, buf):
            if blk == 1 and self.broken:
                raise OSError("disk full")
            super().storeblk(blk, buf)

    file = Failing()
    fileh = file.fileh_open()
    a = view(fileh)
    a[0] = a[BLK] = a[2 * BLK] = 1
    with pytest.raises(OSError, match="disk full"):
        fileh.dirty_writeout(BOTH)
    assert fileh.isdirty()
    assert fileh.dirty_blocks() == [0, 1, 2]
    a[BLK + 1] = 1  # pages can be written again
    file.broken = False
    fileh.dirty_writeout(BOTH)
    assert not fileh.isdirty()
    assert file.blocks[1][:2] == b"\1\1"


def test_the_buffer_of_a_loader_and_a_storer_may_be_kept():
    kept = []

    class Keeping(RAMFile):
        def loadblk(self, blk, buf):
            kept.append(buf)
            buf[:3] = b"abc"

        def storeblk(self, blk, buf):
            kept.append(buf)
            super().storeblk(blk, buf)

    file = Keeping()
    fileh = file.fileh_open()
    a = view(fileh)
    assert a[0] == ord("a")
    kept[0][0] = 77  # not the page's memory
    assert a[0] == ord("a")
    a[1] = 5
    fileh.dirty_writeout(BOTH)
    assert kept[1].readonly
    with pytest.raises(TypeError):
        kept[1][0] = 1
    del a, fileh
    gc.collect()
    ram_reclaim()
    kept[1].tobytes()
    kept[0][:] = bytes(BLK)


def test_bad_arguments():
    for bad in (0, -4096, 100, 4097, 1 << 60):
        with pytest.raises(ValueError, match=str(bad)):
            BigFile(bad)
    for bad in (None, 4096.0, "4096"):
        with pytest.raises(TypeError, match=type(bad).__name__):
            BigFile(bad)
    with pytest.raises(TypeError, match="int"):
        BigFileH(5)
    fileh = RAMFile().fileh_open()
    for bad, error in (
        ((-1, 1), ValueError),
        ((0, 0), ValueError),
        ((0, -3), ValueError),
        ((0, 1 << 51), OverflowError),
        ((1 << 63, 1), OverflowError),
        ((0, 1 << 35), MemoryError),
    ):
        with pytest.raises(error):
            fileh.mmap(*bad)
    with pytest.raises(ValueError, match="flags are 0"):
        fileh.dirty_writeout(0)
    with pytest.raises(ValueError, match="-1"):
        fileh.invalidate_page(-1)
    with pytest.raises(RuntimeError, match="without writeout_begin"):
        writeout_end(fileh)
    with pytest.raises(KeyError, match="block 3"):
        page_buffer(fileh, 3)
    with pytest.raises(NotImplementedError, match="truncate"):
        BigFile(4096).fileh_open().truncate(1)
    with pytest.raises(BlockLoadError, match="does not define loadblk"):
        BigFile(4096).fileh_open().load(0, 1)
    with pytest.raises(TypeError):
        VMA(None, 0, 1)


def test_vma():
    fileh = RAMFile(8192).fileh_open()
    vma = fileh.mmap(3, 4)
    assert vma.filerange() == (3, 4)
    assert vma.pagesize() == 8192
    assert vma.addr_stop - vma.addr_start == len(vma) == 4 * 8192
    assert vma.fileh is fileh
    assert vma.pyuser is None
    vma.pyuser = self = [vma]
    buf = memoryview(vma)
    assert (buf.nbytes, buf.readonly, buf.format) == (4 * 8192, False, "B")
    assert self[0] is vma


def test_a_mapping_goes_with_its_last_view(no_leaks):
    file = RAMFile()
    fileh = file.fileh_open()
    a = view(fileh)
    refs = [weakref.ref(x) for x in (file, fileh, a.base.obj if hasattr(a.base, "obj") else a.base)]
    b = a[5:10]
    del a, file, fileh
    gc.collect()
    assert all(ref() is not None for ref in refs)
    b[0] = 1
    assert b[0] == 1
    del b
    gc.collect()
    assert all(ref() is None for ref in refs)


def test_cycles_are_collected(no_leaks):
    class Cyclic(RAMFile):
        pass

    for _ in range(50):
        file = Cyclic()
        file.fileh = file.fileh_open()
        file.vma = file.fileh.mmap(0, 4)
        file.vma.pyuser = [file, file.vma]
        np.frombuffer(file.vma, "u1")[0] = 1
        ref = weakref.ref(file)
        del file
        gc.collect()
        assert ref() is None


def test_a_64_tib_view_costs_nothing():
    fileh = RAMFile(2 << 20).fileh_open()
    before = rss()
    a = np.frombuffer(fileh.mmap(0, 1 << 25), "u1")
    assert a.nbytes == 64 << 40
    assert rss() - before < 1 << 20
    a[0] = a[-1] = 1
    # the two blocks, and less than 1 MiB
    assert rss() - before < (2 * (2 << 20)) + (1 << 20)
    assert a[1 << 45] == 0


def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


# ---- blocks that are mapped from a file ----


class MappedFile(RAMFile):
    """Blocks 0 to 3 lie in a file, in reverse order; 4 is a hole; the others are loaded."""

    def __init__(self, path, blksize=BLK):
        super().__init__(blksize)
        with open(path, "wb") as f:
            f.write(b"".join(bytes([blk + 1]) * blksize for blk in (3, 2, 1, 0)))
        self.file = open(path, "rb")  # noqa: SIM115  closed with the object

    def __del__(self):
        self.file.close()

    def mapblk(self, blk):
        if blk < 4:
            return self.file.fileno(), (3 - blk) * self.blksize
        return HOLE if blk == 4 else None


def test_mapped_blocks(tmp_path, no_leaks):
    ram_reclaim()
    clean = ram_stat()[1]
    file = MappedFile(tmp_path / "x")
    file.blocks[6] = b"\7" * BLK
    fileh = file.fileh_open()
    a, b = view(fileh), view(fileh)
    assert a[::BLK].tolist() == b[::BLK].tolist() == [1, 2, 3, 4, 0, 0, 7, 0]
    assert file.loads == [5, 6, 7]
    assert ram_stat()[1] - clean == 3 * BLK
    # the first write copies the block into page memory; all views show that
    a[2 * BLK] = 30
    assert b[2 * BLK :][:2].tolist() == [30, 3]
    b[4 * BLK] = 5
    assert a[4 * BLK :][:2].tolist() == [5, 0]
    fileh.dirty_writeout(BOTH)
    assert file.blocks[2] == b"\x1e" + b"\3" * (BLK - 1)
    assert a[2 * BLK] == 30
    fileh.invalidate_page(2)
    assert a[2 * BLK] == 3
    del a, b, fileh, file


@pytest.mark.parametrize("where", [(-1, 0), (0, 100), (0, -4096), 5, (1, 2, 3)])
def test_a_wrong_place_is_refused(where):
    class Wrong(RAMFile):
        def mapblk(self, blk):
            return where

    with pytest.raises(BlockLoadError):
        Wrong().fileh_open().load(0, 1)


# ---- failures ----


class FailingFile(RAMFile):
    """Block 3 cannot be loaded while the file is `broken`."""

    broken = True

    def loadblk(self, blk, buf):
        if blk == 3 and self.broken:
            raise OSError("bad disk")
        buf[:] = bytes([blk + 1]) * len(buf)


def test_a_write_to_a_block_that_fails_goes_nowhere():
    file = FailingFile()
    fileh = file.fileh_open()
    a = view(fileh)
    with pytest.raises(BlockLoadError, match="block 3 of") as e:
        a[:] = 7
        for _ in range(1000):
            pass
    assert (e.value.file, e.value.blk) == (file, 3)
    fileh.dirty_discard()
    file.broken = False
    assert a[::BLK].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("how", ["copied", "returned"])
def test_a_failure_inside_a_loader_is_the_outer_one_s_cause(how):
    inner = view(FailingFile().fileh_open())

    class Outer(RAMFile):
        def loadblk(self, blk, buf):
            part = inner[blk * BLK : (blk + 1) * BLK]
            if how == "returned":
                return part
            buf[:] = part

    fileh = Outer().fileh_open()
    outer = view(fileh)
    assert outer[BLK] == 2
    with pytest.raises(BlockLoadError, match=r"BlockLoadError.*bad disk"):
        fileh.load(3, 1)
    with pytest.raises(BlockLoadError, match=r"BlockLoadError.*bad disk") as e:
        np.sum(outer)
    assert isinstance(e.value.__cause__, BlockLoadError)


@pytest.mark.parametrize("bad", [b"x" * (BLK + 1), 5, "text"])
def test_what_a_loader_may_not_return(bad):
    class Wrong(RAMFile):
        def loadblk(self, blk, buf):
            return bad

    with pytest.raises(BlockLoadError):
        Wrong().fileh_open().load(0, 1)


def test_a_failed_first_change_refuses_it():
    class Refusing(BigFileH):
        def first_change(self):
            raise PermissionError("read-only")

    fileh = Refusing(RAMFile())
    a = view(fileh)
    with pytest.raises(DoomedError, match="read-only"):
        a[3] = 5
        for _ in range(1000):
            pass
    assert not fileh.isdirty()
    fileh.dirty_discard()
    assert not a.any()


def test_first_change_is_told_once_a_transaction():
    class Told(BigFileH):
        told = 0

        def first_change(self):
            self.told += 1

    fileh = Told(RAMFile())
    a = view(fileh)
    assert a.sum() == fileh.told == 0
    a[0] = a[BLK] = 1
    assert fileh.told == 1
    fileh.dirty_discard()
    a[0] = 1
    assert fileh.told == 2
    fileh.dirty_writeout(BOTH)
    transaction_ended(fileh)
    a[1] = 1
    assert fileh.told == 3
