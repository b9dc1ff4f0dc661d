"""Events of a Connection for which ZODB has no hook, seen in its calls of its storage.

It also knows which code the end of a transaction runs, by a context variable: such code, and the
tasks that it leaves behind, cannot change anything.

This module knows Connections and storages. Its Followers act on the events.

Locking: `_ended` and `_joining` are leaves. Followers are called in the thread of the transaction.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Set
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from transaction.interfaces import TransactionError
from ZODB.Connection import Connection
from ZODB.POSException import ConnectionStateError

from wendelin.lib.adapters.connection import instance_of, join
from wendelin.lib.adapters.transactions import Status, resources_of
from wendelin.lib.storage.forked import of_this_process
from wendelin.lib.storage.fsholds import Hold
from wendelin.lib.storage.pad import BytesRecord
from wendelin.lib.storage.relational import asked_in_turn, asks_at_end
from wendelin.lib.utils import WeakRefs
from wendelin.lib.zodb import (
    zconn_before,
    zconn_forget,
    zconn_hold,
    zconn_name,
    zconn_takes_bytes_records,
)

__all__ = ["Changes", "Follower", "Watch", "watch_of"]

log = logging.getLogger(__name__)

#: limit of the time that a change waits for another thread, whose commit makes no progress [s]
PATIENCE = 300.0


class Changes:
    """What a boundary brings: the objects that have changed. All Followers share it.

    Parameters
    ----------
    others : collection of bytes, or None
        Objects that other clients have changed; None: any may have changed.
    own : set of bytes
        Objects that this Connection has stored since the last boundary.
    """

    def __init__(self, others: Iterable[bytes] | None, own: set[bytes]) -> None:
        self.others = None if others is None else frozenset(others)
        self.own = own
        self.all = own.union(self.others or ())

    def among(self, oids: Callable[[], Set[bytes]], count: int) -> Set[bytes]:
        """Return all that changed; or, if oids() are fewer, those of them that did.

        Parameters
        ----------
        oids : () -> set of bytes
        count : int
            Their number, about.
        """
        return oids() & self.all if count < len(self.all) else self.all


class Follower(Protocol):
    """An object that is informed about the events of a Connection.

    There may be thousands, so each looks at its own objects only if more have changed.

    Attributes
    ----------
    joined : transaction or None
        The transaction that it has joined: set by Watch.join(), reset by itself at the end.
    """

    joined: Any

    def follow(self, changes: Changes) -> None:
        """Called at a boundary."""

    def forget(self) -> None:
        """Called at a boundary that failed: drop everything. Makes no request to the storage."""

    def join_at_last(self, txn: Any) -> None:
        """Called when a transaction is about to end."""

    def isused(self) -> bool:
        """Say whether there are views."""

    def database_closed(self) -> None:
        """Called when the database is closed."""


@dataclass(eq=False)
class _End:
    """The end of a transaction. Code that a commit or its hooks run has it in its context.

    asyncio gives the context on, so tasks have it that another thread runs for this one.
    """

    watch: Watch
    txn: Any
    outer: _End | None  # of a commit that runs this one
    over: bool = False
    refused: bool = False  # a change, in this context


_end: ContextVar[_End | None] = ContextVar("wendelin.core: the end of a transaction", default=None)


class Watch:
    """Observes the calls that a Connection makes to its storage.

    A Connection asks its storage instance for changes in one place, Connection.newTransaction(),
    at every kind of boundary: begin, the end of a transaction, sync, and when another thread opens
    it again with another transaction manager. This call is observed. Its result does not contain
    objects that the Connection itself has stored, which are noted here.

    A Connection gives pickled objects to its storage in one place, too: there a block gets its
    bytes. If they were pickled with it, they would be copied four times. After a savepoint, the
    objects come from a temporary storage, also without their bytes.

    Third, a Watch knows which thread ends a transaction: its manager calls Connections before and
    after. Last, it knows whether a boundary came to its end. A boundary may wait for a network, and
    be interrupted: then its changes are not known.
    """

    def __init__(self, conn: Connection) -> None:
        self.followers: WeakRefs[Follower] = WeakRefs()
        #: oid -> function that makes the record, for blocks that the running commit stores
        self.records: dict[bytes, Callable[[bytes], BytesRecord]] = {}
        of_this_process(conn.db())
        asked_in_turn(conn)  # from here on, other threads call the storage, too
        storage = instance_of(conn)
        #: objects that this Connection has stored since the last boundary
        self._own: set[bytes] = set()
        self._polls = 0
        self._conn = weakref.ref(conn)
        #: the Connection saw all before this tid, until the boundary that is under way
        self.before: bytes | None = None
        self._joins = not zconn_takes_bytes_records(conn)
        self._poll: Callable[[], list[bytes] | None] = storage.poll_invalidations
        self._store: Callable[..., Any] = storage.store
        self._release: Callable[[], Any] = storage.release
        storage.poll_invalidations = self.poll
        storage.store = self.store
        storage.release = self.release
        self._ender: int | None = None  # thread that ends a transaction; protected by: _ended
        self._last_ender: int | None = None
        self._end: _End | None = None
        self._ended = threading.Condition()
        self.patience = PATIENCE
        self._progress = float("-inf")  # when the running commit last was heard of [s]
        self._gave_up = float("-inf")  # when a change was last refused, as a commit did not end [s]
        self._joining = threading.RLock()  # a profiler that raises may leave it held
        self._unsure = False  # what has joined: it has raised in the middle
        self._joins_now = False
        self._before_completion: Callable[[Any], None] = conn.beforeCompletion
        self._after_completion: Callable[[Any], None] = conn.afterCompletion
        conn.beforeCompletion = self.before_completion
        conn.afterCompletion = self.after_completion
        self._new_transaction: Callable[[Any, bool], None] = conn.newTransaction
        conn.newTransaction = self.new_transaction
        self._hold: Hold | None = None
        self._hears_close = False
        self._keep()

    def _keep(self) -> None:
        """Have no revision trimmed that the Connection sees."""
        conn = self._conn()
        if conn is None:
            return
        if not self._hears_close:
            conn.onCloseCallback(self.closed)
            self._hears_close = True
        self._hold = zconn_hold(conn, self._hold)

    def closed(self) -> None:
        """The Connection is closed: what no view shows, nobody sees until it is opened again."""
        self._hears_close = False
        followers = list(self.followers)
        if self._hold is not None and not any(follower.isused() for follower in followers):
            conn = self._conn()
            if conn is not None and conn.before is not None:
                # opened again it is in the same state, of which no change would be told
                for follower in followers:
                    follower.forget()
            self._hold.release()
            self._hold = None

    def before_completion(self, txn: Any) -> None:
        """The Connection's beforeCompletion(): this thread commits, or aborts."""
        self._progress = time.monotonic()
        with self._ended:
            self._ender = self._last_ender = threading.get_ident()
        if self._end is None or self._end.txn is not txn:  # else it aborts what it failed to commit
            self._leave()
            self._end = _End(self, txn, _end.get())
            _end.set(self._end)
        for follower in list(self.followers):
            follower.join_at_last(txn)
        self._before_completion(txn)

    def after_completion(self, txn: Any) -> None:
        """The Connection's afterCompletion()."""
        self._progress = time.monotonic()
        try:
            self._complete(txn)
        finally:
            with self._ended:
                self._ender = None
                self._ended.notify_all()
            if txn.status is Status.COMMITTED and any(txn.getAfterCommitHooks()):
                txn.addAfterCommitHook(self._leave)  # after the last of them
            elif txn.status is not Status.COMMITTING:  # else it failed, and must be aborted
                self._leave()

    def _complete(self, txn: Any) -> None:
        conn = self._conn()
        assert conn is not None  # it is the caller
        lost = asks_at_end(conn)
        if lost is None:
            self._after_completion(txn)
            return
        # A boundary asks the database here. If that fails, the transaction has not: a commit that
        # is in the database would be told as failed. What was seen is forgotten then, and the next
        # transaction asks again.
        try:
            self._after_completion(txn)
            if conn.explicit_transactions:
                conn.newTransaction(txn, False)
        except lost:
            log.warning("%s is lost", zconn_name(conn), exc_info=True)

    def _leave(self, *args: object) -> None:
        over, self._end = self._end, None
        if over is None:
            return
        over.over = True
        end = first = _end.get()
        while end is not None and end is not over:
            end = end.outer
        if end is None:  # another thread aborts what this one has failed to commit
            over.refused = False
        while first is not None and first.over:
            first = first.outer
        _end.set(first)

    def end(self) -> Any:
        """Return the transaction that is being ended, if the caller is run by that; else None.

        It cannot change anything, even after the end: a call that was refused leaves tasks behind,
        and the next transaction would have a part of it.
        """
        end = _end.get()
        while end is not None:
            if end.watch is self and (end.refused or not end.over):
                end.refused = True
                return end.txn
            end = end.outer
        return None

    def check_may_change(self, manager: Any, what: Callable[[], str]) -> None:
        """Check that a transaction may be changed by the caller: not by what runs in its commit.

        The caller may be a task that another thread runs for the commit, which waits for it.

        Parameters
        ----------
        manager : data manager
        what : () -> str
            Returns the name of the changed object, for messages.

        Raises
        ------
        TransactionError
            A commit, or a hook of it, has called the caller; or it has failed.
        """
        txn = self.end()
        if txn is None:
            return
        if txn.status is Status.COMMITFAILED:
            txn.join(manager)  # which says why it has failed
        raise _too_late(what())

    def time_to_wait(self, manager: Any, what: Callable[[], str], begun: float) -> float:
        """Return how long a change may wait for the end of a transaction in another thread [s].

        A thread without the context of the commit may do the work of a hook: it would wait for
        itself. Several threads may do it. If one is refused, all of those that wait are, or the
        next transaction would have a part of the work.

        Parameters
        ----------
        manager, what
            See check_may_change().
        begun : float
            time.monotonic() when the change began.

        Raises
        ------
        TransactionError
            See check_may_change(); or the change has waited too long.
        """
        self.check_may_change(manager, what)
        left = max(begun, self._progress) + self.patience - time.monotonic()
        if left <= 0 or begun <= self._gave_up:
            self._gave_up = time.monotonic()
            raise TransactionError(
                f"{what()} cannot be changed: another thread has been ending the transaction, and "
                f"nothing was heard of it for {self.patience:.0f} s"
            )
        return left

    def ends(self) -> bool:
        """Say whether another thread is ending the transaction."""
        return self._ender not in (None, threading.get_ident())

    def completes(self) -> bool:
        """Say whether a thread is ending a transaction."""
        return self._ender is not None

    def wait_for_end(self, seconds: float | None = None) -> bool:
        """Wait while another thread ends the transaction, at most so long. False: none does."""
        with self._ended:
            waited = self.ends()
            self._ended.wait_for(lambda: not self.ends(), seconds)
            return waited

    def let_others_end(self) -> bool:
        """Wait a little for another thread that has ended a transaction, but not left its manager.

        ZODB has no hook for that: after-commit hooks run in between. False: it is this thread.
        """
        if self._last_ender == threading.get_ident():
            return False
        time.sleep(0.001)
        return True

    def join(
        self,
        manager: Any,
        what: Callable[[], str],
        seconds: float | None = None,
    ) -> Any:
        """Let a data manager join the Connection's transaction; return that. Safe in any thread.

        Parameters
        ----------
        manager : Follower and data manager
        what : () -> str
            Returns the name of the changed object, for messages.
        seconds : float, optional
            How long to wait for another thread that ends a transaction.

        Returns
        -------
        transaction or None
            None: another thread ends it now, or has ended it: join the next one.

        Raises
        ------
        TransactionError
            There is no transaction to join: this thread is committing it, or it has failed and
            waits for its abort; or transactions are explicit, and none was begun.
        ConnectionStateError
            The Connection is closed.
        """
        conn = self._conn()
        if conn is None or conn.opened is None or conn.transaction_manager is None:
            raise ConnectionStateError("its Connection is closed")
        if self.wait_for_end(seconds):
            return None
        # without the lock, two threads would both join; an idle manager would give them two
        # transactions
        with self._joining:
            txn = conn.transaction_manager.get()
            # its hooks run: what has joined it is aborted after them
            over = txn.status is Status.COMMITTED
            # not by looking for it, among thousands, unless that is the only way to know
            self._unsure |= self._joins_now
            known = manager.joined is txn
            if self._unsure and not known:
                known = any(resource is manager for resource in resources_of(txn))
            if not over and not known and txn.status is not Status.COMMITTING:
                self._joins_now = True
                join(conn)
                txn.join(manager)
                known = True
            if not over and known:
                manager.joined = txn
                self._joins_now = False
                return txn
        if txn.status is Status.COMMITTING:
            raise _too_late(what())
        if self.let_others_end():
            return None
        txn.join(manager)  # which refuses it
        return txn

    def join_at_last(self, manager: Any, txn: Any) -> Any:
        """Let a data manager that has joined another transaction join one that is about to end.

        Two threads that ask an idle manager for its transaction may get two different ones, and the
        manager forgets one of them.

        Returns
        -------
        transaction or None
            None: it has failed, so it accepts no more data managers, and can only be aborted. This
            one was.
        """
        if txn.status is Status.COMMITFAILED:
            manager.abort(txn)
            return None
        conn = self._conn()
        if all(resource is not conn for resource in resources_of(txn)):
            txn.join(conn)
        txn.join(manager)
        return txn

    def store(self, oid: bytes, serial: bytes, data: Any, version: str, transaction: Any) -> Any:
        """Called instead of the storage's store()."""
        self._own.add(oid)
        self._progress = time.monotonic()
        record = self.records.pop(oid, None)
        if record is not None:
            data = record(data)
            if self._joins:
                data = bytes(data)
        return self._store(oid, serial, data, version, transaction)

    def poll(self) -> list[bytes] | None:
        """Called instead of the storage's poll_invalidations()."""
        conn = self._conn()
        self.before = None if conn is None else zconn_before(conn)
        self._polls += 1
        oids = self._poll()
        own, self._own = self._own, set()
        changes = Changes(oids, own)
        for follower in list(self.followers):
            follower.follow(changes)
        self._keep()  # what was dropped is not mapped any more
        return oids

    def release(self) -> None:
        """Called instead of the storage's release(): the Connection ends, or is given back."""
        try:
            for follower in list(self.followers):
                follower.database_closed()
        finally:
            self._release()

    def new_transaction(self, transaction: Any, sync: bool = True) -> None:
        """Called instead of the Connection's newTransaction()."""
        conn = self._conn()
        assert conn is not None  # it is the caller
        polls = self._polls
        try:
            self._new_transaction(transaction, sync)
        except BaseException:
            # Changes are reported only once. A Ctrl-C comes here, if no other failure. That the
            # storage was asked is enough: its tid may not move, as RelStorage's, which has
            # counted the commit before.
            if self._polls != polls:
                with ExitStack() as todo:  # all of them, even if one is interrupted again
                    todo.callback(zconn_forget, conn)
                    for follower in list(self.followers):
                        todo.callback(follower.forget)
            raise


def _too_late(what: str) -> TransactionError:
    return TransactionError(
        f"{what} cannot be changed by code that runs in a commit, or in a hook after it: it is too "
        f"late to take part in it. Change it before, as in txn.addBeforeCommitHook()"
    )


def watch_of(conn: Connection) -> Watch:
    """Return the watch of a Connection, one for its lifetime."""
    poll = getattr(instance_of(conn).poll_invalidations, "__self__", None)
    return poll if isinstance(poll, Watch) else Watch(conn)
