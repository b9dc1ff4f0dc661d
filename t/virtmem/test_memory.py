"""Memory files, shared by the handles of a process, and pages that have memory for a part only."""

from support.child import check_child

SETUP = """
import gc, os, resource, sys
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigarray import BigArray
from wendelin.bigfile import *
from wendelin.bigfile.virtmem.handle import ram_stat
KIB, MIB, OS = 1 << 10, 1 << 20, os.sysconf("SC_PAGESIZE")
BOTH = WRITEOUT_STORE | WRITEOUT_MARKSTORED
def array(n, blksize=2 * MIB, handle=None):
    return BigArray((n,), "u1", handle or RAMFile(blksize).fileh_open())
def fds():
    return len(os.listdir("/proc/self/fd"))
def allocated():
    "Bytes of the memory files."
    size = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            if "memfd:wendelin" in os.readlink("/proc/self/fd/" + fd):
                size += os.fstat(int(fd)).st_blocks * 512
        except FileNotFoundError:
            pass                        # by which they were listed
    return size
def refused(act, kind):
    try:
        act()
        for _ in range(1000): pass
    except kind as e:
        return e
    raise AssertionError("no exception")
"""


def child(code, ram="64M"):
    check_child(SETUP + code, WENDELIN_CORE_RAM=ram, WENDELIN_CORE_SPOOL="0")


def test_many_handles_take_few_descriptors_and_little_memory():
    child("""
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
before = fds()
arrays = [array(800) for _ in range(500)]
views = [A[:] for A in arrays]
for i, view in enumerate(views):
    assert not view.any()
    view[0] = i % 250 + 1
assert fds() - before <= 10, fds() - before
assert ram_stat()[2] == allocated() == 500 * OS, (ram_stat(), allocated())
for i, A in enumerate(arrays):
    A._fileh().dirty_writeout(BOTH)
    assert A._fileh().file.blocks[0] == bytes([i % 250 + 1]) + bytes(2 * MIB - 1)
assert ram_stat()[1:] == (500 * OS, 0)
assert [view[0] for view in views] == [i % 250 + 1 for i in range(500)]
del views, view, arrays, A
gc.collect()
assert ram_stat()[1:] == (0, 0) and allocated() == 0
""")


def test_a_window_that_is_used_again_is_empty():
    child("""
from wendelin.bigfile.virtmem.writeout import page_buffer
kept = []
for turn in range(30):
    A = array(3 * MIB, MIB)
    view = A[:]
    assert not view.any(), turn
    view[:] = turn + 1
    if turn % 10 == 5:
        kept.append((turn + 1, page_buffer(A._fileh(), 1)))
    del A, view
for value, buf in kept:
    assert set(bytes(buf)) == {value}
del kept, buf
ram_reclaim()                       # some is kept for other blocks: frames
assert allocated() == 0, allocated()
""")


def test_pages_beyond_the_window_have_a_file_of_the_handle():
    child("""
def whole(fileh, first, n):
    return np.frombuffer(fileh.mmap(first, n), "u1")
other = RAMFile(MIB)
other.blocks = dict.fromkeys(range(4), b"1" * MIB)
other.fileh_open().load(0, 4)       # files of frames are open from now on
for blksize in (OS, 48 * KIB, MIB):
    edge = (1 << 47) // blksize
    fileh = RAMFile(blksize).fileh_open()
    near = whole(fileh, 0, 2)
    before = fds()
    a, far = whole(fileh, edge - 2, 4), whole(fileh, edge + 1, 3)
    assert fds() == before + 1
    b = whole(fileh, edge - 2, 4)
    for i in range(4):
        a[i * blksize] = i + 1
    near[0], far[blksize] = 9, 7
    assert [b[i * blksize] for i in range(4)] == [1, 2, 3, 4] and far[0] == 4
    fileh.dirty_writeout(BOTH)
    assert {blk: data[0] for blk, data in fileh.file.blocks.items()} == {
        0: 9, edge - 2: 1, edge - 1: 2, edge: 3, edge + 1: 4, edge + 2: 7}
    a[blksize] = a[2 * blksize] = 50
    fileh.dirty_discard()
    assert [b[i * blksize] for i in range(4)] == [1, 2, 3, 4]
    ram_reclaim()
    assert [a[i * blksize] for i in range(4)] == [1, 2, 3, 4] and near[0] == 9
    del near, a, b, far, fileh
    assert fds() == before and ram_stat()[1:] == (0, 0)
""")


