"""The lock of a file that is written to: of the file itself, by whatever name it was opened.

ZODB locks NAME.lock. So a second name (a symbolic or hard link, a bind mount) means another lock,
and so does a new NAME.lock after one was removed. This lock is taken in addition.

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
    """A lock of one file at a time, until it is released."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._pid = os.getpid()

    def take(self, path: str) -> None:
        """Lock the file of a path, instead of the previous one.

        Raises
        ------
        LockError
            Another storage has it open to write. The previous lock stays.
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
        """Release the lock; in a child of a fork, only close its descriptor."""
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
            f"another name (a link)"
        ) from None
    except OSError as e:
        if e.errno not in _UNKNOWN:
            raise
