"""RelStorage's instances: what of one Connection's loads several threads do at a time, and how.

An instance has one connection to its database, and one cursor. On PostgreSQL, a thread that finds
it busy loads by another connection, which has the same snapshot of the database: PostgreSQL gives
the snapshot of a transaction to others. So they see the same state, to the byte. Records come in
binary (copyrows). With another database, or another driver than psycopg2, threads load in turn.

A Connection has a state from one boundary to the next. RelStorage's own code takes a newer one,
without a word, if its connection was lost in between: here, that is an error. It also has no state
between the end of a transaction and begin(), if transactions are explicit. So there is a boundary
at the end, too, as there is if they are implicit (`asks_at_end`).

This module knows RelStorage by its adapter, and PostgreSQL's snapshots.

Locking: OneAtATime's `_turn` > `_lock`, of the other connections. Both may be held by a thread that
waits for the database, but a thread that loads by another connection holds none.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from transaction.interfaces import TransientError
from ZODB.POSException import POSError, ReadConflictError, StorageError

from wendelin.lib.adapters.connection import instance_of, seen_before, set_instance, under
from wendelin.lib.adapters.relstorage import (
    close_load,
    cursor_of,
    has_state,
    is_relstorage,
    is_stale,
    keeps_history,
    lost,
    open_load,
    roll_back,
    sends_binary,
)
from wendelin.lib.storage import storthreads
from wendelin.lib.storage.copyrows import records_of, revisions_of
from wendelin.lib.storage.storthreads import OneAtATime

__all__ = ["CommitUnknownError", "RelationalInTurn", "asked_in_turn", "asks_at_end", "look_again"]

log = logging.getLogger(__name__)

OTHERS = 4  # limit of other connections under way, of one Connection
_IDLE = 4  # limit of those that stay open for later, of a database

_EXPORT = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_export_snapshot() END"


def asked_in_turn(conn: Any) -> None:
    """Make sure that a Connection's storage is called by as many threads at a time as it allows.

    Called in the thread of the Connection, before other threads call its storage.
    """
    storage = instance_of(conn)
    if is_relstorage(storage) or is_relstorage(under(storage)):
        set_instance(conn, RelationalInTurn(storage, conn.db()))
    else:
        storthreads.asked_in_turn(conn)


def asks_at_end(conn: Any) -> tuple[type[Exception], ...] | None:
    """Return what a boundary at the end of a transaction raises if it has lost the database.

    None: a boundary there does not ask the database.
    """
    storage = instance_of(conn)
    if isinstance(storage, RelationalInTurn) and storage.moves:
        return lost(storage.asked)
    return None


_looking = threading.Lock()


def look_again(storage: Any) -> None:
    """Let the storage of a database see all transactions. In any thread.

    A RelStorage that no Connection has stays in the state in which it was last asked.
    """
    poll = getattr(storage, "poll_invalidations", None)
    if poll is not None:
        with _looking:
            poll()


class CommitUnknownError(StorageError):  # type: ignore[misc]  # ZODB has no type hints
    """A database was lost in the middle of a commit: it has the whole transaction, or nothing.

    After abort(), look there, and do the work again only if it is not there.
    """


class _Other(NamedTuple):
    """A connection besides those of instances."""

    opened: tuple[Any, Any]  # connection, cursor
    snapshot: str  # that its transaction has


class _Idle:
    """Other connections of a database that have no transaction. Safe in any thread."""

    def __init__(self) -> None:
        self.users: WeakSet[RelationalInTurn] = WeakSet()
        self._lock = threading.Lock()
        self._opened: list[tuple[Any, Any]] = []  # protected by: _lock

    def take(self) -> tuple[Any, Any] | None:
        with self._lock:
            return self._opened.pop() if self._opened else None

    def put(self, storage: Any, opened: tuple[Any, Any]) -> None:
        """Keep a connection for later, or close it."""
        if not roll_back(storage, opened):
            return
        with self._lock:
            if self.users and len(self._opened) < _IDLE:
                self._opened.append(opened)
                return
        close_load(storage, opened)

    def leave(self, user: RelationalInTurn, storage: Any) -> None:
        """An instance is released: after the last one, nothing stays open."""
        self.users.discard(user)
        while not self.users and (opened := self.take()) is not None:
            close_load(storage, opened)


_idle: WeakKeyDictionary[Any, _Idle] = WeakKeyDictionary()  # of databases
os.register_at_fork(after_in_child=_idle.clear)  # psycopg2 leaves the parent's connections alone


class RelationalInTurn(OneAtATime):
    """An instance of a RelStorage: one thread at a time calls it, but several may load.

    Parameters
    ----------
    storage : instance of RelStorage, or of a past state of one
    db : DB, or another object that is there as long as the storage
    """

    def __init__(self, storage: Any, db: Any) -> None:
        super().__init__(storage)
        self._instance = storage if is_relstorage(storage) else under(storage)
        self.moves = self._instance is storage  # else it is a past state
        self._binary = sends_binary(self._instance)
        self._idle = _idle.setdefault(db, _Idle())
        self._idle.users.add(self)
        self._lock = threading.RLock()  # a signal handler may touch a block
        # what other connections see; None: it was not asked for
        self._snapshot: str | None = None  # protected by: _lock
        self._others: list[_Other] = []  # free ones, with the snapshot; protected by: _lock
        self._under_way = 0  # protected by: _lock
        self._known = self.moves and has_state(self._instance)  # has a state since a boundary

    # ---- boundaries ----

    def sync(self, *args: Any, **kw: Any) -> Any:
        """Called at a boundary: what was seen is over."""
        return self._ask(self._over, self.asked.sync, *args, **kw)

    def afterCompletion(self) -> Any:
        """Called at the end of a transaction: what was seen is over."""
        return self._ask(self._over, getattr(self.asked, "afterCompletion", lambda: None))

    def poll_invalidations(self) -> Any:
        """Called at a boundary: return what has changed, and see a new state."""
        changed = self._ask(self._over, self.asked.poll_invalidations)
        self._known = self.moves
        return changed

    def tpc_abort(self, transaction: Any) -> Any:
        """Abort the transaction."""
        return self._ask(self._over, self.asked.tpc_abort, transaction)

    def tpc_finish(self, transaction: Any, f: Callable[[bytes], Any] | None = None) -> Any:
        """Finish the transaction.

        Raises
        ------
        CommitUnknownError
            The database did not answer: the transaction is there as a whole, or not at all.
        """
        self._ask(self._let_go)  # the poll that follows sees another state
        try:
            return super().tpc_finish(transaction, f)
        except (TransientError, POSError):
            raise
        except Exception as e:
            if _is_refusal(e):
                raise
            raise CommitUnknownError(
                f"{type(self.asked).__name__} has lost its database in the middle of a commit "
                f"({_line(e)}): the transaction is in the database as a whole, or not at all. "
                f"After abort(), look there, and do the work again only if it is not"
            ) from e

    def release(self) -> Any:
        """Called when the Connection ends, or is given back."""
        try:
            return self._ask(self._over, self.asked.release)
        finally:
            self._idle.leave(self, self._instance)

    def _over(self, method: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Call what ends a state. In turn: else _export() gives the next state the old snapshot."""
        self._let_go()
        return method(*args, **kw)

    def _let_go(self) -> None:
        """Forget what other connections see: it is over. In turn."""
        self._known = False
        with self._lock:
            others, self._others, self._snapshot = self._others, [], None
        for other in others:
            self._idle.put(self._instance, other.opened)

    # ---- loads ----

    def load_all(self, oids: list[bytes]) -> list[tuple[bytes, bytes] | None]:
        """Return records, and the transactions that wrote them; None: load() has it, or raises.

        Several threads may call this at a time.

        Raises
        ------
        ReadConflictError
            The state that the Connection saw is lost.
        Exception
            The database, or its driver, has raised it.
        """
        if self._known and not has_state(self._instance):
            raise ReadConflictError(
                "the connection to the database was lost, and with it the state that the "
                "transaction sees: abort(), and try again"
            )
        if not self._binary or is_stale(self._instance):
            return [None for _ in oids]
        if self._turn.acquire(blocking=False):
            try:
                return self._load_in_turn(oids)
            finally:
                self._turn.release()
        with self._lock:
            may = self._under_way < OTHERS
            self._under_way += may
        if not may:
            return self._load_in_turn(oids)
        try:
            return self._load_there(oids)
        except Exception as e:
            log.debug("another connection has not loaded: %s", _line(e), exc_info=True)
        finally:
            with self._lock:
                self._under_way -= 1
        return self._load_in_turn(oids)

    def revisions(self, oids: list[bytes]) -> list[bytes | None]:
        """Return the transactions that wrote objects, without loading these; None: not known."""
        before = None if self.moves else seen_before(self.asked)
        history = keeps_history(self._instance)
        lost = self._known and not has_state(self._instance)
        if lost or not self._binary or is_stale(self._instance) or (before and not history):
            return [None for _ in oids]
        ask = partial(revisions_of, history=history, before=before)
        found: list[bytes | None] = self._ask(lambda: ask(cursor_of(self._instance), oids))
        return found

    def _load_in_turn(self, oids: list[bytes]) -> list[tuple[bytes, bytes] | None]:
        found: list[tuple[bytes, bytes] | None] = self._ask(self._load_here, oids)
        return found

    def _load_here(self, oids: list[bytes]) -> list[tuple[bytes, bytes] | None]:
        return self._records(cursor_of(self._instance), oids)

    def _records(self, cursor: Any, oids: list[bytes]) -> list[tuple[bytes, bytes] | None]:
        history = keeps_history(self._instance)
        before = None if self.moves else seen_before(self.asked)
        if before is not None and not history:
            return [None for _ in oids]
        return records_of(cursor, oids, history, before)

    def _load_there(self, oids: list[bytes]) -> list[tuple[bytes, bytes] | None]:
        """Load by another connection, which has the same snapshot."""
        other = self._other()
        try:
            found = self._records(other.opened[1], oids)
        except BaseException:
            close_load(self._instance, other.opened)
            raise
        with self._lock:
            if other.snapshot == self._snapshot:
                self._others.append(other)
                return found
        self._idle.put(self._instance, other.opened)
        return found

    def _other(self) -> _Other:
        with self._lock:
            if self._others:
                return self._others.pop()
            snapshot = self._snapshot
        if snapshot is None:
            snapshot = self._ask(self._export)
        opened = self._idle.take() or open_load(self._instance)
        try:
            opened[1].execute("SET TRANSACTION SNAPSHOT %s", (snapshot,))
        except BaseException:
            close_load(self._instance, opened)
            raise
        return _Other(opened, snapshot)

    def _export(self) -> str:
        """Return the name of the snapshot that the instance sees."""
        with self._lock:
            if self._snapshot is not None:
                return self._snapshot
        cursor = cursor_of(self._instance)
        cursor.execute(_EXPORT)
        (name,) = cursor.fetchone()
        if name is None:
            raise ValueError("a standby server of PostgreSQL gives no snapshot to others")
        with self._lock:
            self._snapshot = str(name)
        return str(name)


def _is_refusal(e: Exception) -> bool:
    """Say whether the database has answered with an error: then it has committed nothing."""
    code = getattr(e, "pgcode", None)  # of psycopg2's exceptions
    # it was shut down, or the connection failed
    return isinstance(code, str) and not code.startswith(("57P", "08"))


def _line(e: BaseException) -> str:
    with suppress(IndexError):
        return str(e).splitlines()[0]
    return type(e).__name__
