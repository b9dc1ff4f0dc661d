"""Trim of a Data.fs: room of old revisions comes back, and the file is not written anew.

A large record that is in no state from a moment on becomes a short one, "packed away"
(trimmed.PackedAway), and the rest of its bytes is punched out of the file: a hole takes no room.
Records keep their headers, lengths and places. Stock FileStorage opens, iterates and packs it.

Steps. A kill or a power failure between any two of them leaves a file that is right:

1. what can be reached is found, as a pack does; no payload is read;
2. the last transaction before the moment is marked as packed ('p'), and synced: from there on back
   nothing can be undone, as that would bring a trimmed revision back;
3. the short records are written, and synced;
4. buffers of the storage that may have the heads as they were are dropped;
5. the holes are made. The next trim makes those that were not made.

Nobody reads zeros. A Connection that maps blocks of a state holds it (fsholds), in any process, and
what is in a held state is not trimmed. A record that is copied is compared with its checksum.

Locking: the commit lock in 2; `packing`, as a pack, in all of it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from errno import EINTR, ENOSYS, EOPNOTSUPP
from typing import Any, NamedTuple

from persistent.TimeStamp import TimeStamp
from ZODB.FileStorage.FileStorage import FileStorageError, RedundantPackWarning
from ZODB.FileStorage.format import DATA_HDR_LEN
from ZODB.fsIndex import fsIndex
from ZODB.POSException import ReadOnlyError
from ZODB.utils import p64, u64, z64

from wendelin.lib.storage.fsholds import free_before
from wendelin.lib.storage.fsreach import Reachable
from wendelin.lib.storage.fsscan import FIRST
from wendelin.lib.storage.tags import oldest_tag
from wendelin.lib.storage.trimmed import HEAD

__all__ = ["TRIM", "Trimmed", "trim"]

log = logging.getLogger(__name__)

#: what a client of a server gives it for the time of a pack begins with this, to ask for a trim;
#: then come before and keep
TRIM = "wendelin.core: trim"

#: a record that is smaller is left: it gives back little [bytes]
SMALLEST = 1 << 14
_PAGE = 4096  # of holes [bytes]

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of fallocate(2)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Trimmed(NamedTuple):
    """What a trim has done."""

    before: bytes  # states at this tid and later are kept
    revisions: int
    freed: int  # [bytes]


class _Record(NamedTuple):
    oid: bytes
    pos: int  # of its header
    size: int  # behind that [bytes]
    back: int  # where the bytes are, if size is 0

    @property
    def hole(self) -> tuple[int, int]:
        """What can be punched: [start, stop)."""
        start = self.pos + DATA_HDR_LEN
        return -(-(start + len(HEAD)) // _PAGE) * _PAGE, (start + self.size) // _PAGE * _PAGE


def _punch(fd: int, start: int, stop: int) -> None:
    while _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, start, stop - start) != 0:
        error = ctypes.get_errno()
        if error != EINTR:
            raise OSError(error, os.strerror(error))


def _check_punches(fd: int, name: str) -> None:
    """Punch behind the end of the file, where nothing is."""
    start = (os.fstat(fd).st_size // _PAGE + 2) * _PAGE
    try:
        _punch(fd, start, start + _PAGE)
    except OSError as e:
        if e.errno not in (EOPNOTSUPP, ENOSYS):
            raise
        raise OSError(
            e.errno,
            f"the file system of {name} cannot punch holes into files, so no room comes back by a "
            f"trim: nothing was changed. Pack the database",
        ) from e


def trim(storage: Any, before: float | bytes | None, keep: int, referencesf: Any) -> Trimmed:
    """Trim an AlignedFileStorage; see AlignedFileStorage.trim()."""
    if storage.isReadOnly():
        raise ReadOnlyError
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
        raise ValueError(f"keep is {keep!r}: it must be the number of revisions, 1 at least")
    tid = _tid_of(storage, before)
    with storage.state_lock:
        if storage.packing:
            raise FileStorageError("Already packing, or trimming")
        storage.packing = True
    try:
        with open(storage.path, "r+b", 0) as file:
            if not os.path.sameopenfile(file.fileno(), storage.file.fileno()):
                raise FileStorageError(f"{storage.path} was replaced by another file")
            _check_punches(file.fileno(), storage.path)
            return _trim(storage, file, free_before(file.fileno(), tid), keep, referencesf)
    finally:
        with storage.state_lock:
            storage.packing = False


def _tid_of(storage: Any, before: float | bytes | None) -> bytes:
    """Return the tid of a moment; all that tags keep is kept."""
    if isinstance(before, bytes):
        if len(before) != 8:
            raise ValueError(f"before is {before!r}: a tid has 8 bytes")
        tid = before
    else:
        when = time.time() if before is None else float(before)
        tid = bytes(TimeStamp(*time.gmtime(when)[:5], when % 60).raw())
    if before is None:  # also what was committed in this moment
        tid = max(tid, p64(u64(storage.lastTransaction()) + 1))
    tag = oldest_tag(storage)
    if tag is not None and (limit := p64(u64(tag[1]) + 1)) < tid:
        log.warning(
            "%s: trimmed before %s UTC, not later: the tag %r keeps that moment",
            storage.getName(),
            TimeStamp(tag[1]),
            tag[0],
        )
        tid = limit
    return tid


def _trim(storage: Any, file: Any, before: bytes, keep: int, referencesf: Any) -> Trimmed:
    fd = file.fileno()
    name = storage.path
    end = storage.getSize()
    # a state sees what is before it: that is what a pack at the moment before keeps
    stop = p64(u64(before) - 1) if before > z64 else z64
    with open(name, "rb") as source:
        walk = _Walk(source, end, stop, storage.pack_gc, referencesf)
        walk.find()
        records = _unreachable(walk, keep)
    if not records:
        return Trimmed(before, 0, 0)
    with storage.commit_lock:  # no undo is on its way
        _mark(storage, fd, before)
        with open(name, "rb") as source:
            if walk.see_later(source, end, storage.getSize()):
                records = _unreachable(walk, keep)
    new = [record for record in records if not _is_packed_away(fd, record)]
    blocks = os.fstat(fd).st_blocks
    for record in new:
        os.pwrite(fd, HEAD, record.pos + DATA_HDR_LEN)
    os.fdatasync(fd)
    with storage.readers.write_lock(), storage.state_lock:
        storage.readers.empty()
        storage.file.flush()
    for record in records:
        start, stop_ = record.hole
        if start < stop_ and _has_data(fd, start, stop_):
            _punch(fd, start, stop_)
    os.fdatasync(fd)
    freed = max(0, blocks - os.fstat(fd).st_blocks) * 512
    storage.bytes_changed()
    log.info("%s: %d revisions were trimmed, %d bytes freed", name, len(new), freed)
    return Trimmed(before, len(new), freed)


class _Walk(Reachable):
    """Finds what is in the states from a moment on.

    A pack takes what is not reachable at its time for garbage, though a later record may refer to
    it. Here that counts, too. And it goes on after a reference to nothing.
    """

    def find(self) -> None:
        """Find it."""
        with suppress(RedundantPackWarning):
            self.buildPackIndex()
        if not self.gc:
            self.reachable = fsIndex(self.oid2curpos)
        self.findReachableAtPacktime([z64])
        self._see(self.packpos)

    def findReachableAtPacktime(self, roots: Any) -> None:
        """Find what is reachable from objects; see GC."""
        todo = list(roots) if self.gc else []
        while todo:
            oid = todo.pop()
            pos = self.oid2curpos.get(oid)
            if pos is not None and oid not in self.reachable:
                self.reachable[oid] = pos
                todo += self.findrefs(pos)

    def see_later(self, file: Any, start: int, stop: int) -> bool:
        """Find what transactions of later on reach; say whether that is more."""
        self.file, self.eof = file, stop
        found = len(self.reachable), sum(map(len, self.reach_ex.values()))
        self._see(start)
        return found != (len(self.reachable), sum(map(len, self.reach_ex.values())))

    def _see(self, pos: int) -> None:
        for record in _records(self, pos, self.eof):
            if 0 < record.back < self.packpos and self.reachable.get(record.oid) != record.back:
                self.reach_ex.setdefault(record.oid, [])
                if record.oid not in self.reachable:
                    self.reachable[record.oid] = record.back
                elif record.back not in self.reach_ex[record.oid]:
                    self.reach_ex[record.oid].append(record.back)
            if self.gc and (record.size or record.back):
                self.findReachableAtPacktime(self.findrefs(record.pos))


def _mark(storage: Any, fd: int, before: bytes) -> None:
    """Mark the last transaction before a tid as packed."""
    pos = storage.getSize()
    while pos > FIRST:
        pos -= 8 + int.from_bytes(os.pread(fd, 8, pos - 8), "big")
        header = os.pread(fd, 17, pos)
        if header[:8] < before:
            if header[16:17] == b" ":
                os.pwrite(fd, b"p", pos + 16)
                os.fdatasync(fd)
            break
    with storage.readers.write_lock(), storage.state_lock:
        storage.readers.empty()
        storage.file.flush()


def _unreachable(walk: Reachable, keep: int) -> list[_Record]:
    """Return large records that are in no state which is kept."""
    found: list[_Record] = []
    last: dict[bytes, list[_Record]] = {}  # of each object, the superseded ones that are kept
    for record in _records(walk, FIRST, walk.packpos):
        if walk.isReachable(record.oid, record.pos):
            continue
        if keep > 1 and record.oid in walk.reachable:
            older = last.setdefault(record.oid, [])
            older.append(record)
            if len(older) < keep:
                continue
            record = older.pop(0)
        if record.size >= SMALLEST:
            found.append(record)
    positions = [*walk.reachable.values()]
    positions += [pos for some in walk.reach_ex.values() for pos in some]
    positions += [record.pos for some in last.values() for record in some]
    kept = _behind_references(walk, positions)
    return [record for record in found if record.pos not in kept]


def _records(walk: Reachable, pos: int, stop: int) -> Iterator[_Record]:
    """Yield the records of the transactions in [pos, stop)."""
    while pos < stop:
        transaction = walk.read_transaction(pos)
        at, end = pos + transaction.headerlen(), pos + transaction.tlen
        while at < end:
            header = walk.read_record(at)
            yield _Record(header.oid, at, header.plen, header.back)
            at += header.recordlen()
        pos = end + 8


def _behind_references(walk: Reachable, positions: list[int]) -> set[int]:
    """Return the records that records have their bytes from, as an undo makes them."""
    kept: set[int] = set()
    for pos in positions:
        header = walk.read_record(pos)
        while not header.plen and header.back and header.back not in kept:
            kept.add(header.back)
            header = walk.read_record(header.back)
    return kept


def _is_packed_away(fd: int, record: _Record) -> bool:
    return os.pread(fd, len(HEAD), record.pos + DATA_HDR_LEN) == HEAD


def _has_data(fd: int, start: int, stop: int) -> bool:
    try:
        return os.lseek(fd, start, os.SEEK_DATA) < stop
    except OSError:  # a hole up to the end of the file
        return False
