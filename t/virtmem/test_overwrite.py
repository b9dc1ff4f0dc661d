"""Whole blocks that get new bytes without a touch: which do, and what other threads see of it."""

import os

import numpy as np
import pytest
from support.child import check_child
from support.ramfile import RAMFile

from wendelin.bigfile.virtmem.backend import HOLE, BigFile
from wendelin.bigfile.virtmem.handle import WRITEOUT_MARKSTORED, WRITEOUT_STORE
from wendelin.bigfile.virtmem.overwrite import overwrite
from wendelin.bigfile.virtmem.stats import stats_of

BOTH = WRITEOUT_STORE | WRITEOUT_MARKSTORED
PAGE = 4096


class Mapped(BigFile):
    """A file of 16 pages, each filled with its number and mapped, and holes behind them."""

    def __init__(self, path):
        super().__init__(PAGE)
        path.write_bytes(np.repeat(np.arange(16, dtype="u1"), PAGE).tobytes())
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self):
        os.close(self.fd)

    def mapblk(self, blk):
        return (self.fd, blk * PAGE) if blk < 16 else HOLE


def view(fileh, first=0, n=32):
    return np.frombuffer(fileh.mmap(first, n), "u1").reshape(n, PAGE)


def pages(*values):
    return np.repeat(np.array(values, "u1"), PAGE)


@pytest.fixture
def fileh(tmp_path):
    return Mapped(tmp_path / "numbered").fileh_open()


def test_pages_that_are_shown_get_new_bytes_in_all_views(fileh):
    a, b = view(fileh), view(fileh, 10, 12)
    assert a[:, 7].tolist() == [i if i < 16 else 0 for i in range(32)]
    assert (b == a[10:22]).all()
    faults = stats_of(fileh).faults
    assert overwrite(fileh, 12, pages(112, 113, 114, 115, 116, 117)) == 6
    for i in range(12, 18):
        assert (a[i] == 100 + i).all()
        assert (b[i - 10] == 100 + i).all()
    assert stats_of(fileh).faults == faults, "it was touched"
    assert fileh.dirty_blocks() == [12, 13, 14, 15, 16, 17]
    a[13, 5] = 1  # it is as any changed page
    assert b[3, 5] == 1
    fileh.dirty_discard()
    assert a[:, 0].tolist() == [i if i < 16 else 0 for i in range(32)]


def test_what_needs_a_touch_is_left_to_one(fileh):
    assert overwrite(fileh, 3, pages(1)) == 0, "nobody has asked where it is"
    a = view(fileh)
    assert a[:, 0].sum() == sum(range(16))
    assert overwrite(fileh, 3, pages(1)[:-1]) == 0, "not a whole page"
    assert overwrite(fileh, 3, b"") == 0
    a[5] = 9
    assert overwrite(fileh, 3, pages(1, 1, 1, 1)) == 2, "a changed page"
    assert a[3:8, 0].tolist() == [1, 1, 9, 6, 7]
    with pytest.raises(OverflowError, match="past the last byte"):
        overwrite(fileh, (1 << 51) - 1, pages(1))


def test_past_a_truncation_nothing_is_loaded():
    file = RAMFile(PAGE)
    file.blocks = {i: bytes([i + 1]) * PAGE for i in range(8)}
    fileh = file.fileh_open()
    fileh.truncate(2)
    assert overwrite(fileh, 1, pages(7)) == 0
    assert overwrite(fileh, 2, pages(7, 8)) == 2
    assert file.loads == []
    assert view(fileh, 0, 8)[:, 9].tolist() == [1, 2, 7, 8, 0, 0, 0, 0]
    fileh.dirty_writeout(BOTH)
    assert sorted(file.blocks) == [0, 1, 2, 3]
    assert overwrite(fileh, 3, pages(9)) == 0, "a clean page in memory"


