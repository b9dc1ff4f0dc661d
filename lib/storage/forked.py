"""A child of fork(): databases that it has inherited refuse all calls.

Parent and child share the lock of a file, the position in it, the connection to a server, and
buffers. So a call in the child could look like one of the parent. Therefore, in a child

- a storage, and its database, raise ForkError when they are read, changed, or closed;
- the files of a storage are /dev/null: a flush of a buffer writes nothing;
- an inherited Connection takes no part in the child's transactions: begin() does not call it. A
  commit of changes through it, made before or after the fork, raises ForkError;
- dbclose() only forgets it.

The parent pays nothing: only the child's copies are changed, when the child begins.

This module knows storages, databases and Connections of ZODB and ZEO. For other storages it knows
the methods that all storages have.

Locking: none. Other threads of the parent, which may have held locks, are not in the child.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, NoReturn
from weakref import WeakSet

from ZODB.DB import DB
from ZODB.FileStorage import FileStorage

from wendelin.lib.adapters import filestorage
from wendelin.lib.adapters.connection import (
    has_joined,
    inner_of,
    instances_of,
    main_instance,
    set_instance,
)
from wendelin.lib.adapters.transactions import leave, resources_of
from wendelin.lib.errors import ForkError
from wendelin.lib.storage.zeokind import is_client

__all__ = ["is_inherited", "let_go", "of_this_process"]

#: methods of a storage, or of an instance for a Connection, that read or change something
_REFUSED = (
    "before_instance",
    "changed_since",
    "checkCurrentSerialInTransaction",
    "cleanup",
    "close",
    "copyTransactionsFrom",
    "deleteObject",
    "getTid",
    "histories",
    "history",
    "hold",
    "iterator",
    "load",
    "loadBefore",
    "loadBlob",
    "loadSerial",
    "load_all",
    "locate",
    "new_instance",
    "new_oid",
    "openCommittedBlobFile",
    "pack",
    "ping",
    "prefetch",
    "record_iternext",
    "reset",
    "restore",
    "restoreBlob",
    "stat",
    "store",
    "storeBlob",
    "tpc_abort",
    "tpc_begin",
    "tpc_finish",
    "tpc_vote",
    "trim",
    "undo",
    "undoInfo",
    "undoLog",
    "undo_instance",
    "zap_all",
)
#: methods that the begin and the end of a transaction call, and that may do nothing
_QUIET = ("afterCompletion", "poll_invalidations", "release", "sync")
_REFUSED_BY_DB = ("close", "open", "pack", "transaction", "undo", "undoMultiple")

#: attributes in which a storage keeps others
_INNER = ("asked", "base", "changes")

_storages: WeakSet[Any] = WeakSet()
_databases: WeakSet[DB] = WeakSet()
#: objects of the parent. They are kept, as collecting them would close them.
_inherited: list[Any] = []
_connections: WeakSet[Any] = WeakSet()  # of these


def of_this_process(thing: Any) -> None:
    """Make a storage, or a database, refuse calls in children of this process."""
    (_databases if isinstance(thing, DB) else _storages).add(thing)


def is_inherited(conn: Any) -> bool:
    """Say whether a Connection is one of the parent process."""
    return conn in _connections


def let_go(conn: Any, primary: bool = True) -> None:
    """The close() of an inherited Connection: its parent's stays open."""
    manager, conn.transaction_manager, conn.opened = conn.transaction_manager, None, None
    if manager is not None:
        with suppress(Exception):  # no transaction was begun
            txn = manager.get()
            for resource in resources_of(txn):
                if _connection_of(resource) is conn:
                    leave(txn, resource)
    set_instance(conn, None)


def _connection_of(resource: Any) -> Any:
    """Return the Connection of a data manager, or None."""
    return resource if resource in _connections else getattr(resource, "conn", None)


