"""Frames: page memory that is used again, how much of it, and that nobody sees the bytes before."""

import pytest
from support.cgroup import NoCgroup, memory_cgroup
from support.child import check_child

SETUP = """
import ctypes, gc, os, resource, sys, threading, time
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigfile import *
from wendelin.bigfile.virtmem import resident
from wendelin.bigfile.virtmem.backend import BigFile
from wendelin.bigfile.virtmem.frames import spare
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.bigfile.virtmem.overwrite import overwrite
from wendelin.bigfile.virtmem.writeout import page_buffer
MIB = 1 << 20
BOTH = WRITEOUT_STORE | WRITEOUT_MARKSTORED
class File(BigFile):
    "Each block is its number; what is stored is not kept."
    def loadblk(self, blk, buf): np.frombuffer(buf, "u1")[:] = number(blk)
    def storeblk(self, blk, buf):
        data = np.frombuffer(buf, "u1")
        assert (data == data[0]).all()
    def truncate(self, blk): pass
def number(blk):
    return blk % 251 + 1
def view(fileh, first=0, n=64):
    return np.frombuffer(fileh.mmap(first, n), "u1").reshape(n, -1)
def values(*of):
    return np.repeat(np.array(of, "u1"), MIB)
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
def threads():
    return len(os.listdir("/proc/self/task"))
fileh = File(MIB).fileh_open()
"""


def child(code, ram="64M", spool="0", **env):
    return check_child(SETUP + code, WENDELIN_CORE_RAM=ram, WENDELIN_CORE_SPOOL=spool, **env)


def test_a_thousand_commits_take_the_memory_of_one():
    child("""
def commit(turn):
    first = 5 * turn
    fileh.truncate(first)
    assert overwrite(fileh, first, values(1, 2, 3, 4)) == 4
    fileh.dirty_writeout(WRITEOUT_STORE)
    if turn % 3 == 0:
        fileh.dirty_discard()
    else:
        fileh.dirty_writeout(WRITEOUT_MARKSTORED)
        for blk in range(first, first + 4): fileh.invalidate_page(blk)
for turn in range(10): commit(turn)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(10, 1000):
    commit(turn)
    assert allocated() == spare() == 4 * MIB, (turn, allocated(), spare())
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
assert faults < 20 * 990, faults        # of the test; one OS page in 1,024 would be 4
""")


def test_blocks_that_are_loaded_push_out_others_into_whose_memory_they_come():
    child(
        """
a = view(fileh)
for turn in range(5):
    for blk in range(64):
        assert (a[blk] == number(blk)).all(), blk
        clean = ram_stat()[1]
        assert allocated() == clean + spare() and clean + spare() <= 16 * MIB
        assert spare() <= 2 * MIB
        assert turn == 0 or clean + spare() >= 13 * MIB
assert ram_reclaim() > 0
assert spare() == allocated() == 0
""",
        ram="16M",
    )


def test_spare_memory_counts_against_the_limit_and_gives_way_to_changes():
    child(
        """
fileh.truncate(0)
for turn in range(3):
    assert overwrite(fileh, 0, values(*range(1, 14))) == 13
    fileh.dirty_discard()
    fileh.truncate(0)
    assert spare() == allocated() == 2 * MIB
    a = view(fileh, 0, 40)
    done = 0
    while ram_stat()[2] < 16 * MIB:
        a[done] = 7                     # no whole block: at its own place
        done += 1
        assert sum(ram_stat()[1:]) + spare() <= 16 * MIB
    assert spare() == 0 and allocated() == 16 * MIB
    fileh.dirty_discard()
    fileh.truncate(0)
    del a
    assert allocated() == spare() == 0
""",
        ram="16M",
    )


def test_memory_that_is_spare_for_a_while_is_given_back_and_its_thread_ends():
    child("""
fileh.truncate(0)
a = view(fileh, 0, 1)                   # another thread of ours comes with it
del a
before = threads()
assert overwrite(fileh, 0, values(1, 2, 3)) == 3
assert threads() == before and spare() == 0
fileh.dirty_discard()
assert threads() == before + 1 and spare() == allocated() == 3 * MIB == stats().spare
deadline = time.monotonic() + 40
while spare() or threads() > before:
    assert time.monotonic() < deadline, (spare(), threads())
    time.sleep(0.05)
assert allocated() == 0
fileh.truncate(0)
assert overwrite(fileh, 0, values(1, 2, 3)) == 3        # and it comes again
fileh.dirty_discard()
assert threads() == before + 1 and spare() == 3 * MIB
""")


