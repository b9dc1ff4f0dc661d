"""What is to get to the disk, and what is not: names of files, and buffers that cannot be written.

After a power failure, a synced file can be without its name. This module knows folders and open
files, but not their contents.
"""

from __future__ import annotations

import errno
import os
from typing import Any

__all__ = ["sync_folder", "throw_away"]


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
