"""Formats of blocks in ZODB: how a block of a ZBigFile is kept in objects.

A format is a persistent class, registered by the name under which databases have it. It is
used in two ways that do not meet:

- to read, by any thread that faults: load_block() finds the bytes in the records of the
  storage. No object is made, the Connection is not touched.
- to write, by the thread that commits: the objects, in the Connection's cache, are given the
  page that they are to be stored from; they take its bytes when they are pickled. So memory
  holds one block more than the pages, not all of them twice.

Formats
-------
    ZBlk0       one object, whose state is the block's bytes. Read, and mapped, as a whole; the
                change of a byte stores a block
    ZBlk1       an IOBTree of chunks, ZData objects of 4 KiB. The change of a byte stores a chunk;
                to read it takes an object a chunk
    auto        no format, but the choice between them, at each commit, for each block: Writer

The states are fixed: see docs/formats.md. This room knows pickles and blocks; it does not
know which block of which file it deals with.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from BTrees.IOBTree import IOBTree
from numpy.typing import NDArray
from persistent import Persistent

from wendelin.bigfile.zodb.btree import read_items
from wendelin.bigfile.zodb.interfaces import PageSource, RecordSource
from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.storage.fsrecord import Located
from wendelin.lib.storage.record import (
    BytesRecord,
    RecordError,
    Ref,
    as_bytes,
    bytes_state,
    class_of,
    find_payload,
    is_bytes,
    state_of,
)
from wendelin.lib.zodb import btree_nodes, btree_values

__all__ = [
    "CHUNK",
    "FORMATS",
    "Block",
    "Change",
    "ZBlk0",
    "ZBlk1",
    "ZBlkBase",
    "ZData",
    "check_format",
    "class_name",
    "format_for",
    "is_plain",
    "is_whole",
    "load_block",
    "trimmed",
]

CHUNK = 4096  # of ZBlk1, as it is written [bytes]

_MODULE = "wendelin.bigfile.file_zodb"  # where databases have the classes


class Block(NamedTuple):
    """A block, as it is in the database."""

    data: memoryview | bytes  # zeros follow; as they were stored, if there is a checksum
    parts: frozenset[bytes] = frozenset()  # oids of the objects, besides its own, it is made of
    regular: bool = True  # its objects are as we write them, and can be changed
    has_checksum: bool = False  # and matches it


class Change:
    """What a commit changes in a block.

    Parameters
    ----------
    old : Block or None
        What is stored; None: nothing is.
    new : memoryview
        The block [blksize bytes].
    """

    def __init__(self, old: Block | None, new: memoryview) -> None:
        self.old = old
        self._new = new
        self._old = np.frombuffer(old.data if old is not None else b"", np.uint8)[: len(new)]

    def __bool__(self) -> bool:
        """Say whether anything changed."""
        new = np.frombuffer(self._new, np.uint8)
        n = len(self._old)
        return len(trimmed(self._new[n:])) != 0 or not np.array_equal(new[:n], self._old)

    @cached_property
    def used(self) -> NDArray[np.bool_]:
        """Chunks, of CHUNK bytes each, that have anything but zeros in them now."""
        return np.asarray(self._words(self._new).any(axis=1))

    @cached_property
    def changed(self) -> NDArray[np.bool_]:
        """Chunks that are not what they were."""
        result = self.used.copy()  # past the end of what is stored there were zeros
        n = len(self._old) // CHUNK
        whole = self._old[: n * CHUNK]
        result[:n] = (self._words(self._new[: n * CHUNK]) != self._words(whole)).any(axis=1)
        rest = self._old[n * CHUNK :]
        if len(rest):
            last = np.frombuffer(self._new[n * CHUNK :][:CHUNK], np.uint8)
            result[n] = last[len(rest) :].any() or not np.array_equal(last[: len(rest)], rest)
        return result

    @cached_property
    def was_full(self) -> bool:
        """Whether the last chunk had something in it."""
        return len(self._old) > len(self._new) - CHUNK

    @staticmethod
    def _words(data: Any) -> NDArray[np.uint64]:
        return np.frombuffer(data, np.uint64).reshape(-1, CHUNK // 8)


def trimmed(buf: memoryview | bytes) -> memoryview:
    """Return buf without its trailing zero bytes."""
    data = np.frombuffer(buf, np.uint8)
    stop = len(data)
    step = 4096
    # From the end, a little at first: most blocks end in something.
    while stop > 0:
        start = max(0, stop - step)
        nonzero = np.flatnonzero(data[start:stop])
        if len(nonzero):
            return memoryview(buf)[: start + int(nonzero[-1]) + 1]
        stop = start
        step = min(2 * step, 1 << 20)
    return memoryview(buf)[:0]


def _state(buf: memoryview) -> memoryview:
    """Return what of a block is stored: trailing zeros are cut, if there are enough of them.

    A few - the last number's high bytes, say - are not worth it: a block that is stored whole can
    be mapped from the file.
    """
    cut = trimmed(buf)
    return buf if 0 < len(buf) - len(cut) < len(buf) // 512 else cut


# ---- blocks as objects ----


class ZBlkBase(Persistent):  # type: ignore[misc]  # persistent has no type hints
    """A block as a persistent object.

    It has no bytes of its own but while it is stored: `_v_page` then says where they are.
    """

    __module__ = _MODULE

    _p_changed: Any  # by Persistent

    @classmethod
    @abstractmethod
    def load(cls, record: bytes, records: RecordSource, blksize: int) -> Block:
        """Return the block, as its record and others hold it.

        Raises
        ------
        RecordError
            The record is not of this format.
        """

    @abstractmethod
    def store_from(self, page: PageSource, blk: int, change: Change) -> None:
        """Take the bytes of a page, when this object is pickled.

        Called in the thread of the Connection, the object being in it. Marks itself, and those
        of its parts that the change is in, as changed.
        """

    def parts(self) -> frozenset[bytes]:
        """Return oids of the objects, besides itself, that it is made of, after it was stored.

        Those of what the commit has not touched may be missing.
        """
        return frozenset()

    def release(self) -> None:
        """Give up what it holds, and be a ghost; what is changed stays."""
        self._p_deactivate()


class _Bytes(Persistent):  # type: ignore[misc]  # persistent has no type hints
    """An object whose state is bytes: its own, or, while it is stored, those of a page."""

    __module__ = _MODULE

    _p_changed: Any  # by Persistent
    _v_data: bytes
    _v_source: Callable[[], memoryview] | None

    def set_source(self, source: Callable[[], memoryview]) -> None:
        """Be changed; the bytes are what source() returns when this is pickled."""
        self._p_changed = True  # a ghost is loaded for that
        self._v_data = b""
        self._v_source = source

    def __getstate__(self) -> bytes:
        source = getattr(self, "_v_source", None)
        return bytes(source()) if source is not None else getattr(self, "_v_data", b"")

    def __setstate__(self, state: Any) -> None:
        self._v_source = None
        self._v_data = as_bytes(state)


class ZBlk0(_Bytes, ZBlkBase):
    """Format 0: the block as one object, whose state is its bytes, trailing zeros cut.

    It is pickled without them. The Connection is to store record_from() in place of that.
    """

    __module__ = _MODULE

    @classmethod
    def load(cls, record: bytes, records: RecordSource, blksize: int) -> Block:
        """See ZBlkBase."""
        found = find_payload(record)
        return Block(
            bytes_state(record, found),
            regular=is_bytes(record, found),
            has_checksum=found is not None and found.digest is not None,
        )

    def store_from(self, page: PageSource, blk: int, change: Change) -> None:
        """See ZBlkBase."""
        self.set_source(lambda: memoryview(b""))

    @staticmethod
    def record_from(page: PageSource, blk: int, like: bytes) -> BytesRecord:
        """Return the record to be stored, its bytes not copied; `like`: as it was pickled."""
        return BytesRecord(like, _state(page.page_buffer(blk)))


class ZData(_Bytes):
    """A chunk of a ZBlk1: its bytes, trailing zeros cut."""

    __module__ = _MODULE


class ZBlk1(ZBlkBase):
    """Format 1: an IOBTree, offset in the block [bytes] -> ZData.

    Chunks of any size, at any offset, are read, if they do not overlap. CHUNK bytes at their
    multiples are written, and no chunk that is all zeros; where chunks are others, or of Python 2,
    all are written anew.
    """

    __module__ = _MODULE

    chunktab: IOBTree

    def __init__(self) -> None:
        self.chunktab = IOBTree()

    def __getstate__(self) -> IOBTree:
        # Whoever depends on the block looks at this object: it changes with each of its chunks.
        return self.chunktab

    def __setstate__(self, state: Any) -> None:
        self.chunktab = state

    @classmethod
    def load(cls, record: bytes, records: RecordSource, blksize: int) -> Block:
        """See ZBlkBase."""
        root = state_of(record)
        if not isinstance(root, Ref):
            raise RecordError(f"a ZBlk1 with a {type(root).__name__} for its chunks")
        oids, nodes, chained = read_items(root.oid, records.load_all, "IO")
        data = bytearray(max(oids, default=0) + CHUNK if max(oids, default=0) < blksize else 0)
        stop = 0  # of the chunks so far
        regular = chained
        head = b""  # of the chunk before: most are of one writer, who is looked at once
        loaded = records.load_all(list(oids.values()))
        for (start, oid), chunk in zip(oids.items(), loaded, strict=True):
            found = find_payload(chunk)
            if found is None or chunk[: found.state] != head:
                if class_of(chunk) != f"{_MODULE}.ZData":
                    raise RecordError(
                        f"chunk {oid.hex()} at {start} is a {class_of(chunk)}, and no ZData"
                    )
                head = chunk[: found.state] if found is not None else b""
            piece = bytes_state(chunk, found)
            if not stop <= start or start + len(piece) > blksize:
                raise RecordError(
                    f"chunk {oid.hex()} has bytes [{start}, {start + len(piece)}): the one before "
                    f"it ends at {stop}, and the block at {blksize}"
                )
            stop = start + len(piece)
            if len(data) < stop:
                data += bytes(stop - len(data))
            data[start:stop] = piece
            regular &= start % CHUNK == 0 and len(piece) <= CHUNK and is_bytes(chunk, found)
        parts = nodes.union(oids.values())
        return Block(memoryview(data)[:stop], parts, regular)

    def store_from(self, page: PageSource, blk: int, change: Change) -> None:
        """See ZBlkBase."""
        chunks = change.changed
        if change.old is None or not change.old.parts or not change.old.regular:
            self.chunktab = IOBTree()
            chunks = change.used
        self._p_changed = True
        for i in np.flatnonzero(chunks).tolist():
            start = i * CHUNK
            chunk = self.chunktab.get(start)
            if not change.used[i]:
                del self.chunktab[start]
                continue
            if chunk is None:
                chunk = self.chunktab[start] = ZData()
                self._p_jar.add(chunk)  # so they are stored in their order
            chunk.set_source(_chunk_of(page, blk, start))

    def parts(self) -> frozenset[bytes]:
        """See ZBlkBase."""
        return frozenset(obj._p_oid for obj in self._in_memory() if obj._p_oid is not None)

    def release(self) -> None:
        """See ZBlkBase."""
        for obj in list(self._in_memory()):
            obj._p_deactivate()
        super().release()

    def _in_memory(self) -> Iterator[Any]:
        """Yield nodes of the chunk table, and chunks, that are no ghosts."""
        if self._p_changed is None:
            return
        for node in btree_nodes(self.chunktab):
            yield node
            for chunk in btree_values(node):
                if chunk._p_changed is not None:
                    yield chunk


def _chunk_of(page: PageSource, blk: int, start: int) -> Callable[[], memoryview]:
    return lambda: trimmed(page.page_buffer(blk)[start : start + CHUNK])


# ---- which format ----

#: name of the class in databases -> class; ZBlk is what ZBlk0 was called in early ones
FORMATS: dict[str, type[ZBlkBase]] = {"ZBlk0": ZBlk0, "ZBlk1": ZBlk1, "ZBlk": ZBlk0}

_CHOICES = ("ZBlk0", "ZBlk1", "auto")


def check_format(name: str, where: str = "zblk_fmt") -> str:
    """Return the name of a format to write.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if name not in _CHOICES:
        raise ValueError(f"{where} is {name!r}: it must be one of {', '.join(_CHOICES)}")
    return name


