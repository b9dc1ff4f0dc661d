"""Names of files on disk: after a power failure, a file that was synced can be without its name.

It knows folders, not what is in them.
"""

from __future__ import annotations

import errno
import os

__all__ = ["sync_folder"]


def sync_folder(path: str) -> None:
    """Have the names of a folder on disk, of new and renamed files too.

    Raises
    ------
    OSError
        They may not be. (Not where the file system cannot do it.)
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)
