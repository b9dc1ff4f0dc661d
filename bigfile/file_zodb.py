"""ZBigFile: a file in ZODB, and its handle, which lives in the transactions of its Connection.

Organization
------------
    ZBigFile ──► LOBTree ──► ZBlk…          persistent objects: what commits write
    ZBigFileH ──► _ZFile ──► ZBigFile       the handle; _ZFile is the BigFile under it
                    │
                BlockTable, zblk            what faults read: records, not objects

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

A touch that failed joins as well: the commit of that transaction is refused, with the reason.
One that found no transaction to join has failed for its thread only.

A savepoint copies the pages that changed since the one before to a temporary file, and its
rollback brings them back (savepoint). Nothing of the database is involved: the Connection does the
same for its objects.

Between a commit and the next boundary, which are at the same moment unless transactions are
explicit, a view shows what it showed: the state in which the transaction began, and its changes.

Database -> pages
-----------------
A boundary is when the Connection moves to a new state of the database; it asks its storage
for what changed meanwhile, and that is where we listen (zwatch). Pages are dropped

- whose block object changed,
- whose block number is now another object, or none, or became one: looked up anew for pages in
  memory whenever a node of the block table changed.

A storage that was away for too long cannot say what changed. Then it is asked for the tids of what
pages are made of; or, if it has no such way, all pages are dropped.

Until the boundary that follows a commit its pages stay DIRTY to the pager, though stored: so
they cannot be reclaimed, and be loaded again from a state which does not have them yet. They
become clean when the table of before is forgotten: a thread that looks ahead at that moment would
find holes in it where they are.

Locking
-------
Faults run loadblk in any thread. It reads records through the Connection's storage, which is
safe from threads (the state it reads, `_start`, only changes at boundaries); what was asked
before a boundary and answered after it is loaded again (invalidate_loading). The first change
joins in any thread; while a commit runs in another one, it waits for its end. Everything else
runs in the thread of the transaction.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from typing import Any

from BTrees.LOBTree import LOBTree, LOBTreePy
from transaction._transaction import Status
from transaction.interfaces import TransactionError
from ZODB.Connection import Connection
from ZODB.POSException import ConflictError, ConnectionStateError, ReadOnlyHistoryError

from wendelin.bigfile.blktab import BlockTable
from wendelin.bigfile.prefetch import ReadAhead
from wendelin.bigfile.savepoint import SavedPages, Savepoint
from wendelin.bigfile.virtmem import (
    HOLE,
    WRITEOUT_MARKSTORED,
    WRITEOUT_STORE,
    BigFile,
    BigFileH,
)
from wendelin.bigfile.zblk import (
    Block,
    Change,
    ZBlk0,
    ZBlk1,
    ZBlkBase,
    ZData,
    format_for,
    is_plain,
    is_whole,
    load_block,
)
from wendelin.bigfile.zwatch import watch_of
from wendelin.lib.filestorage import OpenFile
from wendelin.lib.zodb import (
    LivePersistent,
    zconn_at,
    zconn_changed,
    zconn_has_open,
    zconn_is_remote,
    zconn_load_all,
    zconn_locate,
    zobj_is_committed,
)
from wendelin.lib.zonce import zconn_is_shared
from wendelin.lib.zrecord import RecordError

__all__ = ["ZBigFile", "ZBigFileH", "ZBlk", "ZBlk0", "ZBlk1", "ZData"]

log = logging.getLogger(__name__)

ZBlk = ZBlk0  # the name in early databases

_NEW = b"\0" * 8  # _p_serial of what is not in the database yet
_UNSURE = b""  # in made_of: no object's oid, so the page is dropped at the next boundary


class ZBigFile(LivePersistent):
    """A file in ZODB: blocks in a table, holes where there are none.

    Parameters
    ----------
    blksize : int
        Block size [bytes], a multiple of the OS page.
    """

    def __init__(self, blksize: int) -> None:
        self.__setstate__((BigFile(blksize).blksize, LOBTree()))

    def __getstate__(self) -> tuple[int, LOBTree]:
        return (self.blksize, self.blktab)

    def __setstate__(self, state: Any) -> None:
        types = [type(x) for x in state] if isinstance(state, tuple) else []
        if types not in ([int, LOBTree], [int, LOBTreePy]):
            raise RecordError(f"a damaged ZBigFile: {state!r:.200} is no (blksize, LOBTree)")
        self.blksize, self.blktab = state

    def lives(self) -> bool:
        """Say whether there are handles: faults read the state, in any thread."""
        return bool(getattr(self, "_v_handles", None))

    def is_of_database(self) -> bool:
        """Say whether the file is what its Connection sees of the database, unchanged."""
        handles = list(getattr(self, "_v_handles", None) or ())
        return zobj_is_committed(self) and all(handle.is_of_database() for handle in handles)

    def fileh_open(self, zblk_fmt: str | None = None) -> ZBigFileH:
        """Return a new handle.

        Parameters
        ----------
        zblk_fmt : {'ZBlk0', 'ZBlk1', 'auto', None}
            Format in which it stores blocks; None: what WENDELIN_CORE_ZBLK_FMT says.

        Raises
        ------
        ConnectionStateError
            The file does not belong to a Connection yet.
        """
        conn = self._p_jar
        if conn is None:
            raise ConnectionStateError(
                "the file does not belong to a Connection yet: add it to the database and commit, "
                "or conn.add() it"
            )
        if self.blktab._p_jar is None:
            conn.add(self.blktab)
        handle = ZBigFileH(_ZFile(self, conn, zblk_fmt))
        if getattr(self, "_v_handles", None) is None:
            self._v_handles: weakref.WeakSet[ZBigFileH] = weakref.WeakSet()
        self._v_handles.add(handle)
        return handle


class _ZFile(BigFile):
    """A ZBigFile as the pager sees it."""

    def __init__(self, zfile: ZBigFile, conn: Connection, zblk_fmt: str | None) -> None:
        super().__init__(zfile.blksize)
        self.zfile = zfile
        self.conn = conn
        self.zblk_fmt = zblk_fmt
        self.table = BlockTable(self.load)
        # What pages that are, or were, in memory were made of: blk -> oid, None for a hole,
        # _UNSURE where the table had two answers;
        self.made_of: dict[int, bytes | None] = {}
        # and of those that are made of more: blk -> oids.
        self.parts: dict[int, frozenset[bytes]] = {}
        # Files that pages may be mapped from: they stay open as long as the handle lives.
        self.mapped_from: set[OpenFile] = set()
        self.handle: weakref.ref[ZBigFileH] | None = None
        self.ahead = ReadAhead(zfile.blksize, zconn_is_remote(conn))

    def __repr__(self) -> str:
        oid = self.zfile._p_oid
        name = self.conn.db().database_name
        return f"<ZBigFile 0x{oid.hex() if oid else '?'} in {name!r}>"

    @property
    def tid(self) -> bytes | None:
        """The last transaction that its Connection sees; None: none, or it is not known."""
        try:
            return zconn_at(self.conn)
        except (ConnectionStateError, TypeError):
            return None

    # ---- to memory; any thread ----

    def load(self, oid: bytes) -> bytes:
        """See zblk.Records."""
        return zconn_load_all(self.conn, [oid])[0]

    def load_all(self, oids: list[bytes]) -> list[bytes]:
        """See zblk.Records."""
        return zconn_load_all(self.conn, oids)

    def lookup(self, blk: int) -> bytes | None:
        root = self._table_root()
        return None if root is None else self.table.lookup(root, blk)

    def _table_root(self) -> bytes | None:
        """Return the oid of the block table; None: it is not in the database yet."""
        # A file and its table come into the database together. Here is no ghost: see lives().
        root = self.zfile.blktab
        return None if root._p_oid is None or self.zfile._p_serial == _NEW else bytes(root._p_oid)

    def loadblk(self, blk: int, buf: memoryview) -> memoryview | bytes:
        oid = self._remember(blk)
        handle = self.handle() if self.handle is not None else None
        if handle is not None and oid is not None:
            self.ahead.loading(handle, blk)
        if oid is None:
            return b""
        try:
            block = load_block(oid, self, self.blksize)
        except RecordError:
            # Of a boundary that came about just now, some of its objects are of before, and some
            # of after it. Again, and then it is damaged; or it has changed, and is loaded again.
            block = load_block(oid, self, self.blksize)
        if block.parts:
            self.parts[blk] = block.parts
        return block.data

    def mapblk(self, blk: int) -> Any:
        return self._where({blk: self._remember(blk)}).get(blk)

    def mapahead(self, start: int, stop: int) -> dict[int, Any]:
        handle = self.handle() if self.handle is not None else None
        if handle is None:
            return {}
        epoch: int | None = None
        while epoch != handle.epoch():
            # Again, if a boundary came between: other threads may have loaded some of them since,
            # and those are not made of what was true before.
            epoch = handle.epoch()
            root = self._table_root()
            oids: dict[int, bytes | None] = dict.fromkeys(range(start, stop))
            if root is not None:
                oids.update(self.table.between(root, start, stop))
            for blk, oid in oids.items():
                # What is in memory may be made of what was true before a boundary that comes
                # about just now, of which we read the outcome already.
                if self.made_of.setdefault(blk, oid) != oid:
                    self.made_of[blk] = _UNSURE
        # Nobody has touched these: to wait for the disk, for heads all over the file, is in vain.
        return self._where(oids, wait=False)

    def _remember(self, blk: int) -> bytes | None:
        oid = self.made_of[blk] = self.lookup(blk)
        return oid

    def _where(self, oids: dict[int, bytes | None], *, wait: bool = True) -> dict[int, Any]:
        """Return, for blocks and their objects, what mapblk returns; without None."""
        where: dict[int, Any] = {blk: HOLE for blk, oid in oids.items() if oid is None}
        stored = {blk: oid for blk, oid in oids.items() if oid is not None}
        if stored:
            located = zconn_locate(self.conn, stored.values(), wait=wait)
            for blk, found in zip(stored, located, strict=True):
                if found is None or found.size > self.blksize or not is_plain(found.head):
                    continue
                if found.size == 0:
                    where[blk] = HOLE
                    continue
                self.mapped_from.add(found.file)
                if is_whole(found, self.blksize):
                    where[blk] = (found.file.fd, found.offset)
                else:
                    where[blk] = (found.file.fd, found.offset, found.size)
        return where

    def is_current(self) -> bool:
        """Say whether the files that pages are mapped from are the database's."""
        return all(zconn_has_open(self.conn, file) for file in self.mapped_from)

    def follow(self, oids: list[bytes] | None, own: set[bytes], handle: ZBigFileH) -> None:
        """Let the handle's pages be of the new state: see zwatch.Follower."""
        packed = not self.is_current()
        unknown = oids is None or packed
        changed = own.union(oids or ())
        # Other threads go on to load, and to look ahead. So the table is first, before any page is
        # clean: who still asked the old one loads again, or what he found is ignored (epoch).
        if unknown:
            self.table.drop()
        moved = unknown or bool(changed and self.table.changed(changed))
        if unknown or changed:
            handle.invalidate_loading()
        mine = handle.take_stored()
        since: Iterable[bytes] | None = oids
        if oids is None and not packed:
            since = zconn_changed(self.conn, self._oids(), handle.watch.before)
        if packed or since is None:
            # Let go of the old file: of its descriptor after the last page that knows it.
            old, self.mapped_from = self.mapped_from, set()
            self._drop(set(self.made_of.copy()), handle)
            old.clear()
        elif changed or unknown:
            self._drop(self._stale(changed.difference(mine).union(since), moved), handle)

    def _oids(self) -> set[bytes]:
        """Return the objects that pages in memory are made of."""
        oids = {oid for oid in self.made_of.copy().values() if oid}
        return oids.union(*self.parts.copy().values())

    def _stale(self, oids: set[bytes], moved: bool) -> set[int]:
        """Return the blocks that depend on objects, or are elsewhere in a table that moved."""
        # copy() is atomic under the GIL; list() is not, as it may collect garbage
        made_of, parts = self.made_of.copy(), self.parts.copy()
        stale = {blk for blk, oid in made_of.items() if oid in oids or oid == _UNSURE}
        stale.update(blk for blk, some in parts.items() if not oids.isdisjoint(some))
        if moved:
            stale.update(self._moved(stale))
        return stale

    def _drop(self, blks: set[int], handle: ZBigFileH) -> None:
        for blk in blks:
            self.made_of.pop(blk, None)
            self.parts.pop(blk, None)
            handle.invalidate_page(blk)

    def _moved(self, known: set[int]) -> Iterable[int]:
        """Yield blocks in memory that the table has elsewhere now."""
        readable = True
        for blk, oid in self.made_of.copy().items():
            if blk not in known:
                try:
                    if readable and self.lookup(blk) == oid:
                        continue
                except Exception:
                    # Pages can be dropped, and who touches them gets the exception. Nothing else
                    # is looked up: a server that is gone would be waited for, each time.
                    log.warning("%r: block %d cannot be looked up", self, blk, exc_info=True)
                    readable = False
                yield blk

    # ---- to the database; the thread of the transaction ----

    def storeblk(self, blk: int, buf: memoryview) -> None:
        """Mark the object of a block as changed; its bytes are taken when it is pickled."""
        handle = self.handle() if self.handle is not None else None
        assert handle is not None
        zblk: ZBlkBase | None = self.zfile.blktab.get(blk)
        if zblk is not None and any(zblk is h.stored.get(blk) for h in handle.others()):
            raise ConflictError(
                f"block {blk} of {self!r} was changed through two of its handles", zblk
            )
        change = Change(self._stored(zblk), buf)
        self.table.not_asked()  # for this one: past the end nobody did when it was loaded
        if not change:
            self.made_of[blk] = None if zblk is None else zblk._p_oid
            return
        cls = format_for(self.zblk_fmt, change)
        # a ZBlk1 that is not regular gets other chunks, and stays
        usable = change.old is None or change.old.regular or cls is ZBlk1
        if zblk is not None and type(zblk) is cls and usable:
            self._read_current(self.zfile)
        else:
            if zblk is not None:
                self._drop_current(zblk)
            zblk = self.zfile.blktab[blk] = cls()
            # in this order, not in the one in which the Connection finds them: backwards
            self.conn.add(zblk)
        zblk.store_from(handle, blk, change)
        handle.stored[blk] = zblk
        if handle.takes_records and isinstance(zblk, ZBlk0):
            handle.watch.records[zblk._p_oid] = zblk.record

    def _stored(self, zblk: ZBlkBase | None) -> Block | None:
        """Return a block as it is in the database; None: it is not there.

        Most often its object is a ghost, and stays one: whatever does not begin with _p_ loads it,
        and one of Python 2 cannot be loaded as an object.
        """
        if zblk is None or (zblk._p_serial == _NEW and zblk._p_changed is not None):
            return None
        return load_block(zblk._p_oid, self, self.blksize)

    def truncate(self, blk: int) -> None:
        blktab = self.zfile.blktab
        root = self._table_root()
        if root is not None:
            self.table.between(root, blk, 1 << 63)  # BTrees takes damaged ones on trust
        keys = list(blktab.keys(min=blk))
        for key in keys:
            del blktab[key]
        if keys:
            self.zfile._p_changed = True  # see _drop_current

    # A block object that is changed by one client, and taken out of the table by another, would be
    # no conflict: they store different objects. The first one's change would be lost in silence.
    # So who takes an object out stores the ZBigFile, and who changes one in its place says that it
    # has read the ZBigFile; who puts another object in its place, that it has read the old one.

    def _read_current(self, obj: Any) -> None:
        """Let the commit be a conflict if another client has changed an object meanwhile."""
        if hasattr(self.conn._normal_storage, "checkCurrentSerialInTransaction"):
            self.conn.readCurrent(obj)

    def _drop_current(self, zblk: ZBlkBase) -> None:
        """An object is to be replaced in the table by another."""
        self.zfile._p_changed = True
        if zblk._p_changed is None:
            _, zblk._p_serial = self.conn._normal_storage.load(zblk._p_oid)
        self._read_current(zblk)

    def committed(self, handle: ZBigFileH) -> set[bytes]:
        """Pages in memory are made of the objects that were stored now, and returned.

        What can be mapped gives its memory back, and is.
        """
        epoch = handle.epoch()
        oids: dict[int, bytes | None] = {}
        for blk, zblk in handle.stored.items():
            before = self.parts.pop(blk, frozenset())
            same = self.made_of.get(blk) in (zblk._p_oid, _UNSURE)
            oids[blk] = self.made_of[blk] = zblk._p_oid
            parts = zblk.parts() | before if same else zblk.parts()
            if parts:
                self.parts[blk] = parts
            zblk.release()
        handle.stored.clear()
        handle.know(self._where(oids), epoch)
        mine = {oid for oid in oids.values() if oid is not None}
        return mine.union(*(self.parts.get(blk, ()) for blk in oids))