def format_for(name: str | None, change: Change) -> type[ZBlkBase]:
    """Return the format that a changed block is to be stored in.

    Parameters
    ----------
    name : {'ZBlk0', 'ZBlk1', 'auto', None}
        None: what WENDELIN_CORE_ZBLK_FMT says, or ZBlk0. 'auto': what is mostly changed, and what
        an append has filled to its end, is stored whole, for readers; smaller changes in chunks.

    Raises
    ------
    ValueError
        WENDELIN_CORE_ZBLK_FMT names no format.
    """
    if name is None:
        name = os.environ.get("WENDELIN_CORE_ZBLK_FMT", "ZBlk0")
        check_format(name, "WENDELIN_CORE_ZBLK_FMT")
    if name != "auto":
        return FORMATS[name]
    chunks = len(change.used)
    mostly_changed = 2 * np.count_nonzero(change.changed) >= chunks
    mostly_used = 2 * np.count_nonzero(change.used) >= chunks
    filled = bool(change.used[-1]) and not change.was_full and mostly_used
    return ZBlk0 if mostly_changed or filled else ZBlk1


# ---- reading ----


def class_name(cls: str) -> str:
    """Return the format that "module.name" of a class in a database is; of no block, the class."""
    fmt = FORMATS.get(cls.removeprefix(f"{_MODULE}."))
    return cls if fmt is None else fmt.__name__


def _format_of(record: memoryview | bytes) -> type[ZBlkBase] | None:
    """Return the format of a record, or of the beginning of one; None: it is no block."""
    return FORMATS.get(class_of(record).removeprefix(f"{_MODULE}."))


@lru_cache(64)  # there are as many heads as writers
def is_plain(head: bytes) -> bool:
    """Say whether the state of such a record is the block's bytes; head is its beginning."""
    return _format_of(head) is ZBlk0


def is_whole(found: Located, blksize: int) -> bool:
    """Say whether a block can be mapped from where its bytes are; else they are copied."""
    return found.size == blksize and found.offset % ALIGNMENT == 0


def load_block(oid: bytes, records: RecordSource, blksize: int) -> Block:
    """Return a block object of any format.

    Raises
    ------
    RecordError
        It is no block, or damaged.
    ChecksumError
        Its bytes are not those that were stored.
    Exception
        What the storage raised.
    """
    record = records.load(oid)
    cls = _format_of(record)
    if cls is None:
        known = ", ".join(FORMATS)
        raise RecordError(
            f"object {oid.hex()} is a {class_of(record)}, which is no block format (known: {known})"
        )
    return cls.load(record, records, blksize)
