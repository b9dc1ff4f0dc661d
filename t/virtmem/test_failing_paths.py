"""Failures inside the failure path: no memory, no room on the stack, hooks that raise.

After any failure, either the data is right, or the thread gets an exception and the commit is
refused. Each test makes one kind of failure, in turn at every step that a fault takes.
"""

import re
from pathlib import Path

import pytest
from support.child import check_child, run_child

pytestmark = [pytest.mark.once, pytest.mark.slow]

#: `out` gets the value that was read from the cold block, right or wrong, and is committed.
SETUP = """
import inspect, logging, sys
import numpy as np, transaction
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, DoomedError
from wendelin.lib.zodb import dbopen
logging.disable(logging.CRITICAL)

url, fmt, write = sys.argv[1], sys.argv[2], sys.argv[3] == "write"
root = dbopen(url)
root["A"] = A = ZBigArray((1 << 12,), np.int64, blksize=4096, zblk_fmt=fmt)
root["out"] = out = ZBigArray((1,), np.int64, blksize=4096)
transaction.commit()
A[:], out[:] = 7, -1
transaction.commit()
buf = np.zeros(1, np.int64)
eight = np.full(1, 8)
seen = {}

def bytecodes():
    for _ in range(100):
        pass

def touch(a):
    if write:
        np.copyto(a, eight)
    else:
        np.copyto(buf, a)

def attempt(fails, step):
    a = A[2000:2001]
    handle = A._fileh()
    handle.invalidate_page(3)
    handle.file.table.drop()
    if write:
        a[0]                        # what fails is the change
    buf[0] = -1
    result = "right"
    try:
        fails(step, a)
    except BaseException as e:
        result = type(e).__name__
    try:
        bytecodes()
    except BaseException as e:
        result = type(e).__name__
    if not write:
        out[:] = buf
    try:
        transaction.commit()
        committed = True
    except DoomedError as e:
        committed = False
        assert str(e.__cause__) in str(e)
        transaction.abort()
    # nobody else is to run while there is no memory: so no more of it is read
    handle.invalidate_page(3)
    now = int(A[2000] if write else out[0])
    what = step, result, committed, now
    if write:
        assert now in ((7, 8) if committed else (7,)), what
        assert result != "right" or now == 8, what
    else:
        assert now in ((7, -1) if committed else (-1,)), what
        assert result != "right" or now == 7, what
    if now != (7 if write else -1):
        A[2000], out[0] = 7, -1
        transaction.commit()
    assert A[2000] == 7, what       # all is well again
    seen[result, committed] = seen.get((result, committed), 0) + 1
    return result == "right"

def at_every_step(fails, limit):
    rights = 0
    for step in range(limit):
        rights = rights + 1 if attempt(fails, step) else 0
        if rights == 10:            # there are no more steps
            break
    assert rights and (len(seen) > 1), seen
"""


def child(code: str, *args: str, **env: str) -> str:
    return check_child(SETUP + code, *args, **env)


@pytest.mark.parametrize(
    ("options", "fmt", "how"),
    [
        ("", "ZBlk0", "read"),
        ("?align=false", "ZBlk0", "read"),
        ("", "ZBlk1", "read"),
        ("", "ZBlk0", "write"),
    ],
)
def test_the_recursion_limit(tmp_path, options, fmt, how):
    code = """
    def down(n, a):
        if n == 0:
            touch(a)
        else:
            down(n - 1, a)

    def near(spare, a):
        down(sys.getrecursionlimit() - len(inspect.stack()) - spare, a)

    sys.setrecursionlimit(250)
    at_every_step(near, 60)
    """
    child(_dedented(code), f"file://{tmp_path}/1.fs{options}", fmt, how)


@pytest.mark.parametrize(("fmt", "how"), [("ZBlk1", "read"), ("ZBlk0", "write")])
@pytest.mark.parametrize("times", [1, 0])
def test_no_memory(times, fmt, how):
    """One allocation fails, or it and all later ones do.

    The database is in memory: the code of FileStorage itself does not survive such failures.
    """
    pytest.importorskip("_testcapi")
    code = """
    import _testcapi
    def no_memory(step, a):
        _testcapi.set_nomemory(step, (step + TIMES) * TIMES)
        try:
            touch(a)
            bytecodes()
        finally:
            _testcapi.remove_mem_hooks()
    at_every_step(no_memory, 2000)
    """
    child(_dedented(code).replace("TIMES", str(times)), "memory://", fmt, how)


@pytest.mark.parametrize(("hook", "how"), [("settrace", "read"), ("setprofile", "write")])
def test_a_hook_that_raises(hook, how):
    code = """
    class Raised(Exception): ...
    def raises(step, a):
        left = step
        def hook(*args):
            nonlocal left
            left -= 1
            if left == 0:
                raise Raised
            return hook
        sys.HOOK(hook)
        try:
            touch(a)
            bytecodes()
        finally:
            sys.HOOK(None)
    at_every_step(raises, 2000)
    """
    child(_dedented(code).replace("HOOK", hook), "memory://", "ZBlk1", how)


def _dedented(code: str) -> str:
    return code.replace("\n    ", "\n")


