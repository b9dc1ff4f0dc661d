"""Where values wait for the commit that stores them: in memory, and if they are many, in a file.

Large values are copied side by side into areas of memory that have huge pages where the kernel has
them: memory of its own for each value takes four times as long.

It knows bytes. Locking: `_lock`, for what says where the next value goes. A value is copied without
it, to a place that no other value has, and is never changed.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from contextlib import suppress
from typing import Any

import numpy as np

from wendelin.bigfile.virtmem.handle import ram_stat

__all__ = ["Spool"]

SHARE = 8  # values that wait may take an eighth of the memory for pages
LARGE = 64 << 10  # a value that is copied into an area [bytes]
AREA = 32 << 20  # of memory; a larger value has one of its own [bytes]


class Spool:
    """Keeps bytes until it is dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # protected by: _lock
        self._in_memory = 0  # [bytes]
        self._area = memoryview(b"")  # the part of the last one that is free
        self._file: int | None = None
        self._end = 0

    def keep(self, data: memoryview) -> memoryview:
        """Return bytes that stay as they are: a copy, if the caller may change these.

        Parameters
        ----------
        data : memoryview
            Of bytes, contiguous.

        Raises
        ------
        OSError
            There is no room for it.
        """
        if _is_bytes(data) or not data:
            return data
        with self._lock:
            limit, _, _ = ram_stat()
            if self._in_memory + len(data) > limit // SHARE:
                return self._write(data)
            self._in_memory += len(data)
            room = self._room(len(data)) if len(data) >= LARGE else None
        if room is None:
            return memoryview(bytes(data))
        np.copyto(np.frombuffer(room, np.uint8), np.frombuffer(data, np.uint8))  # without the GIL
        return room.toreadonly()

    def _room(self, size: int) -> memoryview:
        """Return memory that no other value has."""
        if size > len(self._area):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            area = mmap.mmap(-1, max(size, AREA), flags=flags)
            with suppress(OSError):  # a kernel without huge pages
                area.madvise(mmap.MADV_HUGEPAGE)
            self._area = memoryview(area)
        room, self._area = self._area[:size], self._area[size:]
        return room

    def _write(self, data: memoryview) -> memoryview:
        if self._file is None:
            with tempfile.TemporaryFile(prefix="wendelin.core-zarr-") as file:
                self._file = os.dup(file.fileno())
        at = self._end
        rest = data
        while rest:
            n = os.pwrite(self._file, rest, at)
            rest, at = rest[n:], at + n
        size = mmap.ALLOCATIONGRANULARITY
        start, self._end = self._end, -(-at // size) * size
        # of a file of ours, that nobody cuts: it is there to be read
        mapped = mmap.mmap(self._file, len(data), mmap.MAP_SHARED, mmap.PROT_READ, offset=start)
        return memoryview(mapped)

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def _is_bytes(data: memoryview) -> bool:
    """Say whether a view is of a bytes object, as most codecs return it, and of all of it."""
    obj: Any = data.obj
    for _ in range(4):
        if isinstance(obj, bytes):
            return len(obj) == len(data)
        obj = (
            getattr(obj, "base", None) if isinstance(obj, np.ndarray) else getattr(obj, "obj", None)
        )
    return False
