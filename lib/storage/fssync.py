"""What is to get to the disk, and what is not: names of files, and buffers that cannot be written.

After a power failure, a synced file can be without its name. This module knows folders and open
files, but not their contents.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

__all__ = ["begin_to_write", "sync_folder", "throw_away"]

_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def begin_to_write(fd: int, start: int, size: int) -> None:
    """Let the disk begin with bytes [start, start + size) of a file that is going to be synced.

    It promises nothing: an error is that of the sync, which sees it again.
    """
    _libc.sync_file_range(fd, start, size, _SYNC_FILE_RANGE_WRITE)


def sync_folder(path: str) -> None:
    """Sync the names in a folder to the disk, also of new and renamed files.

    Raises
    ------
    OSError
        They may not be on disk. (No error if the file system cannot do it.)
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def throw_away(file: Any) -> None:
    """Close a buffered file whose buffer cannot be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno(), inheritable=False)
    os.close(nowhere)
    file.close()
