"""Memory as bytes: fill, copy, compare.

A buffer is any C-contiguous object with the buffer protocol, of any shape and type.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["bzero", "memcpy", "memdelta", "memset"]


def _bytes(buf: Any) -> NDArray[np.uint8]:
    return np.frombuffer(buf, np.uint8)


def memset(buf: Any, byte: int) -> None:
    """Set every byte of a writable buffer to byte, 0 to 255."""
    if not 0 <= byte <= 255:
        raise ValueError(f"byte is {byte}: it must be from 0 to 255")
    _bytes(buf)[:] = byte


def bzero(buf: Any) -> None:
    """Set every byte of a writable buffer to 0."""
    memset(buf, 0)


def memcpy(dst: Any, src: Any) -> None:
    """Copy src to the beginning of dst.

    Raises
    ------
    ValueError
        dst is shorter than src.
    """
    to, from_ = _bytes(dst), _bytes(src)
    if len(to) < len(from_):
        raise ValueError(f"{len(from_)} bytes do not fit into {len(to)}")
    to[: len(from_)] = from_


def memdelta(a: Any, b: Any) -> int:
    """Return the number of bytes that differ in two buffers; the tail of the longer one counts."""
    x, y = _bytes(a), _bytes(b)
    common = min(len(x), len(y))
    return int(np.count_nonzero(x[:common] != y[:common])) + abs(len(x) - len(y))
