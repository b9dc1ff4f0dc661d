"""Signals while a block loads: what a handler raises or touches is not a failure of the load."""

import pytest
from support.child import check_child

pytestmark = [pytest.mark.once, pytest.mark.slow]

SETUP = """
import asyncio, ctypes, functools, operator, os, random, signal, sys, threading, time
from collections import deque
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigfile import BigFileH, BlockLoadError, DoomedError
from wendelin.bigfile.virtmem.signals import set_patience
BLK = 4096
class TimeLimit(Exception): ...
def bytecodes():
    for _ in range(1000): pass
class File(RAMFile):
    during = None
    def loadblk(self, blk, buf):
        self.loads.append(blk)
        during, self.during = self.during, None
        if during is not None:
            during()
            bytecodes()
        buf[:] = b"7" * BLK
class Handle(BigFileH):
    during = None
    def first_change(self):
        during, self.during = self.during, None
        if during is not None:
            during()
            bytecodes()
file = File(BLK)
fileh = Handle(file)
a = np.frombuffer(fileh.mmap(0, 8), "u1")
def usr1(): os.kill(os.getpid(), signal.SIGUSR1)
def all_is_well():
    assert not fileh.failed and (a == 55).all()
    fileh.dirty_writeout(3)
"""


def child(code: str, *args: str) -> str:
    return check_child(SETUP + code, *args)


