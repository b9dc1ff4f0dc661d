"""Many threads on one array: in child processes, so that a time limit ends a deadlock."""

import pytest
from support.child import check_child

SETUP = """
import gc, os, sys, threading
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigfile import *
from wendelin.bigfile.virtmem.located import invalidate_loading
BLK = 4096
BOTH = WRITEOUT_STORE | WRITEOUT_MARKSTORED
def view(fileh, start=0, n=8):
    return np.frombuffer(fileh.mmap(start, n), "u1")
def run(*works):
    errors = []
    def guarded(work):
        try: work()
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert not any(t.is_alive() for t in threads), "deadlock"
    if errors: raise errors[0]
"""


def child(code):
    check_child(SETUP + code)


def test_eight_threads_fault_on_one_array():
    child("""
class File(RAMFile):
    def loadblk(self, blk, buf):
        self.loads.append(blk)
        os.sched_yield()
        buf[:] = bytes([blk % 251]) * BLK
fileh = File().fileh_open()
n = 2000
a = view(fileh, 0, n)
expected = sum(i % 251 for i in range(n)) * BLK
barrier = threading.Barrier(8)
def work():
    barrier.wait()
    assert int(a.sum(dtype="i8")) == expected
run(*[work] * 8)
assert sorted(fileh.file.loads) == list(range(n))
""")


def test_one_loads_and_the_others_wait():
    child("""
entered, go = threading.Event(), threading.Event()
class File(RAMFile):
    def loadblk(self, blk, buf):
        self.loads.append(blk)
        entered.set()
        assert go.wait(30)
        buf[0] = 1
fileh = File().fileh_open()
a = view(fileh)
def first(): assert a[0] == 1
def other():
    entered.wait(30)
    assert a[0] == 1
def opens():                        # the GIL is free while both wait
    entered.wait(30)
    go.set()
run(first, other, other, opens)
assert fileh.file.loads == [0]
""")


@pytest.mark.parametrize("invalidate", ["fileh.invalidate_page(0)", "invalidate_loading(fileh)"])
def test_a_page_that_is_invalidated_while_it_loads_is_loaded_again(invalidate):
    child(
        """
entered, go = threading.Event(), threading.Event()
class File(RAMFile):
    def loadblk(self, blk, buf):
        self.loads.append(blk)
        buf[0] = self.state
        entered.set()
        assert go.wait(30)
fileh = File().fileh_open()
fileh.file.state = 1
a = view(fileh)
def reads(): assert a[0] == 2, a[0]
def invalidates():
    entered.wait(30)
    fileh.file.state = 2
    INVALIDATE
    go.set()
run(reads, invalidates)
assert fileh.file.loads == [0, 0]
""".replace("INVALIDATE", invalidate)
    )


def test_the_view_is_dropped_while_its_page_loads():
    child("""
entered, go = threading.Event(), threading.Event()
class File(RAMFile):
    def loadblk(self, blk, buf):
        if blk == 3:
            entered.set()
            assert go.wait(30)
fileh = File().fileh_open()
def reads():
    fileh.load(3, 1)
def drops():
    a = view(fileh)
    entered.wait(30)
    del a
    gc.collect()
    go.set()
run(reads, drops)
assert view(fileh).sum() == 0
""")


def test_loaders_that_touch_other_arrays():
    child("""
class Base(RAMFile):
    def loadblk(self, blk, buf): buf[:] = bytes([blk % 100 + 1]) * BLK
class Sum(RAMFile):
    def __init__(self, below):
        super().__init__(BLK)
        self.below = below
    def loadblk(self, blk, buf):
        np.frombuffer(buf, "u1")[:] = self.below[blk * BLK : (blk + 1) * BLK] + 1
n = 300
arrays = [view(Base().fileh_open(), 0, n)]
for _ in range(5):
    arrays.append(view(Sum(arrays[-1]).fileh_open(), 0, n))
barrier = threading.Barrier(6)
def work(a, plus):
    barrier.wait()
    assert (a[::BLK] == np.arange(n) % 100 + 1 + plus).all()
run(*[lambda a=a, i=i: work(a, i) for i, a in enumerate(arrays)])
""")


@pytest.mark.parametrize("touch", ["a[blk * BLK]", "fileh.load(blk, 1)", "a[blk * BLK] = 1"])
def test_a_loader_that_touches_its_own_page(touch):
    child(f"""
class File(RAMFile):
    touches = True
    def loadblk(self, blk, buf):
        if self.touches:
            {touch}
        buf[:] = b"1" * BLK
fileh = File().fileh_open()
a = view(fileh)
try: a.sum()
except BlockLoadError as e: assert "its own loader touched it" in str(e), e
else: raise AssertionError
fileh.file.touches = False
fileh.dirty_discard()
assert (a == ord("1")).all()
""")


