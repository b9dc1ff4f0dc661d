"""What a Connection does that ZODB tells nobody: heard where it asks its storage, and gives to it.

It knows Connections and storages. What is made of what it hears, its Followers say.

Locking: `_ended` is a leaf. Followers are called in the thread of the transaction.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from transaction.interfaces import TransactionError
from ZODB.Connection import Connection
from ZODB.POSException import ConnectionStateError

from wendelin.lib.adapters.connection import instance_of, join
from wendelin.lib.adapters.transactions import Status
from wendelin.lib.storage.forked import of_this_process
from wendelin.lib.storage.record import BytesRecord
from wendelin.lib.storage.storthreads import asked_in_turn
from wendelin.lib.zodb import zconn_before, zconn_forget, zconn_takes_bytes_records

__all__ = ["Follower", "Watch", "watch_of"]


class Follower(Protocol):
    """Who follows a Connection."""

    def follow(self, oids: list[bytes] | None, own: set[bytes]) -> None:
        """Be told of a boundary.

        Parameters
        ----------
        oids : list of bytes or None
            Of objects that other clients changed; None: any may have changed.
        own : set of bytes
            Of objects that this Connection has stored since the last boundary.
        """

    def forget(self) -> None:
        """Be told of a boundary at which something went wrong: keep nothing. Asks nobody."""

    def join_at_last(self, txn: Any) -> None:
        """Be told that a transaction is about to end."""

    def database_closed(self) -> None:
        """Be told that the database is closed."""


class Watch:
    """Listens to what a Connection asks of, and gives to, its storage.

    A Connection asks its storage instance for changes in one place, Connection.newTransaction(),
    however the boundary came about: begin, the end of a transaction, sync, being opened again by
    another thread with another transaction manager. That question is what we listen to. The answer
    leaves out what the Connection itself has stored, of which we make a note.

    And it gives it pickled objects, in one place: there a block gets its bytes. Pickled with them,
    they would be copied four times. After a savepoint it gives them from a temporary storage, where
    they have none either.

    The third thing is to know which thread ends a transaction: its manager tells Connections before
    and after. The last is whether a boundary came to its end. One that did not has told us nothing
    that can be relied on: it may wait for a network, and be interrupted.
    """

    def __init__(self, conn: Connection) -> None:
        self.followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        #: oid -> what makes the record, of blocks that the running commit stores
        self.records: dict[bytes, Callable[[bytes], BytesRecord]] = {}
        of_this_process(conn.db())
        asked_in_turn(conn)  # from here on other threads ask, too
        storage = instance_of(conn)
        #: of objects that this Connection has stored since the last boundary
        self._own: set[bytes] = set()
        self._conn = weakref.ref(conn)
        #: tid before which everything was seen, until the boundary that followers are told of
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
        self._ended = threading.Condition()
        self._before_completion: Callable[[Any], None] = conn.beforeCompletion
        self._after_completion: Callable[[Any], None] = conn.afterCompletion
        conn.beforeCompletion = self.before_completion
        conn.afterCompletion = self.after_completion
        self._new_transaction: Callable[[Any, bool], None] = conn.newTransaction
        conn.newTransaction = self.new_transaction

    def before_completion(self, txn: Any) -> None:
        """Be the Connection's beforeCompletion(): this thread commits, or aborts."""
        with self._ended:
            self._ender = self._last_ender = threading.get_ident()
        for follower in list(self.followers):
            follower.join_at_last(txn)
        self._before_completion(txn)

    def after_completion(self, txn: Any) -> None:
        """Be the Connection's afterCompletion()."""
        try:
            self._after_completion(txn)
        finally:
            with self._ended:
                self._ender = None
                self._ended.notify_all()

    def ends(self) -> bool:
        """Say whether another thread ends the transaction at this moment."""
        return self._ender not in (None, threading.get_ident())

    def completes(self) -> bool:
        """Say whether a transaction ends at this moment, in any thread."""
        return self._ender is not None

    def wait_for_end(self) -> bool:
        """Wait while another thread ends the transaction. False: none does."""
        with self._ended:
            waited = self.ends()
            while self.ends():
                self._ended.wait()
            return waited

    def let_others_end(self) -> bool:
        """Wait a little for another thread that has ended a transaction, but not told its manager.

        Nobody is told when it has: after-commit hooks run in between. False: it is this thread.
        """
        if self._last_ender == threading.get_ident():
            return False
        time.sleep(0.001)
        return True

    def join(self, manager: Any, joined: Any, what: Callable[[], str]) -> Any:
        """Let a data manager join the Connection's transaction; return that. Safe in any thread.

        Parameters
        ----------
        manager : data manager
        joined : transaction or None
            Which it has joined before.
        what : () -> str
            What is changed, for messages.

        Returns
        -------
        transaction or None
            None: another thread ends it now, or did; so join the next one.

        Raises
        ------
        TransactionError
            There is no transaction to join: it is being committed by this thread, or has failed
            and waits for its abort; or none was begun, where they are explicit.
        ConnectionStateError
            The Connection is closed.
        """
        conn = self._conn()
        if conn is None or conn.opened is None or conn.transaction_manager is None:
            raise ConnectionStateError("its Connection is closed")
        if self.wait_for_end():
            return None
        txn = conn.transaction_manager.get()
        if joined is not txn:
            if txn.status is Status.COMMITTED and self.let_others_end():
                return None
            if txn.status is Status.COMMITTING:
                raise TransactionError(
                    f"{what()} cannot be changed by what runs in a commit: it is too late to "
                    f"take part in it. Change it before, as in txn.addBeforeCommitHook()"
                )
            join(conn)
            txn.join(manager)
        return txn

    def store(self, oid: bytes, serial: bytes, data: Any, version: str, transaction: Any) -> Any:
        """Be the storage's store()."""
        self._own.add(oid)
        record = self.records.pop(oid, None)
        if record is not None:
            data = record(data)
            if self._joins:
                data = bytes(data)
        return self._store(oid, serial, data, version, transaction)

    def poll(self) -> list[bytes] | None:
        """Be the storage's poll_invalidations()."""
        conn = self._conn()
        self.before = None if conn is None else zconn_before(conn)
        oids = self._poll()
        own, self._own = self._own, set()
        for follower in list(self.followers):
            follower.follow(oids, own)
        return oids

    def release(self) -> None:
        """Be the storage's release(): the database is closed, or forgets the Connection."""
        try:
            for follower in list(self.followers):
                follower.database_closed()
        finally:
            self._release()

    def new_transaction(self, transaction: Any, sync: bool = True) -> None:
        """Be the Connection's newTransaction()."""
        conn = self._conn()
        assert conn is not None  # who calls it
        before = zconn_before(conn)
        try:
            self._new_transaction(transaction, sync)
        except BaseException:
            # Nobody is told a second time what has changed. A Ctrl-C comes here, if nothing else.
            if zconn_before(conn) != before:
                with ExitStack() as todo:  # all of it, should one be interrupted again
                    todo.callback(zconn_forget, conn)
                    for follower in list(self.followers):
                        todo.callback(follower.forget)
            raise


def watch_of(conn: Connection) -> Watch:
    """Return the watch of a Connection, one for its lifetime."""
    poll = getattr(instance_of(conn).poll_invalidations, "__self__", None)
    return poll if isinstance(poll, Watch) else Watch(conn)
