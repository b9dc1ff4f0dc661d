"""Databases that are opened once a process, by URL: for who comes with a reference, or a task.

To be read: a reference that comes from another process says where an object is: the URL of a
database, a tid, an oid. At the first one the database is opened, and a Connection to its state at
that tid at the first one of that: others find these, and share them. To be written: whoever is to
do a part of something has a Connection of his own.

What nobody uses any more is closed after a while.

Organization
------------
    _databases: URL, writes? ──► _Opened ──► DB ──► Connections: tid ──►       weak
                                    └─► the last few of these, for a while     strong

Who has an object, has its Connection. So one that is shared is unused when it is gone: the
collector takes it, with its cache. Its database is closed by a thread of ours, which ends with the
last of them.

Forks
-----
A child of fork() opens databases of its own. It leaves those of its parent alone: whatever is done
to them, be it to close them, could be seen by a server as done by the parent.

It knows databases and Connections. What is in them it does not know.

Locking: the lock of an _Opened > _lock. Who has a Connection of zconn_past() has the former:
Connections are not for two threads at a time.
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

__all__ = ["share", "zconn_is_shared", "zconn_now", "zconn_past"]

log = logging.getLogger(__name__)

KEEP = 60.0  # what was not asked for as long as that is closed, if nobody uses it [s]
TICK = 5.0  # how often it is looked for [s]
MOST = 8  # Connections of a database that are held without anybody using them
CLOSER = "wendelin.core-closer"


class _Opened:
    """A database that is open, to read past states of it, or to write."""

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
        #: tid -> (when it was asked for, Connection), the last one at the end
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
                    f"{self.url} is open elsewhere, and only one process writes to a file: use "
                    f"threads of it, or a ZEO server (docs/cluster.md)"
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
            # there is no transaction to join, so there are no changes
            conn = db.open(TransactionManager(explicit=True), at=tid)
            self._conns[tid] = conn
            _shared.add(conn)
        self._held.pop(tid, None)
        self._held[tid] = time.monotonic(), conn
        self._let_go(0)
        return conn

    def _let_go(self, until: float) -> None:
        """Hold no more than some Connections, and none that was last asked for before."""
        held = self._held
        while held and (len(held) > MOST or next(iter(held.values()))[0] < until):
            held.popitem(last=False)

    def close_unused(self, until: float) -> None:
        """Let go of what was last asked for before; close the database if nobody uses it."""
        self._let_go(until)
        if not (self._conns or self._held or self.users or self._used >= until):
            self.closed = True
            if self._db is not None:
                self._db.close()


def _catch_up(storage: Any) -> None:
    """Have a storage know what was committed by now."""
    for part in getattr(storage, "base", None), getattr(storage, "changes", None), storage:
        for ask in "ping", "sync":  # of ZEO, whose sync() may do nothing; and of others
            if hasattr(part, ask):
                getattr(part, ask)()
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
    """Have the Connection of this process to a past state of a database; other threads wait.

    It is open as long as anybody has an object of it; for reading, what it has can be used by any
    thread. Nothing can be changed.

    Parameters
    ----------
    url : str
        Of the database, as of zstor_2zurl(). A file may be open to be written elsewhere.
    tid : bytes
        Of the last transaction that is seen.

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

    A file, for one, cannot be opened twice to be written.

    Raises
    ------
    NotImplementedError
        It has no URL: see zstor_2zurl().
    ValueError
        It was opened here, for references or tasks, and is closed when these are done.
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
    """Have a Connection of one's own to a database, to change it in transactions of one's own.

    They are those of conn.transaction_manager. What was not committed at the end is aborted.

    Parameters
    ----------
    url : str
        Of the database, as of zstor_2zurl().

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
    """Have a database of this process, locked."""
    while True:
        opened = _find(url, writes)
        with opened.lock:
            if not opened.closed:  # just now
                yield opened
                return


def _find(url: str, writes: bool) -> _Opened:
    global _closer
    with _lock:
        opened = _databases.get((url, writes))
        if opened is None:
            opened = _databases[url, writes] = _Opened(url, writes)
        if _closer is None:
            _closer = threading.Thread(target=_close_unused, daemon=True, name=CLOSER)
            _closer.start()
        return opened


def _close_unused() -> None:
    """Close what nobody uses any more, until nothing is open."""
    global _closer
    while True:
        time.sleep(TICK)
        for key, opened in list(_databases.items()):
            if not opened.lock.acquire(blocking=False):
                continue  # it is used at this moment
            try:
                opened.close_unused(time.monotonic() - KEEP)
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
