"""Failures of every kind: each is an exception, and nothing wrong can be stored."""

import numpy as np
import pytest
from child import check_child
from ramfile import RAMFile

BLK = 4096
BOTH = 3

SETUP = """
import gc, os, sys, threading, _thread
import numpy as np
from ramfile import RAMFile
from wendelin.bigfile import *
from wendelin.bigfile.virtmem import ram_stat
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
    """Fails with `error` while there is one."""

    error: BaseException | None = OSError("bad disk")

    def loadblk(self, blk, buf):
        if self.error is not None:
            raise self.error
        super().loadblk(blk, buf)


def test_an_error_that_cannot_be_shown_is_an_error():
    """The message is made of it: what fails there must not make zeros that are true."""
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
def test_a_loader_that_always_raises_what_is_no_error(error):
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
