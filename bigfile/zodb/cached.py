"""Blocks of a ZBigFile in the cache that all processes of a machine share (lib.storage.blockcache).

It is here, and not below the storages, as what is kept is a block: assembled from its chunks, and
mapped. A storage knows only records.

A block is asked for
--------------------
    which revision does the Connection see?     one request for many blocks; no record is loaded
      known ──► is it there?  yes ──► a NamedFile, which the pager maps              (hit)
      unknown ► does an alias say which one, for this state?  as known
    else: load it from the storage, which says its revision ──► keep it ──► a NamedFile     (miss)
                                                                └── not kept: a Block, to be copied

A revision is unknown if the object has changed since the state that the Connection sees. This is so
for states of the past. Which revision such a state has never changes, and is noted as an alias.

Chunks
------
A writer that changes a chunk stores the block's object with it, so its revision names all bytes.
This is so since wendelin.core 0.13. Earlier versions may have stored a chunk alone. A block with a
chunk that is newer than itself is used only if the storage says, in one request, that no part of
it has changed since. A block of which a part changes alone while we have it is not used any more.
If that happens while no process has it, it is not noticed.

Other databases
---------------
A folder is of one database, by Lineage. It is looked for again when the storage cannot say what has
changed: another server may be there. Then the newest block of the folder is loaded from the
database, and compared. So a copy of a database that went its own way is found out: by the tid, and
where the clock was set back, by the bytes. Then the copy may have the same tids and, in its newest
transaction, the same bytes: all blocks of transactions whose tids are close are compared. If these
are many, some are, and the others are thrown away. Where the storage knows the checksum of a block,
that must be the one that is kept.

Aliases have no bytes to compare. If the database does not have a block that is kept, all aliases
are removed, and where tids are close there are none. So an alias may be wrong only if transactions
were lost of which no block is kept, and another one has the same tid.

This module knows a Connection and the cache. It does not know block numbers.

Locking: any thread. What is known of revisions belongs to one state. At a boundary it is replaced,
and not changed: a thread that asked before writes into what was replaced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from transaction.interfaces import TransientError
from ZODB.utils import z64

from wendelin.bigfile.virtmem.abilities import FilePieces, FileRange, NamedFile
from wendelin.bigfile.zodb.change import Block
from wendelin.bigfile.zodb.formats import load_block
from wendelin.bigfile.zodb.interfaces import RecordSource
from wendelin.bigfile.zodb.records import NotedRecords
from wendelin.lib.revisions import Revision, zconn_lineage, zconn_past, zconn_revisions
from wendelin.lib.storage.blockcache import Folder, cache_folder
from wendelin.lib.storage.cachefile import Database, Entry
from wendelin.lib.storage.fsalign import ALIGNMENT, SMALLEST
from wendelin.lib.storage.record import digest_of
from wendelin.lib.zodb import zconn_before

__all__ = ["CachedBlocks", "Found", "cached_blocks", "is_for_cache"]

log = logging.getLogger(__name__)

_PROBES = 4  # transactions that are compared until one is in the database
_MOST_COMPARED = 16  # blocks of transactions whose tids are close
_MOST_KNOWN = 1 << 16  # revisions
_AT_ONCE_GONE = 10.0  # a block that is kept, and gone within this time, is not kept again [s]


def is_for_cache(where: Any, blksize: int) -> bool:
    """Say whether a block is one for the cache: it cannot be mapped where it is.

    A short one in a file of this machine, as the last one of most arrays is, is copied by the
    kernel, which takes no Python. All others are for the cache.

    Parameters
    ----------
    where : result of mapblk
        For what the storage says of the block; None: it says nothing.
    blksize : int
        [bytes]
    """
    if where is None:
        return True
    if isinstance(where, FilePieces):
        return not where.is_mapped
    whole = isinstance(where, FileRange) and where.size == blksize
    return whole and where.offset % ALIGNMENT != 0


class Found(NamedTuple):
    """A block that is there."""

    file: NamedFile
    parts: frozenset[bytes]  # objects, besides its own, that it is made of


def _found(database: Database, oid: bytes, tid: bytes, entry: Entry) -> Found:
    file = NamedFile(database.fd, oid, tid, entry.size, entry.digest)
    return Found(file, frozenset(entry.oids()))


def cached_blocks(conn: Any, blksize: int, verify: bool) -> CachedBlocks | None:
    """Return the CachedBlocks of a file; None: the cache is off, or its blocks are not kept.

    Raises
    ------
    ValueError, OSError
        See cache_folder().
    """
    folder = cache_folder() if takes(blksize) else None
    return None if folder is None else CachedBlocks(folder, conn, blksize, verify)


def takes(blksize: int) -> bool:
    """Say whether blocks of a size [bytes] are kept: a file for less is a waste."""
    return blksize >= SMALLEST


class CachedBlocks:
    """The blocks of a file in the cache.

    Parameters
    ----------
    folder : Folder
    conn : Connection
    blksize : int
        Block size [bytes]
    verify : bool
        Compare each block with its checksum before it is used.
    """

    def __init__(self, folder: Folder, conn: Any, blksize: int, verify: bool) -> None:
        self._folder = folder
        self._conn = conn
        self._blksize = blksize
        self._verify = verify
        self._database: Database | None = None
        self._looked = False  # for the database
        self._known: dict[bytes, Revision | None] = {}
        # blocks that were found, or kept: when they were kept, by time.monotonic()
        self._seen: dict[tuple[bytes, bytes], float] = {}
        # folders that pages may be mapped from: their descriptors stay open
        self._opened: list[Database] = []
        self._suspects: set[bytes] = set()
        self.hits = self.misses = 0

    def state_changed(self, *, unsure: bool = False) -> None:
        """The Connection has moved to another state; unsure: maybe to another database."""
        self._known = {}
        if unsure:
            self._looked = False

    def _open(self) -> Database | None:
        if self._database is not None and not self._database.is_there():
            self._looked, self._database = False, None
        if not self._looked and not self._folder.is_left_out:
            self._looked, self._database = True, None
            try:
                lineage = zconn_lineage(self._conn)
                if lineage is not None:
                    self._database = self._folder.database(lineage, self._has)
                    if self._database is None:
                        self._looked = False  # it is left out for a while
            except OSError as e:
                self._folder.failed(e)
            except TransientError:
                self._looked = False
                raise
            if self._database is not None:
                self._opened.append(self._database)
        return self._database

    def _has(self, database: Database) -> bool:
        """Say whether our database has what is kept in a folder, by the newest blocks there.

        A revision may have been packed away: then it is of no use, and others are compared.
        """
        for _ in range(_PROBES):
            newest = database.newest()
            compared, others = newest[:_MOST_COMPARED], newest[_MOST_COMPARED:]
            has = [self._has_block(database, oid, tid) for oid, tid in compared]
            if False in has:
                return False
            missing = [of for of, there in zip(compared, has, strict=True) if there is None]
            if missing:  # aliases first: without these blocks nobody would doubt them
                database.forget_states()
            if True in has:  # to load the others again takes no longer than to compare them
                missing += others
            for oid, tid in missing:
                database.throw_away(oid, tid)
            if True in has or not has:
                return True
        return False

    def _has_block(self, database: Database, oid: bytes, tid: bytes) -> bool | None:
        """Say whether our database has a block as it is in a folder; None: it is not there."""
        entry = database.find(oid, tid, touch=False)
        if entry is None:
            return None
        records = NotedRecords(zconn_past(self._conn, tid))
        try:
            block = load_block(oid, records, entry.blksize)
        except TransientError:
            raise
        except Exception:
            records.tids.clear()
        if records.tids.get(oid) == tid:
            return bool(digest_of([block.data]) == entry.digest)
        return None

    # ---- what is there ----

    def find(self, oids: list[bytes]) -> dict[bytes, Found]:
        """Return those of some blocks that are there, in the state that the Connection sees."""
        database = self._open()
        if database is None:
            return {}
        found: dict[bytes, Found] = {}
        known = self._revisions(oids)
        before = zconn_before(self._conn)
        entries: dict[tuple[bytes, bytes], Entry] = {}
        for oid in oids:
            if oid in self._suspects:
                continue
            tid, digest = known.get(oid) or (None, None)
            if tid is None and before is not None:
                tid = database.revision(oid, before)
            if tid is None:
                continue
            entry = database.find(oid, tid, self._blksize, digest, check=self._verify)
            if entry is not None and (entry.latest == z64 or len(oids) == 1):
                entries[oid, tid] = entry
        for oid, tid in self._current(entries):
            found[oid] = _found(database, oid, tid, entries[oid, tid])
            if (oid, tid) not in self._seen:
                self.hits += 1
                self._seen[oid, tid] = 0.0
        return found

    def expect(self, oids: Iterable[bytes]) -> None:
        """Be told of blocks that are asked for soon: their revisions are one request."""
        if self._database is not None:
            self._revisions(list(oids))

    def _revisions(self, oids: list[bytes]) -> dict[bytes, Revision | None]:
        known = self._known
        if len(known) > _MOST_KNOWN:
            known = self._known = {}
        ask = [oid for oid in oids if oid not in known]
        if ask:
            known.update(zip(ask, zconn_revisions(self._conn, ask), strict=True))
        return known

    def _current(self, entries: dict[tuple[bytes, bytes], Entry]) -> Iterator[tuple[bytes, bytes]]:
        """Yield those of which no part has changed since they were kept."""
        for name, entry in entries.items():
            parts = entry.oids() if entry.latest != z64 else []
            if all(
                of is not None and of.tid <= entry.latest
                for of in zconn_revisions(self._conn, parts)
            ):
                yield name

    def suspect(self, oids: set[bytes]) -> None:
        """Be told of blocks of which a part has changed, and their own objects have not."""
        self._suspects.update(oids)

    # ---- what is not there ----

    def load(
        self, oid: bytes, records: RecordSource, blksize: int, into: memoryview
    ) -> Found | Block:
        """Load a block from the database, and keep it. A Block: it is not kept.

        The parameters are those of load_block(); records are noted here, besides.

        Raises
        ------
        Exception
            See load_block().
        """
        self.misses += 1
        before = zconn_before(self._conn)
        noted = NotedRecords(self._conn)
        block = load_block(oid, noted, blksize, into)
        tid = noted.tids.get(oid)
        database = self._open()
        # Its parts were loaded later: only if the state is the same are they all of one revision.
        same = before is not None and zconn_before(self._conn) == before
        if database is None or tid is None or not same or not len(block.data):
            return block
        latest = z64
        if block.parts:
            tids = [noted.tids.get(part) for part in block.parts]
            if None in tids:  # it lies in a file, and the storage was not asked
                found = zconn_revisions(self._conn, list(block.parts))
                tids = [None if of is None else of.tid for of in found]
            if None in tids:
                return block
            latest = max(filter(None, tids))
            latest = latest if latest > tid else z64
        if oid in self._suspects:
            self._suspects.discard(oid)
            database.throw_away(oid, tid)
        elif self._was_kept(oid, tid):
            return block
        data, parts = block.data, sorted(block.parts)
        entry = database.store(oid, tid, data, self._blksize, parts, latest, block.digest)
        if entry is None:
            return block
        if self._known.get(oid, self) is None and before is not None:
            database.see(oid, before, tid)
        return _found(database, oid, tid, entry)

    def throw_away(self, oid: bytes) -> None:
        """A block does not match its checksum: remove it, so that it is loaded again."""
        revision = self._known.get(oid)
        if self._database is not None and revision is not None:
            self._database.throw_away(oid, revision.tid)

    def _was_kept(self, oid: bytes, tid: bytes) -> bool:
        """Say whether a block was kept just now: then the cache is too small for what is read."""
        now = time.monotonic()
        if len(self._seen) > _MOST_KNOWN:
            self._seen.clear()
        before, self._seen[oid, tid] = self._seen.get((oid, tid), 0.0), now
        return before > 0 and now - before < _AT_ONCE_GONE
