"""Changes that are larger than memory: those that do not fit are in files of a spool."""

import os
import signal
import subprocess
import tempfile

import pytest
from support.child import check_child, start_child
from support.ramfile import RAMFile
from support.smalldisk import NoDisk, small_disk

from wendelin.bigfile.virtmem.spool import spool_folder

MIB = 1 << 20

SETUP = """
import gc, os, sys, threading
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigfile import *
from wendelin.bigfile.virtmem.handle import ram_stat
MIB = 1 << 20
BOTH = WRITEOUT_STORE | WRITEOUT_MARKSTORED
SPOOL = os.environ["WENDELIN_CORE_SPOOL"]
class File(RAMFile):
    def loadblk(self, blk, buf):
        self.loads.append(blk)
        if blk in self.blocks: buf[:] = self.blocks[blk]
        elif blk % 2: buf[:] = bytes([blk % 251 + 1]) * len(buf)
        else: return b""
def view(fileh, start=0, n=8):
    return np.frombuffer(fileh.mmap(start, n), "u1").reshape(n, -1)
def files():
    links = (os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if os.path.islink(f"/proc/self/fd/{fd}"))
    return sum(link.startswith(SPOOL) for link in links)
def before(blk):
    return blk % 251 + 1 if blk % 2 else 0
fileh = File(MIB).fileh_open()
a = view(fileh, 0, 64)
"""


def child(code, folder, ram="16M", **env):
    return check_child(SETUP + code, WENDELIN_CORE_RAM=ram, WENDELIN_CORE_SPOOL=str(folder), **env)


def test_changes_that_do_not_fit_are_in_a_file(tmp_path):
    child(
        """
b = view(fileh, 0, 64)
for i in range(0, 64, 3):
    assert b[i, 5] == before(i)     # some are in memory, clean, before they change
for i in range(64):
    a[i, 100:] = i + 100
    assert sum(ram_stat()[1:]) <= 17 * MIB
assert os.listdir(SPOOL) == [] and files() == 1
s = stats()
assert s.dirty == 12 * MIB and s.spooled == 52 * MIB, s
h = s.handles[0]
assert (h.dirty, h.spooled) == (12 * MIB, 52 * MIB) and h.resident <= 16 * MIB, h
assert os.statvfs(SPOOL).f_bsize and fileh.spool == SPOOL
ram_reclaim()
for i in range(64):
    assert (b[i, 100:] == i + 100).all() and (b[i, :100] == before(i)).all(), i
fileh.dirty_writeout(BOTH)
assert fileh.file.stores == list(range(64))
assert stats().spooled == 0 and stats().dirty == 0 and files() == 0
for i in range(64):
    assert (b[i, 100:] == i + 100).all() and (b[i, :100] == before(i)).all(), i
""",
        tmp_path,
    )


def test_discard_invalidate_truncate_and_close(tmp_path):
    child(
        """
File.truncate = lambda self, blk: self.blocks.update((b, b"") for b in range(blk, 64))
for _ in range(2):
    a[:] = 7
    assert stats().spooled == 52 * MIB
    fileh.invalidate_page(60)
    assert a[60, 0] == before(60) and stats().spooled == 51 * MIB
    a[60] = 8               # the slot that was free has zeros
    assert (a[60] == 8).all() and stats().spooled == 52 * MIB
    fileh.invalidate_page(62)
    a[62, :9] = 8
    assert not a[62, 9:].any()
    fileh.truncate(32)
    assert not a[32:].any() and (a[:32] == 7).all()
    assert stats().spooled == 20 * MIB
    fileh.dirty_discard()
    assert stats().spooled == 0 and files() == 0
    assert [int(x) for x in a[:, 0]] == [before(i) for i in range(64)]
a[:] = 9
other = File(2 * MIB).fileh_open()
c = view(other, 0, 20)
c[:] = 3                    # pages of another size, in the same file
assert stats().spooled == (52 + 40) * MIB and files() == 1
del a, fileh
gc.collect()
assert stats().spooled == 40 * MIB
assert (c == 3).all()
del c, other
gc.collect()
assert stats().spooled == 0 and files() == 0
""",
        tmp_path,
    )


def test_threads_that_change_and_read(tmp_path):
    child(
        """
views = [view(fileh, 0, 64) for _ in range(4)]
wrong = []
def work(k):
    mine = views[k]
    for _ in range(3):
        for i in range(k, 64, 4):
            mine[i] = i + 1
        for i in range(k, 64, 4):
            if not (views[(k + 1) % 4][i] == i + 1).all(): wrong.append(i)
threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert not wrong and stats().spooled >= 48 * MIB
assert sum(ram_stat()[1:]) <= 17 * MIB
fileh.dirty_writeout(BOTH)
assert all((np.frombuffer(fileh.file.blocks[i], "u1") == i + 1).all() for i in range(64))
""",
        tmp_path,
    )


