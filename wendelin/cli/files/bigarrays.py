"""Files of bigarray (PointerArray), read as data: no pickle and no code object of them is loaded.

The form, of 0.2.2, as its files have it:

    b"mmapdata", the length of what follows as text in 8 characters, and [dtype, shape] by marshal
    at 504: the rows
    at the end: a pickle of {key: (first row, last row + 1)}, and its length in 8 bytes, the highest
    byte first

An index that was written before may lie between the rows and the last one.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.errors import Failure
from wendelin.lib.calc import mul
from wendelin.lib.storage.inert import InertError, Pairs, Reader, shown
from wendelin.lib.storage.inertdtype import scalar_of
from wendelin.ragged.segment import Key, check_key

__all__ = ["PointerFile"]

_MAGIC = b"mmapdata"
_DATA = 504  # where rows begin
_MOST = _DATA - 16  # of the header [bytes]
_DEEP = 8


class PointerFile:
    """A file with named rows.

    Parameters
    ----------
    path : str

    Raises
    ------
    Failure
        It is not such a file, or is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._open()
        except (InertError, ValueError, TypeError, struct.error, IndexError) as e:
            self.close()
            raise Failure(f"{path} is a damaged file of bigarray: {e}") from e
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        head = os.pread(self._fd, _DATA, 0)
        if not head.startswith(_MAGIC):
            raise Failure(
                f"{self.path} is not a file of bigarray: it does not begin with 'mmapdata'"
            )
        length = int(head[8:16])
        if not 0 < length <= _MOST or len(head) < _DATA:
            raise ValueError(f"a header of {length} bytes")
        found = _Marshal(head[16 : 16 + length]).load()
        if not isinstance(found, list | tuple) or len(found) != 2:
            raise ValueError(f"its header is {shown(found)}")
        dtype, shape = found
        if not isinstance(dtype, str):
            raise ValueError(f"its dtype is {shown(dtype)}")
        self.dtype = np.dtype(dtype)
        if self.dtype.hasobject or not self.dtype.itemsize:
            raise ValueError(f"its dtype is {dtype}")
        ok = isinstance(shape, tuple) and shape and all(type(n) is int and n >= 0 for n in shape)
        if not ok:
            raise ValueError(f"its shape is {shown(shape)}")
        self.shape: tuple[int, ...] = shape
        self._row = mul(shape[1:]) * self.dtype.itemsize
        end = _DATA + shape[0] * self._row
        self.size = os.fstat(self._fd).st_size
        if end > self.size:
            raise ValueError(f"its shape is {shape}, and it has {self.size} bytes")
        #: key -> rows [start, stop), in their order
        self.pieces = self._index(end)

    def _index(self, end: int) -> dict[Key, tuple[int, int]]:
        if self.size - end < 8:
            raise Failure(
                f"{self.path} has no index of pieces: it is of a MmapArray. wendelin import "
                f"--dtype {self.dtype.str!r} --shape {','.join(map(str, self.shape))} --offset "
                f"{_DATA} makes an array of it"
            )
        length = int.from_bytes(os.pread(self._fd, 8, self.size - 8), "big")
        if not 0 < length <= self.size - 8 - end:
            raise ValueError(f"an index of {length} bytes")
        index = Reader(os.pread(self._fd, length, self.size - 8 - length)).load()
        if not isinstance(index, Pairs):
            raise ValueError(f"its index is {shown(index)}")
        found: dict[Key, tuple[int, int]] = {}
        for key, rows in index.pairs:
            if not isinstance(rows, tuple) or len(rows) != 2:
                raise ValueError(f"piece {shown(key)} has rows {shown(rows)}")
            start, stop = map(scalar_of, rows)
            ints = isinstance(start, int) and isinstance(stop, int)
            if not ints or not 0 <= start <= stop <= self.shape[0]:
                raise ValueError(f"piece {shown(key)} has rows {shown(rows)} of {self.shape[0]}")
            found[check_key(scalar_of(key))] = start, stop
        return dict(sorted(found.items(), key=lambda one: one[1]))

    def sizes(self) -> list[int]:
        """Return the sizes of the pieces [bytes]."""
        return [(stop - start) * self._row for start, stop in self.pieces.values()]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows [start, stop).

        Raises
        ------
        Failure
            The file was cut.
        """
        data = bytearray((stop - start) * self._row)
        done = 0
        while done < len(data):
            at = _DATA + start * self._row + done
            n = os.preadv(self._fd, [memoryview(data)[done:]], at)
            if not n:
                raise Failure(f"{self.path} was cut while it was read")
            done += n
        rows: NDArray[Any] = np.frombuffer(data, self.dtype)
        return rows.reshape(stop - start, *self.shape[1:])

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class _Marshal:
    """Numbers and texts in lists and tuples, as marshal writes them; nothing else is read.

    Raises ValueError, struct.error or IndexError if it is something else.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._refs: list[Any] = []

    def _take(self, n: int) -> bytes:
        if n > len(self._data) - self._at:
            raise ValueError("its header ends too early")
        self._at += n
        return self._data[self._at - n : self._at]

    def _int(self) -> int:
        return int(struct.unpack("<i", self._take(4))[0])

    def load(self, deep: int = 0) -> Any:
        """Return a value."""
        code = self._take(1)[0]
        at = None
        if code & 0x80:
            at = len(self._refs)
            self._refs.append(None)
        found = self._value(chr(code & 0x7F), deep)
        if at is not None:
            self._refs[at] = found
        return found

    def _value(self, kind: str, deep: int) -> Any:
        if deep > _DEEP:
            raise ValueError("its header has too many levels")
        match kind:
            case "N":
                return None
            case "i":
                return self._int()
            case "l":
                n = self._int()
                digits = struct.unpack(f"<{abs(n)}H", self._take(2 * abs(n)))
                found = sum(digit << (15 * i) for i, digit in enumerate(digits))
                return -found if n < 0 else found
            case "z" | "Z":
                return self._take(self._take(1)[0]).decode("ascii")
            case "a" | "A" | "u" | "t":
                return self._take(self._length()).decode()
            case ")":
                return tuple(self.load(deep + 1) for _ in range(self._take(1)[0]))
            case "(":
                return tuple(self.load(deep + 1) for _ in range(self._length()))
            case "[":
                return [self.load(deep + 1) for _ in range(self._length())]
            case "r":
                return self._refs[self._length()]
        raise ValueError(f"its header has a value of kind {kind!r}")

    def _length(self) -> int:
        n = self._int()
        if not 0 <= n <= len(self._data):
            raise ValueError(f"its header has a value of {n} parts")
        return n
