"""Failures of every kind: each is an exception, and nothing wrong can be stored."""

import logging
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support import TESTS
from support.child import TIMEOUT, check_child, run_child, start_child
from support.ramfile import RAMFile

from wendelin.bigfile import BlockLoadError, DoomedError, ram_reclaim, stats

BLK = 4096
BOTH = 3

SETUP = """
import ctypes, gc, os, sys, threading, time, _thread
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigfile import *
from wendelin.bigfile.virtmem.handle import ram_stat
BLK = 4096
def new(n=8, cls=RAMFile):
    fileh = cls(BLK).fileh_open()
    return fileh, np.frombuffer(fileh.mmap(0, n), "u1")
class Failing(RAMFile):
    def loadblk(self, blk, buf):
        raise OSError("bad disk")
def bytecodes():
    for _ in range(1000): pass
"""


def child(code, **kw):
    return check_child(SETUP + code, timeout=30, **kw)


def view(fileh, start=0, n=8):
    return np.frombuffer(fileh.mmap(start, n), "u1")


class Failing(RAMFile):
    """Its loads raise `error`, unless that is None."""

    error: BaseException | None = OSError("bad disk")

    def loadblk(self, blk, buf):
        if self.error is not None:
            raise self.error
        super().loadblk(blk, buf)


# ---- a failed load is an exception ----

COPY = np.zeros(8 * BLK, "u1")


@pytest.mark.parametrize(
    "touch",
    [
        np.sum,
        np.ndarray.copy,
        np.sort,
        lambda a: a[3 * BLK] + sum(range(100)),
        lambda a: a[BLK : 3 * BLK].copy(),
        lambda a: np.add(a, 1, out=COPY),
        lambda a: np.add(COPY, 1, out=a),
        lambda a: a.view("f8").astype("f4"),
        lambda a: a.reshape(8, BLK) @ np.ones(BLK),
        lambda a: bytes(memoryview(a)),
        lambda a: a.tolist(),
        lambda a: (a[: 4 * BLK] == a[4 * BLK :]).all(),
    ],
)
def test_code_that_touches_a_failing_block_gets_an_exception(touch):
    fileh = Failing(BLK).fileh_open()
    fileh.file.blocks[0] = b"1" * BLK
    a = view(fileh)
    errors = []
    for _ in range(2):
        with pytest.raises(BlockLoadError, match=r"block [0-7] of .*OSError: bad disk") as e:
            touch(a)
            for _ in range(1000):  # a few bytecodes may run on
                pass
        assert e.value.file is fileh.file
        assert f"block {e.value.blk} of" in str(e.value)
        assert isinstance(e.value.__cause__, OSError)
        assert e.value.tid is None
        errors.append(e.value)
    # the next touch tries again
    fileh.file.error = None
    a.sum()
    # what was computed meanwhile cannot be stored
    a[0] = 9
    with pytest.raises(DoomedError, match="bad disk") as doomed:
        fileh.dirty_writeout(BOTH)
    assert doomed.value.__cause__ in errors
    assert fileh.isdirty()
    fileh.dirty_discard()
    assert not fileh.failed
    assert a[:BLK].sum() == ord("1") * BLK
    assert not a[BLK:].any()
    a[5] = 5
    fileh.dirty_writeout(BOTH)


def test_threads_with_views_of_their_own_are_each_told():
    child("""
fileh = Failing(BLK).fileh_open()
views = [np.frombuffer(fileh.mmap(0, 8), "u1") for _ in range(8)]
told = []
def work(a):
    try:
        a.sum(); bytecodes()
    except BlockLoadError as e: told.append(e)
threads = [threading.Thread(target=work, args=(a,)) for a in views]
for t in threads: t.start()
for t in threads: t.join()
assert len(told) == 8, told
""")


@pytest.mark.parametrize("own", [True, False])
def test_a_touch_that_fails_while_blocks_are_stored(own):
    """The write-out raises the failure, and stores nothing."""
    broken = view(Failing(BLK).fileh_open())

    class File(Failing):
        def storeblk(self, blk, buf):
            (mine if own else broken)[5 * BLK]
            for _ in range(1000):
                pass
            super().storeblk(blk, buf)

    fileh = File(BLK).fileh_open()
    mine = view(fileh)
    fileh.file.error = None
    mine[:BLK] = 1
    fileh.file.error = OSError("bad disk")
    with pytest.raises(BlockLoadError, match=r"block 5 of .*bad disk"):
        fileh.dirty_writeout(BOTH)
    assert fileh.dirty_blocks() == [0]
    assert not fileh.file.blocks


def test_a_touch_that_fails_at_the_end_of_the_interpreter():
    """A block that is not in memory reads as zeros then, and there is no exception."""
    out = child("""
import atexit
a = np.frombuffer(Failing(BLK).fileh_open().mmap(0, 8), "u1")
class Late:
    def __del__(self): print("late", a[0], flush=True)
keep = Late()
keep.me = keep
@atexit.register
def early():
    try: a[3 * BLK]; bytecodes()
    except BlockLoadError: print("told")
""")
    assert out.split() in (["told"], ["told", "late", "0"], ["told", "late"])