HANDLERS = {
    "function": "def handler(signum, frame): raise error",
    "lambda": "handler = lambda *_: (_ for _ in ()).throw(error)",
    "partial": """
def raises(what, signum, frame): raise what
handler = functools.partial(raises, error)
""",
    "object": """
class Handler:
    def __call__(self, signum, frame): raise error
handler = Handler()
""",
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("error", ["TimeLimit", "KeyboardInterrupt", "OSError"])
def test_what_a_handler_raises_goes_to_the_program(handler, error):
    child(
        f"""
error = {error}("mine")
{HANDLERS[handler]}
signal.signal(signal.SIGUSR1, handler)
def raised(f):
    try: f(); bytecodes()
    except BaseException as e: assert e is error, repr(e)
    else: raise AssertionError("nothing was raised")
    assert signal.getsignal(signal.SIGUSR1) is handler
file.during = usr1
raised(lambda: a[0])
assert file.loads == [0]                            # it was loaded once, not interrupted
file.during = usr1
raised(lambda: a[BLK:].sum())                       # and others, in the same instruction of Python
assert file.loads == list(range(8))
fileh.during = usr1
raised(lambda: a.__setitem__(5, 55))
all_is_well()
fileh.invalidate_page(3)
file.during = usr1
raised(lambda: fileh.load(3, 1))
all_is_well()
"""
    )


def test_a_handler_may_touch_what_its_thread_loads():
    """The signal comes before the fault, or while the block loads. A handler may change it."""
    child("""
saw = []
def handler(signum, frame):
    saw.append(int(a[BLK * 3]))
    if len(saw) == 3: a[BLK * 3 + 1] = 55
signal.signal(signal.SIGUSR1, handler)
file.during = usr1
a[BLK * 3]; bytecodes()
assert saw == [55] and file.loads == [3], (saw, file.loads)
# pending, when the block is touched: no instruction of Python is in between
trip = functools.partial(ctypes.pythonapi.PyErr_SetInterruptEx, int(signal.SIGUSR1))
for n in 2, 3:
    fileh.invalidate_page(3)
    got = list(map(operator.call, [trip, functools.partial(a.__getitem__, BLK * 3)]))
    bytecodes()
    assert saw == [55] * n and got[1] == 55, (saw, got)
assert fileh.dirty_blocks() == [3]
all_is_well()
""")


@pytest.mark.parametrize("where", ["load", "change"])
@pytest.mark.parametrize("early", [True, False])
def test_a_loader_that_hangs_can_be_interrupted(where, early):
    """Once the load has taken long, a signal's handler is called: what it raises ends the load."""
    child(
        """
set_patience(0.3)
calls = []
def handler(signum, frame):
    calls.append(signum)
    raise TimeLimit
signal.signal(signal.SIGALRM, handler)
def hangs():
    begin()
    threading.Event().wait()
def limited(f, error):
    try: f(); bytecodes()
    except error: pass
    else: raise AssertionError("it did not hang")
    try: fileh.dirty_writeout(3)
    except DoomedError as e: assert error.__name__ in str(e), e
    else: raise AssertionError("zeros could be stored")
    fileh.dirty_discard()
if WHERE == "change":
    a[0]
    fileh.during = hangs
    touch = lambda: a.__setitem__(0, 5)
else:
    file.during = hangs
    touch = lambda: a[0]
begin = lambda: signal.setitimer(signal.ITIMER_REAL, 0.05 if EARLY else 0.4)
limited(touch, TimeLimit)
assert calls == [signal.SIGALRM]
file.during, fileh.during = (None, hangs) if WHERE == "change" else (hangs, None)
fileh.invalidate_page(0)
if WHERE == "change": a[0]
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupt = threading.Timer(0.05 if EARLY else 0.4, os.kill, (os.getpid(), signal.SIGINT))
begin = interrupt.start
limited(touch, KeyboardInterrupt)
all_is_well()
""".replace("WHERE", repr(where)).replace("EARLY", repr(early))
    )


def test_what_the_system_does_with_signals_stays():
    child("""
class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16),
                ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]
libc = ctypes.CDLL(None)
def actions():
    found = []
    for signum in sorted(signal.valid_signals()):
        action = Action()
        libc.sigaction(int(signum), None, ctypes.byref(action))
        found.append((int(signum), action.handler, action.flags))
    return found
signal.signal(signal.SIGUSR1, print)
signal.siginterrupt(signal.SIGUSR1, False)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
signal.signal(signal.SIGALRM, print)
@ctypes.CFUNCTYPE(None, ctypes.c_int)
def of_a_library(signum): caught.append(signum)
action = Action(ctypes.cast(of_a_library, ctypes.c_void_p))
libc.sigaction(int(signal.SIGALRM), ctypes.byref(action), None)
before, python = actions(), [signal.getsignal(s) for s in signal.valid_signals()]
caught, inside = [], []
file.during = lambda: (inside.append(actions()), os.kill(os.getpid(), signal.SIGALRM))
a[0]; bytecodes()
assert inside == [before] and caught == [signal.SIGALRM]
assert actions() == before
assert [signal.getsignal(s) for s in signal.valid_signals()] == python
# a loader that sets one has set it
file.during = lambda: signal.signal(signal.SIGUSR1, len)
a[BLK]; bytecodes()
assert signal.getsignal(signal.SIGUSR1) is len
""")


def test_a_callback_of_asyncio_is_called_once():
    child("""
async def main():
    calls = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, calls.append, 1)
    for blk in range(8):
        file.during = usr1
        a[blk * BLK]
        await asyncio.sleep(0.01)
    assert calls == [1] * 8, calls
asyncio.run(main())
all_is_well()
""")


def test_a_fork_while_signals_wait():
    """Another thread forks: in its child, Python's handlers are called."""
    child("""
loading, forked = threading.Event(), threading.Event()
def handler(*_): os._exit(7)
signal.signal(signal.SIGUSR1, handler)
status = []
def fork():
    loading.wait(20)
    pid = os.fork()
    if pid == 0:
        if signal.getsignal(signal.SIGUSR1) is handler:
            usr1()
            bytecodes()
        os._exit(3)
    status.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    forked.set()
thread = threading.Thread(target=fork)
thread.start()
file.during = lambda: (loading.set(), forked.wait(20))
a[0]
thread.join()
assert status == [7], status
assert signal.getsignal(signal.SIGUSR1) is handler
""")


def test_time_limits_at_any_moment(tmp_path):
    """The array is in a database, and the handler reads it. No commit is refused."""
    child(
        """
import transaction
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbopen
root = dbopen(sys.argv[1])
root["A"] = A = ZBigArray((1 << 14,), float, blksize=4096)
transaction.commit()
A[:] = 1
transaction.commit()
def limit(*_):
    assert view[5] == 1
    raise TimeLimit
signal.signal(signal.SIGALRM, limit)
random.seed(1)
ends = set()
for i in range(300):
    view = A[:]
    handle = A._fileh()
    handle.invalidate_page(0)
    handle.file.table.drop()
    saw = None
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(10, 800) * 1e-6)
        assert view[0] == 1
        view[1] = 1
        bytecodes()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeLimit as e:
        saw = type(e)
    signal.setitimer(signal.ITIMER_REAL, 0)
    ends.add(saw)
    transaction.commit()
assert TimeLimit in ends and (A[:] == 1).all()
""",
        f"file://{tmp_path}/1.fs?align=false",
    )