def test_handles_for_which_there_is_no_window():
    child("""
file = RAMFile(MIB)
handles = [file.fileh_open() for _ in range(1 << 16)]
before = fds()
A, B = array(10, handle=RAMFile(MIB).fileh_open()), array(10, handle=RAMFile(MIB).fileh_open())
assert fds() == before + 2
a, b = A[:], B[:]
a[:], b[:] = 1, 2
assert a.sum() == 10 and b.sum() == 20
free = os.dup(0)
os.close(free)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
e = refused(RAMFile(MIB).fileh_open, OSError)
assert "page memory" in str(e) and "open files" in str(e), e
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
del a, A, handles[:10]
C = array(10)
assert not C[:].any() and fds() == before + 1
""")


def test_a_page_gets_more_memory_before_more_of_it_is_shown():
    child("""
fileh = RAMFile(2 * MIB).fileh_open()
short, long = array(100, handle=fileh), array(MIB, handle=fileh)
for clean in (False, True):
    a = short[:]
    a[:] = 5
    assert ram_stat()[2] == allocated() == OS
    if clean:
        fileh.dirty_writeout(BOTH)
    b = long[:]
    assert b[:100].sum() == 500 and not b[100:].any()
    assert sum(ram_stat()[1:]) == allocated() == MIB
    b[-1] = 6
    a[0] = 7
    assert b[0] == 7
    fileh.dirty_writeout(BOTH)
    assert fileh.file.blocks[0][:MIB] == b.tobytes()
    a = b = None
    fileh.invalidate_page(0)
    assert allocated() == 0 and ram_stat()[1:] == (0, 0)
    a = short[:]
    a[:] = 0                            # what the file has stays, though no view shows it
    fileh.dirty_writeout(BOTH)
    assert fileh.file.blocks[0][MIB - 1] == 6
    fileh.invalidate_page(0)
    del a
    del fileh.file.blocks[0]
""")


def test_memory_that_a_page_cannot_get_is_an_exception():
    child(
        """
fileh = RAMFile(8 * MIB).fileh_open()
short, long = array(100, handle=fileh), array(8 * MIB, handle=fileh)
a = short[:]
a[:] = 5
b = long[:]
e = refused(lambda: b[4 * MIB], MemoryError)
assert isinstance(e, PageMemoryError), e
assert a[0] == 5 and allocated() == OS, (a[0], allocated())
fileh.dirty_discard()
b = None
other = array(3 * MIB, MIB)
c = other[:]
c[:] = 1                                # clean pages give way, but not to themselves
other._fileh().dirty_writeout(BOTH)
a[:] = 5
fileh.dirty_writeout(BOTH)
short_of_it = array(2 * MIB, handle=fileh)[:]
assert short_of_it[0] == 5, short_of_it
assert not short_of_it[100:].any(), short_of_it
assert sum(ram_stat()[1:]) <= 4 * MIB, ram_stat()
""",
        ram="4M",
    )


def test_pinned_pages_get_more_memory_too():
    child("""
from wendelin.bigfile.virtmem.pins import pin, pinned, ready, unpin
fileh = RAMFile(2 * MIB).fileh_open()
fileh.file.blocks[0] = b"x" * 10
a = array(100, handle=fileh)[:]
pin(fileh, 0, 1)
b = array(MIB, handle=fileh)[:]
b[::OS].sum()                           # it is shown when it is taken, or now
with open("/dev/null", "wb", buffering=0) as null:
    assert null.write(b) == MIB
assert sum(ram_stat()[1:]) == allocated() == MIB
ram_reclaim()
assert allocated() == MIB
unpin(fileh, 0, 1)
ram_reclaim()
assert allocated() == 0
""")


def test_a_child_of_a_fork_has_memory_of_its_own():
    child("""
arrays = [array(100) for _ in range(20)]
views = [A[:] for A in arrays]
for view in views:
    view[:] = 3
before = allocated()
pid = os.fork()
if pid == 0:
    code = 1
    try:
        assert allocated() == 0 and ram_stat()[1:] == (0, 0)
        mine = [array(100) for _ in range(20)]
        for A in mine:
            assert not A[:].any()
            A[:] = 4
        assert allocated() == 20 * OS
        del arrays, mine, A
        views = view = None
        gc.collect()
        assert allocated() == 0
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
assert allocated() == before and all(view.sum() == 300 for view in views)
""")
