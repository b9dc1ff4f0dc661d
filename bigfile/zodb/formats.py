"""Formats of blocks in ZODB: how a block of a ZBigFile is kept in objects.

A format is a persistent class, registered by its name in databases. It is used in two separate
ways:

- to read, by any thread that faults: load_block() finds the bytes in the records of the
  storage. No object is made, the Connection is not touched.
- to write, by the thread that commits: the objects, in the Connection's cache, get the page that
  they are stored from, and take its bytes when they are pickled. So memory holds one block more
  than the pages, not all of them twice.

Formats
-------
    ZBlk0       one object, whose state is the block's bytes. Read, and mapped, as a whole; the
                change of a byte stores a block
    ZBlk1       an IOBTree of chunks, ZData objects. The change of a byte stores a chunk; to read it
                takes an object a chunk. Written as ZBlk1, chunks have 4 KiB: the first change of a
                block of larger ones, or of a ZBlk0, stores all of it
    auto        not a format, but the choice between them, at each commit, for each block:
    format_for.
                Its chunks are runs of bytes that were changed together, at most a 16th of the
                block, or were not, at most a quarter

Chunks of auto
--------------
A block is cut into cells: a CELLS-th of it, rounded down to whole pages, and one page at least.
Each contiguous piece that a commit adds to a cell becomes a chunk. A block that would be one chunk
of a page is one object. The page in which an append ends is a chunk of its own, as the next append
changes it. So an append of any size is a few objects. The change of a byte in a block that is one
object makes six chunks of it: three quarters, and of the other one an eighth and two cells; more of
them, none larger, of a block that is not a power of two cells. A chunk that is larger than a cell
is cut in this way when it changes, and others are stored again with the same bounds. A change that
fills a block, or covers most of it, stores it as one object.

The states are fixed: see docs/formats.md. This module knows pickles and blocks; it does not know
the number of a block, nor its file.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from BTrees.IOBTree import IOBTree, IOBTreePy
from persistent import Persistent
from ZODB.serialize import ObjectWriter

from wendelin.bigfile.virtmem.buffer import used_of
from wendelin.bigfile.zodb.btree import read_items
from wendelin.bigfile.zodb.buckets import read_reference
from wendelin.bigfile.zodb.change import CELLS, CHUNK, Block, Change, trimmed
from wendelin.bigfile.zodb.interfaces import PageSource, RecordSource
from wendelin.lib.adapters.connection import set_changed
from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.storage.fsrecord import Located
from wendelin.lib.storage.pad import BytesRecord
from wendelin.lib.storage.record import (
    RecordError,
    Ref,
    as_bytes,
    bytes_state,
    class_of,
    find_payload,
    is_bytes,
    state_of,
)
from wendelin.lib.storage.trimmed import PACKED_AWAY, TrimmedError
from wendelin.lib.utils import override
from wendelin.lib.zodb import btree_nodes, btree_values

__all__ = [
    "FORMATS",
    "ZDATA",
    "Maker",
    "TidOf",
    "ZBlk0",
    "ZBlk1",
    "ZBlkBase",
    "ZData",
    "check_format",
    "class_name",
    "empty_record",
    "format_for",
    "format_name",
    "is_chunk",
    "is_plain",
    "is_whole",
    "load_block",
    "table_of",
]

_MODULE = "wendelin.bigfile.file_zodb"  # where databases have the classes
ZDATA = f"{_MODULE}.ZData"  #: the class of a chunk, in a database


#: makes the record of an object from its pickle without bytes
Maker = Callable[[bytes], BytesRecord]
#: (oid) -> transaction that wrote the object
TidOf = Callable[[bytes], bytes]


def _state(buf: memoryview) -> memoryview:
    """Return the part of a block that is stored: trailing zeros are cut, if there are enough.

    A few zeros, such as the last number's high bytes, stay: a block that is stored whole can be
    mapped from the file.
    """
    cut = trimmed(buf[: used_of(buf)])
    return buf if 0 < len(buf) - len(cut) < len(buf) // 512 else cut


# ---- blocks as objects ----


class ZBlkBase(Persistent):  # type: ignore[misc]  # persistent has no type hints
    """A block as a persistent object.

    It has bytes only while it is stored: `_v_page` says where they are.
    """

    __module__ = _MODULE

    _p_changed: Any  # by Persistent

    @classmethod
    @abstractmethod
    def load(
        cls, record: bytes, records: RecordSource, blksize: int, into: memoryview | None = None
    ) -> Block:
        """Return the block from its record and others.

        Parameters
        ----------
        record : bytes
        records : Records
        blksize : int
            [bytes]
        into : memoryview, optional
            Zeros [blksize bytes], into which the block may be loaded.

        Raises
        ------
        RecordError
            The record is not of this format.
        """

    @abstractmethod
    def store_from(
        self, page: PageSource, blk: int, change: Change, tid_of: TidOf
    ) -> dict[bytes, Maker]:
        """Mark the object as changed, and those of its parts that the change is in.

        Called in the thread of the Connection that has the object, as a function of the class: to
        look it up in a ghost would load that.

        Parameters
        ----------
        page : PageSource
        blk : int
        change : Change
            What changes in the block.
        tid_of : callable
            (oid) -> the transaction that wrote an object, as the Connection sees it.

        Returns
        -------
        dict of oid -> Maker
            For objects that are pickled without their bytes: makes the record that the Connection
            stores instead of the pickle.
        """

    def parts(self) -> frozenset[bytes]:
        """Return oids of the objects, besides itself, that it is made of, after it was stored.

        Objects that the commit has not touched may be missing.
        """
        return frozenset()

    def release(self) -> None:
        """Become a ghost, unless it has changes."""
        self._p_deactivate()


class _Bytes(Persistent):  # type: ignore[misc]  # persistent has no type hints
    """An object whose state is bytes; while these are in a page, it is pickled without them."""

    __module__ = _MODULE

    _p_changed: Any  # by Persistent
    _v_data: bytes

    def __getstate__(self) -> bytes:
        return getattr(self, "_v_data", b"")

    def __setstate__(self, state: Any) -> None:
        self._v_data = as_bytes(state)


def _set_changed(obj: _Bytes, tid_of: TidOf) -> None:
    """Mark an object as changed, to be pickled without bytes; see ZBlkBase.store_from()."""
    set_changed(obj, tid_of)
    obj._v_data = b""


class ZBlk0(_Bytes, ZBlkBase):
    """Format 0: the block as one object, whose state is its bytes, trailing zeros cut.

    It is pickled without them: see store_from().
    """

    __module__ = _MODULE

    @override
    @classmethod
    def load(
        cls, record: bytes, records: RecordSource, blksize: int, into: memoryview | None = None
    ) -> Block:
        found = find_payload(record)
        return Block(
            bytes_state(record, found),
            regular=is_bytes(record, found),
            has_checksum=found is not None and found.digest is not None,
            digest=None if found is None else found.digest,
        )

    @override
    def store_from(
        self, page: PageSource, blk: int, change: Change, tid_of: TidOf
    ) -> dict[bytes, Maker]:
        _set_changed(self, tid_of)
        few = change.copied()
        if few is not None:  # of one of thousands of small arrays, for one
            return {self._p_oid: lambda like: BytesRecord(like, memoryview(few))}
        return {self._p_oid: lambda like: BytesRecord(like, _state(page.page_buffer(blk)))}


@cache
def empty_record() -> bytes:
    """Return the record of a block object that another one replaces."""
    return bytes(ObjectWriter().serialize(ZBlk0()))


class ZData(_Bytes):
    """A chunk of a ZBlk1: its bytes, trailing zeros cut."""

    __module__ = _MODULE


class ZBlk1(ZBlkBase):
    """Format 1: an IOBTree, offset in the block [bytes] -> ZData.

    Chunks of any size, at any offset, are read, if they do not overlap. It writes the chunks of
    Change.layout, except those that are all zeros. If existing chunks do not fit that, or are of
    Python 2, all chunks are written again.
    """

    __module__ = _MODULE

    chunktab: IOBTree

    def __init__(self) -> None:
        self.chunktab = IOBTree()

    def __getstate__(self) -> IOBTree:
        # Pages depend on this object: it changes with each of its chunks.
        return self.chunktab

    def __setstate__(self, state: Any) -> None:
        # a damaged reference gives an object its class: stored again, it would be in all of them
        if not isinstance(state, IOBTree | IOBTreePy):
            raise RecordError(f"a ZBlk1 with a {type(state).__name__} for its chunks")
        self.chunktab = state

    @override
    @classmethod
    def load(
        cls, record: bytes, records: RecordSource, blksize: int, into: memoryview | None = None
    ) -> Block:
        root = _reference_in(record)
        if not isinstance(root, Ref):
            raise RecordError(f"a ZBlk1 with a {type(root).__name__} for its chunks")
        oids, nodes, chained = read_items(root, records.load_all, "IO", ZDATA)
        last = max(oids, default=0)
        data = into or memoryview(bytearray(blksize if 0 <= last < blksize else 0))
        stop = 0  # of the chunks so far
        regular = chained
        checksums = True
        extents: list[tuple[int, int]] = []
        pieces = _chunks(list(oids.values()), records)
        for (start, oid), piece in zip(oids.items(), pieces, strict=True):
            before, stop = stop, start + piece.size
            if not before <= start or stop > blksize:
                raise RecordError(
                    f"chunk {oid.hex()} has bytes [{start}, {stop}): the previous one "
                    f"ends at {before}, and the block at {blksize}"
                )
            piece.read_into(data[start:stop])
            regular &= start % CHUNK == 0 and piece.is_bytes
            checksums &= piece.has_checksum
            extents.append((start, max(stop, start + 1)))
        return Block(
            data[:stop],
            nodes.union(oids.values()),
            regular,
            checksums and bool(extents),
            tuple(extents) if regular else None,
        )

    @override
    def store_from(
        self, page: PageSource, blk: int, change: Change, tid_of: TidOf
    ) -> dict[bytes, Maker]:
        layout = change.layout
        if layout.anew:
            self.chunktab = IOBTree()
        self._p_changed = True
        for start in layout.removed:
            del self.chunktab[start]
        records: dict[bytes, Maker] = {}
        source = _PageOnce(page, blk)
        for start, stop in sorted(layout.changed + layout.added):
            chunk = self.chunktab.get(start)
            if chunk is None:
                chunk = self.chunktab[start] = ZData()
                self._p_jar.add(chunk)  # so they are stored in their order
            elif type(chunk) is not ZData:
                # a damaged reference elsewhere, which was loaded first, gives it its class
                cls = f"{type(chunk).__module__}.{type(chunk).__qualname__}"
                raise RecordError(
                    f"chunk {chunk._p_oid.hex()} cannot be changed: another object of the database "
                    f"refers to it as a {cls}, and it would be stored as one"
                )
            _set_changed(chunk, tid_of)
            records[chunk._p_oid] = source.chunk(start, stop)
        return records

    @override
    def parts(self) -> frozenset[bytes]:
        return frozenset(obj._p_oid for obj in self._in_memory() if obj._p_oid is not None)

    @override
    def release(self) -> None:
        for obj in list(self._in_memory()):
            obj._p_deactivate()
        super().release()

    def _in_memory(self) -> Iterator[Any]:
        """Yield nodes of the chunk table, and chunks, that are not ghosts."""
        if self._p_changed is None:
            return
        for node in btree_nodes(self.chunktab):
            yield node
            for chunk in btree_values(node):
                if chunk._p_changed is not None:
                    yield chunk


class _Chunk(NamedTuple):
    """A chunk, as it is in the database: its bytes, or where they lie in a file."""

    size: int  # [bytes]
    data: memoryview | bytes | Located
    is_bytes: bool  # see record.is_bytes
    has_checksum: bool

    def read_into(self, into: memoryview) -> None:
        """Copy the bytes; raise ChecksumError if they do not match their checksum."""
        if isinstance(self.data, Located):
            self.data.read_into(into)
        else:
            into[:] = self.data


def _chunks(oids: list[bytes], records: RecordSource) -> list[_Chunk]:
    """Return chunks by their objects.

    Raises
    ------
    RecordError
        One of them is not a ZData.
    ChecksumError
        One does not match its checksum.
    """
    chunks: dict[bytes, _Chunk] = {}
    for oid, found in zip(oids, records.locate(oids), strict=True):
        # a chunk with a checksum was written by us
        if found is not None and found.digest is not None and class_of(found.head) == ZDATA:
            chunks[oid] = _Chunk(found.size, found, True, True)
    others = [oid for oid in oids if oid not in chunks]
    head = b""  # of the previous chunk: most have one writer, and equal heads are parsed once
    for oid, record in zip(others, records.load_all(others) if others else (), strict=True):
        payload = find_payload(record)
        if payload is None or record[: payload.state] != head:
            if class_of(record) != ZDATA:
                _check_kept(oid, record)
                raise RecordError(f"chunk {oid.hex()} is a {class_of(record)}, not a ZData")
            head = record[: payload.state] if payload is not None else b""
        data = bytes_state(record, payload)
        checked = payload is not None and payload.digest is not None
        chunks[oid] = _Chunk(len(data), data, is_bytes(record, payload), checked)
    return [chunks[oid] for oid in oids]


def _check_kept(oid: bytes, record: bytes) -> None:
    """Raise TrimmedError for an object of which this revision was trimmed."""
    if class_of(record) == PACKED_AWAY:
        raise TrimmedError(
            f"this revision of object 0x{oid.hex()} was trimmed: the database does not keep a "
            f"state as old as this one"
        )


class _PageOnce:
    """The bytes of a page from which several chunks are stored: mapped once for all of them."""

    def __init__(self, page: PageSource, blk: int) -> None:
        self._page, self._blk = page, blk
        self._data: memoryview | None = None
        self._left = 0  # chunks

    def chunk(self, start: int, stop: int) -> Maker:
        """Return a function that makes the record of a chunk [bytes of the page]; call it once."""
        self._left += 1
        return lambda like: BytesRecord(like, trimmed(self._bytes()[start:stop]))

    def _bytes(self) -> memoryview:
        data = self._page.page_buffer(self._blk) if self._data is None else self._data
        self._left -= 1
        self._data = data if self._left else None
        return data


# ---- which format ----

#: name of the class in databases -> class; ZBlk is the name of ZBlk0 in early ones
FORMATS: dict[str, type[ZBlkBase]] = {"ZBlk0": ZBlk0, "ZBlk1": ZBlk1, "ZBlk": ZBlk0}

_CHOICES = ("ZBlk0", "ZBlk1", "auto")


def check_format(name: str, where: str = "zblk_fmt") -> str:
    """Return the name of a format to write.

    Raises
    ------
    ValueError
        There is no format of that name.
    """
    if name not in _CHOICES:
        raise ValueError(f"{where} is {name!r}: it must be one of {', '.join(_CHOICES)}")
    return name


def format_name(name: str | None) -> str:
    """Return the name of the format to write; None: that of WENDELIN_CORE_ZBLK_FMT, or auto.

    Raises
    ------
    ValueError
        WENDELIN_CORE_ZBLK_FMT names no format.
    """
    if name is None:
        name = os.environ.get("WENDELIN_CORE_ZBLK_FMT", "auto")
        check_format(name, "WENDELIN_CORE_ZBLK_FMT")
    return name


def format_for(name: str, change: Change) -> type[ZBlkBase]:
    """Return the format for storing a changed block.

    Parameters
    ----------
    name : {'ZBlk0', 'ZBlk1', 'auto'}
        'auto': a block that is mostly changed, or that an append has filled to its end, is stored
        whole, for readers; smaller changes are stored in chunks.
    """
    if name != "auto":
        return FORMATS[name]
    if change.is_small and (change.old is None or not change.old.parts):
        return ZBlk0  # its one chunk would be a second object, and its table a third
    chunks = len(change.used)
    if 2 * np.count_nonzero(change.changed) >= chunks:
        return ZBlk0
    mostly_used = 2 * np.count_nonzero(change.used) >= chunks
    if change.is_append:
        # A block that ends in zeros may be full, too. So it is stored whole when it reaches the
        # last CHUNK, and once more when it reaches the last byte.
        filled = change.used[-1] and mostly_used and (not change.was_full or change.fills)
        return ZBlk0 if filled else ZBlk1
    old, layout = change.old, change.layout
    if old is not None and not old.parts:  # it is whole: by the cells in which it changes
        edges = np.arange(0, chunks, change.cell)
        cells = np.logical_or.reduceat(change.changed, edges)
        return ZBlk0 if 4 * np.count_nonzero(cells) >= 3 * len(cells) else ZBlk1
    n = len(layout.added) + (len(old.chunks) if old is not None and old.chunks else 0)
    scattered = mostly_used and n > 4 * CELLS  # slow to read, by changes that were not appends
    return ZBlk0 if scattered or 4 * layout.stored >= 3 * chunks * CHUNK else ZBlk1


# ---- reading ----


def class_name(cls: str) -> str:
    """Return the format of the class "module.name" of a database; else the name of the class."""
    fmt = FORMATS.get(cls.removeprefix(f"{_MODULE}."))
    return cls if fmt is None else fmt.__name__


def _format_of(record: memoryview | bytes) -> type[ZBlkBase] | None:
    """Return the format of a record, or of the beginning of one; None if it is not a block."""
    return FORMATS.get(class_of(record).removeprefix(f"{_MODULE}."))


def table_of(record: bytes) -> Ref | None:
    """Return the table of the chunks of a block, from its record; None: it is not in chunks."""
    if _format_of(record) is not ZBlk1:
        return None
    root = _reference_in(record)
    return root if isinstance(root, Ref) else None


def _reference_in(record: bytes) -> Any:
    """Return a state that should be a reference."""
    found = read_reference(record)
    return state_of(record) if found is None else Ref(*found)


@lru_cache(64)  # there is one head for each writer
def is_plain(head: bytes) -> bool:
    """Say whether the state of a record is the block's bytes; head is its beginning."""
    return _format_of(head) is ZBlk0


@lru_cache(64)
def is_chunk(head: bytes) -> bool:
    """Say whether a record is that of a chunk; head is its beginning."""
    return class_of(head) == ZDATA


def is_whole(found: Located, blksize: int) -> bool:
    """Say whether the bytes of a block can be mapped where they are; else they are copied."""
    return found.size == blksize and found.offset % ALIGNMENT == 0


def load_block(
    oid: bytes, records: RecordSource, blksize: int, into: memoryview | None = None
) -> Block:
    """Return a block object of any format; see ZBlkBase.load().

    Raises
    ------
    RecordError
        It is not a block, or damaged.
    ChecksumError
        Its bytes do not match their checksum.
    Exception
        The exception of the storage.
    """
    record = records.load(oid)
    cls = _format_of(record)
    if cls is None:
        _check_kept(oid, record)
        known = ", ".join(FORMATS)
        raise RecordError(
            f"object {oid.hex()} is a {class_of(record)}, which is not a block format (known: "
            f"{known})"
        )
    return cls.load(record, records, blksize, into)
