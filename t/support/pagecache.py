"""Which bytes of a file are in the page cache, and how to take them out of it."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wendelin.lib.storage.fsheads import cold_at

_libc = ctypes.CDLL(None, use_errno=True)


def evict(files: Iterable[Path]) -> None:
    """Take files out of the page cache, where the file system lets us."""
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # dirty pages would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def skip_if_unknown(folder: Path) -> None:
    """Skip the test if the kernel does not say what is in the page cache, or keeps all there."""
    path = folder / "in-the-page-cache"
    path.write_bytes(bytes(1 << 20))
    with open(path, "rb") as file:
        evict([path])
        cold = cold_at(file.fileno(), 0, 4096)
        file.read()
        if not cold or cold_at(file.fileno(), 0, 4096):
            pytest.skip("cachestat(2) of Linux 6.5 is not there, or not for this file system")
    path.unlink()


def cached_pages(path: Path) -> NDArray[np.bool_]:
    """Return, for each OS page of a file, whether it is in the page cache. See mincore(2)."""
    size = path.stat().st_size
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    if size == 0:
        return pages != 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapping:
        memory = np.frombuffer(mapping, np.uint8)
        addresses = [ctypes.c_void_p(a.ctypes.data) for a in (memory, pages)]
        err = _libc.mincore(addresses[0], ctypes.c_size_t(size), addresses[1])
        del memory
    if err:
        raise OSError(ctypes.get_errno(), "mincore", str(path))
    return (pages & 1) != 0
