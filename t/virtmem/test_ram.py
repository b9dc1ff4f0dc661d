"""The limit of page memory, without a spool: each test runs in a child with a limit of its own."""

import pytest
from support.cgroup import NoCgroup, memory_cgroup
from support.child import check_child

SETUP = """
import gc, os, sys
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigfile import *
from wendelin.bigfile.virtmem.handle import ram_stat
MIB = 1 << 20
BOTH = WRITEOUT_STORE | WRITEOUT_MARKSTORED
class File(RAMFile):
    def loadblk(self, blk, buf):
        self.loads.append(blk)
        buf[:] = bytes([blk % 251 + 1]) * len(buf)
def view(fileh, start=0, n=8):
    return np.frombuffer(fileh.mmap(start, n), "u1")
def shmem():
    with open("/proc/self/smaps_rollup") as f: text = f.read()
    with open("/proc/self/status") as f:
        return int(f.read().split("RssShmem:")[1].split()[0]) << 10
"""


def child(code, ram="16M"):
    check_child(SETUP + code, WENDELIN_CORE_RAM=ram, WENDELIN_CORE_SPOOL="0")


def test_reading_stays_under_the_limit():
    child("""
fileh, other = File(MIB).fileh_open(), File(4 * MIB).fileh_open()
a, b = view(fileh, 0, 100), view(other, 0, 20)
for i in range(100):
    assert a[i * MIB] == i % 251 + 1
    assert b[i % 20 * 4 * MIB] == i % 20 + 1
    assert sum(ram_stat()[1:]) <= 16 * MIB
    assert shmem() <= 16 * MIB
assert (a[::MIB] == np.arange(100) + 1).all()
assert ram_reclaim() > 0 and sum(ram_stat()[1:]) == 0 and shmem() == 0
""")


def test_a_page_that_is_used_stays():
    child("""
fileh = File(MIB).fileh_open()
a = view(fileh, 0, 200)
for i in range(1, 200):
    a[i * MIB]
    assert a[0] == 1
assert fileh.file.loads.count(0) < 10, fileh.file.loads.count(0)
assert len(fileh.file.loads) < 215
""")


def test_too_many_changes_are_refused_and_nothing_is_lost():
    child("""
fileh = File(MIB).fileh_open()
a = view(fileh, 0, 100)
try:
    a[:] = 7
    for _ in range(1000): pass
    raise AssertionError("no exception")
except MemoryError as e:
    assert isinstance(e, PageMemoryError)
    assert "commit in smaller steps" in str(e) and str(16 * MIB) in str(e), e
assert ram_stat()[2] <= 16 * MIB and shmem() <= 16 * MIB + 2 * MIB, shmem()
try: fileh.dirty_writeout(BOTH)
except DoomedError as e: assert "smaller steps" in str(e)
else: raise AssertionError("not doomed")
assert fileh.file.stores == []
fileh.dirty_discard()
assert ram_stat()[2] == 0
assert (a[::MIB] == np.arange(100) % 251 + 1).all()
for i in range(0, 100, 10):
    a[i * MIB : (i + 10) * MIB] = 7
    fileh.dirty_writeout(BOTH)
assert len(fileh.file.stores) == 100
""")


def test_reading_goes_on_when_changes_fill_the_limit():
    child("""
fileh = File(MIB).fileh_open()
a = view(fileh, 0, 100)
a[: 16 * MIB] = 9
assert ram_stat()[2] == 16 * MIB
assert (a[16 * MIB :: MIB] == np.arange(16, 100) + 1).all()
# two clean pages stay, and each of two threads loads one
assert sum(ram_stat()[1:]) <= 20 * MIB
fileh.dirty_writeout(BOTH)
assert set(fileh.file.blocks) == set(range(16))
""")


def test_a_block_larger_than_the_limit():
    child(
        """
fileh = File(4 * MIB).fileh_open()
a = view(fileh, 0, 10)
assert (a[:: 4 * MIB] == np.arange(10) + 1).all()
a[0] = 5
fileh.dirty_writeout(BOTH)
assert fileh.file.blocks[0][0] == 5
""",
        ram="1M",
    )


def test_a_block_larger_than_memory():
    """The kernel would give all memory of the machine, and kill other processes for more."""
    try:
        with memory_cgroup(512 << 20) as procs:
            child(f"open({str(procs)!r}, 'w').write(str(os.getpid()))" + LARGER)
    except NoCgroup as e:
        pytest.skip(str(e))