def test_zeros_at_the_end_of_a_block_are_not_bytes_of_another():
    child(
        """
SHORT = [0, 1, 7, 8, 100, 4095, 4096, 4097, 70_000]     # bytes of zeros at the end
def block(blk):
    data = np.full(MIB, number(blk), "u1")
    data[MIB - SHORT[blk % 9]:] = 0
    return data
class Short(File):
    def loadblk(self, blk, buf): return block(blk).tobytes()[:MIB - SHORT[blk % 9]]
short = Short(MIB).fileh_open()
full = view(fileh)
for turn in range(3):
    assert (full[:16, ::4096] == np.arange(1, 17)[:, None]).all()
    for blk in range(16): fileh.invalidate_page(blk)
    assert spare() == 8 * MIB
    if turn:
        short.truncate(0)
        assert overwrite(short, 0, np.concatenate([block(blk) for blk in range(9)])) == 9
        for blk in range(9):            # stored from memory that no view shows
            assert bytes(page_buffer(short, blk)) == block(blk).tobytes(), blk
    a = view(short, 0, 9)
    for blk in range(9):
        assert (a[blk] == block(blk)).all(), blk
    del a
    short.dirty_discard()
    for blk in range(9): short.invalidate_page(blk)
""",
        ram="64M",
    )


def test_a_handle_that_is_closed_leaves_its_memory_to_others():
    child("""
other = File(MIB).fileh_open()
a = view(fileh, 0, 4)
assert a[:, 0].tolist() == [1, 2, 3, 4]
del a, fileh
gc.collect()
assert ram_stat()[1:] == (0, 0) and spare() == allocated() == 4 * MIB
a = view(other, 10, 4)
assert a[:, -1].tolist() == [11, 12, 13, 14]
assert spare() == 0 and allocated() == 4 * MIB
""")


def test_a_buffer_that_is_kept_never_shows_another_block():
    child("""
fileh.truncate(20)
a = view(fileh, 0, 40)
assert a[3, 5] == 4                     # loaded, then changed by a touch
a[3] = 77
assert overwrite(fileh, 20, values(88)) == 1
kept = {77: page_buffer(fileh, 3), 88: page_buffer(fileh, 20)}
part = kept[88][100:200]
for value, buf in kept.items():
    assert set(bytes(buf)) == {value} and buf.readonly
fileh.dirty_discard()
for turn in range(3):
    fileh.truncate(20)
    assert overwrite(fileh, 21, values(*range(101, 113))) == 12
    assert a[4:12, 9].tolist() == list(range(5, 13))
    for value, buf in kept.items():
        assert set(bytes(buf)) <= {0, value}, (value, set(bytes(buf)))
    assert set(bytes(part)) <= {0, 88}
    fileh.dirty_discard()
    for blk in range(4, 12): fileh.invalidate_page(blk)
del buf, kept, part
ram_reclaim()
assert allocated() == 0, "memory that a reader of the buffers got"
fileh.truncate(20)
assert overwrite(fileh, 20, values(*range(1, 21))) == 20
assert a[20:, 1].tolist() == list(range(1, 21)) and allocated() == 20 * MIB
""")


def test_a_traceback_keeps_the_bytes_of_a_failed_store():
    child("""
class Failing(File):
    def storeblk(self, blk, buf):
        if blk == 2: raise OSError("disk full")
fileh = Failing(MIB).fileh_open()
fileh.truncate(0)
assert overwrite(fileh, 0, values(11, 12, 13, 14)) == 4
try: fileh.dirty_writeout(BOTH)
except OSError as e: failed = e
def kept():
    at = failed.__traceback__
    while at.tb_next: at = at.tb_next
    return at.tb_frame.f_locals["buf"]
assert set(bytes(kept())) == {13}
a = view(fileh, 10, 20)
a[:, 5] = 9
del a, fileh
gc.collect()
assert set(bytes(kept())) == {13}, "it holds the handle"
""")


def test_a_fork_leaves_frames_to_the_parent():
    child("""
import warnings
warnings.simplefilter("error")          # Python warns of threads at a fork
a = view(fileh, 0, 8)
assert a[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
a[1] = 99
fileh.invalidate_page(7)
buf = page_buffer(fileh, 1)
at = np.frombuffer(buf, "u1").ctypes.data
assert spare() == MIB and threads() > 1
pid = os.fork()
if pid == 0:
    assert spare() == 0 and threads() == 1
    # what the child has where the parent's buffer is stays there
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    args = ctypes.c_void_p(at), ctypes.c_size_t(MIB), 3, 0x100022, -1, ctypes.c_long(0)
    assert libc.mmap(*args) == at
    del buf
    assert ctypes.string_at(at, 10) == bytes(10)
    other = File(MIB).fileh_open()
    other.truncate(0)
    assert overwrite(other, 0, values(51, 52, 53)) == 3
    b = view(other, 0, 3)
    assert b[:, 7].tolist() == [51, 52, 53] and allocated() == 3 * MIB
    other.dirty_writeout(BOTH)
    del a, b, fileh
    gc.collect()
    ram_reclaim()
    os._exit(0)
while threads() != 1: time.sleep(0.01)  # one that was joined is listed for a moment
assert spare() == 0
assert os.waitpid(pid, 0)[1] == 0
assert set(bytes(buf)) == {99} and a[:7, 3].tolist() == [1, 99, 3, 4, 5, 6, 7]
fileh.invalidate_page(6)
assert spare() == MIB and allocated() == 7 * MIB
assert a[7, 3] == 8 and spare() == 0 and allocated() == 7 * MIB
""")


