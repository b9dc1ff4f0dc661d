"""Where values wait for the commit that stores them: in memory, and if they are many, in a file.

It knows bytes. Locking: `_lock` is a leaf; bytes that are in the file are never changed.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from typing import Any

import numpy as np

from wendelin.bigfile.virtmem.handle import ram_stat

__all__ = ["Spool"]

SHARE = 8  # values that wait may take an eighth of the memory for pages


class Spool:
    """Keeps bytes until it is dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # protected by: _lock
        self._in_memory = 0  # [bytes]
        self._file: int | None = None
        self._end = 0

    def keep(self, data: memoryview) -> memoryview:
        """Return bytes that stay as they are: a copy, if the caller may change these.

        Raises
        ------
        OSError
            There is no room for it.
        """
        with self._lock:
            if _is_bytes(data):  # nobody changes them
                return data
            limit, _, _ = ram_stat()
            if self._in_memory + len(data) <= limit // SHARE or not data:
                self._in_memory += len(data)
                return memoryview(bytes(data))
            return self._write(data)

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
