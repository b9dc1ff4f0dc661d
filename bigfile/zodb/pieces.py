"""Places of blocks that are stored in chunks (ZBlk1), so that they are mapped, too, and not copied.

    block object ──► its table of chunks ──► chunks ──► Located: where their bytes lie

A commit of a small change writes 16 chunks of a block the first time, and one from then on. Each of
them is aligned in the file as a whole block is.

This module knows formats, and records. It does not know pages, nor the block table.

Locking: none. In any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from wendelin.bigfile.virtmem.abilities import FilePieces
from wendelin.bigfile.zodb.btree import read_items
from wendelin.bigfile.zodb.formats import ZDATA, is_chunk, is_chunked
from wendelin.bigfile.zodb.interfaces import RecordSource
from wendelin.lib.storage.fsrecord import Located, OpenFile
from wendelin.lib.storage.record import RecordError, Ref, state_of

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
    oids: Iterable[bytes], records: RecordSource, blksize: int, *, wait: bool = True
) -> dict[bytes, Chunks]:
    """Return {block object: its chunks} for those blocks that lie in one file, in a few chunks.

    The others must be loaded. So must those that are damaged: the loader finds the error.

    Parameters
    ----------
    oids : iterable of bytes
    records : RecordSource
    blksize : int
        [bytes]
    wait : bool
        False: without blocks whose chunks would have to wait for the disk.
    """
    oids = list(oids)
    sizes = records.stat(oids)
    oids = [oid for oid, found in zip(oids, sizes, strict=True) if 0 < found.size <= _MOST_RECORD]
    tables = {}
    for oid, record in zip(oids, records.load_all(oids), strict=True):
        root = state_of(record) if is_chunked(record) else None
        if isinstance(root, Ref):
            try:
                tables[oid] = read_items(root, records.load_all, "IO", ZDATA)
            except RecordError:
                continue
    tables = {oid: table for oid, table in tables.items() if 0 < len(table.oids) <= _MOST}
    chunks = [chunk for table in tables.values() for chunk in table.oids.values()]
    located = dict(zip(chunks, records.locate(chunks, wait=wait), strict=True))
    found: dict[bytes, Chunks] = {}
    for oid, table in tables.items():
        places = {start: located[chunk] for start, chunk in table.oids.items()}
        file = _file_of(places, blksize)
        if file is not None:
            pieces = [
                (start, at.offset, at.size, at.digest)
                for start, at in places.items()
                if at is not None and at.size
            ]
            parts = table.nodes.union(table.oids.values())
            found[oid] = Chunks(FilePieces(file.fd, pieces), file, parts)
    return found


def _file_of(places: dict[int, Located | None], blksize: int) -> OpenFile | None:
    """Return the file that all chunks lie in, if they are what we write; otherwise None."""
    stop = 0
    file: OpenFile | None = None
    some = False
    for start, at in places.items():
        # a chunk with a checksum was written by us
        if at is None or at.digest is None or not is_chunk(at.head):
            return None
        if start < stop or start + at.size > blksize or file not in (None, at.file):
            return None
        stop, file = start + at.size, at.file
        some = some or at.size > 0
    return file if some else None