PLAIN = """
import logging, sys
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigfile import BlockLoadError, DoomedError
class Failing(RAMFile):
    def loadblk(self, blk, buf):
        raise OSError("bad disk")
fileh = Failing(4096).fileh_open()
a = np.frombuffer(fileh.mmap(0, 8), "u1")
def bytecodes():
    for _ in range(1000): pass
def refused():
    try: fileh.dirty_writeout(3)
    except DoomedError as e: return e
    raise AssertionError("not refused")
"""


def test_a_log_handler_that_raises():
    """Python's hook reports the handler's error, and the thread gets the exception of the load."""
    done = run_child(
        PLAIN
        + """
class Full(logging.Handler):
    def emit(self, record): raise OSError("the log is full")
logging.getLogger("wendelin.bigfile").addHandler(Full())
try: a[0]; bytecodes()
except BlockLoadError as e: assert "bad disk" in str(e)
else: raise AssertionError
refused()
"""
    )
    assert done.returncode == 0, done.stderr
    assert "ignored in: wendelin.core, logging a failure" in done.stderr
    assert "OSError: the log is full" in done.stderr


@pytest.mark.parametrize("what", ["__repr__", "first_change"])
@pytest.mark.parametrize("error", ["MemoryError", "SystemExit"])
def test_a_file_that_cannot_even_be_named(what, error):
    check_child(
        PLAIN
        + """
from wendelin.bigfile import BigFileH
class Nameless(Failing):
    broken = False
    def __repr__(self):
        if self.broken and "WHAT" == "__repr__": raise ERROR
        return "<a file>"
class Handle(BigFileH):
    def first_change(self):
        if "WHAT" == "first_change": raise ERROR
file = Nameless(4096)
fileh = Handle(file)
a = np.frombuffer(fileh.mmap(0, 8), "u1")
file.broken = True
try: a[0]; bytecodes()
except (BlockLoadError, ERROR): pass
else: raise AssertionError("no exception")
file.broken = False
assert fileh.failed
print(refused())
fileh.dirty_discard()
assert not fileh.failed
fileh.dirty_writeout(3)
""".replace("WHAT", what).replace("ERROR", error)
    )


def test_a_loader_that_goes_on_after_a_failed_touch():
    """Near the recursion limit, the loader may get no exception for the touch that failed.

    The block that it then fills is not loaded.
    """
    check_child(
        PLAIN
        + """
sys.setrecursionlimit(200)
class Sums(RAMFile):
    def loadblk(self, blk, buf):
        def down(n):
            if n: return down(n - 1)
            a[4096 * blk]
        for n in range(200, 0, -1):
            try:
                down(n)
                break
            except RecursionError: pass
        buf[:] = b"1" * 4096
fileh2 = Sums(4096).fileh_open()
b = np.frombuffer(fileh2.mmap(0, 8), "u1")
for blk in range(8):
    try: b[4096 * blk]; bytecodes()
    except (BlockLoadError, RecursionError): pass
    assert bool(fileh.failed) == bool(fileh2.failed)
assert fileh2.failed
"""
    )


def test_a_failure_that_could_not_tell_its_transaction_refuses_it(tmp_path):
    """Its handle has only a flag of the failure, and joins when the transaction ends."""
    code = """
    import threading
    from wendelin.bigfile import file_zodb
    from wendelin.bigfile.virtmem.writeout import is_doom_told
    join = file_zodb.ZBigFileH.first_change
    def no_room(self): raise RecursionError
    def fail(how):
        A._fileh().invalidate_page(3)
        A._fileh().file.table.drop()
        lookup = type(A._fileh().file).lookup
        type(A._fileh().file).lookup = lambda *args: 1 / 0
        file_zodb.ZBigFileH.first_change = no_room
        try: A[2000:2001][0]; bytecodes()
        except BlockLoadError: pass
        else: raise AssertionError
        finally:
            type(A._fileh().file).lookup = lookup
            file_zodb.ZBigFileH.first_change = join
        assert A._fileh().failed and not is_doom_told(A._fileh())
    def refused():
        out[0] = 5
        try: transaction.commit()
        except DoomedError: pass
        else: raise AssertionError
        transaction.abort()
        assert not A._fileh().failed and out[0] == -1 and A[2000] == 7
    fail(1)
    refused()
    fail(2)
    root._p_jar.sync()              # another transaction
    assert not A._fileh().failed
    # the transaction has failed already: no manager can join it
    class Fails:
        transaction_manager = transaction.manager
        def sortKey(self): return "~"
        def tpc_begin(self, txn): raise ValueError
        def abort(self, txn): pass
        tpc_abort = abort
    transaction.get().join(Fails())
    try: transaction.commit()
    except ValueError: pass
    fail(3)
    transaction.abort()
    assert not A._fileh().failed
    out[0] = 5
    transaction.commit()
    """
    url = f"file://{tmp_path}/1.fs"
    child(_dedented(code), url, "ZBlk1", "read", WENDELIN_CORE_READY="0")  # a touch must ask


def test_compiled_modules_have_no_list_comprehensions():
    """Cython 3.3 releases an item twice when there is no memory to append it."""
    root = Path(__file__).parents[2]
    found = [
        f"{path.name}:{number}"
        for path in (*root.glob("bigfile/*/*.pyx"), *root.glob("lib/*/*.pyx"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\[.* for \w+(, \w+)* in ", line.partition("#")[0])
    ]
    assert not found