def test_the_error_goes_to_other_processes():
    fileh = Failing(BLK).fileh_open()
    with pytest.raises(BlockLoadError) as e:
        fileh.load(2, 1)
    again = pickle.loads(pickle.dumps(e.value))
    assert (str(again), again.blk, again.tid) == (str(e.value), 2, None)
    assert again.file == repr(fileh.file)


def test_the_operator_is_told(caplog):
    fileh = Failing(BLK).fileh_open()
    a = view(fileh)
    with caplog.at_level(logging.ERROR, "wendelin.bigfile"), pytest.raises(BlockLoadError):
        a.sum()
        for _ in range(1000):
            pass
    (record,) = caplog.records
    assert "block 0 of" in record.message
    assert "bad disk" in record.message


def test_a_reader_that_never_aborts_does_not_gather_failures():
    fileh = Failing(BLK).fileh_open()
    for blk in range(100):
        a = view(fileh, blk, 1)
        with pytest.raises(BlockLoadError):
            a.sum()
            for _ in range(1000):
                pass
    assert len(fileh.failed) <= 64
    assert fileh.failed[0].blk == 0


def test_a_thread_that_ends_before_its_exception_leaves_it_to_nobody():
    """The system gives its ident to the next thread, which must not get the exception."""
    child("""
_, a = new(cls=Failing)
_, b = new()
b.base.fileh.file.blocks[0] = b"1" * BLK
def run(f):
    _thread.start_new_thread(f, ())
    time.sleep(0.5)
run(lambda: a[0])           # and no bytecode after it that looks for exceptions
got, ended = [], threading.Event()
def reads():
    got.append(threading.get_ident()); got.append(b[0]); bytecodes(); ended.set()
run(reads)
ended.wait(30)
assert got[1:] == [ord("1")], got
""")


def test_an_exception_that_comes_to_a_finalizer_goes_on():
    """Python prints an exception of __del__() and goes on. The code that touched must not go on."""
    out = child("""
from collections import deque
from operator import truth
import weakref
_, a = new(cls=Failing)
class Thing:
    def __del__(self):
        ran.append(1)
        bytecodes()
        ran.append(2)
class Watched: pass
def callback(_):
    ran.append(1)
    bytecodes()
def thing():
    return Thing()
def watched():
    thing = Watched()
    refs.append(weakref.ref(thing, callback))
    return thing
for make in thing, watched:
    for _ in range(2):                     # BLK and on: a page is asked once in a transaction
        ran, refs, error = [], [], None
        try:
            deque(map(truth, [a[:1], make()]), maxlen=0)
            bytecodes()
        except BlockLoadError as e:
            error = e
        assert isinstance(error, BlockLoadError) and error.blk == 0, (error, ran)
        try: bytecodes()
        except BaseException as e: raise AssertionError("once more") from e
class Wrong:
    def __del__(self): raise BlockLoadError("of its own")
class Touching:
    def __del__(self):
        a[0]
        bytecodes()
Wrong()
Touching()                                 # nobody else has touched it
said = []
sys.unraisablehook = said.append           # as others do
try:
    deque(map(truth, [a[:1], thing()]), maxlen=0)
    bytecodes()
    raise AssertionError("swallowed")
except BlockLoadError: pass
assert not said
Touching()
bytecodes()
assert len(said) == 1 and isinstance(said[0].exc_value, BlockLoadError), said
""")
    assert out == ""


# ---- waits ----


def test_loaders_that_wait_for_each_other():
    """The second loader that waits gets an exception; the first one goes on."""
    child("""
both = threading.Barrier(2)
class File(RAMFile):
    other = None
    met = False
    def loadblk(self, blk, buf):
        if blk == 0 and not self.met:
            self.met = True
            both.wait(20)
            self.other[0]               # is being loaded by the other thread
            bytecodes()
        buf[:] = b"1" * BLK
_, a = new(cls=File)
_, b = new(cls=File)
fa, fb = (v.base.fileh.file for v in (a, b))
fa.other, fb.other = b, a
got = []
def work(v):
    try:
        got.append(v.sum()); bytecodes()
    except BlockLoadError as e: got.append(e)
threads = [threading.Thread(target=work, args=(v,), daemon=True) for v in (a, b)]
for t in threads: t.start()
for t in threads: t.join(25)
errors = [e for e in got if isinstance(e, BlockLoadError)]
assert len(got) == 2 and len(errors) == 1, got
assert "waits for a block that this thread is loading" in str(errors[0]), errors
""")


