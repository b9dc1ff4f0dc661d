"""The first bytes of a Data.fs: whether it is one, and whether Python 2 has written it.

Records of Python 2 have the same format. With its first commit, Python 3 replaces the magic, since
Python 2 cannot read what it writes: a file of Python 2 is left to it until then.

This module knows no transactions.
"""

from __future__ import annotations

import logging
import os
from typing import IO

from ZODB.FileStorage import packed_version
from ZODB.FileStorage.FileStorage import FileStorageFormatError

from wendelin.lib.storage.fsscan import FIRST

__all__ = ["check_magic", "is_of_python2", "set_of_python3"]

log = logging.getLogger(__name__)

_PYTHON2 = b"FS21"


def check_magic(file: IO[bytes], path: str, *, read_only: bool) -> None:
    """Check that a file is a Data.fs; make one of an empty file, if it is open to write.

    Raises
    ------
    FileStorageFormatError
        It is another file.
    """
    fd = file.fileno()
    if not read_only:
        file.flush()
    magic = os.pread(fd, FIRST, 0)
    if magic in (packed_version, _PYTHON2):
        return
    if magic.strip(b"\0") and not packed_version.startswith(magic):
        raise FileStorageFormatError(path)
    if os.fstat(fd).st_size > FIRST:
        raise FileStorageFormatError(path)
    if not read_only:  # a new file, or one whose program was killed
        os.pwrite(fd, packed_version, 0)
        os.fsync(fd)


def is_of_python2(fd: int) -> bool:
    """Say whether Python 2 can read a file."""
    return os.pread(fd, len(_PYTHON2), 0) == _PYTHON2


def set_of_python3(file: IO[bytes], path: str) -> None:
    """Replace the magic of Python 2 before the first commit."""
    file.seek(0)
    file.write(packed_version)
    file.flush()
    log.warning(
        "%s was written by Python 2, and this is the first commit of Python 3: from now on "
        "Python 2 cannot open it",
        path,
    )
