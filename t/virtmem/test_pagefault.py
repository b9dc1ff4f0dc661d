"""Page faults together with signals, system calls, exceptions, forks, exits: in child processes."""

import signal
import subprocess

import pytest
from support.child import check_child, run_child

SETUP = """
import faulthandler, signal, sys, os, threading, time, ctypes
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigfile import *
BLK = 4096
def new(n=8, cls=RAMFile):
    fileh = cls(BLK).fileh_open()
    return fileh, np.frombuffer(fileh.mmap(0, n), "u1")
"""


def child(code, **kw):
    return check_child(SETUP + code, **kw)


def dies(code, **kw):
    done = run_child(SETUP + code, **kw)
    assert done.returncode == -signal.SIGSEGV, (done.returncode, done.stdout, done.stderr)
    return done


FOREIGN = "ctypes.string_at(8)\nprint('survived')\n"


def test_a_foreign_fault_still_kills_the_process():
    done = dies("_, a = new(); a[0] = 1\n" + FOREIGN)
    assert done.stdout == ""
    assert done.stderr == ""


@pytest.mark.parametrize(
    "code",
    [
        "faulthandler.enable(); _, a = new(); a[0] = 1\n",
        "_, a = new(); faulthandler.enable(); _, b = new(); a[0] = b[0] = 1\n",
        "_, a = new(); faulthandler.enable(); _, b = new(); faulthandler.enable(); c = new()\n",
    ],
)
def test_faulthandler_reports_a_foreign_fault(code):
    done = dies(code + FOREIGN)
    assert done.stderr.count("Fatal Python error: Segmentation fault") == 1
    assert "File" in done.stderr


def test_faulthandler_enabled_after_us():
    """faulthandler is called first. It reports a fault of ours, too; then the program goes on."""
    out = child("_, a = new(); faulthandler.enable(); a[5] = 1; print(a[5], a.sum())")
    assert out.split() == ["1", "1"]
    dies("_, a = new(); faulthandler.enable(); a[5] = 1\n" + FOREIGN)


def test_faulthandler_enabled_before_us_or_between():
    out = child("faulthandler.enable(); _, a = new(); a[5] = 1; print(a.sum())")
    assert out.split() == ["1"]
    done = run_child(SETUP + "_, a = new(); faulthandler.enable(); _, b = new(); print(a.sum())")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("sig", ["SIGSEGV", "SIGBUS"])
def test_a_handler_of_python_that_is_set_after_us(sig):
    """Without care, a touch of an existing view would call it for ever."""
    done = run_child(
        SETUP
        + """
_, a = new()
_, b = new()
called = []
def handler(*_): called.append(1)
def sent():
    called.clear()
    os.kill(os.getpid(), signal.SIG)
    for _ in range(1000): pass
    return called
for write in range(2):
    signal.signal(signal.SIG, handler)
    if write: a[5] = 1
    else: assert a[5] == 0
assert sent() == [1]                        # it is called for what is not ours
threads = [threading.Thread(target=a.__setitem__, args=(i * BLK, 1)) for i in range(1, 4)]
signal.signal(signal.SIG, handler)
for t in threads: t.start()
for t in threads: t.join()
assert a.sum() == 4
signal.signal(signal.SIG, handler)
_, c = new()                                # at once, when a mapping is made
b[:] = c[:] = 1
print(sent(), signal.getsignal(signal.SIG) is handler)
""".replace("signal.SIG", f"signal.{sig}")
    )
    assert (done.returncode, done.stdout) == (0, "[1] True\n"), done.stderr
    (said,) = done.stderr.splitlines()  # said once
    assert f"a handler of {sig} was set after wendelin.core's" in said


def test_no_thread_of_ours_is_there_at_a_fork():
    """Python warns, for good reason, when a process with threads forks."""
    child("""
def threads(): return len(os.listdir("/proc/self/task"))
before = threads()                          # those of BLAS, which end at a fork, too
fileh, a = new()
assert threads() == before + 1
for _ in range(3):
    pid = os.fork()
    if pid == 0: os._exit(threads() != 1)
    while threads() != 1: time.sleep(0.01)  # one that was joined is listed for a moment
    assert os.waitpid(pid, 0)[1] == 0
    b = np.frombuffer(fileh.mmap(0, 8), "u1")
    assert threads() == 2
""")


