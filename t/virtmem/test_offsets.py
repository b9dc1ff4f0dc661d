"""Offsets and lengths of the pager: what is not an integer in range is an error."""

import numpy as np
import pytest
from support.ramfile import RAMFile

from wendelin.bigfile import BigFile

BLK = 4096


@pytest.fixture
def fileh():
    return RAMFile(BLK).fileh_open()


CALLS = [
    lambda fileh, n: fileh.mmap(n, 1),
    lambda fileh, n: fileh.load(n, 1),
    lambda fileh, n: fileh.invalidate_page(n),
    lambda fileh, n: fileh.truncate(n),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("type_", [int, np.int64, np.uint64])
def test_past_the_end_of_a_file(fileh, call, type_):
    """NumPy's integers wrap around; the pager must not compute with them."""
    for n in (1 << 51, (1 << 60) + 3, (1 << 63) - 1):
        with pytest.raises(OverflowError):
            call(fileh, type_(n))
    call(fileh, type_((1 << 51) - 2))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("type_", [int, np.int64, np.int8])
def test_negative(fileh, call, type_):
    with pytest.raises(ValueError, match="-1"):
        call(fileh, type_(-1))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("bad", [1.5, 2.0, "1", None, np.float64(1)])
def test_what_is_not_an_integer(fileh, call, bad):
    with pytest.raises(TypeError):
        call(fileh, bad)


def test_small_integers_of_numpy(fileh):
    a = np.frombuffer(fileh.mmap(np.int8(100), np.int8(100)), "u1")
    assert fileh.mmap(np.uint8(200), np.uint8(200)).filerange() == (200, 200)
    a[0] = 1
    assert fileh.dirty_blocks() == [100]
    assert BigFile(np.int64(BLK)).blksize == BLK


def test_pages_far_apart_are_different_pages(fileh):
    first = np.frombuffer(fileh.mmap(0, 1), "u1")
    last = np.frombuffer(fileh.mmap((1 << 51) - 2, 1), "u1")
    first[:], last[:] = 1, 2
    assert first.max() == 1
    assert last.min() == 2