def _refuse(name: str, call: str, *args: Any, **kw: Any) -> NoReturn:
    raise ForkError(
        f"{call}() of {name}, which was opened before fork(): it is the parent process's. Open the "
        f"database again in the child process, as with dbopen()"
    )


def _refuse_commit(name: str, txn: Any) -> None:
    if any(is_inherited(_connection_of(resource)) for resource in resources_of(txn)):
        _refuse(name, "commit")


def _nothing(*args: Any, **kw: Any) -> list[Any]:
    return []


# ---- in the child ----


def _after_fork_in_child() -> None:
    global _storages, _databases
    seen: set[int] = set()
    for db in list(_databases):
        _inherit_db(db, seen)
    for storage in list(_storages):
        _inherit_storage(storage, seen)
    _inherited.extend([*_databases, *_storages])
    _storages, _databases = WeakSet(), WeakSet()


def _inherit_db(db: DB, seen: set[int]) -> None:
    if "storage" not in vars(db):
        return  # it is closed
    name = _name(db.storage)
    for conn in [*db.pool, *db.historical_pool]:
        _inherit_connection(conn, name, seen)
    for call in _REFUSED_BY_DB:
        setattr(db, call, partial(_refuse, name, call))
    for storage in db.storage, main_instance(db):
        _inherit_storage(storage, seen)


def _inherit_connection(conn: Any, name: str, seen: set[int]) -> None:
    _connections.add(conn)
    _inherited.append(conn)
    conn.close = partial(let_go, conn)
    manager = conn.transaction_manager
    if manager is not None:
        with suppress(Exception):  # it was not registered, or no transaction was begun
            manager.unregisterSynch(conn)
            if has_joined(conn):
                txn = manager.get()
                txn.addBeforeCommitHook(_refuse_commit, (name, txn))
    for storage in instances_of(conn):
        if storage is None:
            continue
        _inherit_storage(storage, seen)
        # A commit was refused at its begin, so there is nothing to abort; or it is the parent's,
        # and so are the savepoints that an abort would close.
        storage.tpc_abort = storage.close = _nothing


def _inherit_storage(storage: Any, seen: set[int]) -> None:
    """Make a storage, and those inside of it, refuse calls."""
    if id(storage) in seen:
        return
    seen.add(id(storage))
    has = getattr(storage, "__dict__", {})
    for inner in (*inner_of(storage), *(has[name] for name in _INNER if name in has)):
        if inner is not None:
            _inherit_storage(inner, seen)
    name = _name(storage)
    for call in (*_REFUSED, *_QUIET):
        if hasattr(storage, call):
            with suppress(AttributeError):  # it takes no attributes
                setattr(storage, call, _nothing if call in _QUIET else partial(_refuse, name, call))
    zeo = import_module("wendelin.lib.adapters.zeo") if is_client(storage) else None  # see zeokind
    network = () if zeo is None else zeo.files_of(storage)
    for file in (*filestorage.files_of(storage), *network):
        with suppress(AttributeError, OSError, ValueError):  # it is not a file, or closed
            _point_to_nowhere(file.fileno())
    if zeo is not None:
        zeo.refuse_network(storage, partial(_no_io, name))
    elif isinstance(storage, FileStorage):
        filestorage.renew_lock(storage, threading.RLock())  # of lastTransaction(), for example
        if has.get("file_lock") is not None:
            has["file_lock"].release()  # as long as a child had it, the file would be locked


def _point_to_nowhere(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(nowhere, fd, inheritable=False)
    finally:
        os.close(nowhere)


def _no_io(name: str, coro: Any, *args: Any, **kw: Any) -> NoReturn:
    coro.close()
    _refuse(name, "a call")


def _name(storage: Any) -> str:
    names: Callable[[], str] | None = getattr(storage, "getName", None)
    try:
        return repr(names()) if names is not None else type(storage).__name__
    except Exception:
        return type(storage).__name__


os.register_at_fork(after_in_child=_after_fork_in_child)