def test_memory_of_the_process_counts_what_is_only_read_once():
    child("""
fileh.truncate(32)
before = resident.shared()
assert overwrite(fileh, 32, values(*range(1, 33))) == 32
fileh.dirty_writeout(WRITEOUT_STORE)    # through the mapping, which has page tables then
assert resident.shared() - before > 31 * MIB
fileh.dirty_discard()
assert spare() == 8 * MIB               # the others have lost theirs
assert 7 * MIB < resident.shared() - before < 10 * MIB, resident.shared() - before
a = view(fileh, 0, 32)
assert (a[:, ::4096] == np.arange(1, 33)[:, None]).all()
assert 31 * MIB < resident.shared() - before < 34 * MIB, resident.shared() - before
fileh.truncate(32)
assert overwrite(fileh, 32, values(*range(1, 9))) == 8
fileh.dirty_writeout(WRITEOUT_STORE)
assert resident.shared() - before > 39 * MIB
resident.drop_tables()
assert resident.shared() - before < 2 * MIB
assert set(bytes(page_buffer(fileh, 33))) == {2} and (a[7] == 8).all()
""")


def test_a_block_moves_to_the_spool_while_another_thread_reads_it(tmp_path):
    child(
        """
a, b = view(fileh), view(fileh)
stop, errors = threading.Event(), []
def read():
    try:
        while not stop.is_set():
            for blk in range(14):
                seen = b[blk, ::4096].copy()
                assert ((seen == number(blk)) | (seen == 200)).all(), (blk, set(seen.tolist()))
    except BaseException as e:
        errors.append(e)
thread = threading.Thread(target=read)
thread.start()
for turn in range(6):
    for blk in range(64):
        a[blk] = 200 if blk < 14 else number(blk)
        if blk % 5 == 0: b[(blk * 7) % 64, 1]
    assert stats().spooled > 40 * MIB, stats()
    assert (b[:14] == 200).all() and (b[14:, 77] == [number(i) for i in range(14, 64)]).all()
    fileh.dirty_discard()
    assert (b[:, 78] == [number(i) for i in range(64)]).all()
stop.set()
thread.join()
assert not errors, errors
""",
        ram="16M",
        spool=str(tmp_path),
    )


def test_threads_that_load_and_overwrite_see_no_other_block():
    child(
        """
import random
stop, errors, done = time.monotonic() + 3, [], [0, 0]
def read(seed):
    rng, a = random.Random(seed), view(fileh)
    try:
        while time.monotonic() < stop:
            blk = rng.randrange(32)
            assert (a[blk, ::512] == number(blk)).all(), blk
            done[0] += 1
    except BaseException as e:
        errors.append(e)
def write(seed):
    rng, mine = random.Random(seed), File(MIB).fileh_open()
    mine.truncate(0)
    a = view(mine)
    try:
        while time.monotonic() < stop:
            blk, value = rng.randrange(64), rng.randrange(1, 250)
            if overwrite(mine, blk, values(value)):
                assert (a[blk, ::512] == value).all()
                done[1] += 1
            if rng.randrange(3) == 0:
                mine.dirty_writeout(WRITEOUT_STORE)     # which compares all bytes
                mine.dirty_discard()
                mine.truncate(0)
    except BaseException as e:
        errors.append(e)
threads = [threading.Thread(target=t, args=(i,)) for i, t in enumerate([read, read, write, write])]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, errors
assert min(done) > 10, done
assert sum(ram_stat()[1:]) + spare() == allocated()
""",
        ram="16M",
    )


def test_a_system_without_threads_keeps_nothing():
    child("""
fileh.truncate(0)
a = view(fileh, 0, 4)
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
if os.getuid() == 0:
    os.setuid(65534)                    # root has no such limit
resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
assert overwrite(fileh, 0, values(1, 2)) == 2
fileh.dirty_discard()
assert spare() == allocated() == 0
fileh.truncate(0)
assert overwrite(fileh, 0, values(3, 4)) == 2 and a[:2, 8].tolist() == [3, 4]
""")


def test_a_cgroup_of_256_mib_is_enough(tmp_path):
    try:
        with memory_cgroup(256 << 20) as procs:
            check_child(
                """
                import sys
                open(sys.argv[1], "w").write("0")
                import numpy as np, transaction
                from wendelin.bigarray.array_zodb import ZBigArray
                from wendelin.bigfile.virtmem.frames import spare
                from wendelin.lib.zodb import dbopen
                root = dbopen(sys.argv[2])
                A = root["A"] = ZBigArray((0,), np.int64)
                transaction.commit()
                most = 0
                for step in range(8):
                    A.append(np.arange(step << 23, (step + 1) << 23))
                    transaction.commit()
                    most = max(most, spare())
                assert 0 < most <= 16 << 20, most
                assert (A[::1 << 20] == np.arange(0, 1 << 26, 1 << 20)).all()
                """,
                str(procs),
                str(tmp_path / "data.fs"),
            )
    except NoCgroup as e:
        pytest.skip(str(e))
