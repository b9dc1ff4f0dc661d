"""ZBigFileH: the handle of a ZBigFile, which takes part in the transactions of its Connection.

Pages -> database
-----------------
The first change of a page, in any thread, makes the handle join the transaction of its
Connection, together with the Connection itself. From then on the transaction decides:

    transaction      handle                                 Connection (sorts after it)
    tpc_begin        pages are write-protected
    commit           changed blocks: objects are marked     pickles them: the bytes are taken
                     as changed                             from the pages, block by block
    tpc_finish       pages may be written again             the transaction is in the database
    (boundary)       stored pages are clean
    abort, tpc_abort changes are discarded

How a changed block gets into its record. Its object is pickled empty, as a pickle with the bytes
would be a copy of them, and the Connection copies its pickles. So the bytes join the record where
the storage takes it, out of the page:

    handle.commit       blockfile.storeblk(blk): the object is marked as changed, and
                        watch.records[its oid] = what makes the record of it
    Connection.commit   pickles the object ──► storage.store(oid, empty record)
                                                  │ which is Watch.store (zodb_boundary)
                        watch.records.pop(oid) ◄──┘
                            └─► record of the same class, the bytes of the page ──► the storage
    handle.tpc_vote     watch.records must be empty: no object has been stored without its bytes

The plain way, bytes in __getstate__, would copy a block of 2 MiB four times.

A touch that failed joins as well: the commit of that transaction is refused, with the reason.
If there was no transaction to join, only its thread gets the failure. If the touch could not even
look for one, at the recursion limit or without memory, it joins when the next transaction ends.

A savepoint copies the pages that changed since the previous one to a temporary file, and its
rollback brings them back (savepoint). The database is not involved: the Connection does the same
for its objects.

If transactions are explicit, the next boundary comes later than a commit. Between the two, a view
shows what it showed before: the state in which the transaction began, and its changes.

Locking
-------
Faults load in any thread: see blockfile. The first change joins in any thread; while a commit runs
in another one, it waits for its end. Everything else runs in the thread of the transaction.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterable
from typing import Any

from ZODB.POSException import ReadOnlyHistoryError

from wendelin.bigfile.virtmem.abilities import FirstChange
from wendelin.bigfile.virtmem.handle import (
    WRITEOUT_MARKSTORED,
    WRITEOUT_STORE,
    drop_kept,
    is_shown,
    is_used,
)
from wendelin.bigfile.virtmem.pins import show_again
from wendelin.bigfile.virtmem.writeout import (
    check_failures,
    forget_failures,
    is_doom_told,
    is_doomed,
    page_buffer,
    save_changes,
    transaction_ended,
    truncated_at,
    writeout_begin,
    writeout_end,
    writeout_over,
)
from wendelin.bigfile.zodb.formats import ZBlkBase
from wendelin.bigfile.zodb.interfaces import FileOfHandle, HandleOfFile
from wendelin.bigfile.zodb.savepoint import SavedPages, Savepoint
from wendelin.lib.adapters.transactions import resources_of
from wendelin.lib.interrupt import interrupts_later
from wendelin.lib.storage.forked import is_inherited
from wendelin.lib.storage.shared import zconn_is_shared
from wendelin.lib.utils import override
from wendelin.lib.zodb import zconn_check_database, zconn_is_open
from wendelin.lib.zodb_boundary import Changes, Follower, watch_of

__all__ = ["ZBigFileH", "handles_of"]

log = logging.getLogger(__name__)


def handles_of(zfile: Any) -> list[ZBigFileH]:
    """Return the handles of a ZBigFile, which may be a ghost."""
    refs: list[weakref.ref[ZBigFileH]] | None = getattr(zfile, "_v_handles", None)
    if not refs:
        return []
    return [handle for ref in refs if (handle := ref()) is not None]


class ZBigFileH(HandleOfFile, Follower, FirstChange):
    """Handle of a ZBigFile: takes part in the transactions of its Connection.

    It is a data manager (transaction.interfaces.IDataManager).
    """

    file: FileOfHandle

    def __init__(self, file: FileOfHandle) -> None:
        file.handle = weakref.ref(self)
        self.conn = file.conn
        #: block objects that the running commit stores
        self.stored: dict[int, ZBlkBase] = {}
        self.joined: Any = None
        self._saved: SavedPages | None = None
        self._frozen = False
        self._finished = False
        self.read_only = zconn_is_shared(file.conn)
        self.watch = watch_of(file.conn)
        self.watch.followers.add(self)

    @override
    def others(self) -> list[ZBigFileH]:
        return [h for h in handles_of(self.file.zfile) if h is not self and h.conn is self.conn]

    @override
    def isused(self) -> bool:
        return is_used(self)

    @override
    def page_buffer(self, blk: int) -> memoryview:
        return page_buffer(self, blk)

    def is_of_database(self) -> bool:
        """Say whether pages show the state of its Connection, without changes."""
        return self.joined is None and not self._finished

    @override
    def show_again(self, blks: Iterable[int]) -> None:
        if not self.file.is_local:
            return
        try:
            show_again(self, blks)
        except Exception:
            log.debug("%r: blocks are not shown again", self.file, exc_info=True)  # a touch does it

    # ---- joining ----

    @override
    def first_change(self) -> None:
        """Join the transaction; called by the pager, in any thread.

        Raises
        ------
        TransactionError
            There is no transaction to join: its commit has called this code, or it has failed and
            waits for its abort; or transactions are explicit, and none was begun. Or another thread
            ends it, and nothing is heard of it.
        ConnectionStateError
            The Connection is closed.
        ReadOnlyHistoryError
            The Connection is of a past state, and shared by references.
        """
        if self.read_only:
            zconn_check_database(self.conn)
            raise ReadOnlyHistoryError("it is a past state, which other references share")
        begun = time.monotonic()
        while not self._join(self.watch.time_to_wait(self, lambda: repr(self.file), begun)):
            pass

    def _join(self, seconds: float) -> bool:
        """Join the transaction. False: another thread ends it, or has: join the next one."""
        if self.watch.join(self, lambda: repr(self.file), seconds) is None:
            return False
        # its end may have begun just now, with this handle or without it
        return not self.watch.ends()

    def sortKey(self) -> str:
        """Sort before the Connection, whose key is the storage's, a colon and digits."""
        return f"{self.conn.sortKey().rpartition(':')[0]}:  {id(self)}"

    @property
    def transaction_manager(self) -> Any:
        """The transaction manager of the Connection; None while that is closed."""
        return self.conn.transaction_manager

    # ---- two-phase commit ----

    def tpc_begin(self, txn: Any) -> None:
        """Write-protect the pages; and let first_change() say if a thread may wait to write."""
        writeout_begin(self)
        self._frozen = True
        transaction_ended(self)
        check_failures(self)

    def commit(self, txn: Any) -> None:
        """Mark the objects of changed blocks, for the Connection to store them."""
        self.dirty_writeout(WRITEOUT_STORE)
        self.file.store_retired(txn)

    def tpc_vote(self, txn: Any) -> None:
        """Refuse if a touch failed since."""
        check_failures(self)
        if self.watch.records:
            raise RuntimeError(f"blocks of {self.file!r} did not come to the storage")

    def tpc_finish(self, txn: Any) -> None:
        """Let pages be written again. They are clean at the next boundary."""
        self._finished = True
        self._end()

    def abort(self, txn: Any) -> None:
        """Discard all changes. In a child of a fork, they are the parent's, and stay."""
        if is_inherited(self.conn):
            return
        with interrupts_later():  # it is not called again
            self._end()
            self._finished = False
            self.stored.clear()
            self.watch.records.clear()
            dropped = self.dirty_blocks() if is_shown(self) else []
            self.dirty_discard()
        if dropped and zconn_is_open(self.conn):
            self.show_again(dropped)

    def tpc_abort(self, txn: Any) -> None:
        """Discard all changes."""
        self.abort(txn)

    def _end(self) -> None:
        self.joined = None
        self.file.end()
        if self._saved is not None:
            self._saved.close()
            self._saved = None
        # a thread that waits to write joins another transaction
        transaction_ended(self)
        writeout_over(self, self._frozen)
        self._frozen = False

    # ---- boundaries; see zodb_boundary.Follower ----

    @override
    def follow(self, changes: Changes) -> None:
        """The Connection reads a new state of the database, which has all commits."""
        # Forget failures of touches without a transaction. But keep one of another thread that came
        # after the end of this transaction had begun: it is for the next one.
        late = self.watch.completes() and not is_doom_told(self)
        if is_doomed(self) and self.joined is None and not late:
            forget_failures(self)
        self.file.follow(changes, self)

    @override
    def forget(self) -> None:
        self.file.forget(self)

    @override
    def database_closed(self) -> None:
        """Views go on showing their pages; without views, all is released."""
        self.read_only = True  # there is no transaction to join
        if not self.isused():
            drop_kept(self)
            self.forget()

    @override
    def mark_stored_clean(self) -> set[bytes]:
        if not self._finished:
            return set()
        self.dirty_writeout(WRITEOUT_MARKSTORED)
        mine = self.file.adopt_stored_blocks(self)
        self._finished = False
        return mine

    @override
    def join_at_last(self, txn: Any) -> None:
        """See Watch.join_at_last(). And a failed touch may have had no memory or stack to join."""
        late = self.joined is not None and self.joined is not txn
        if not late and is_doomed(self) and not is_doom_told(self):
            late = all(manager is not self for manager in resources_of(txn))
        if late:
            self.joined = self.watch.join_at_last(self, txn)

    # ---- savepoints ----

    def savepoint(self) -> Savepoint:
        """Return a savepoint of the present changes.

        Raises
        ------
        DoomedError
            A touch has failed.
        OSError
            There is no space for a copy of the changed pages.
        """
        check_failures(self)
        if self._saved is None:
            self._saved = SavedPages(self.spool)
        writeout_begin(self)
        try:
            save_changes(self, self._saved.save)
            pages = {blk: self._saved.where[blk] for blk in self.dirty_blocks()}
            return Savepoint(self, pages, truncated_at(self))
        finally:
            writeout_end(self)

    def rollback(self, to: Savepoint) -> None:
        """Restore the changes of a savepoint, and drop all others."""
        assert self._saved is not None
        self.dirty_discard()
        if to.truncated_at is not None:
            self.truncate(to.truncated_at)
        for blk, (offset, size) in to.pages.items():
            self.load(blk, 1)
            page = memoryview(self.mmap(blk, 1, size))  # type: ignore[arg-type]
            self._saved.read(offset, page)
        check_failures(self)
