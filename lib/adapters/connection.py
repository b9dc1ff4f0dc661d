"""ZODB's Connection, DB, and what gives each Connection its own view of a storage (mvccadapter).

A Connection has an *instance* of the storage: an MVCCAdapterInstance over it, or what the storage
itself makes where it knows MVCC. ZODB has no public name for that, nor for what it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ZODB.interfaces import IMVCCStorage
from ZODB.mvccadapter import Base as Adapter
from ZODB.mvccadapter import HistoricalStorageAdapter

__all__ = [
    "Adapter",
    "Asker",
    "begins",
    "changed_objects",
    "has_joined",
    "inner_of",
    "instance_of",
    "instances_of",
    "invalidate_all",
    "join",
    "main_instance",
    "past_of",
    "saved_of",
    "seen_before",
    "set_changed",
    "set_instance",
    "under",
]

#: class -> private names of its instances
PRIVATE = {
    "ZODB.Connection.Connection": (
        "_cache",
        "_needs_to_join",
        "_normal_storage",
        "_register",
        "_registered_objects",
        "_savepoint_storage",
        "_storage",
    ),
    "ZODB.Connection.TmpStore": ("_file", "_storage"),
    "ZODB.DB.DB": ("_mvcc_storage",),
    "ZODB.mvccadapter.Base": ("_storage",),
    "ZODB.mvccadapter.MVCCAdapterInstance": ("_base", "_start"),
    "ZODB.mvccadapter.HistoricalStorageAdapter": ("_before",),
}


class Asker:
    """Stands for a Connection in the functions here: it has an instance of a storage."""

    _savepoint_storage = None

    def __init__(self, instance: Any) -> None:
        self._storage = self._normal_storage = instance


def past_of(storage: Any, before: bytes) -> Asker:
    """Return an Asker that sees the state of a storage before a tid, and nothing later."""
    if IMVCCStorage.providedBy(storage):
        return Asker(storage.before_instance(before))
    return Asker(HistoricalStorageAdapter(storage, before))


# ---- what a Connection asks ----


def instance_of(conn: Any) -> Any:
    """Return the instance of the storage that a Connection has; None: the database was closed."""
    return conn._normal_storage


def instances_of(conn: Any) -> tuple[Any, ...]:
    """Return what a Connection asks at this moment, and its instance of the storage.

    The two differ after a savepoint, which has a storage of its own.
    """
    return conn._storage, conn._normal_storage


def saved_of(conn: Any) -> Any:
    """Return the storage that has what savepoints of a Connection have stored, or None."""
    return conn._savepoint_storage


def set_instance(conn: Any, instance: Any) -> None:
    """Give a Connection another instance of the storage; None: none, as if it was closed."""
    saved = conn._savepoint_storage
    if saved is None or instance is None:
        conn._storage = instance
    else:
        saved._storage = instance  # under what a savepoint has stored
    conn._normal_storage = instance


def join(conn: Any) -> None:
    """Let a Connection join its transaction, if it has not."""
    conn._register()


def has_joined(conn: Any) -> bool:
    """Say whether a Connection has joined a transaction."""
    return not conn._needs_to_join


def set_changed(obj: Any, tid_of: Callable[[bytes], bytes]) -> None:
    """Mark an object, whose whole state is about to be replaced, as changed.

    A ghost is not loaded: it becomes an object without a state, of the transaction that wrote it.

    Parameters
    ----------
    obj : Persistent
    tid_of : callable
        (oid) -> the transaction that wrote a ghost, as its Connection sees it.
    """
    conn = obj._p_jar
    if obj._p_changed is not None or (
        conn._savepoint_storage is not None and obj._p_oid in conn._savepoint_storage.index
    ):
        obj._p_changed = True
        return
    tid = tid_of(obj._p_oid)
    load, others = conn.setstate, vars(conn).get("setstate")

    def setstate(ghost: Any) -> None:
        if ghost is obj:
            ghost._p_serial = tid
        else:  # a finalizer, or a signal's handler, looks at another one
            load(ghost)

    conn.setstate = setstate  # what Persistent calls for the state of a ghost
    try:
        obj._p_changed = True
    finally:
        del conn.setstate
        if others is not None:  # an application has its own
            conn.setstate = others


def changed_objects(conn: Any) -> list[Any]:
    """Return the objects that the transaction of a Connection is going to store, or stores."""
    return list(conn._registered_objects)


def invalidate_all(conn: Any) -> None:
    """Invalidate all objects of a Connection."""
    conn._cache.invalidate(conn._cache.cache_data.copy())


def main_instance(db: Any) -> Any:
    """Return what makes the instances of a database's storage."""
    return db._mvcc_storage


# ---- instances of a storage ----


def under(instance: Any) -> Any:
    """Return the storage under what makes it MVCC; None: it is MVCC itself, or it was closed."""
    return getattr(instance, "_storage", None)


def seen_before(instance: Any) -> Any:
    """Return the tid before which an instance of a storage sees everything; None: nothing yet."""
    # the first one is that of most: MVCCAdapter looks for what it does not have in other places
    return getattr(instance, "_start", None) or getattr(instance, "_before", None)


def begins(instance: Any) -> bool:
    """Say whether an instance of a storage sees another state at each transaction's begin."""
    return hasattr(instance, "_start")


def inner_of(instance: Any) -> list[Any]:
    """Return the storages that an instance, or what keeps savepoints, asks."""
    has = getattr(instance, "__dict__", {})
    return [has[name] for name in ("_base", "_storage") if has.get(name) is not None]