def test_a_signal_that_is_sent_is_not_a_fault():
    dies("_, a = new(); os.kill(os.getpid(), signal.SIGSEGV)")
    dies("faulthandler.enable(); _, a = new(); signal.raise_signal(signal.SIGSEGV)")


@pytest.mark.parametrize("siginfo", [0, 1])
def test_an_earlier_handler_is_called_for_what_is_not_ours(siginfo):
    code = """
libc = ctypes.CDLL(None)
ARGS = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p) if SIGINFO else (ctypes.c_int,)
@ctypes.CFUNCTYPE(None, *ARGS)
def earlier(sig, *rest):
    os.write(1, b"earlier %d\\n" % sig)
    os._exit(7)
class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16),
                ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]
action = Action(ctypes.cast(earlier, ctypes.c_void_p), flags=4 if SIGINFO else 0)
assert libc.sigaction(11, ctypes.byref(action), None) == 0
_, a = new(); a[0] = 1
print(a.sum(), flush=True)
ctypes.string_at(8)
""".replace("SIGINFO", str(siginfo))
    done = run_child(SETUP + code)
    assert (done.returncode, done.stdout) == (7, "1\nearlier 11\n")


def test_only_sigsegv_is_touched():
    out = child("""
before = {s: signal.getsignal(s) for s in signal.valid_signals()}
masks = []
class File(RAMFile):
    def loadblk(self, blk, buf):
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
_, a = new(cls=File)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
a[0] = 1
assert masks == [{signal.SIGUSR1}], masks
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR1}
print("ok")
""")
    assert out == "ok\n"


def test_system_calls_on_cold_and_on_resident_pages(tmp_path):
    """The limits are those that docs/howto/system-calls.md states."""
    child(
        """
import errno
os.chdir(sys.argv[1])
with open("src", "wb") as f: f.write(b"x" * 8 * BLK)
fileh, a = new()
def fails(f):
    try: f()
    except OSError as e: assert e.errno in (errno.EFAULT, None) or "requested" in str(e), e
    else: raise AssertionError("it worked")
with open("src", "rb", buffering=0) as f:
    fails(lambda: f.readinto(a))
with open("dst", "wb", buffering=0) as f:
    fails(lambda: f.write(a))
fails(lambda: a.tofile("dst"))
fails(lambda: np.save("dst.npy", a))
# a copy goes through memory that can fault
np.save("dst.npy", a.copy())
assert (np.load("dst.npy") == a).all()
# what is in memory is as any memory: to read it must have been read, to write it written
a.sum()
a.tofile("dst"); np.save("dst.npy", a)
with open("src", "rb", buffering=0) as f:
    fails(lambda: f.readinto(a))
a[::BLK] = 1
with open("src", "rb", buffering=0) as f:
    assert f.readinto(a) == 8 * BLK
assert (a == ord("x")).all() and fileh.dirty_blocks() == list(range(8))
""".replace("sys.argv[1]", repr(str(tmp_path)))
    )


def test_exceptions_and_errno_are_as_they_were():
    child("""
class File(RAMFile):
    def loadblk(self, blk, buf):
        try:
            raise KeyError("inside")
        except KeyError:
            assert sys.exc_info()[1].__context__ is None
        os.environ.get("x")
        try: os.stat("/nowhere")
        except OSError: pass
_, a = new(cls=File)
try:
    raise ValueError("outside")
except ValueError as e:
    a[0]
    assert sys.exc_info()[1] is e
    try:
        raise TypeError
    except TypeError as e2:
        a[BLK]
        assert e2.__context__ is e
def generate():
    try:
        raise ValueError("in generator")
    except ValueError as e:
        yield a[2 * BLK]
        assert sys.exc_info()[1] is e
        yield a[3 * BLK]
assert list(generate()) == [0, 0]
# an exception that is being raised while C code touches a page
class Touches:
    def __del__(self):
        a[4 * BLK]
def leave():
    t = Touches()
    raise IndexError("kept")
try: leave()
except IndexError as e: assert str(e) == "kept"
libc = ctypes.CDLL(None, use_errno=True)
ctypes.set_errno(77)
libc.memcpy(ctypes.create_string_buffer(8), ctypes.c_void_p(a.ctypes.data + 5 * BLK), 8)
assert ctypes.get_errno() == 77
""")


