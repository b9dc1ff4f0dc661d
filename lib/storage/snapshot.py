"""The state of a database that a Connection would see, as records: no object is made.

A Connection unpickles objects, the root at once, and so runs code that a record names. A Snapshot
returns records, which are read as data (record). It has the methods of a Connection that functions
zconn_… call. It stays at the moment at which it was made, or at a given earlier one.
"""

from __future__ import annotations

import time
from typing import Any

from ZODB.interfaces import IMVCCStorage
from ZODB.mvccadapter import MVCCAdapter
from ZODB.utils import p64, u64

from wendelin.lib.adapters.connection import Asker, instance_of
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.relational import asked_in_turn

__all__ = ["SharedError", "Snapshot"]

_TIMES = 4  # how often a record is read at most, if each one has one purpose
_BESIDES = 16 << 20  # [bytes]


class SharedError(Exception):
    """Much more is read than a file has: many objects share records that should not be shared."""


class Snapshot(Asker):
    """A state of a database, for functions that take a Connection.

    Parameters
    ----------
    storage : storage
        close() closes it.
    at : bytes, optional
        The last transaction that is visible; by default the last one that there is.
    once : bool
        The caller reads each record once, or a few times. A hostile file may make it read more:
        then SharedError.
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
        """Return the object that has the storage, as there is no DB."""
        return self

    def load(self, oid: bytes) -> tuple[bytes, bytes]:
        """Return a record, and the transaction that wrote it.

        Raises
        ------
        POSKeyError
            It does not exist.
        """
        data, tid = instance_of(self).load(oid)
        return bytes(data), tid

    def close(self) -> None:
        """Close the storage."""
        self.opened = None
        instance_of(self).release()
        self._base.close()


def _limit(storage: Any, most: int) -> None:
    """Limit the bytes that are read from a storage of one moment."""
    load = storage.load
    left = most

    def limited(oid: bytes) -> Any:
        nonlocal left
        found = load(oid)
        left -= len(found[0])
        if left < 0:
            raise SharedError(
                f"{most} bytes were read, several times the size of the file: arrays, tables or "
                f"blocks share records that are never shared"
            )
        return found

    storage.load = limited
