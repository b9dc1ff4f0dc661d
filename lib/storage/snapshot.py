"""What a Connection sees of a database, without one: no object is made of what the database has.

A Connection unpickles what it is asked for, the root at once: code runs that a record names. A
Snapshot gives records, to what reads them as data (record): it is what functions zconn_… ask of a
Connection. It stays at the moment at which it was made, or at an earlier one that is asked for.
"""

from __future__ import annotations

import time
from typing import Any

from ZODB.interfaces import IMVCCStorage
from ZODB.mvccadapter import MVCCAdapter
from ZODB.utils import p64, u64

from wendelin.lib.adapters.connection import Asker, instance_of
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.storthreads import asked_in_turn

__all__ = ["SharedError", "Snapshot"]

_TIMES = 4  # that a record is read, at most, by who reads each one for one purpose
_BESIDES = 16 << 20  # [bytes]


class SharedError(Exception):
    """Much more is read than a file has: records that are of one thing each are of many."""


class Snapshot(Asker):
    """A moment of a database, for functions that are asked with a Connection.

    Parameters
    ----------
    storage : storage
        close() closes it.
    at : bytes, optional
        The last transaction that is to be seen; else the last one that there is.
    once : bool
        Each record is read once, or a few times. Of a file that has been made such that it is
        otherwise, no more is read than that: SharedError.
    """

    explicit_transactions = False
    database_name = "unnamed"

    def __init__(self, storage: Any, at: bytes | None = None, *, once: bool = False) -> None:
        self.storage = storage
        self.opened: float | None = time.time()
        self._base = storage if IMVCCStorage.providedBy(storage) else MVCCAdapter(storage)
        if at is None:
            instance = self._base.new_instance()
            instance.sync()
            instance.poll_invalidations()
        else:
            before = p64(u64(min(at, storage.lastTransaction())) + 1)
            instance = self._base.before_instance(before)
        super().__init__(instance)
        asked_in_turn(self)
        if once and isinstance(storage, AlignedFileStorage):
            _limit(instance_of(self), _TIMES * storage.getSize() + _BESIDES)

    def db(self) -> Snapshot:
        """Return what has the storage: there is no DB."""
        return self

    def load(self, oid: bytes) -> tuple[bytes, bytes]:
        """Return a record, and the transaction that wrote it.

        Raises
        ------
        POSKeyError
            It is not there.
        """
        data, tid = instance_of(self).load(oid)
        return bytes(data), tid

    def close(self) -> None:
        """Close the storage."""
        self.opened = None
        instance_of(self).release()
        self._base.close()


def _limit(storage: Any, most: int) -> None:
    """Let a storage of one moment give so many bytes, and no more."""
    load = storage.load
    left = most

    def limited(oid: bytes) -> Any:
        nonlocal left
        found = load(oid)
        left -= len(found[0])
        if left < 0:
            raise SharedError(
                f"{most} bytes were read, some times what the file has: records are shared by "
                f"arrays, tables or blocks that never share any"
            )
        return found

    storage.load = limited