DEADLOCK = """
from wendelin.bigfile.virtmem import deadlock
deadlock.set_seconds(0.5)
class File(RAMFile):
    def __repr__(self): return "<the file>"
_, a = new(cls=File)
libc = ctypes.PyDLL(None)               # keeps the GIL while it runs
thread = ctypes.c_ulong()
strlen = ctypes.cast(libc.strlen, ctypes.c_void_p)
libc.pthread_create(ctypes.byref(thread), None, strlen, ctypes.c_void_p(a.ctypes.data + 3 * BLK))
libc.pthread_join(thread, None)
"""


def test_the_watchdog_reports_what_cannot_be_solved():
    """A thread of native code touches a block, and the thread that waits for it has the GIL."""
    with start_child(SETUP + DEADLOCK, stderr=subprocess.PIPE) as process:
        limit = threading.Timer(TIMEOUT, process.kill)
        limit.start()
        said = process.stderr.readline()
        limit.cancel()
        process.kill()
    assert "waiting for Python's lock (GIL)" in said
    assert "to load block 3 of <the file>" in said
    assert "with A.load(rows) as a" in said


def test_the_watchdog_is_silent_otherwise():
    done = run_child(
        SETUP
        + """
from wendelin.bigfile.virtmem import deadlock
deadlock.set_seconds(2)
_, a = new(1000)
threads = [threading.Thread(target=a.sum) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
"""
        + DEADLOCK.split("\n", 3)[3].replace("_, a", "_, c"),
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- figures ----


def test_stats():
    class File(Failing):
        def __repr__(self):
            return "<File of test_stats>"

    fileh = File(BLK).fileh_open()

    def figures():
        (one,) = (h for h in stats().handles if h.file == "<File of test_stats>")
        return one

    assert figures() == ("<File of test_stats>", BLK, *[0] * 11)
    a = view(fileh)
    with pytest.raises(BlockLoadError):
        a.sum()
        for _ in range(1000):
            pass
    # after the first failure, the thread gets zeros until it sees the exception
    assert figures()[2:] == (8, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0)
    fileh.dirty_discard()
    fileh.file.error = None
    fileh.file.blocks.update(dict.fromkeys(range(4), b"1" * BLK))
    a.sum()
    a[0] = 2
    now = figures()
    assert (now.loads, now.dirty, now.failures) == (8, BLK, 8)
    assert now.faults >= 17
    assert now.mapped == 0
    before = now.resident
    assert before >= 4 * BLK
    fileh.dirty_writeout(BOTH)
    ram_reclaim()
    now = figures()
    assert (now.dirty, now.resident) == (0, 0)
    assert now.reclaims == before // BLK
    assert stats().limit > 0
    del a, fileh, now


# ---- debuggers ----

DEBUGGED = """
class File(RAMFile):
    def loadblk(self, blk, buf):
        time.sleep(0.001)
        buf[:] = b"1" * BLK
fileh, a = new(64, cls=File)
print("ready", flush=True)
for _ in range(40):
    assert a.sum() == ord("1") * 64 * BLK
    for blk in range(64): fileh.invalidate_page(blk)
print("done")
"""


@pytest.mark.parametrize(
    "command",
    [
        "gdb -p PID -batch -ex 'handle SIGSEGV nostop noprint pass' -ex 'bt 1' -ex detach",
        "py-spy dump --pid PID",
    ],
)
@pytest.mark.slow
def test_a_debugger_does_not_break_it(command):
    program, *arguments = shlex.split(command)
    path = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"there is no {program}")
    code = SETUP + DEBUGGED
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    arguments = [a.replace("PID", str(child.pid)) for a in arguments]
    for _ in range(3):
        subprocess.run([path, *arguments], capture_output=True, timeout=60)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, "done\n")


# ---- errors of errors ----


def test_an_error_that_cannot_be_shown_is_an_error():
    """A message is made of the loader's error. If that fails, its zeros must not count as data."""
    child("""
class Bad(Exception):
    def __str__(self): raise RuntimeError("no str")
class File(RAMFile):
    def loadblk(self, blk, buf): raise Bad
sys.unraisablehook = lambda args: None
fileh, a = new(cls=File)
try:
    a[0]; bytecodes()
except BlockLoadError: pass
a[BLK:] = 1
try: fileh.dirty_writeout(3)
except DoomedError: pass
else: raise AssertionError("zeros of a failed load could be stored")
""")


@pytest.mark.parametrize("error", ["SystemExit(5)", "KeyboardInterrupt()", "GeneratorExit()"])
def test_a_loader_that_always_raises_a_base_exception(error):
    child(
        """
class File(RAMFile):
    calls = 0
    def loadblk(self, blk, buf):
        self.calls += 1
        if self.calls > 100: os._exit(9)
        raise ERROR
fileh, a = new(cls=File)
try:
    a[0]; bytecodes()
    raise AssertionError("no exception")
except (type(ERROR), BlockLoadError): pass
try: bytecodes()
except (type(ERROR), BlockLoadError): pass
assert fileh.failed
""".replace("ERROR", error)
    )