LARGER = """
import re
from wendelin.bigfile.virtmem.errors import BigFileError
from wendelin.bigfile.virtmem.backend import HOLE
LARGE = "has 1099511627776 bytes, and may have [0-9]+: half of the memory"
def refused(act, kind, which):
    try:
        act()
        for _ in range(1000): pass
    except BigFileError as e:
        assert isinstance(e, kind) and re.search(LARGE, str(e)), repr(e)
        return
    raise AssertionError(f"{which}: no exception")
class Large(RAMFile):
    def loadblk(self, blk, buf):
        return b"x"
class Zeros(RAMFile):
    def mapblk(self, blk):
        return HOLE
class Stored(RAMFile):
    fd = os.open(sys.executable, os.O_RDONLY)
    def mapblk(self, blk):
        return (self.fd, 1, 5)
def change(a):
    a[5] = 1
for cls, act, kind in [
    (Large, lambda a: a[5], BlockLoadError),
    (Large, change, BlockLoadError),
    (Zeros, change, PageMemoryError),
    (Stored, lambda a: a[5], PageMemoryError),
    (Stored, change, PageMemoryError),
]:
    fileh = cls(1 << 40).fileh_open()
    a = view(fileh, 0, 2)
    refused(lambda: act(a), kind, cls)
    if cls is not Zeros:
        refused(lambda: fileh.load(1, 1), kind, cls)
    assert ram_stat()[1:] == (0, 0)
    fileh.dirty_discard()
a = view(Zeros(1 << 40).fileh_open())
assert a[5] == 0
"""


@pytest.mark.slow
def test_scattered_pages_stay_within_the_kernel_s_mappings():
    child(
        """
fileh = RAMFile(4096).fileh_open()
n = 150_000
a = view(fileh, 0, n)
def maps():
    with open("/proc/self/maps") as f: return sum(1 for _ in f)
for i in range(0, n, 2):
    a[i * 4096] = i % 251
    if i % 10_000 == 0: assert maps() < 45_000, maps()
assert (a[:: 2 * 4096] == np.arange(0, n, 2) % 251).all()
assert maps() < 45_000
fileh.dirty_writeout(BOTH)
assert len(fileh.file.blocks) == n // 2
""",
        ram="2G",
    )


def test_a_hole_of_64_gib_leaves_memory_as_it_was():
    child(
        """
import resource
class Hole(RAMFile):
    def loadblk(self, blk, buf): return b""
fileh = Hole(2 * MIB).fileh_open()
a = np.frombuffer(fileh.mmap(0, 32768), "f8")
def rss():
    with open("/proc/self/statm") as f: return int(f.read().split()[1]) * 4096
before = rss()
assert np.sum(a[: len(a) // 16]) == 0
assert rss() - before < 16 * MIB, (rss() - before) / MIB
with open("/proc/self/status") as f: tables = int(f.read().split("VmPTE:")[1].split()[0]) << 10
assert tables <= 64 * 1024 * MIB // 16 * 0.0021 + 4 * MIB, tables
assert ram_stat()[1:] == (0, 0)
""",
        ram="1G",
    )


def test_a_limit_of_file_sizes_says_what_it_is():
    child("""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
try: RAMFile(4096).fileh_open()
except OSError as e: assert "ulimit -f" in str(e), e
else: raise AssertionError
""")


def test_the_limit_can_be_changed():
    child("""
fileh = File(MIB).fileh_open()
a = view(fileh, 0, 100)
a[:: MIB].sum()
assert sum(ram_stat()[1:]) > 8 * MIB
ram_set_limit(8 * MIB)
assert ram_stat()[0] == 8 * MIB
assert sum(ram_stat()[1:]) <= 7 * MIB and shmem() <= 8 * MIB
a[:: MIB].sum()
assert sum(ram_stat()[1:]) <= 8 * MIB
a[: 6 * MIB] = 1
ram_set_limit(np.int64(3 * MIB))
assert ram_stat()[2] == 6 * MIB and ram_stat()[1] <= 2 * MIB
try:
    a[7 * MIB] = 1
    int()
    assert False
except MemoryError:
    fileh.dirty_discard()
a[7 * MIB] = 1
assert sum(ram_stat()[1:]) <= 3 * MIB
ram_set_limit(64 * MIB)
a[:: MIB].sum()
assert sum(ram_stat()[1:]) > 16 * MIB
for bad in 0, -1, -(1 << 70):
    try:
        ram_set_limit(bad)
        assert False
    except ValueError as e:
        assert str(bad) in str(e)
""")


def test_a_number_across_two_blocks_is_read_when_changes_fill_the_limit():
    """One instruction needs both pages: neither may push out the other."""
    child(
        """
fileh = File(4096).fileh_open()
a = view(fileh, 0, 64)
for i in range(ram_stat()[0] // 4096):
    a[i * 4096] = 9
across = np.ndarray(1, "<u8", a, offset=40 * 4096 - 3)
assert across[0] == 0x2929292929282828
""",
        ram="32K",
    )
