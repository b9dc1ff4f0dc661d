"""lib/mem.py: memory as bytes."""

import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wendelin.lib.mem import bzero, memcpy, memdelta, memset


def buffers():
    """Return writable buffers of 24 bytes, of all sorts."""
    return [
        bytearray(range(24)),
        memoryview(bytearray(range(24))),
        np.arange(24, dtype=np.uint8),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.ones(3, dtype=[("a", "u1"), ("b", "i4"), ("c", "u1", 3)]),
        np.ones((2, 2, 3), dtype=np.int16)[1:].repeat(2, axis=0),
        np.array(["abcdef"]),
    ]


@pytest.mark.parametrize("buf", buffers(), ids=lambda buf: type(buf).__name__)
def test_fill(buf):
    n = memoryview(buf).nbytes
    memset(buf, 0xA5)
    assert bytes(buf) == b"\xa5" * n
    bzero(buf)
    assert bytes(buf) == b"\0" * n


def test_mmap():
    buf = mmap.mmap(-1, 8192)
    memset(buf, 1)
    assert memdelta(buf, b"\1" * 8192) == 0
    buf.close()  # nothing holds it


@pytest.mark.parametrize("byte", [-1, 256, 1000])
def test_a_number_that_is_not_a_byte_is_refused(byte):
    with pytest.raises(ValueError, match=str(byte)):
        memset(bytearray(1), byte)


def test_read_only():
    with pytest.raises(ValueError, match="read-only"):
        bzero(b"abc")
    with pytest.raises(ValueError, match="read-only"):
        memcpy(b"abc", b"abc")


def test_not_contiguous():
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        bzero(np.zeros((4, 4))[:, ::2])


def test_what_is_not_a_buffer_is_refused():
    with pytest.raises(TypeError):
        bzero("text")


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_copy(src, dst):
    result = bytearray(dst)
    if len(src) > len(dst):
        with pytest.raises(ValueError, match=f"{len(src)} bytes.* {len(dst)}"):
            memcpy(result, src)
        assert result == dst
    else:
        memcpy(result, src)
        assert result == src + dst[len(src) :]


@pytest.mark.parametrize(("to", "from_"), [(0, 2), (2, 0)])
def test_copy_of_overlapping_memory(to, from_):
    buf = bytearray(range(20))
    expected = bytearray(range(20))
    expected[to : to + 10] = expected[from_ : from_ + 10]
    view = memoryview(buf)
    memcpy(view[to:], view[from_ : from_ + 10])
    assert buf == expected


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_delta(a, b):
    tail = abs(len(a) - len(b))
    assert memdelta(a, b) == sum(x != y for x, y in zip(a, b, strict=False)) + tail


def test_delta_of_large_memory():
    a = np.zeros(10_000_000, np.uint8)
    b = np.zeros(1_250_000, np.float64)
    b.view(np.uint8)[::1000] = 1
    assert memdelta(a, b) == 10_000
    assert memdelta(a, b[:-1]) == 10_000 + 8 - int(b.view(np.uint8)[-8:].sum())
