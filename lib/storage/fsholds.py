"""Which states of a Data.fs are being looked at, by all processes: a lock for the oldest of each.

A block that is mapped from the file would read as zeros if its bytes were given back. So each
storage that lets its Connections map holds a shared lock on the file, at the offset that the oldest
state of them is (its tid, as a number): beyond all bytes of the file. A trim takes an exclusive
lock on all offsets before a state. The kernel drops the locks of a process that ends.

They are locks of open file descriptions (F_OFD_SETLK), so storages of one process count, too.

Locking: a thread that comes to look at an old state waits with `_lock` for a trim that runs. A
collection may release a Hold in any thread, and waits for nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import weakref
from collections import Counter, deque
from errno import EACCES, EAGAIN
from struct import Struct

__all__ = ["Hold", "Holds", "free_before"]

log = logging.getLogger(__name__)

_FLOCK = Struct("hhqqi4x")  # struct flock of Linux, 64 bit
_MOST = (1 << 63) - 1


def _lock(fd: int, command: int, kind: int, start: int, size: int) -> tuple[int, int]:
    """Call fcntl(2); return the kind of the lock, and where it is."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, start, size, 0)
    found = _FLOCK.unpack(fcntl.fcntl(fd, command, asked))
    return found[0], found[2]


def _offset(tid: bytes) -> int:
    return min(int.from_bytes(tid, "big"), _MOST - 1)


class Hold:
    """The state that a reader sees: earlier ones may be trimmed."""

    def __init__(self, holds: Holds, before: bytes) -> None:
        self._holds = holds
        self._at = [before]
        holds.change(None, before)
        self._end = weakref.finalize(self, _release, holds, self._at)
        self._end.atexit = False

    def move(self, before: bytes) -> None:
        """Look at another state."""
        if before != self._at[0]:
            self._holds.change(self._at[0], before)
            self._at[0] = before

    def is_of(self, holds: Holds) -> bool:
        """Say whether it is a state of this file."""
        return self._holds is holds

    def release(self) -> None:
        """Look at no state any more."""
        self._end()


def _release(holds: Holds, at: list[bytes]) -> None:
    holds.released(at[0])


class Holds:
    """What is looked at through one storage."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._states: Counter[bytes] = Counter()  # protected by: _lock
        self._released: deque[bytes] = deque()  # that _states still has
        self._fd = -1
        self._held: int | None = None  # offset
        self._pid = os.getpid()

    @property
    def is_open(self) -> bool:
        """Say whether a state of a file is held."""
        return self._fd >= 0

    def __del__(self) -> None:
        self._close()

    def hold(self, fd: int | None, before: bytes) -> Hold:
        """Hold a state of the file that a descriptor has open; None: of that of renew()."""
        with self._lock:
            if self._fd < 0 and fd is not None:
                self._open(fd)
            return Hold(self, before)

    def renew(self, fd: int) -> None:
        """Hold the same states of another file, which has taken the place of the file."""
        with self._lock:
            self._close()
            if self._states:
                try:
                    self._open(fd)
                    self._hold()
                except OSError as e:  # the storage has the file already: the next hold() tries
                    log.warning("states of a new file cannot be held, and may be trimmed: %s", e)
                    self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, fd: int) -> None:
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._held = None

    def change(self, old: bytes | None, new: bytes) -> None:
        """Be told that a state is looked at, and an old one is not any more."""
        with self._lock:
            self._states[new] += 1
            try:
                self._hold()
            except BaseException:  # a Ctrl-C while a trim runs: the old state is held on
                self._released.append(new)
                raise
            if old is not None:
                self._released.append(old)
                self._hold()

    def released(self, old: bytes) -> None:
        """Be told by a collection that a state is not looked at any more."""
        self._released.append(old)
        if self._lock.acquire(blocking=False):  # else the thread that has it looks
            try:
                self._hold()
            finally:
                self._lock.release()

    def _hold(self) -> None:
        while self._released:
            old = self._released.popleft()
            self._states[old] -= 1
            if not self._states[old]:
                del self._states[old]
        if self._fd < 0 or self._pid != os.getpid():  # a child of a fork shares its parent's lock
            return
        want = _offset(min(self._states)) if self._states else None
        if want == self._held:
            return
        if want is not None:  # the old lock is not given up before
            _lock(self._fd, fcntl.F_OFD_SETLKW, fcntl.F_RDLCK, want, 1)
        if want is None:
            self._close()
        elif self._held is not None:
            _lock(self._fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, self._held, 1)
        self._held = want


def free_before(fd: int, before: bytes) -> bytes:
    """Have an exclusive lock of all states before one; return the one that it could be.

    Parameters
    ----------
    fd : int
        Open to write; to close it gives up the lock.
    before : bytes
        The requested state; a reader may look at an older one.
    """
    while True:
        stop = _offset(before)
        if stop == 0:
            return before
        kind, start = _lock(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, 0, stop)
        if kind != fcntl.F_UNLCK:
            before = start.to_bytes(8, "big")
            continue
        try:
            _lock(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 0, stop)
        except OSError as e:
            if e.errno not in (EAGAIN, EACCES):
                raise
        else:
            return before
