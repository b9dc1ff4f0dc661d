"""Whether a ZBigFile is whole: every block loads, is what the formats allow, and was stored so.

It reads records, some blocks at a time, and goes on after what is bad. See docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from transaction.interfaces import TransientError

from wendelin.bigfile.zodb.btree import from_records, walk
from wendelin.bigfile.zodb.formats import load_block
from wendelin.bigfile.zodb.interfaces import FileInDatabase
from wendelin.bigfile.zodb.records import Records
from wendelin.lib.storage.record import ChecksumError, RecordError
from wendelin.lib.utils import override

__all__ = ["Bad", "Checked", "verify_blocks"]

_AT_ONCE = 16 << 20  # of blocks that are asked for together [bytes]
_MOST = 2**63 // 4096  # no file has so many blocks


class Bad(NamedTuple):
    """Something that is wrong."""

    blk: int | None  # None: it is the block table
    oid: bytes
    error: Exception
    tid: bytes | None  # of the transaction that wrote it; None: the storage does not say


@dataclass(frozen=True)
class Checked:
    """What was found, of some blocks."""

    blocks: int
    bad: list[Bad]
    checksums: int = 0  # blocks that have one


class _Batches(Records):
    """Records that a Connection sees; those of a batch of blocks are loaded together."""

    def __init__(self, conn: Any) -> None:
        super().__init__(conn)
        self.known: dict[bytes, bytes] = {}

    @override
    def load(self, oid: bytes) -> bytes:
        record = self.known.pop(oid, None)
        return super().load(oid) if record is None else record

    def bad(self, blk: int | None, oid: bytes, error: Exception) -> Bad:
        """Return what is wrong with an object, and which transaction wrote it."""
        tid = None
        with suppress(Exception):  # it may be that which is wrong
            tid = self.tid(oid)
        return Bad(blk, oid, error, tid)

    def ask(self, oids: list[bytes]) -> None:
        """Have records loaded together. If one of them cannot be, none is: load() tells which."""
        try:
            self.known = dict(zip(oids, self.load_all(oids), strict=True))
        except (TransientError, MemoryError):
            raise
        except Exception:
            self.known = {}


def verify_blocks(zfile: FileInDatabase) -> Iterator[Checked]:
    """Yield what is found in the block table, and in every block of it; in ascending order.

    Parameters
    ----------
    zfile : FileInDatabase
        In a Connection.

    Raises
    ------
    TransientError
        The storage cannot be asked now, which says nothing about the file.
    """
    if zfile.blktab._p_oid is None:
        return
    records = _Batches(zfile._p_jar)
    at_once = max(1, _AT_ONCE // zfile.blksize)
    bad: list[Bad] = []  # nodes
    get = from_records(records.load_all, "LO")
    root = bytes(zfile.blktab._p_oid)
    for oid, node in walk(root, get, bad=lambda oid, e: bad.append(records.bad(None, oid, e))):
        items = list(node.oids.items())
        try:
            node.check_within(0, _MOST)
        except RecordError as e:
            bad.append(records.bad(None, oid, e))
            items = []
        if bad:
            yield Checked(0, bad.copy())
            bad.clear()
        for i in range(0, len(items), at_once):
            some = items[i : i + at_once]
            records.ask([oid for _, oid in some])
            wrong: list[Bad] = []
            checksums = 0
            for blk, block in some:
                try:
                    checksums += _check(block, records, zfile.blksize)
                except (TransientError, MemoryError):
                    raise
                except Exception as e:
                    checksums += isinstance(e, ChecksumError)
                    wrong.append(records.bad(blk, block, e))
            yield Checked(len(some), wrong, checksums)
    if bad:
        yield Checked(0, bad)


def _check(oid: bytes, records: _Batches, blksize: int) -> bool:
    """Load a block; say whether it has a checksum."""
    block = load_block(oid, records, blksize)
    if len(block.data) > blksize:
        raise RecordError(f"it has {len(block.data)} bytes, and a block has {blksize}")
    return block.has_checksum
