"""A ZBigFile as the pager sees it: a BigFile whose blocks are records of a database.

Loading needs no persistent objects: BlockTable finds the oid of a block's object, and formats reads
its record, or the storage says where its bytes lie. To store a block, its object is changed, and
the Connection pickles it at its commit.

This module knows the Connection and its storage. Its handle knows when transactions begin and end
(handle).

Database -> pages
-----------------
At a boundary, the Connection moves to a new state of the database. It asks its storage for changes,
and zodb_boundary observes that call. Pages are dropped

- whose block object changed,
- whose block number now has another object, or none, or got one: whenever a node of the block table
  changed, the table is looked up again for pages in memory.

A server that was away for too long cannot say what changed. Then it is asked for the tids of the
objects that pages are made of. If that is not possible, all pages are dropped, as they are after an
interrupted boundary (forget): changes are reported only once.

After a commit, its pages stay DIRTY to the pager until the next boundary, although they are stored.
So they cannot be reclaimed, and loaded again from a state that does not have them yet. They become
clean when the previous table is forgotten: until then, a thread that looks ahead would find holes
in it.

Locking
-------
Faults run loadblk in any thread. It reads records through the Connection's storage,
which is thread-safe (the state that it reads, `_start`, changes only at boundaries). A load that
began before a boundary and ends after it is repeated (invalidate_loading). Stores, and follow(),
run in the thread of the transaction.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Set
from contextlib import suppress
from typing import Any

from ZODB.Connection import Connection
from ZODB.POSException import ConflictError, ConnectionStateError, ReadOnlyHistoryError

from wendelin.bigfile.virtmem.abilities import (
    CountsCache,
    ExplainsMismatch,
    FileRange,
    HasFolder,
    MapsAhead,
    MapsBlocks,
    MayBeRemote,
    NamedFile,
    SeesTransactions,
    Truncates,
)
from wendelin.bigfile.virtmem.backend import HOLE, BigFile
from wendelin.bigfile.virtmem.buffer import used_of
from wendelin.bigfile.virtmem.checksum import AVAILABLE
from wendelin.bigfile.virtmem.errors import BlockLoadError
from wendelin.bigfile.virtmem.located import epoch as epoch_of
from wendelin.bigfile.virtmem.located import invalidate_loading, set_located
from wendelin.bigfile.virtmem.pins import unpin_all
from wendelin.bigfile.zodb.blockmap import BlockMap, PartMap
from wendelin.bigfile.zodb.blocktable import BlockTable, Changed
from wendelin.bigfile.zodb.cached import Found, cached_blocks, is_for_cache
from wendelin.bigfile.zodb.change import Block, Change
from wendelin.bigfile.zodb.formats import (
    TidOf,
    ZBlk1,
    ZBlkBase,
    empty_record,
    format_for,
    format_name,
    is_plain,
    is_whole,
    load_block,
)
from wendelin.bigfile.zodb.interfaces import FileInDatabase, HandleOfFile
from wendelin.bigfile.zodb.pieces import locate_chunks
from wendelin.bigfile.zodb.prefetch import ReadAhead
from wendelin.bigfile.zodb.records import NotedRecords, Records
from wendelin.bigfile.zodb.verify import verifies_mapped
from wendelin.lib.adapters.connection import instance_of
from wendelin.lib.storage.fsrecord import Located, OpenFile
from wendelin.lib.storage.record import ChecksumError, RecordError, digest_of
from wendelin.lib.utils import override
from wendelin.lib.zodb import (
    zconn_at,
    zconn_changed,
    zconn_check_database,
    zconn_folder,
    zconn_has_open,
    zconn_is_remote,
    zconn_locate,
    zconn_maps,
    zconn_name,
    zconn_read_current,
)
from wendelin.lib.zodb_boundary import Changes

__all__ = ["ZFile"]

log = logging.getLogger(__name__)

_Oids = dict[int, bytes | None]  # of blocks; None: holes
_Records = dict[bytes, bytes]  # of objects
_MOST = 1 << 63  # no block is there
_NEW = b"\0" * 8  # _p_serial of an object that is not in the database yet
_OF_NOTHING = digest_of([])
#: in made_of: no object's oid, so the page is dropped at the next boundary
_UNSURE = b"\xff" * 8


class ZFile(
    BigFile,
    MapsBlocks,
    MapsAhead,
    MayBeRemote,
    HasFolder,
    Truncates,
    ExplainsMismatch,
    CountsCache,
    SeesTransactions,
):
    """A ZBigFile as the pager sees it."""

    def __init__(self, zfile: FileInDatabase, conn: Connection, zblk_fmt: str | None) -> None:
        super().__init__(zfile.blksize)
        self.zfile: Any = zfile
        # The table's object is the same as long as the file's exists. Faults use only attributes
        # that a ghost has, too: no other thread may load persistent objects, or see one half
        # loaded.
        self.blktab = zfile.blktab
        self.conn = conn
        self.records = Records(conn)
        self.zblk_fmt = zblk_fmt
        self.name = zconn_name(conn)
        self.table = BlockTable(self.records.load_all)
        # What pages that are, or were, in memory are made of: blk -> oid, None for a hole,
        # _UNSURE if the table had two answers; and of those that are made of more.
        self.made_of = BlockMap()
        self.parts = PartMap()
        # blocks that were changed, and of which the table was not asked before: past the end
        self._not_asked: dict[int, None] = {}  # not a set, which takes memory if it is empty
        #: blocks of the running commit -> whether they cannot be mapped: pages have less memory
        self._short: dict[int, bool] = {}
        # Files that pages may be mapped from: they stay open as long as the handle lives.
        self.mapped_from: dict[OpenFile, None] = {}
        #: compare mapped blocks with their checksums before, not only copied ones
        self.verify = verifies_mapped()
        self._retired: dict[bytes, tuple[bytes, bytes]] = {}  # by a commit: oid -> serial, record
        self.handle: weakref.ref[HandleOfFile] | None = None
        #: blocks in the cache of the machine; None: it is off
        self.cached = cached_blocks(conn, zfile.blksize, self.verify)
        self.view = 0, 0  # the last one that was taken: its first block, and number of blocks
        self._ahead: ReadAhead | None = None  # made when a block is loaded

    def __repr__(self) -> str:
        return f"<ZBigFile 0x{oid.hex() if (oid := self.zfile._p_oid) else '?'} in {self.name}>"

    @property
    @override
    def is_local(self) -> bool:
        return zconn_maps(self.conn)

    @property
    @override
    def folder(self) -> str | None:
        return zconn_folder(self.conn)

    @property
    @override
    def shares(self) -> bool:
        return zconn_maps(self.conn) and format_name(self.zblk_fmt) != "ZBlk1"

    @property
    @override
    def tid(self) -> bytes | None:
        with suppress(ConnectionStateError, TypeError):
            return zconn_at(self.conn)
        return None

    @property
    @override
    def cache_counts(self) -> tuple[int, int]:
        return (0, 0) if self.cached is None else (self.cached.hits, self.cached.misses)

    # ---- to memory; any thread ----

    def lookup(self, blk: int) -> bytes | None:
        """Return the oid of a block object; None: a hole."""
        root = self._table_root()
        return None if root is None else self.table.lookup(root, blk)

    def find(self, start: int, stop: int) -> Iterable[int]:
        """Look up which of the blocks [start, stop) are stored; return these, ascending."""
        found = self.table.between(root, start, stop) if (root := self._table_root()) else {}
        if self.cached is not None:
            self.cached.expect(found.values())
        return found

    def _table_root(self) -> bytes | None:
        """Return the oid of the block table; None: it is not in the database yet."""
        # a file and its table come into the database together
        oid = self.blktab._p_oid
        return None if oid is None or self.zfile._p_serial == _NEW else bytes(oid)

    @override
    def loadblk(self, blk: int, buf: memoryview) -> memoryview | bytes | NamedFile:
        oid = self._remember(blk)
        if oid is None:
            return b""
        if self.handle is not None and (handle := self.handle()) is not None:
            ahead = self._ahead or ReadAhead(self.blksize, zconn_is_remote(self.conn), self.find)
            self._ahead = ahead
            ahead.expect(*self.view)
            ahead.loading(handle, blk)
        load = load_block if self.cached is None else self.cached.load
        try:
            block: Block | Found = load(oid, self.records, self.blksize, buf)
        except RecordError:
            # During a boundary, some of its objects may be old, and some new. Try again: then it
            # is damaged, or it has changed, and is loaded again.
            block = self._load_block(oid, self.records)
        if block.parts:
            self.parts.put(blk, block.parts)
        return block.file if isinstance(block, Found) else block.data

    def _load_block(self, oid: bytes, records: Records) -> Block:
        """Return a block object; an error of its checksum names the object and the transaction."""
        try:
            return load_block(oid, records, self.blksize)
        except ChecksumError as e:
            raise self._of_object(oid) from e

    def _of_object(self, oid: bytes) -> ChecksumError:
        """Return the error of an object whose bytes do not match their checksum."""
        by = ""
        with suppress(Exception):  # the storage may have gone meanwhile
            by = f", which transaction 0x{self.records.tid(oid).hex()} wrote"
        return ChecksumError(f"the bytes of object 0x{oid.hex()}{by},")

    @override
    def mismatch(self, blk: int) -> ChecksumError:
        oid = self.made_of.get(blk)
        if oid and self.cached is not None:
            self.cached.throw_away(oid)
        return self._of_object(oid) if oid else ChecksumError()

    @override
    def mapblk(self, blk: int) -> Any:
        zconn_check_database(self.conn)  # here, so that the error is a short one
        oid = self._remember(blk)
        small: dict[bytes, bytes] = {}
        found = self._where({blk: oid}, small, check=True)
        self._add_others({blk: oid}, found, small)
        return found.get(blk)

    @override
    def mapahead(self, start: int, stop: int) -> dict[int, Any]:
        handle = self.handle() if self.handle is not None else None
        if handle is None or self.verify:
            return {}
        epoch: int | None = None
        while epoch != epoch_of(handle):
            # Again, if a boundary came meanwhile: other threads may have loaded some of them since,
            # and these are not made of the objects of the previous state.
            epoch = epoch_of(handle)
            root = self._table_root()
            oids: dict[int, bytes | None] = dict.fromkeys(range(start, stop))
            if root is not None:
                oids.update(self.table.between(root, start, stop))
            for blk, oid in oids.items():
                # During a boundary, pages in memory may be of the previous state, while we already
                # read the new one.
                if self.made_of.setdefault(blk, oid) != oid:
                    self.made_of[blk] = _UNSURE
        # Nobody has touched these: to wait for the disk, for heads all over the file, is in vain.
        small: dict[bytes, bytes] = {}
        where = self._where(oids, small, wait=False)
        self._add_others(oids, where, small, wait=False)
        return where

    def _add_others(
        self, oids: _Oids, where: dict[int, Any], small: _Records, *, wait: bool = True
    ) -> None:
        """Add where those blocks are that do not lie in one piece of a local file: see _where().

        They are in the cache, if there is one, or in chunks that can be mapped. Others that are for
        the cache are removed, so that they are loaded into it.
        """
        cached, size = self.cached, self.blksize
        rest = {b: oid for b, oid in oids.items() if oid and is_for_cache(where.get(b), size)}
        if cached is not None and rest:
            found = cached.find(list(rest.values()))
            for blk, oid in list(rest.items()):
                where.pop(blk, None)
                if oid in found:
                    self.parts.put(blk, found[oid].parts)
                    where[blk] = found[oid].file
        rest = {blk: oid for blk, oid in rest.items() if blk not in where}
        if not rest or not self.is_local or self.verify or not AVAILABLE:
            return
        chunks = locate_chunks(rest.values(), self.records, size, small, wait=wait)
        for blk, oid in rest.items():
            if oid in chunks and (cached is None or chunks[oid].place.is_mapped):
                where[blk], file, parts = chunks[oid]
                self.mapped_from[file] = None
                self.parts.put(blk, parts)

    def _remember(self, blk: int) -> bytes | None:
        self.made_of[blk] = oid = self.lookup(blk)
        return oid

    def _where(
        self, oids: _Oids, small: _Records | None = None, *, wait: bool = True, check: bool = False
    ) -> dict[int, Any]:
        """Return {block: result of mapblk} for blocks and their objects, without None.

        Parameters
        ----------
        oids
        small, wait
            See zconn_locate().
        check : bool
            If self.verify, compare those that are to be mapped with their checksums. False: leave
            these out, unless they were compared before.
        """
        where: dict[int, Any] = {blk: HOLE for blk, oid in oids.items() if oid is None}
        stored = {blk: oid for blk, oid in oids.items() if oid is not None}
        if stored:
            located = zconn_locate(self.conn, stored.values(), wait=wait, small=small)
            head, plain = b"", False  # those of neighbours are mostly one object
            for (blk, oid), found in zip(stored.items(), located, strict=True):
                if found is None or found.size > self.blksize:
                    continue
                if found.head is not head:
                    head, plain = found.head, is_plain(found.head)
                place = self._place(oid, found, check) if plain else None
                if place is not None:
                    where[blk] = place
        return where

    def _place(self, oid: bytes, found: Located, check: bool) -> Any:
        """Return the result of mapblk for a block that lies in a file; see _where()."""
        file, offset, size, _, digest = found
        if size == 0 and digest in (None, _OF_NOTHING):
            return HOLE
        whole = is_whole(found, self.blksize)
        if whole and self.verify and not found.matches():
            if not check:
                return None
            try:
                found.check()
            except ChecksumError as e:
                raise self._of_object(oid) from e
        if digest is not None and not whole and not AVAILABLE:
            return None  # loadblk() compares the bytes that it copies
        self.mapped_from[file] = None
        if digest is not None and AVAILABLE:
            return FileRange(file.fd, offset, size, digest)
        return FileRange(file.fd, offset, None if whole else size)

    def is_current(self) -> bool:
        """Say whether the files that pages are mapped from are still the database's."""
        return all(zconn_has_open(self.conn, file) for file in self.mapped_from)

    def follow(self, changes: Changes, handle: HandleOfFile) -> None:
        """Bring the handle's pages to the new state: see zodb_boundary.Follower."""
        packed = not self.is_current()
        unknown = changes.others is None or packed
        # Other threads go on loading, and looking ahead. So the table is first, before any page is
        # clean: a thread that still used the old one loads again, or its result is ignored (epoch).
        if unknown:
            self.table.drop()
        if self.cached is not None:
            self.cached.state_changed(unsure=changes.others is None)
        moved = self.table.changed(changes.all)
        if unknown or changes.all:
            invalidate_loading(handle)
        unpin_all(handle)
        mine = handle.mark_stored_clean()
        self._ask_at_last()
        since: Set[bytes] | None = changes.others
        if since is None and not packed:
            since = zconn_changed(self.conn, self._oids(), handle.watch.before)
        if packed or since is None:
            handle.show_again(self._drop_all(handle))
        elif changes.all or unknown:
            changed = changes.among(self._oids, len(self.made_of) + len(self.parts))
            if changes.others is None:
                changed = changed | since
            others = changed - (mine - since)
            stale = self._stale(others, moved)
            if self.cached is not None:
                of = {oid for oid in map(self.made_of.get, self.parts.blocks_of(others)) if oid}
                self.cached.suspect(of - others - mine)
            if stale:
                self._drop(stale, handle)
                handle.show_again(stale)

    def _ask_at_last(self) -> None:
        """Look up blocks that were changed unasked: so that the table knows what they depend on."""
        blks, self._not_asked = self._not_asked, {}
        root = self._table_root() if blks else None
        if root is None:
            return
        try:
            for blk in blks:
                self.table.lookup(root, blk)
        except Exception:
            log.debug("%r: blocks cannot be looked up", self, exc_info=True)
            self.table.not_asked()

    def forget(self, handle: HandleOfFile) -> None:
        """Drop all pages of the previous state: see zodb_boundary.Follower."""
        self.table.drop()
        if self.cached is not None:
            self.cached.state_changed(unsure=True)
        invalidate_loading(handle)
        unpin_all(handle)
        try:
            handle.mark_stored_clean()
        finally:
            handle.stored.clear()
            self._drop_all(handle)

    def _drop_all(self, handle: HandleOfFile) -> set[int]:
        # Release the file: its descriptor is closed after the last page that uses it.
        files, self.mapped_from = self.mapped_from, {}
        blks = set(self.made_of.blocks())
        self._drop(blks, handle)
        files.clear()
        return blks

    def _oids(self) -> set[bytes]:
        """Return the objects that pages in memory are made of."""
        return self.made_of.oids() | self.parts.oids()

    def _stale(self, oids: Set[bytes], moved: Changed) -> set[int]:
        """Return the blocks that depend on objects, or are elsewhere in a table that moved."""
        stale = self.made_of.blocks_of(oids).union(self.made_of.blocks_of({_UNSURE}))
        return stale.union(self.parts.blocks_of(oids), self._moved(moved) if moved else ())

    def _drop(self, blks: set[int], handle: HandleOfFile) -> None:
        for blk in blks:
            self.made_of.discard(blk)
            self.parts.discard(blk)
            handle.invalidate_page(blk)

    def _moved(self, moved: Changed) -> set[int]:
        """Return blocks in memory that the table has elsewhere now."""
        stale: set[int] = set()
        root = self._table_root()
        if root is None:
            return stale
        known = self.made_of
        start, end = 0, _MOST  # what is not looked at yet
        try:
            if moved.all:
                ranges = known.spans(start, end)
            else:
                ranges = self.table.moved(root, moved, known.knows)
            for lo, hi in ranges:
                start = lo
                if known.knows(lo, hi):
                    stale.update(known.differing(lo, hi, self.table.between(root, lo, hi)))
        except Exception:
            # Pages can be dropped, and a thread that touches them gets the exception. Do not look
            # up others: each would wait again for a server that is gone.
            log.warning("%r: blocks from %d on cannot be looked up", self, start, exc_info=True)
            stale.update(known.blocks(start))
        return stale

    # ---- to the database; the thread of the transaction ----

    @override
    def storeblk(self, blk: int, buf: memoryview) -> None:
        """Mark the object of a block as changed; its bytes are taken when it is pickled."""
        handle = self.handle() if self.handle is not None else None
        assert handle is not None
        zblk: ZBlkBase | None = self.blktab.get(blk)
        if zblk is not None and any(zblk is h.stored.get(blk) for h in handle.others()):
            raise ConflictError(
                f"block {blk} of {self!r} was changed through two of its handles", zblk
            )
        name = format_name(self.zblk_fmt)
        used = used_of(buf)
        records = NotedRecords(self.conn)
        change = Change(self._stored(blk, zblk, records), buf, name != "auto", used)
        self._not_asked[blk] = None
        if not change:
            self.made_of[blk] = None if zblk is None else zblk._p_oid
            return
        if self.conn.before is not None:  # the error of Connection.commit
            raise ReadOnlyHistoryError()
        cls = format_for(name, change)
        # a ZBlk1 that is not regular gets new chunks, and stays
        usable = change.old is None or change.old.regular or cls is ZBlk1
        if zblk is not None:
            zconn_read_current(self.conn, self.zfile)
        if zblk is None or type(zblk) is not cls or not usable:
            if zblk is not None:
                self._retire(zblk, records.tid)
            zblk = self.blktab[blk] = cls()
            # in this order: the Connection would find them in the reverse one
            self.conn.add(zblk)
        made = cls.store_from(zblk, handle, blk, change, records.tid)
        handle.watch.records.update(made)
        handle.stored[blk] = zblk
        self._short[blk] = used < self.blksize

    def _stored(self, blk: int, zblk: ZBlkBase | None, records: Records) -> Block | None:
        """Return a block as it is in the database; None if it is not there.

        Mostly its object is a ghost, and stays one: access to an attribute without _p_ would load
        it, and one of Python 2 cannot be loaded as an object.

        A block that does not match its checksum counts as missing, and is stored as a whole: the
        page in memory was compared when it was loaded.

        Raises
        ------
        BlockLoadError
            It does not match, and the pager compares nothing: wrong bytes, which were mapped, and
            copied for the first change, would get a new checksum.
        """
        if zblk is None or (zblk._p_serial == _NEW and zblk._p_changed is not None):
            return None
        try:
            return self._load_block(zblk._p_oid, records)
        except ChecksumError as e:
            if AVAILABLE:
                return None
            raise BlockLoadError(
                f"block {blk} of {self!r} cannot be changed: {e}", self, blk, self.tid
            ) from e

    @override
    def truncate(self, blk: int) -> None:
        blktab = self.blktab
        root = self._table_root()
        # Stored blocks are found by the tree, as its chain of buckets may have others. Blocks of
        # later changes are found by BTrees.
        stored = [] if root is None else self.table.deletable(root, blk)
        keys = [key for key in {*stored, *blktab.keys(min=blk)} if key in blktab]
        for key in keys:
            del blktab[key]
        if keys:
            self.zfile._p_changed = True

    # One client may change a block object while another takes it out of the table. They store
    # different objects, so there would be no conflict, and the change would be lost. So a
    # transaction that shrinks a file also stores the ZBigFile, and one that changes a block
    # declares that it has read the ZBigFile. One that puts another object in a block's place also
    # stores the old one, empty.

    def _retire(self, zblk: ZBlkBase, tid_of: TidOf) -> None:
        """Note that another object is going to replace one in the table."""
        oid = zblk._p_oid
        if zblk._p_serial == _NEW and zblk._p_changed is not None:
            return  # it is not in the database
        serial = tid_of(oid) if zblk._p_changed is None else zblk._p_serial
        self._retired[oid] = bytes(serial), empty_record()
        zblk._p_deactivate()

    def store_retired(self, txn: Any) -> None:
        """Store the objects that others replace, after storeblk()."""
        for oid, (serial, record) in self._retired.items():
            instance_of(self.conn).store(oid, serial, record, "", txn.data(self.conn))

    def end(self) -> None:
        """Called when the transaction has ended."""
        self._retired.clear()

    def adopt_stored_blocks(self, handle: HandleOfFile) -> set[bytes]:
        """Note that pages in memory are made of the objects that were stored, and return these.

        Pages that can be mapped now are, and give their memory back.
        """
        epoch = epoch_of(handle)
        oids: dict[int, bytes | None] = {}
        for blk, zblk in handle.stored.items():
            before = self.parts.of(blk)
            same = self.made_of.get(blk) in (zblk._p_oid, _UNSURE)
            self.made_of[blk] = oids[blk] = zblk._p_oid
            self.parts.put(blk, zblk.parts() | before if same else zblk.parts())
            zblk.release()
        handle.stored.clear()
        whole = {blk: oid for blk, oid in oids.items() if not self._short.get(blk)}
        self._short.clear()
        if whole:
            set_located(handle, self._where(whole), epoch)
            handle.show_again(whole)
        mine = {oid for oid in oids.values() if oid is not None}
        return mine.union(*(self.parts.of(blk) for blk in oids))