def test_loaders_that_collect_garbage():
    child("""
class File(RAMFile):
    def loadblk(self, blk, buf):
        self.loads.append(blk)
        # cycles with mappings, changes and finalizers that touch
        other = RAMFile(BLK)
        other.a = view(other.fileh_open())
        other.a[0] = 1
        other.self = [other]
        class Touching:
            # not of a block of `a` that its own thread may be loading
            def __del__(self): b[blk * BLK]
        t = Touching()
        t.t = t
        del other, t
        gc.collect()
        buf[:] = bytes([blk]) * BLK
class Other(RAMFile):
    def loadblk(self, blk, buf): buf[:] = bytes([blk]) * BLK
fileh, other = File().fileh_open(), Other().fileh_open()
a, b = view(fileh, 0, 64), view(other, 0, 64)
a[-1] = 63
run(*[lambda: np.testing.assert_array_equal(a[::BLK], np.arange(64))] * 3)
assert sorted(fileh.file.loads) == list(range(64))
np.testing.assert_array_equal(b[::BLK], np.arange(64))
""")


def test_reclaim_invalidation_and_views_come_and_go_while_others_read():
    child("""
class File(RAMFile):
    def loadblk(self, blk, buf): buf[:] = bytes([blk % 251]) * BLK
n = 256
fileh = File().fileh_open()
a = view(fileh, 0, n)
expected = (np.arange(n) % 251).astype("u1")
stop = threading.Event()
def reads():
    for _ in range(60): assert (a[::BLK] == expected).all()
def guard(f):
    def work():
        try: f()
        finally: stop.set()
    return work
def disturbs():
    i = 0
    while not stop.is_set():
        i += 1
        ram_reclaim()
        fileh.invalidate_page(i % n)
        b = view(fileh, i % n, 1)
        assert b[-1] == i % n % 251
run(guard(reads), reads, disturbs, disturbs)
""")


def test_a_writer_waits_while_pages_are_stored():
    child("""
entered, go, wrote = threading.Event(), threading.Event(), threading.Event()
class File(RAMFile):
    def storeblk(self, blk, buf):
        if blk == 0:
            entered.set()
            assert go.wait(30)
        super().storeblk(blk, buf)
        assert not wrote.is_set()
fileh = File().fileh_open()
a = view(fileh)
a[0] = a[BLK] = 1
def stores(): fileh.dirty_writeout(BOTH)
def writes():
    entered.wait(30)
    assert a[BLK] == 1              # reading is free
    go.set()
    a[BLK] = 2                      # waits
    wrote.set()
run(stores, writes)
assert [fileh.file.blocks[i][0] for i in (0, 1)] == [1, 1]
assert fileh.dirty_blocks() == [1] and a[BLK] == 2
""")


def test_discard_and_a_second_write_out_wait_too():
    child("""
entered, go = threading.Event(), threading.Event()
class File(RAMFile):
    def storeblk(self, blk, buf):
        entered.set()
        assert go.wait(30)
        super().storeblk(blk, buf)
fileh = File().fileh_open()
a = view(fileh)
a[0] = 1
def stores(): fileh.dirty_writeout(BOTH)
def discards():
    entered.wait(30)
    go.set()
    fileh.dirty_discard()
def also():
    entered.wait(30)
    fileh.dirty_writeout(BOTH)
run(stores, discards, also)
assert fileh.file.stores == [0] and a[0] == 1 and not fileh.isdirty()
""")


@pytest.mark.parametrize(
    "act", ["fileh.dirty_discard()", "fileh.truncate(0)", "fileh.invalidate_page(0)"]
)
def test_the_thread_that_stores_may_not_wait_for_itself(act):
    child(f"""
class File(RAMFile):
    def storeblk(self, blk, buf):
        {act}
fileh = File().fileh_open()
a = view(fileh)
a[0] = 1
try: fileh.dirty_writeout(BOTH)
except RuntimeError as e: assert "writes out" in str(e)
else: raise AssertionError
assert a[0] == 1 and fileh.isdirty()
""")


def test_the_thread_that_stores_may_not_write():
    child("""
class File(RAMFile):
    def storeblk(self, blk, buf):
        a[BLK] = 5
        for _ in range(1000): pass
fileh = File().fileh_open()
a = view(fileh)
a[0] = 1
try: fileh.dirty_writeout(BOTH)
except DoomedError: pass
else: raise AssertionError
fileh.dirty_discard()
assert not a.any()
""")


def test_writers_and_write_out_lose_nothing():
    """A write-out stores all that was written before it. Between two, no write is lost."""
    child("""
fileh = RAMFile().fileh_open()
n = 32
a = view(fileh, 0, n).view("i8").reshape(n, -1)
stop = threading.Event()
def writes(column):
    def work():
        for value in range(1, 400):
            for page in range(n):
                a[page, column] = value
    return work
def stores():
    while not stop.is_set():
        fileh.dirty_writeout(BOTH)
t = threading.Thread(target=stores)
t.start()
run(*[writes(c) for c in range(4)])
stop.set()
t.join(60)
fileh.dirty_writeout(BOTH)
for page in range(n):
    assert np.frombuffer(fileh.file.blocks[page], "i8")[:4].tolist() == [399] * 4
""")
