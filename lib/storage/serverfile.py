"""The file of a ZEO server, opened by its clients: blocks are mapped from it, as from a local file.

A client that runs on the server's machine, or has its file system, can read the server's Data.fs
itself. Transactions still go over ZEO. To read the file is enough: a client never writes there.

    (unasked) ── at() ──► asked: the server says where ──► open ──► closed by renew(), close()
        ▲                    └── not there, another file, too large ──► none
        └──────────── renew(): a new connection, maybe to another server ───────────┘

Which file it is
----------------
The server says a Place (served): path, inode, and a token. That is a digest of the beginning of the
file, and of the end of its last transaction. What the client finds at that path must have the same
bytes there: so it is that file, or a copy of the same history up to that transaction.

Which state it has
------------------
The client follows the file, as any reader of a file does (fsfollow). It maps blocks of a state only
if the file has all transactions of it. On a network file system these may come later than by ZEO.
Until then the server is asked for blocks.

What a client looks at is not trimmed: ServerFile.hold(). A Connection holds its state whether there
is a file or not, as another one may be opened in the middle of its transaction.

This module knows files and storages. It does not know ZEO.

Locking: `_lock`, while the file is opened, and a state is held; it is not held while the server is
asked for blocks. `_lock` > the locks of the file's storage.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ZODB.utils import p64, u64

from wendelin.lib.storage.fsholds import Hold, Holds
from wendelin.lib.storage.served import Place, token_of

if TYPE_CHECKING:
    from wendelin.lib.storage.filestorage import AlignedFileStorage

__all__ = ["ServerFile"]

log = logging.getLogger(__name__)

_MOST_INDEX = 64 << 20  # of the saved index: a client keeps the index in memory [bytes]
_MOST_UNINDEXED = 1 << 30  # of a file without one, which is read through [bytes]


class ServerFile:
    """The file of a server, if it can be opened here.

    Parameters
    ----------
    ask : () -> Place
        Asks the server; raises if it does not know.
    last : () -> bytes
        Returns the tid of the last transaction that the client has heard of.
    """

    def __init__(self, ask: Callable[[], Place], last: Callable[[], bytes]) -> None:
        self._ask = ask
        self._last = last
        self._lock = threading.Lock()
        self._connections = 1  # to the server, by now
        self._asked = 0  # of which of them the server was asked last; protected by: _lock
        self._file: AlignedFileStorage | None = None  # protected by: _lock
        # files that threads may still read: they are closed at the end
        self._previous: list[AlignedFileStorage] = []
        self._holds = Holds()  # of all files
        self._closed = False

    def at(self, before: bytes) -> AlignedFileStorage | None:
        """Return the file, as a storage that only reads; None: it does not have the state.

        Parameters
        ----------
        before : bytes
            The state before this tid.
        """
        file = self._opened()
        if file is None:
            return None
        needed = min(p64(u64(before) - 1), self._last())
        try:
            if file.lastTransaction() < needed:
                file.sync()
            return file if file.lastTransaction() >= needed else None
        except Exception:
            log.warning("%s cannot be read any more; the server is asked", file.path, exc_info=True)
            with self._lock:
                if self._file is file:
                    self._file = None
                    self._previous.append(file)
            return None

    def _opened(self) -> AlignedFileStorage | None:
        if self._asked == self._connections:
            return self._file
        with self._lock:
            while self._asked != self._connections and not self._closed:
                connection = self._connections  # there may be another, while the server is asked
                known, found = self._file, self._open(self._file)
                if known is not None and found is not known:
                    self._previous.append(known)
                if found is not None and found is not known:
                    found.hold_for(self._holds)  # before a thread looks
                self._file, self._asked = found, connection
            return self._file

    def _open(self, known: AlignedFileStorage | None) -> AlignedFileStorage | None:
        """Open the file; return the known one, if it is that."""
        from wendelin.lib.storage.filestorage import AlignedFileStorage

        try:
            place = self._ask()
        except Exception as e:
            log.debug("the server does not say where its file is: %r", e)
            return None
        file = None
        try:
            fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode) or found.st_ino != place.inode:
                    return None
                if token_of(fd, place.end) != place.token or not _is_small(
                    place.path, found.st_size
                ):
                    return None
                if known is not None and os.path.samestat(os.fstat(known.file.fileno()), found):
                    return known
                file = AlignedFileStorage(place.path, read_only=True)
                if os.path.samestat(os.fstat(file.file.fileno()), found):
                    opened, file = file, None
                    return opened
            finally:
                os.close(fd)
                if file is not None:
                    file.close()
        except Exception as e:
            log.debug("%s cannot be opened here: %r", place.path, e)
        return None

    def follow(self) -> None:
        """Be up to date: after a pack of the server, what is held is held of the new file."""
        file = self._opened()
        if file is not None:
            with suppress(Exception):  # at() says it
                file.sync()

    def hold(self, before: bytes) -> Hold:
        """Have no revision trimmed that the state before a tid has, until Hold is let go."""
        self._opened()
        with self._lock:
            file = self._file
            return self._holds.hold(None, before) if file is None else file.hold(before)

    def holds(self, hold: Hold) -> bool:
        """Say whether a Hold is of this server's file."""
        return hold.is_of(self._holds) and (self._file is None or self._holds.is_open)

    def renew(self) -> None:
        """Ask again when it is needed: there is a new connection."""
        self._connections += 1

    def close(self) -> None:
        """Close the file for good."""
        self._closed = True
        with self._lock:
            files = [*self._previous, *filter(None, [self._file])]
            self._file, self._previous = None, []
        for file in files:
            with suppress(Exception):
                file.close()


def _is_small(path: str, size: int) -> bool:
    """Say whether a client can have a file open without much time and memory."""
    try:
        return os.path.getsize(f"{path}.index") <= _MOST_INDEX
    except OSError:
        return size <= _MOST_UNINDEXED
