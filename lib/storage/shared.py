"""Databases that a process opens once, by URL, for references and tasks from other processes.

Reading: a reference from another process says where an object is: the URL of a database, a tid, an
oid. The first reference opens the database, and the first one with a tid opens a Connection to the
state at that tid. Later ones share them. Writing: each task has a Connection of its own.

Databases that are not used any more are closed after a while.

Organization
------------
    _databases: URL, writes? ──► _Opened ──► DB ──► Connections: tid ──►       weak
                                    └─► the last few of these, for a while     strong

An object holds its Connection. When no object of a shared Connection is left, the collector takes
the Connection, with its cache. A thread of ours closes its database; the thread ends with the last
database.

Forks
-----
A child of fork() opens databases of its own. It does not touch those of its parent: to a server,
any call, even a close, would look like one of the parent.

This module knows databases and Connections, but not their contents.

Locking: the lock of an _Opened > _lock. A user of a Connection of zconn_past() holds the former, as
two threads may not use a Connection at the same time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from transaction import TransactionManager
from zc.lockfile import LockError
from ZODB.DB import DB
from ZODB.utils import tid_repr

from wendelin.lib.storage.dburl import read_only, resolve
from wendelin.lib.storage.forked import of_this_process
from wendelin.lib.storage.storurl import zstor_2zurl
from wendelin.lib.utils import seconds_of

__all__ = ["share", "zconn_is_shared", "zconn_now", "zconn_past"]

log = logging.getLogger(__name__)

_KEEP = 60.0  # how long an unused database stays open after a request [s]
_keep = _KEEP  # by the environment at the last request; protected by: _lock
MOST = 8  # unused Connections of a database that are kept
CLOSER = "wendelin.core-closer"


class _Opened:
    """An open database, to read past states of it, or to write."""

    def __init__(self, url: str, writes: bool) -> None:
        factory, arguments = resolve(url)
        self.url = url
        self.lock = threading.RLock()
        self._open: Callable[[], Any] = lambda: DB(factory(), **arguments)
        # protected by: lock
        self.closed = False
        self.users = 0
        self._used = time.monotonic()
        self._db: Any = None
        self._conns: WeakValueDictionary[bytes, Any] = WeakValueDictionary()
        #: tid -> (time of the last request, Connection), the last one at the end
        self._held: OrderedDict[bytes, tuple[float, Any]] = OrderedDict()

    def db(self) -> Any:
        """Return the database."""
        self._used = time.monotonic()
        if self._db is None:
            try:
                self._db = self._open()
                of_this_process(self._db)
            except LockError as e:
                e.add_note(
                    f"{self.url} is open elsewhere, and only one process may write to a file: use "
                    f"threads of that process, or a ZEO server (docs/cluster.md)"
                )
                raise
        return self._db

    def has(self, db: Any) -> bool:
        """Say whether a database is this one. Safe in any thread."""
        return self._db is db

    def at(self, tid: bytes) -> Any:
        """Return the Connection to the state at a tid."""
        conn = self._conns.get(tid)
        if conn is None:
            db = self.db()
            if db.lastTransaction() < tid:
                _catch_up(db.storage)
            last = db.lastTransaction()
            if last < tid:
                raise ValueError(
                    f"{self.url} has no transaction {tid_repr(tid)}: its last one is "
                    f"{tid_repr(last)}. Is it another database?"
                )
            # no transaction can be joined, so there are no changes
            conn = db.open(TransactionManager(explicit=True), at=tid)
            self._conns[tid] = conn
            _shared.add(conn)
        self._held.pop(tid, None)
        self._held[tid] = time.monotonic(), conn
        self._let_go(0)
        return conn

    def _let_go(self, until: float) -> None:
        """Keep at most MOST Connections, and none whose last request is older than `before`."""
        held = self._held
        while held and (len(held) > MOST or next(iter(held.values()))[0] < until):
            held.popitem(last=False)

    def close_unused(self, until: float) -> None:
        """Drop Connections not requested since `before`; close the database if it is unused."""
        self._let_go(until)
        if not (self._conns or self._held or self.users or self._used >= until):
            self.closed = True
            if self._db is not None:
                self._db.close()


def _catch_up(storage: Any) -> None:
    """Bring a storage up to date with all commits."""
    for asked in getattr(storage, "base", None), getattr(storage, "changes", None), storage:
        # of ZEO, whose sync() may do nothing; of RelStorage, whose sync() asks nothing; of others
        for ask in "ping", "poll_invalidations", "sync":
            if hasattr(asked, ask):
                getattr(asked, ask)()
                break


_lock = threading.Lock()
# protected by: _lock
_databases: dict[tuple[str, bool], _Opened] = {}
_closer: threading.Thread | None = None
_own: dict[str, weakref.ref[Any]] = {}

_shared: WeakSet[Any] = WeakSet()
_inherited: list[object] = []  # of the parent process


def zconn_is_shared(conn: Any) -> bool:
    """Say whether a Connection is one of zconn_past()."""
    return conn in _shared


@contextmanager
def zconn_past(url: str, tid: bytes) -> Iterator[Any]:
    """Yield the Connection of this process to a past state of a database; other threads wait.

    It is open as long as an object of it lives. Any thread may read its objects. They cannot be
    changed.

    Parameters
    ----------
    url : str
        Of the database, from zstor_2zurl(). Another process may have a file open to write.
    tid : bytes
        Of the last transaction that is visible.

    Raises
    ------
    ValueError
        The URL is wrong, or the database has no such transaction yet.
    OSError, ZEO.Exceptions.ClientDisconnected
        It cannot be opened; see dbopen().
    """
    with _opened(read_only(url), False) as opened:
        yield opened.at(tid)


def share(db: Any) -> str:
    """Let zconn_now() use a database that this process has open already; return its URL.

    A file, for example, cannot be opened twice to write.

    Raises
    ------
    NotImplementedError
        It has no URL: see zstor_2zurl().
    ValueError
        It was opened by this module, which closes it when its references or tasks are done.
    """
    url = zstor_2zurl(db.storage)
    with _lock:
        if any(opened.has(db) for opened in _databases.values()):
            raise ValueError(
                f"{url} is not a database of the program's own, so it cannot be shared"
            )
        _own[url] = weakref.ref(db)
    return url


@contextmanager
def zconn_now(url: str) -> Iterator[Any]:
    """Yield a Connection of the caller's own to a database, to change it.

    Its transactions are those of conn.transaction_manager. Uncommitted changes are aborted.

    Parameters
    ----------
    url : str
        Of the database, from zstor_2zurl().

    Raises
    ------
    ValueError, OSError, ZEO.Exceptions.ClientDisconnected
        It cannot be opened; see dbopen().
    """
    own = _own[url]() if url in _own else None
    if own is not None and "storage" in vars(own):  # it is open
        with _connected(own) as conn:
            yield conn
        return
    with _opened(url, True) as opened:
        db = opened.db()
        opened.users += 1
    try:
        with _connected(db) as conn:
            yield conn
    finally:
        with opened.lock:
            opened.users -= 1


@contextmanager
def _connected(db: Any) -> Iterator[Any]:
    manager = TransactionManager()
    conn = db.open(manager)
    try:
        yield conn
    finally:
        manager.abort()
        conn.close()


@contextmanager
def _opened(url: str, writes: bool) -> Iterator[_Opened]:
    """Yield a database of this process, locked."""
    while True:
        opened = _find(url, writes)
        with opened.lock:
            if not opened.closed:  # just now
                yield opened
                return


def _find(url: str, writes: bool) -> _Opened:
    global _closer, _keep
    with _lock:
        _keep = seconds_of("WENDELIN_CORE_KEEP", _KEEP)
        opened = _databases.get((url, writes))
        if opened is None:
            opened = _databases[url, writes] = _Opened(url, writes)
        if _closer is None:
            _closer = threading.Thread(target=_close_unused, daemon=True, name=CLOSER)
            _closer.start()
        return opened


def _close_unused() -> None:
    """Close databases that are not used any more, until none is open."""
    global _closer
    while True:
        keep = _keep
        time.sleep(min(5, max(0.01, keep / 2)))
        for key, opened in list(_databases.items()):
            if not opened.lock.acquire(blocking=False):
                continue  # it is used at this moment
            try:
                opened.close_unused(time.monotonic() - keep)
            except Exception:
                log.warning("%s cannot be closed", opened.url, exc_info=True)
            finally:
                if opened.closed:
                    with _lock:
                        _databases.pop(key, None)
                opened.lock.release()
        with _lock:
            if not _databases:
                _closer = None
                return


def _after_fork() -> None:
    global _closer, _databases, _lock, _own
    _inherited.append((_databases, _own))
    _databases, _own, _lock, _closer = {}, {}, threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)
