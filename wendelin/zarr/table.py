"""ZarrTable: the keys of a Zarr group as its Connection sees them, with what it has changed.

zarr asks in threads of its own. So what is read comes from records, past the Connection (keys,
values), and what is written waits here until the Connection's transaction is committed:

    transaction      ZarrTable                               Connection (sorts after it)
    (zarr writes)    joins; keeps the change
    tpc_begin        takes no more changes
    commit           changes the tree: values as objects     pickles them
    tpc_finish       takes changes of the next one           the transaction is in the database
    (boundary)       forgets the changes, and what it
                     knows of objects that were changed
    abort, tpc_abort forgets the changes

A group that is not in a database yet joins nothing. Its changes go into the tree when it is
pickled for the first time, and are kept until it is committed.

A savepoint remembers which changes there were. Their bytes are kept until the transaction ends.

Two clients
-----------
What two clients do to one key is a conflict; new keys are not, most often: the nodes of the tree
are resolved by BTrees. A client that writes chunks has a conflict with one that resizes or deletes
their array, whichever client commits first: see group.

It knows keys and bytes, Connections and transactions. It does not know zarr.

Locking: `_lock` is a leaf: nothing is loaded, nor anybody waited for, with it held. Readers take it
for a listing only; a change is one step of a dict.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from BTrees.OOBTree import OOBTree
from ZODB.POSException import ReadOnlyError, ReadOnlyHistoryError
from ZODB.utils import z64

from wendelin.lib.adapters.transactions import Status
from wendelin.lib.storage.forked import is_inherited
from wendelin.lib.storage.record import ChecksumError, Ref
from wendelin.lib.zodb import (
    zconn_before,
    zconn_check_open,
    zconn_is_remote,
    zconn_load_all,
    zobj_is_committed,
)
from wendelin.lib.zodb_boundary import Changes, watch_of
from wendelin.zarr.group import ZarrGroup, ZarrValue
from wendelin.zarr.keys import Keys, NotKeptError, after
from wendelin.zarr.spool import Spool
from wendelin.zarr.values import Data, Values, WouldWaitError
from wendelin.zarr.writing import TreeWriter

__all__ = ["Request", "ZarrTable"]

#: key, and which range of its value's bytes; None: all of it
Request = tuple[str, slice | None]


@dataclass(frozen=True)
class _Savepoint:
    """Changes at a moment (transaction.interfaces.IDataManagerSavepoint)."""

    table: ZarrTable
    changes: dict[str, memoryview | None]

    def rollback(self) -> None:
        """Have these changes again, and no others."""
        self.table.rollback(self.changes)


class ZarrTable:
    """Reads and changes a Zarr group, in any thread.

    It is a data manager (transaction.interfaces.IDataManager), and a Follower of the Connection.
    """

    def __init__(self, group: ZarrGroup) -> None:
        self.group = group
        self.tree = group.table
        #: stores that read and write here
        self.stores: weakref.WeakSet[Any] = weakref.WeakSet()
        #: raised whenever keys may have other values, but by a change here
        self.moment = 0
        self.keys = Keys(self._load_all, self._before)
        self.values = Values(lambda: self.conn)
        self.watch: Any = None
        self._lock = threading.Lock()
        # protected by: _lock
        self._changes: dict[str, memoryview | None] = {}  # None: deleted
        self._spool = Spool()
        self.joined: Any = None
        self._frozen = False
        # in the thread of the transaction
        self._applied: dict[str, memoryview | None] = {}  # changes that the tree has
        self._stored: list[ZarrValue] = []
        self._finished = False
        #: oid of the tree; None: it is not in the database that the Connection sees
        self._root: bytes | None = None
        self.attach()

    def __repr__(self) -> str:
        return repr(self.group)

    @property
    def conn(self) -> Any:
        """The Connection; None: the group has none yet."""
        return self.group._p_jar

    @property
    def remote(self) -> bool:
        """Say whether values are asked for over a network."""
        return self.conn is not None and zconn_is_remote(self.conn)

    def isused(self) -> bool:
        """See Follower: it has copies only."""
        return False

    def lives(self) -> bool:
        """Say whether it is used, or has anything that is not committed."""
        return bool(self.stores or self._changes or self.joined)

    def is_of_database(self) -> bool:
        """Say whether all of it is what the Connection sees of the database."""
        return not self._changes and self.conn is not None and zobj_is_committed(self.group)

    def attach(self) -> None:
        """Follow the Connection, as soon as there is one. In its thread, for the first time."""
        conn = self.conn
        if conn is None:
            return
        watch = watch_of(conn)
        if self.watch is not watch:
            self.watch = watch
            watch.followers.add(self)
            self._look_for_root()
            self.keys.follow(None)

    def _look_for_root(self) -> None:
        if self._root is None and self.conn is not None and self.group._p_serial != z64:
            self._root = self.tree._p_oid

    def _before(self) -> bytes | None:
        return None if self.conn is None else zconn_before(self.conn)

    def _load_all(self, oids: list[bytes]) -> list[bytes]:
        zconn_check_open(self.conn)
        return zconn_load_all(self.conn, oids)

    # ---- reading ----

    def read_now(self, request: Request) -> Data | None:
        """Return a value, or the wanted range of it, if nobody has to be waited for; None: no key.

        Raises
        ------
        WouldWaitError
            It would take long: read() does it.
        """
        key, byte_range = request
        if key in self._changes:
            return _cut(self._changes.get(key), byte_range)
        root = self._root
        if root is None:
            return None
        conn = self.conn
        if conn is None or conn.opened is None:
            raise WouldWaitError
        try:
            ref = self.keys.find_kept(root, key)
        except NotKeptError:
            raise WouldWaitError from None
        try:
            return None if ref is None else self.values.read_now(ref, byte_range)
        except ChecksumError as e:
            raise self._mismatch([key]) from e

    def read(self, requests: Sequence[Request]) -> list[Data | None]:
        """Return values, or the wanted ranges of them; None: no such key.

        Raises
        ------
        RecordError
            The group is damaged; ChecksumError: a value is.
        ConnectionStateError
            The Connection is closed.
        Exception
            What the storage raised.
        """
        return self.keys.one_state(lambda: self._read(requests))

    def _read(self, requests: Sequence[Request]) -> list[Data | None]:
        found: dict[int, Data | None] = {}
        stored: list[int] = []
        for i, (key, byte_range) in enumerate(requests):
            if key in self._changes:
                found[i] = _cut(self._changes.get(key), byte_range)
            else:
                stored.append(i)
        refs = self.find([requests[i][0] for i in stored])
        there = [i for i in stored if refs[requests[i][0]] is not None]
        wanted = [(refs[requests[i][0]] or Ref(b"", ""), requests[i][1]) for i in there]
        try:
            found.update(zip(there, self.values.read(wanted), strict=True))
        except ChecksumError as e:
            raise self._mismatch([requests[i][0] for i in there]) from e
        return [found.get(i) for i in range(len(requests))]

    def _mismatch(self, keys: list[str]) -> ChecksumError:
        return ChecksumError(f"the bytes of {', '.join(map(repr, keys))} in {self!r}")

    def find(self, keys: Iterable[str]) -> dict[str, Ref | None]:
        """Return the values that the database has of keys; None: no such key."""
        keys = list(keys)
        root = self._root
        if root is None or not keys:
            return dict.fromkeys(keys)
        zconn_check_open(self.conn)
        return self.keys.find(root, keys)

    def exists(self, key: str) -> bool:
        """Say whether there is a key."""
        if key in self._changes:
            return self._changes.get(key) is not None
        return self.find([key])[key] is not None

    def size(self, key: str) -> int | None:
        """Return the size of a value [bytes]; None: no such key."""
        if key in self._changes:
            value = self._changes.get(key)
            return None if value is None else len(value)

        def look() -> int | None:
            ref = self.find([key])[key]
            return None if ref is None else self.values.size(ref)

        return self.keys.one_state(look)

    def listed(self, prefix: str) -> list[str]:
        """Return all keys that begin with a prefix, ascending."""
        keys: set[str] = set()
        if self._root is not None:
            zconn_check_open(self.conn)
            keys.update(k for k, _ in self.keys.between(self._root, prefix, after(prefix)))
        for key, value in self._copy().items():
            if key.startswith(prefix):
                (keys.discard if value is None else keys.add)(key)
        return sorted(keys)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, ascending; of keys, and of folders in it.

        Parameters
        ----------
        folder : str
            '' or with a slash at its end.
        """
        changes = {k: v for k, v in self._copy().items() if k.startswith(folder)}
        if None in changes.values():  # what is left in a folder that has lost a key?
            keys = self.listed(folder)
        else:
            keys = list(changes)
            if self._root is not None:
                zconn_check_open(self.conn)
                keys += [folder + name for name in self.keys.names(self._root, folder)]
        return sorted({key[len(folder) :].partition("/")[0] for key in keys})

    def _copy(self) -> dict[str, memoryview | None]:
        with self._lock:
            return self._changes.copy()

    # ---- changing ----

    def change(self, changes: dict[str, Data | None]) -> None:
        """Set values, or delete keys (None), in the transaction of the Connection.

        Raises
        ------
        TransactionError
            There is no transaction to join: see Watch.join().
        ReadOnlyError
            The database, or the Connection, is read only.
        ConnectionStateError
            The Connection is closed.
        OSError
            There is no room for what waits.
        """
        kept = {
            key: None if value is None else self._spool.keep(memoryview(value))
            for key, value in changes.items()
        }
        begun = time.monotonic()
        while True:
            conn = self.conn
            if conn is None:
                with self._lock:
                    self._changes.update(kept)
                return
            if conn.before is not None:
                raise ReadOnlyHistoryError(f"{self!r} is of a past state")
            if conn.isReadOnly():
                raise ReadOnlyError(f"{self!r} is in a database that was opened to be read only")
            self.attach()
            left = self.watch.time_to_wait(self, lambda: repr(self), begun)
            txn = self.watch.join(self, lambda: repr(self), left)
            if txn is None or self.watch.ends():
                continue
            with self._lock:
                # another thread may have begun, and even ended, the commit just now
                if self._frozen or txn.status is not Status.ACTIVE:
                    continue
                self._changes.update(kept)
                return

    def check_may_change(self) -> None:
        """See Watch.check_may_change()."""
        if self.watch is not None:
            self.watch.check_may_change(self, lambda: repr(self))

    # ---- two-phase commit ----

    @property
    def transaction_manager(self) -> Any:
        """The transaction manager of the Connection; None while that is closed."""
        return self.conn.transaction_manager

    def sortKey(self) -> str:
        """Sort before the Connection, whose key is the storage's, a colon and digits."""
        return f"{self.conn.sortKey().rpartition(':')[0]}:  {id(self)}"

    def tpc_begin(self, txn: Any) -> None:
        """Take no more changes."""
        with self._lock:
            self._frozen = True

    def commit(self, txn: Any) -> None:
        """Change the tree."""
        if self.tree._p_jar is not None:  # else the group is about to be pickled for the first time
            self._apply(self.conn)

    def tpc_vote(self, txn: Any) -> None:
        """Check that all values have come to the storage."""
        records = self.watch.records
        if any(value._p_oid in records for value in self._stored):
            raise RuntimeError(f"values of {self!r} did not come to the storage")

    def tpc_finish(self, txn: Any) -> None:
        """Take changes of the next transaction. Those of this one are shown till the boundary."""
        self._finished = True
        self._end()

    def abort(self, txn: Any) -> None:
        """Forget all changes. In a child of a fork they are its parent's, and stay."""
        if is_inherited(self.conn):
            return
        if self.watch is not None:
            self.watch.records.clear()
        self._finished = False
        self._stored.clear()
        self._applied = {}
        if self._root is not None:
            self._forget_changes()
        self.moment += 1
        self._end()

    def tpc_abort(self, txn: Any) -> None:
        """Forget all changes."""
        self.abort(txn)

    def _end(self) -> None:
        with self._lock:
            self.joined = None
            self._frozen = False

    def _forget_changes(self) -> None:
        with self._lock:
            self._changes = {}
            self._spool = Spool()

    # ---- savepoints ----

    def savepoint(self) -> _Savepoint:
        """Return what brings the changes of now back."""
        return _Savepoint(self, self._copy())

    def rollback(self, changes: dict[str, memoryview | None]) -> None:
        """Have the changes that there were at a savepoint, and no others."""
        with self._lock:
            self._changes = changes.copy()
        self._applied = {}
        self.moment += 1

    # ---- changes -> objects; the thread of the transaction ----

    def stored_as_new(self) -> None:
        """Have all changes in the tree: the group is pickled, for the first time or again."""
        if self._root is None:
            if self._applied and self.tree._p_jar is not self.conn:
                # Of a transaction that was aborted: objects may have lost their states.
                self.tree = self.group.table = OOBTree()
                self.group.writes = OOBTree()
                self._applied = {}
            self.attach()
            self._apply(None)

    def _apply(self, conn: Any) -> None:
        """Change the tree; see TreeWriter."""
        changes = self._copy()
        applied = self._applied
        todo = [k for k, v in changes.items() if k not in applied or applied[k] is not v]
        writer = TreeWriter(self.group, self.values, conn)
        writer.write({key: changes[key] for key in sorted(todo)})
        self._stored += writer.stored
        applied.update((key, changes[key]) for key in todo)

    # ---- boundaries; see zodb_boundary.Follower ----

    def follow(self, changes: Changes) -> None:
        """The Connection reads a new state of the database, which has what was committed."""
        changed = None if changes.others is None else changes.all
        new = self._root is None
        self._look_for_root()
        self.keys.follow(changed)
        self.values.follow(changed)
        if self._finished or (new and self._root is not None):
            self._finished = False
            self._applied = {}
            self._forget_changes()
            for value in self._stored:
                value._p_deactivate()
            self._stored.clear()
        if changed is None or changed:
            self.moment += 1

    def forget(self) -> None:
        """Forget all: a boundary has failed."""
        self.follow(Changes(None, set()))

    def join_at_last(self, txn: Any) -> None:
        """Join a transaction which is about to end, if the one that was joined is another."""
        if self.joined is not None and self.joined is not txn:
            self.joined = self.watch.join_at_last(self, txn)

    def database_closed(self) -> None:
        """Do nothing: values that were read stay."""


def _cut(value: memoryview | None, byte_range: slice | None) -> memoryview | None:
    return value if value is None or byte_range is None else value[byte_range]
