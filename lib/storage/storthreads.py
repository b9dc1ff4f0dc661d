"""How many threads may call a storage at a time: several, or one.

Any thread that touches a block loads it, and so do threads that load ahead. ZODB itself calls the
storage of a Connection in one thread only, so a storage may rely on that. RelStorage has one
database cursor for each Connection, and two threads on one cursor read each other's answers.

A list here says which storages several threads may call at a time. One thread at a time calls any
other storage: OneAtATime stands between it and its Connection and all other callers.

This module knows storages by the names of their classes, so that it imports none of them, and the
instances that Connections have of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from ZODB.DemoStorage import DemoStorage
from zope.interface import directlyProvides, providedBy

from wendelin.lib.adapters.connection import Adapter, instance_of, set_instance, under

__all__ = ["OneAtATime", "asked_in_turn", "asks_in_parallel", "class_of"]

#: Classes with instances that several threads may call at the same time. A subclass does not
#: count, as it may add code that is not thread-safe.
IN_PARALLEL = {
    "wendelin.lib.storage.filestorage.AlignedFileStorage",
    "wendelin.lib.storage.zeoclient.ZEOClient",
    "ZODB.FileStorage.FileStorage.FileStorage",
    "ZODB.MappingStorage.MappingStorage",
    "ZEO.ClientStorage.ClientStorage",
    "neo.client.Storage.Storage",
}


def asks_in_parallel(storage: Any) -> bool:
    """Say whether several threads may call a storage, or an instance of it, at a time."""
    while isinstance(storage, Adapter):
        storage = under(storage)
    if type(storage) is DemoStorage:
        return asks_in_parallel(storage.base) and asks_in_parallel(storage.changes)
    cls = type(storage)
    return f"{cls.__module__}.{cls.__qualname__}" in IN_PARALLEL


def class_of(storage: Any) -> str:
    """Return the name of a storage's class, for messages."""
    return type(storage.asked if isinstance(storage, OneAtATime) else storage).__name__


def asked_in_turn(conn: Any) -> None:
    """Make sure that one thread at a time calls a Connection's storage, if several must not.

    Called in the thread of the Connection, before other threads call its storage.
    """
    storage = instance_of(conn)
    if storage is None or isinstance(storage, OneAtATime) or asks_in_parallel(storage):
        return
    set_instance(conn, OneAtATime(storage))


class OneAtATime:
    """A storage that one thread at a time calls: others wait for the end of its call.

    A call in the middle of another call of the same thread is refused. It comes from a signal
    handler, or a destructor: it cannot wait, and would get the answer to the other call. Only calls
    that a commit makes at its end are allowed.

    Locking: `_turn` is held while the storage works, and is a leaf of ours.
    """

    def __init__(self, storage: Any) -> None:
        self.asked = storage
        self._turn = threading.RLock()
        self._busy = False  # protected by: _turn
        self._sort_key: str | None = None
        directlyProvides(self, providedBy(storage))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.asked, name)
        return partial(self._ask, found) if callable(found) else found

    def __len__(self) -> int:
        return int(self._ask(self.asked.__len__))

    def sortKey(self) -> str:
        """Return a name, at any time: RelStorage's log asks for it in the middle of a call."""
        if self._sort_key is None:
            self._sort_key = str(self._ask(self.asked.sortKey))
        return self._sort_key

    def tpc_finish(self, transaction: Any, f: Callable[[bytes], Any] | None = None) -> Any:
        """Finish the transaction; f, which is called meanwhile, may ask the storage."""
        if f is None:
            return self._ask(self.asked.tpc_finish, transaction)

        @wraps(f)
        def finished(tid: bytes) -> Any:
            self._busy = False
            try:
                return f(tid)
            finally:
                self._busy = True

        return self._ask(self.asked.tpc_finish, transaction, finished)

    def _ask(self, method: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        with self._turn:
            if self._busy:
                raise RuntimeError(
                    f"{type(self.asked).__name__} is in the middle of a call of this thread, and "
                    f"allows one at a time: a signal handler, or a destructor, made another call"
                )
            try:
                self._busy = True
                return method(*args, **kw)
            finally:
                self._busy = False