class ZBigFileH(BigFileH):
    """Handle of a ZBigFile: takes part in the transactions of its Connection.

    It is a data manager (transaction.interfaces.IDataManager).
    """

    def __init__(self, file: _ZFile) -> None:
        file.handle = weakref.ref(self)
        self.zfile = file
        self.conn = file.conn
        #: block objects that the running commit stores
        self.stored: dict[int, ZBlkBase] = {}
        self._joined: Any = None
        self._saved: SavedPages | None = None
        self._frozen = False
        self._finished = False
        self.takes_records = False
        self.read_only = zconn_is_shared(file.conn)
        self.watch = watch_of(file.conn)
        self.watch.followers.add(self)

    def others(self) -> list[ZBigFileH]:
        """Return the other handles of its Connection."""
        followers = list(self.watch.followers)
        return [h for h in followers if isinstance(h, ZBigFileH) and h is not self]

    def is_of_database(self) -> bool:
        """Say whether pages show what its Connection sees of the database, and nothing else."""
        return self._joined is None and not self._finished

    # ---- joining ----

    def first_change(self) -> None:
        """Join the transaction; called by the pager, in any thread.

        Raises
        ------
        TransactionError
            There is no transaction to join: it is being committed by this thread, or has failed
            and waits for its abort; or none was begun, where they are explicit.
        ConnectionStateError
            The Connection is closed.
        ReadOnlyHistoryError
            The Connection is shared by those who refer to a past state.
        """
        if self.read_only:
            raise ReadOnlyHistoryError("it is a past state, which others read, too")
        while not self._join():
            pass

    def _join(self) -> bool:
        """Join the transaction. False: another thread ends it now, or did; so join the next one."""
        conn = self.conn
        if conn.opened is None or conn.transaction_manager is None:
            raise ConnectionStateError("its Connection is closed")
        if self.watch.wait_for_end():
            return False
        txn = conn.transaction_manager.get()
        if self._joined is not txn:
            if txn.status is Status.COMMITTED and self.watch.let_others_end():
                return False
            if txn.status is Status.COMMITTING:
                raise TransactionError(
                    f"{self.zfile!r} cannot be changed by what runs in a commit: it is too late to "
                    f"take part in it. Change it before, as in txn.addBeforeCommitHook()"
                )
            # a failed touch may have the transaction of a handle that changes later
            conn._register()
            txn.join(self)
            self._joined = txn
        # it may have begun to end just now, with this handle or without it
        return not self.watch.ends()

    def sortKey(self) -> str:
        """Sort before the Connection, whose key is the storage's, a colon and digits."""
        return f"{self.conn._storage.sortKey()}:  {id(self)}"

    @property
    def transaction_manager(self) -> Any:
        """The transaction manager of the Connection; None while that is closed."""
        return self.conn.transaction_manager

    # ---- two-phase commit ----

    def tpc_begin(self, txn: Any) -> None:
        """Write-protect the pages."""
        self.writeout_begin()
        self._frozen = True
        self.check_failures()

    def commit(self, txn: Any) -> None:
        """Mark the objects of changed blocks, for the Connection to store them."""
        # A savepoint before has put a temporary storage between the Connection and its own.
        self.takes_records = self.conn._storage is self.conn._normal_storage
        self.dirty_writeout(WRITEOUT_STORE)

    def tpc_vote(self, txn: Any) -> None:
        """Refuse if a touch failed since."""
        self.check_failures()
        if not self.watch.records.keys().isdisjoint(z._p_oid for z in self.stored.values()):
            raise RuntimeError(f"blocks of {self.file!r} did not come to the storage")

    def tpc_finish(self, txn: Any) -> None:
        """Let pages be written again. They are clean at the next boundary."""
        self._finished = True
        self._end()

    def abort(self, txn: Any) -> None:
        """Discard all changes."""
        self._end()
        self._finished = False
        self.stored.clear()
        self.watch.records.clear()
        self.dirty_discard()

    def tpc_abort(self, txn: Any) -> None:
        """Discard all changes."""
        self.abort(txn)

    def _end(self) -> None:
        self._joined = None
        self.takes_records = False
        if self._saved is not None:
            self._saved.close()
            self._saved = None
        # who waits to write joins another transaction
        self.changes_stored()
        if self._frozen:
            self._frozen = False
            self.writeout_end()

    # ---- boundaries; see zwatch.Follower ----

    def follow(self, oids: list[bytes] | None, own: set[bytes]) -> None:
        """The Connection reads a new state of the database, which has what was committed."""
        if self._joined is None and self.failed:
            self.forget_failures()  # of touches while there was no transaction
        self.zfile.follow(oids, own, self)

    def take_stored(self) -> set[bytes]:
        """Pages that were stored are clean. Return what they are made of."""
        if not self._finished:
            return set()
        self._finished = False
        self.dirty_writeout(WRITEOUT_MARKSTORED)
        return self.zfile.committed(self)

    def join_at_last(self, txn: Any) -> None:
        """Join a transaction which is about to end, if the one that was joined is another.

        Two threads that ask an idle manager for its transaction may be given two, of which the
        manager forgets one.
        """
        if self._joined is not None and self._joined is not txn:
            if all(manager is not self.conn for manager in txn._resources):
                txn.join(self.conn)
            txn.join(self)
            self._joined = txn

    # ---- savepoints ----

    def savepoint(self) -> Savepoint:
        """Return what brings the changes of now back.

        Raises
        ------
        DoomedError
            A touch has failed.
        OSError
            There is no room for a copy of the changed pages.
        """
        self.check_failures()
        if self._saved is None:
            self._saved = SavedPages(self.blksize)
        self.writeout_begin()
        try:
            self.save_changes(self._saved.save)
            pages = {blk: self._saved.where[blk] for blk in self.dirty_blocks()}
            return Savepoint(self, pages, self.truncated_at)
        finally:
            self.writeout_end()

    def rollback(self, to: Savepoint) -> None:
        """Have the changes that there were at a savepoint, and no others."""
        assert self._saved is not None
        self.dirty_discard()
        if to.truncated_at is not None:
            self.truncate(to.truncated_at)
        for blk, offset in to.pages.items():
            self.load(blk, 1)
            self._saved.read(offset, memoryview(self.mmap(blk, 1)))  # type: ignore[arg-type]
        self.check_failures()