def test_a_child_of_a_fork_changes_nothing(tmp_path):
    child(
        """
a[:] = 5
pid = os.fork()
if pid == 0:
    try:
        a[40, 0] = 6
        for _ in range(1000): pass
    except ForkError:
        fresh = File(MIB).fileh_open()
        mine = view(fresh, 0, 64)
        mine[:] = 6
        os._exit(0 if (mine == 6).all() and stats().spooled == 52 * MIB else 2)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
assert (a == 5).all() and stats().spooled == 52 * MIB
""",
        tmp_path,
    )


def test_pinned_pages(tmp_path):
    child(
        """
from wendelin.bigarray import BigArray
B = BigArray((64 * MIB,), "u1", fileh)
del a
with B.load(slice(0, 8 * MIB)) as b:
    with B.load(slice(0, 64 * MIB), write=True) as c:
        assert stats().spooled == 52 * MIB
        with open("/dev/zero", "rb") as f:
            f.readinto(c)           # a system call, which finds all of it accessible
        c[::MIB] = 1
        assert b[0] == 1 and not c[1:MIB].any() and (c[::MIB] == 1).all()
fileh.dirty_writeout(BOTH)
assert stats().spooled == 0
""",
        tmp_path,
    )


def test_a_full_disk_is_an_exception_and_nothing_is_lost(tmp_path):
    try:
        with small_disk(tmp_path / "disk", 8 * MIB) as folder:
            child(
                """
def change(n):
    for i in range(n): a[i] = 7
    for _ in range(1000): pass
for _ in range(2):
    try:
        change(64)
        raise AssertionError("no exception")
    except PageMemoryError as e:
        assert "No space left on device" in str(e) and f"files in {SPOOL}" in str(e), e
        assert "bytes are free" in str(e) and "WENDELIN_CORE_SPOOL" in str(e), e
    try: fileh.dirty_writeout(BOTH)
    except DoomedError as e: assert SPOOL in str(e)
    else: raise AssertionError("not doomed")
    try: fileh.dirty_discard(); BigArray = __import__("wendelin.bigarray").bigarray.BigArray; \\
        BigArray((64 * MIB,), "u1", fileh).load(write=True)
    except PageMemoryError as e: assert f"files in {SPOOL}" in str(e), e
    fileh.dirty_discard()
    assert fileh.file.stores == [] and stats().spooled == 0
    assert os.statvfs(SPOOL).f_bfree == os.statvfs(SPOOL).f_blocks
    assert [int(x) for x in a[:, 0]] == [before(i) for i in range(64)]
change(18)
assert stats().spooled == 6 * MIB
fileh.dirty_writeout(BOTH)
assert fileh.file.stores == list(range(18))
""",
                folder,
            )
    except NoDisk as e:
        pytest.skip(str(e))


def test_a_killed_process_leaves_no_file(tmp_path):
    try:
        with small_disk(tmp_path / "disk", 100 * MIB) as folder:
            code = SETUP + "a[:] = 5; print('full', flush=True); sys.stdin.read()"
            proc = start_child(
                code,
                stdout=subprocess.PIPE,
                WENDELIN_CORE_RAM="16M",
                WENDELIN_CORE_SPOOL=str(folder),
            )
            with proc:
                assert proc.stdout.readline() == "full\n"
                fs = os.statvfs(folder)
                assert (fs.f_blocks - fs.f_bfree) * fs.f_frsize >= 52 * MIB
                assert os.listdir(folder) == []
                proc.send_signal(signal.SIGKILL)
            fs = os.statvfs(folder)
            assert fs.f_bfree == fs.f_blocks
    except NoDisk as e:
        pytest.skip(str(e))


def test_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in "tmp", "database", "given":
        (tmp_path / name).mkdir()
    assert spool_folder() == str(tmp_path / "tmp")
    assert spool_folder(str(tmp_path / "database")) == str(tmp_path / "database")
    assert spool_folder(str(tmp_path / "none")) == str(tmp_path / "tmp")
    if os.path.isdir("/dev/shm"):  # in memory
        assert spool_folder("/dev/shm") == str(tmp_path / "tmp")
        monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
        assert spool_folder() is None
    monkeypatch.setenv("WENDELIN_CORE_SPOOL", str(tmp_path / "given"))
    assert spool_folder(str(tmp_path / "database")) == str(tmp_path / "given")
    monkeypatch.setenv("WENDELIN_CORE_SPOOL", "0")
    assert spool_folder(str(tmp_path / "database")) is None
    for bad in "", str(tmp_path / "none"), __file__:
        monkeypatch.setenv("WENDELIN_CORE_SPOOL", bad)
        with pytest.raises(ValueError, match=r"WENDELIN_CORE_SPOOL is .* it must be a folder"):
            spool_folder()


def test_a_folder_that_a_file_has_for_itself_is_not_its_spool():
    class File(RAMFile):
        folder = object()

    assert File(4096).fileh_open().spool == spool_folder()
