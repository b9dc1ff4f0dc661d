"""Formats, sizes, ages and places of the stored blocks of a ZBigFile, without loading them.

This module reads the block table, and asks the storage about records. It knows which blocks the
pager can map, but not pages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from wendelin.bigfile.zodb.btree import from_records, read_items, walk
from wendelin.bigfile.zodb.formats import ZDATA, class_name, is_plain, is_whole
from wendelin.bigfile.zodb.interfaces import FileInDatabase
from wendelin.bigfile.zodb.records import Records
from wendelin.lib.storage.fsrecord import Located
from wendelin.lib.storage.record import RecordError, Ref, class_of, state_of
from wendelin.lib.zodb import zconn_aligns_from, zconn_locate

__all__ = ["Place", "Stored", "inspect_blocks", "stored_numbers", "stored_size"]

_BATCH = 512  # blocks of one request
_LOADS = 50  # the load of a chunk table takes as long as asking for the size of so many records


class Place(Enum):
    """How a block gets into memory."""

    MAPPED = "mapped"  # it lies aligned in a file
    UNALIGNED = "unaligned"  # it is copied; after a pack of the file, it can be mapped
    COPIED = "copied"


class Stored(NamedTuple):
    """A block, as it is in a database."""

    blk: int
    oid: bytes
    format: str  # 'ZBlk0' or 'ZBlk1'; if it is not a block, the name of its class
    place: Place  # of a ZBlk0; of chunks, it depends on each of them, and COPIED is said
    size: int  # of all its records [bytes]
    tid: bytes  # of the last change


def _table(zfile: FileInDatabase) -> bytes | None:
    """Return the oid of the block table; None: it is not in the database yet."""
    oid: bytes | None = zfile.blktab._p_oid
    return oid


def stored_numbers(zfile: FileInDatabase) -> Iterator[int]:
    """Yield the numbers of blocks that a file has, ascending; the others are holes.

    Raises
    ------
    RecordError
        The block table is damaged.
    """
    root = _table(zfile)
    if root is not None:
        for _, node in walk(root, from_records(Records(zfile._p_jar).load_all, "LO")):
            yield from node.oids


def inspect_blocks(zfile: FileInDatabase) -> Iterator[list[Stored]]:
    """Yield the blocks that a file has, in batches, ascending.

    Parameters
    ----------
    zfile : FileInDatabase
        In a Connection.

    Raises
    ------
    RecordError
        The block table, or the chunk table of a ZBlk1, is damaged.
    Exception
        What the storage raised.
    """
    root = _table(zfile)
    if root is None:
        return
    records = Records(zfile._p_jar)
    batch: dict[int, Ref] = {}
    for _, node in walk(root, from_records(records.load_all, "LO")):
        for (blk, oid), cls in zip(node.oids.items(), node.classes, strict=True):
            batch[blk] = Ref(oid, cls)
        if len(batch) >= _BATCH:
            yield _inspect(batch, records, zfile.blksize)
            batch = {}
    if batch:
        yield _inspect(batch, records, zfile.blksize)


def stored_size(zfile: FileInDatabase, most: int) -> int | None:
    """Return the size of a file's blocks in the database [bytes], as in inspect_blocks().

    Parameters
    ----------
    zfile : FileInDatabase
        In a Connection.
    most : int
        Limit of records that the storage is asked about.

    Returns
    -------
    int or None
        None: there are more.

    Raises
    ------
    RecordError, Exception
        See inspect_blocks().
    """
    root = _table(zfile)
    if root is None:
        return 0
    records = Records(zfile._p_jar)
    oids: list[bytes] = []
    loads = 0
    for _, node in walk(root, from_records(records.load_all, "LO")):
        oids += node.oids.values()
        for oid, cls in zip(node.oids.values(), node.classes, strict=True):
            if len(oids) + loads > most:
                return None
            if class_name(cls or class_of(records.load(oid))) == "ZBlk1":
                oids += _chunks(oid, records)
                loads += _LOADS
    return sum(found.size for found in records.stat(oids)) if len(oids) + loads <= most else None


def _inspect(blocks: dict[int, Ref], records: Records, blksize: int) -> list[Stored]:
    oids = [ref.oid for ref in blocks.values()]
    located = zconn_locate(records.conn, oids)
    stats = records.stat(oids)
    smallest = zconn_aligns_from(records.conn)
    result = []
    for (blk, ref), found, (tid, size) in zip(blocks.items(), located, stats, strict=True):
        cls = ref.cls or class_of(records.load(ref.oid))
        name = class_name(cls)
        if name == "ZBlk1":
            size += sum(found.size for found in records.stat(_chunks(ref.oid, records)))
        place = _place(found, blksize, smallest) if name == "ZBlk0" else Place.COPIED
        result.append(Stored(blk, ref.oid, name, place, size, tid))
    return result


def _chunks(oid: bytes, records: Records) -> list[bytes]:
    """Return the oids of the records of a ZBlk1, besides its own."""
    root = state_of(records.load(oid))
    if not isinstance(root, Ref):
        raise RecordError(f"object {oid.hex()} is a ZBlk1 with a {type(root).__name__} for chunks")
    items = read_items(root, records.load_all, "IO", ZDATA)
    return [*items.nodes, *items.oids.values()]


def _place(found: Located | None, blksize: int, smallest: int) -> Place:
    if found is None or not is_plain(found.head):
        return Place.COPIED
    if is_whole(found, blksize):
        return Place.MAPPED
    # Bytes that Python 2 wrote, with another opcode, cannot be aligned: see record.aligned
    alike = found.size == blksize and blksize >= smallest
    binbytes = os.pread(found.file.heads, 1, found.offset - 5) == b"B"
    return Place.UNALIGNED if alike and binbytes else Place.COPIED
