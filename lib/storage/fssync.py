"""Names of files on disk: after a power failure, a synced file can be without its name.

This module knows folders, but not their contents.
"""

from __future__ import annotations

import errno
import os

__all__ = ["sync_folder"]


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
