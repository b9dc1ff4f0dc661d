"""A FileStorage that only reads sees later commits of another process.

A read-only open takes no lock: the writer may have the file open. When a transaction begins, the
reader looks for new transactions behind the last one that it knows, and adds them as if a client of
its own had committed them. If a pack has replaced the file, the reader takes the new one.

A transaction that is being written, or was voted for and is not finished, has status 'c'. The scan
of the file (fsscan) stops before it, and its tid is not the last one.

The open file is named by its descriptor (open_name): its path may lead to another one.

Locking: `_following` > what FileStorage.tpc_finish() takes: the pool of readers > the storage's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from ZODB.FileStorage.format import TRANS_HDR_LEN

from wendelin.lib.interrupt import interrupts_later
from wendelin.lib.storage.fsscan import scan

__all__ = ["FileFollower"]


def open_name(file: Any) -> str:
    """Return a name of an open file that stays right if its path changes."""
    return f"/proc/self/fd/{file.fileno()}"


def _size_and_time(file: Any) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


class FileFollower:
    """Brings a FileStorage that only reads up to date.

    Parameters
    ----------
    storage : FileStorage
    again : () -> FileStorage
        Opens its path once more.
    """

    def __init__(self, storage: Any, again: Callable[[], Any]) -> None:
        self._storage = storage
        self._again = again
        self._following = threading.Lock()
        # the file's (size, mtime) when no whole transaction was found behind the last one
        self._nothing: tuple[int, int] | None = None  # protected by: _following
        #: ZODB's MVCCAdapter, which informs Connections
        self.db: Any = None
        storage.readers.name = open_name(storage.file)

    def follow(self) -> None:
        """Read what was committed since the last call.

        Raises
        ------
        CorruptedTransactionError, FileStorageFormatError
            The file is damaged.
        """
        with self._following:
            file = self._storage.file
            if not self._is_in_place(file):
                self._reopen()
            elif self._has_more(file):
                self._read_more(file)

    def _is_in_place(self, file: Any) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._storage.path))
        except FileNotFoundError:
            return True  # for now: a pack is about to replace it

    def _has_more(self, file: Any) -> bool:
        header = os.pread(file.fileno(), TRANS_HDR_LEN, self._storage.end)
        return (
            len(header) == TRANS_HDR_LEN
            and header[16:17] != b"c"
            and _size_and_time(file) != self._nothing
        )

    def _read_more(self, file: Any) -> None:
        storage = self._storage
        was = _size_and_time(file)
        found: dict[bytes, int] = {}
        pos, tid = scan(file.fileno(), storage.path, found, storage.end, storage.lastTransaction())
        if pos == storage.end:
            self._nothing = was
            return
        with storage.readers.write_lock(), storage.state_lock, interrupts_later():
            storage.readers.empty()  # buffers may have bytes of the previous state
            storage.index.update(found)
            storage.end = pos
            storage.newest_oid = max([storage.newest_oid, *found])
            if self.db is not None:
                self.db.invalidate(tid, list(found))
            storage.newest_tid = tid

    def _reopen(self) -> None:
        storage = self._storage
        try:
            new = self._again()
        except FileNotFoundError:
            return
        self._nothing = None
        with storage.readers.write_lock(), storage.state_lock, interrupts_later():
            storage.readers.empty()
            storage.file, old = new.file, storage.file
            storage.readers.name = open_name(new.file)
            storage.set_index(new.index, new.changed)
            storage.end, storage.newest_oid = new.end, new.newest_oid
            if self.db is not None:
                self.db.invalidateCache()
            storage.newest_tid = new.newest_tid
            old.close()