def test_an_interrupt_comes_after_the_page():
    child("""
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where we run in the background
class File(RAMFile):
    def loadblk(self, blk, buf):
        self.loads.append(blk)
        if len(self.loads) == 1:
            signal.raise_signal(signal.SIGINT)
            for _ in range(1000): pass
        buf[:] = b"7" * BLK
fileh, a = new(cls=File)
try:
    x = a[0]
    for _ in range(1000): pass
    raise AssertionError("no interrupt")
except KeyboardInterrupt:
    pass
assert x == a[0] == ord("7") and fileh.file.loads == [0] and not fileh.failed
""")


def test_fork():
    child("""
fileh, a = new()
a[0] = 5
a[BLK]
pid = os.fork()
if pid == 0:
    code = 1
    try:
        a[0] = 9
        for _ in range(1000): pass
    except ForkError as e:
        assert "Open the database again" in str(e)
        try:
            print(a[0])         # again, and not zeros
            for _ in range(1000): pass
            os._exit(2)
        except ForkError: pass
        try: fileh.dirty_discard()
        except ForkError: code = 0
        _, b = new()            # its own are as ever
        b[0] = 3
        assert b.sum() == 3
    del a, fileh
    import gc; gc.collect()
    os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert a[0] == 5 and a.sum() == 5 and fileh.dirty_blocks() == [0]
fileh.dirty_writeout(3)
assert fileh.file.blocks[0][0] == 5
""")


def test_fork_while_threads_fault():
    child("""
fileh, a = new(4096)
stop = False
def work():
    while not stop:
        a.sum()
        ram_reclaim()
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
for i in range(20):
    pid = os.fork()
    if pid == 0:
        _, b = new()
        b[0] = 1
        os._exit(0 if b.sum() == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop = True
for t in threads: t.join()
""")


def test_the_interpreter_exits_with_views_and_threads():
    out = child("""
fileh, a = new(1 << 12)
started = threading.Event()
def work():
    while True:
        a.sum()
        started.set()
        ram_reclaim()
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
started.wait()
class AtExit:
    def __del__(self): a[5 * BLK] = 1
keep = AtExit()
print("done")
""")
    assert out == "done\n"


def test_faulthandler_is_enabled_between_two_files():
    child("""
_, a = new(); a[0] = 1
faulthandler.enable()
_, b = new(); b[0] = 1
assert a.sum() + b.sum() == 2
""")


def test_a_thread_that_python_does_not_know(tmp_path):
    """The thread that mapped the handle last gets the exception of its failure."""
    source = tmp_path / "t.c"
    source.write_text("""
#include <pthread.h>
static void *work(void *p)
{
    long s = 0;
    for (int i = 0; i < 8 * 4096; i++)
        s += ((unsigned char *)p)[i];
    return (void *)s;
}
long run(void *p)
{
    pthread_t t;
    void *r;
    pthread_create(&t, 0, work, p);
    pthread_join(t, &r);
    return (long)r;
}
""")

    subprocess.run(
        ["cc", "-shared", "-fPIC", "-pthread", "-o", tmp_path / "t.so", source], check=True
    )
    child(
        """
lib = ctypes.CDLL(sys.argv[1])      # releases the GIL while it runs
lib.run.restype = ctypes.c_long
lib.run.argtypes = [ctypes.c_void_p]
class File(RAMFile):
    broken = False
    def loadblk(self, blk, buf):
        if blk == 3 and self.broken: raise OSError("bad disk")
        buf[:] = b"\\1" * BLK
fileh, a = new(cls=File)
assert lib.run(a.ctypes.data) == 8 * BLK
fileh.invalidate_page(3)
fileh.file.broken = True
try:
    lib.run(a.ctypes.data)
    for _ in range(1000): pass
    raise AssertionError("no exception")
except BlockLoadError as e:
    assert e.blk == 3
try: a[0] = 1; fileh.dirty_writeout(3)
except DoomedError: pass
else: raise AssertionError("not doomed")
""".replace("sys.argv[1]", repr(str(tmp_path / "t.so")))
    )
