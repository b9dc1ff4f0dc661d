"""Places of blocks that are stored in chunks (ZBlk1), so that they are mapped, too, and not copied.

    block object ──► its table of chunks ──► chunks ──► Located: where their bytes lie

A commit of a small change writes six chunks of a block the first time, and one to four from then
on. Each of them is aligned in the file as a whole block is.

This module knows formats, and records. It does not know pages, nor the block table.

Locking: none. In any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from wendelin.bigfile.virtmem.abilities import FilePieces
from wendelin.bigfile.zodb.btree import read_items
from wendelin.bigfile.zodb.formats import ZDATA, is_chunk, table_of
from wendelin.bigfile.zodb.interfaces import RecordSource
from wendelin.lib.storage.fsrecord import Located, OpenFile
from wendelin.lib.storage.record import RecordError

__all__ = ["Chunks", "locate_chunks"]

#: [bytes] The record of a block in chunks is a reference; a larger one is not even read.
_MOST_RECORD = 4096

#: chunks: where there are more, it is quicker to load the block
_MOST = 64


class Chunks(NamedTuple):
    """Where a block lies, and what it is made of."""

    place: FilePieces
    file: OpenFile
    parts: frozenset[bytes]  # oids, besides the block's object


def locate_chunks(
    oids: Iterable[bytes],
    records: RecordSource,
    blksize: int,
    known: dict[bytes, bytes],
    *,
    wait: bool = True,
) -> dict[bytes, Chunks]:
    """Return {block object: its chunks} for those blocks that lie in one file, in a few chunks.

    The others must be loaded. So must those that are damaged: the loader finds the error.

    Parameters
    ----------
    oids : iterable of bytes
    records : RecordSource
    blksize : int
        [bytes]
    known : dict of bytes
        Records of small objects, by their oids. It gets those of tables.
    wait : bool
        False: without blocks whose chunks would have to wait for the disk.
    """
    oids = list(oids)
    others = [oid for oid in oids if oid not in known]
    if others:
        sizes = zip(others, records.stat(others), strict=True)
        others = [oid for oid, found in sizes if 0 < found.size <= _MOST_RECORD]
        known.update(zip(others, records.load_all(others), strict=True))
    roots = {oid: root for oid in oids if oid in known and (root := table_of(known[oid]))}
    records.locate([root.oid for root in roots.values()], wait=wait, small=known)

    def load_all(oids: list[bytes]) -> list[bytes]:
        return [known[oid] if oid in known else records.load(oid) for oid in oids]

    tables = {}
    for oid, root in roots.items():
        with suppress(RecordError):
            tables[oid] = read_items(root, load_all, "IO", ZDATA)
    tables = {oid: table for oid, table in tables.items() if 0 < len(table.oids) <= _MOST}
    chunks = [chunk for table in tables.values() for chunk in table.oids.values()]
    located = iter(records.locate(chunks, wait=wait))
    found: dict[bytes, Chunks] = {}
    for oid, table in tables.items():
        place = _place(table.oids, list(islice(located, len(table.oids))), blksize)
        if place is not None:
            found[oid] = Chunks(*place, table.nodes.union(table.oids.values()))
    return found


def _place(
    starts: Iterable[int], places: list[Located | None], blksize: int
) -> tuple[FilePieces, OpenFile] | None:
    """Return where chunks lie, if that is one file, and they are what we write."""
    first = places[0]
    if first is None or not is_chunk(first.head):
        return None
    file, head, stop = first.file, first.head, 0
    pieces: list[tuple[int, int, int, bytes | None]] = []
    for start, at in zip(starts, places, strict=True):
        # a chunk with a checksum was written by us
        if at is None or at.digest is None or at.file is not file or start < stop:
            return None
        if at.head is not head and not is_chunk(at.head):
            return None
        stop = start + at.size
        if at.size:
            pieces.append((start, at.offset, at.size, at.digest))
    if not pieces or stop > blksize:
        return None
    return FilePieces(file.fd, pieces), file
