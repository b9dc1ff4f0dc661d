"""The lock of a file that is written to: of the file itself, by whatever name it is opened.

ZODB locks NAME.lock, so a second name (a symbolic or hard link, a bind mount) is another lock, and
so is a new NAME.lock in the place of one that was removed. This lock is taken besides.

Lock order: this one > NAME.lock.
"""

from __future__ import annotations

import errno
import fcntl
import os

from zc.lockfile import LockError

__all__ = ["FileLock"]

_UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class FileLock:
    """A lock of one file at a time, as long as it is not released."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._pid = os.getpid()

    def take(self, path: str) -> None:
        """Lock the file that a path names, instead of the one that was locked.

        Raises
        ------
        LockError
            It is open elsewhere, to be written to. The lock that was there stays.
        FileNotFoundError
        """
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS wants it writable
        try:
            if self._fd is None or not os.path.sameopenfile(fd, self._fd):
                _lock(fd, path)
                self._fd, fd = fd, -1 if self._fd is None else self._fd
                if fd >= 0:
                    fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            if fd >= 0:
                os.close(fd)

    def release(self) -> None:
        """Give the lock back; in a child of a fork, just let go of it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            if self._pid == os.getpid():
                fcntl.flock(fd, fcntl.LOCK_UN)  # also where children have inherited it
            os.close(fd)


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockError(
            f"Couldn't lock {path!r}: another storage has this file open to write, maybe by "
            f"another name of it (a link)"
        ) from None
    except OSError as e:
        if e.errno not in _UNKNOWN:
            raise