def test_a_write_out_leaves_it_to_a_touch(tmp_path):
    done = []

    class Storing(Mapped):
        def storeblk(self, blk, buf):
            done.append((blk, overwrite(fileh, 4, pages(99))))

    fileh = Storing(tmp_path / "numbered").fileh_open()
    a = view(fileh)
    a[2] = a[4, 0] + 1
    fileh.dirty_writeout(BOTH)
    assert done == [(2, 0)]
    assert (a[4] == 4).all()


CHILD = """
import os, random, sys, threading, time
import numpy as np
from support.ramfile import RAMFile
from wendelin.bigfile import *
from wendelin.bigfile.virtmem.frames import set_smallest
from wendelin.bigfile.virtmem.overwrite import overwrite
BOTH = WRITEOUT_STORE | WRITEOUT_MARKSTORED
B = 1 << 16
set_smallest(int(os.environ.get("SMALLEST", B)))
def view(fileh, n=64): return np.frombuffer(fileh.mmap(0, n), "u1").reshape(n, -1)
"""


def test_bytes_may_be_in_another_array_that_is_not_in_memory():
    check_child(
        CHILD
        + """
class Other(RAMFile):
    def loadblk(self, blk, buf): buf[:] = bytes([blk + 1]) * len(buf)
source = view(Other(B).fileh_open())
fileh = RAMFile(B).fileh_open()
fileh.truncate(0)
assert overwrite(fileh, 0, source.reshape(-1)) == 64
assert (view(fileh) == np.arange(1, 65)[:, None]).all()
"""
    )


def test_the_limit_of_changes_is_that_of_a_touch(tmp_path):
    check_child(
        CHILD
        + """
fileh = RAMFile(B).fileh_open()
fileh.truncate(0)
done = overwrite(fileh, 0, np.full(64 * B, 5, "u1"))
assert 4 < done <= 16, done         # with a spool, a quarter is left
a = view(fileh)
a[done] = 6
assert (a[:done] == 5).all() and (a[done] == 6).all()
assert stats().spooled == B, stats()
""",
        WENDELIN_CORE_RAM="1M",
        WENDELIN_CORE_SPOOL=str(tmp_path),
    )


@pytest.mark.parametrize("smallest", ["65536", "65537"])
def test_a_race_with_write_out_discard_and_truncation(smallest):
    """A page has the bytes of one overwrite, or of the file: never a part, and never none."""
    check_child(
        CHILD
        + """
class File(RAMFile):
    def storeblk(self, blk, buf):
        data = bytes(buf)
        assert data.count(data[0]) == len(data), "a torn page was stored"
        super().storeblk(blk, data)
file = File(B)
fileh = file.fileh_open()
a = view(fileh)
stop = time.monotonic() + 1.5
errors = []
counts = []  # blocks of each
def write(seed):
    rng = random.Random(seed)
    try:
        while time.monotonic() < stop:
            blk, n = rng.randrange(60), rng.randrange(1, 5)
            counts.append(overwrite(fileh, blk, np.full(n * B, rng.randrange(1, 256), "u1")))
            blk = rng.randrange(64)
            row = a[blk].copy()
    except BaseException as e:
        errors.append(e)
threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
for thread in threads: thread.start()
rng = random.Random(7)
while time.monotonic() < stop:
    what = rng.randrange(5)
    if what == 0: fileh.dirty_discard()
    elif what == 1: fileh.truncate(rng.randrange(64))
    elif what == 2: fileh.invalidate_page(rng.randrange(64)) if not fileh.isdirty() else None
    else: fileh.dirty_writeout(BOTH)
for thread in threads: thread.join()
assert not errors, errors
fileh.dirty_writeout(BOTH)
for i in range(64):
    row = a[i].tobytes()
    assert row.count(row[0]) == B, i
    assert row == file.blocks.get(i, bytes(B)), i
assert sum(counts) > 50, counts
""",
        SMALLEST=smallest,
    )
