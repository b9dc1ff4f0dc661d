"""RelStorage: the connection to its database that an instance loads from, and others like it.

Nothing here imports RelStorage: a storage is known by the name of its class.

An instance of a RelStorage has one connection that it loads from. It has a state of the database
from the first use after a rollback until the next one, by a transaction of the database.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "close_load",
    "cursor_of",
    "has_state",
    "is_relstorage",
    "is_stale",
    "keeps_history",
    "lost",
    "open_load",
    "roll_back",
    "sends_binary",
]

#: class -> private names of its instances
PRIVATE = {"relstorage.storage.RelStorage": ("_adapter", "_load_connection")}

_POSTGRES = "relstorage.adapters.postgresql.adapter.PostgreSQLAdapter"
_STORAGE = "relstorage.storage.RelStorage"


def _name(thing: Any) -> str:
    cls = type(thing)
    return f"{cls.__module__}.{cls.__qualname__}"


def is_relstorage(storage: Any) -> bool:
    """Say whether a storage is a RelStorage, or an instance of one."""
    return _name(storage) == _STORAGE


def sends_binary(storage: Any) -> bool:
    """Say whether cursors of a storage have the COPY of psycopg2, which blocks other threads not.

    A driver for gevent has none, and another driver has another one.
    """
    adapter = storage._adapter
    return _name(adapter) == _POSTGRES and adapter.driver.__name__ == "psycopg2"


def keeps_history(storage: Any) -> bool:
    """Say whether a storage keeps previous revisions."""
    return bool(storage._adapter.keep_history)


def is_stale(storage: Any) -> bool:
    """Say whether a storage refuses to load, as it was told of an older state than before."""
    return hasattr(storage.load, "stale_error")


def lost(storage: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions that a lost connection to the database raises."""
    return tuple(storage._adapter.driver.disconnected_exceptions)


def has_state(storage: Any) -> bool:
    """Say whether an instance has a state of the database. If not, its next load gets one."""
    return bool(storage._load_connection)


def cursor_of(storage: Any) -> Any:
    """Return the cursor that an instance loads with, in its state of the database."""
    return storage._load_connection.cursor


# ---- other connections ----


def open_load(storage: Any) -> tuple[Any, Any]:
    """Return another connection to the database, which may read only, and its cursor."""
    conn, cursor = storage._adapter.connmanager.open_for_load()
    return conn, cursor


def roll_back(storage: Any, opened: tuple[Any, Any]) -> bool:
    """End the transaction of another connection. False: it was lost, and is closed."""
    return bool(storage._adapter.connmanager.rollback_quietly(*opened))


def close_load(storage: Any, opened: tuple[Any, Any]) -> None:
    """Close another connection."""
    storage._adapter.connmanager.rollback_and_close(*opened)
