"""A FileStorage that only reads sees what another process goes on to write.

Opened read-only, a file takes no lock: its writer may have it open. At each beginning of a
transaction, the reader looks whether there is more behind the last transaction that it knows, and
takes that in as if it had come from a client of its own; or whether a pack has put another file
in the place of this one, and takes that.

It knows files of FileStorage, by ZODB's own reader of them. What is being written, or was voted for
and is not finished, has status 'c', where that reader stops.

The file that is open is named by its descriptor (open_name): its path may be that of another one.

Locking: `_following` > what FileStorage.tpc_finish() takes: the pool of readers > the storage's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from ZODB.FileStorage.format import TRANS_HDR_LEN

__all__ = ["FileFollower"]


def open_name(file: Any) -> str:
    """Return a name of an open file, whatever its path has become."""
    return f"/proc/self/fd/{file.fileno()}"


class _Newer:
    """The index of a storage, for read_index(): what is new is noted, and nothing changed."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.found: dict[bytes, int] = {}

    def get(self, oid: bytes, default: int) -> int:
        return self.found.get(oid) or self._index.get(oid, default)

    def update(self, found: dict[bytes, int]) -> None:
        self.found.update(found)

    def maxKey(self) -> bytes:
        return max([*self.found, bytes(self._index.maxKey())])


class FileFollower:
    """Brings a FileStorage that only reads up to date.

    Parameters
    ----------
    storage : FileStorage
    again : () -> FileStorage
        Opens its path once more.
    read_index : callable
        ZODB's.
    """

    def __init__(
        self, storage: Any, again: Callable[[], Any], read_index: Callable[..., Any]
    ) -> None:
        self._storage = storage
        self._again = again
        self._read_index = read_index
        self._following = threading.Lock()
        #: ZODB's MVCCAdapter, which tells Connections
        self.db: Any = None
        storage._files.name = open_name(storage._file)

    def follow(self) -> None:
        """See what was committed since.

        Raises
        ------
        FileStorageFormatError, CorruptedDataError
            The file is damaged.
        """
        with self._following:
            file = self._storage._file
            if not self._is_in_place(file):
                self._reopen()
            elif self._has_more(file):
                self._read_more()

    def _is_in_place(self, file: Any) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._storage._file_name))
        except FileNotFoundError:
            return True  # for now: a pack is about to put another one there

    def _has_more(self, file: Any) -> bool:
        header = os.pread(file.fileno(), TRANS_HDR_LEN, self._storage._pos)
        return len(header) == TRANS_HDR_LEN and header[16:17] != b"c"

    def _read_more(self) -> None:
        storage = self._storage
        newer = _Newer(storage._index)
        with open(open_name(storage._file), "rb") as file:  # with nothing of before in its buffer
            pos, oid, tid = self._read_index(
                file,
                storage._file_name,
                newer,
                {},
                ltid=storage._ltid,
                start=storage._pos,
                read_only=True,
            )
        with storage._files.write_lock(), storage._lock:
            storage._files.empty()  # buffers may have what was there before
            storage._index.update(newer.found)
            storage._pos, storage._oid = pos, oid
            if self.db is not None:
                self.db.invalidate(tid, list(newer.found))
            storage._ltid = tid

    def _reopen(self) -> None:
        storage = self._storage
        try:
            new = self._again()
        except FileNotFoundError:
            return
        with storage._files.write_lock(), storage._lock:
            storage._files.empty()
            storage._file, old = new._file, storage._file
            storage._files.name = open_name(new._file)
            storage._initIndex(new._index, new._tindex)
            storage._pos, storage._oid = new._pos, new._oid
            if self.db is not None:
                self.db.invalidateCache()
            storage._ltid = new._ltid
        old.close()
