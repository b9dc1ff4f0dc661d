"""Whether a ZBigFile is whole: every block loads, has an allowed format, and matches its checksum.

This module reads records, some blocks at a time, and goes on after bad ones. See docs/formats.md.
"""

from __future__ import annotations

import os
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

__all__ = ["Bad", "Checked", "verifies_mapped", "verify_blocks"]

_AT_ONCE = 16 << 20  # of blocks in one request [bytes]
_MOST = 2**63 // 4096  # no file has so many blocks


def verifies_mapped() -> bool:
    """Say whether mapped blocks are compared before they are shown: WENDELIN_CORE_VERIFY.

    Raises
    ------
    ValueError
        It is neither 0 nor 1.
    """
    value = os.environ.get("WENDELIN_CORE_VERIFY", "0")
    if value not in ("0", "1"):
        raise ValueError(f"WENDELIN_CORE_VERIFY is {value!r}: it must be 0 or 1")
    return value == "1"


class Bad(NamedTuple):
    """A block, or a table, that is damaged."""

    blk: int | None  # None: it is the block table
    oid: bytes
    error: Exception
    tid: bytes | None  # of the transaction that wrote it; None: the storage does not say


@dataclass(frozen=True)
class Checked:
    """The result for some blocks."""

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
        """Return the damage of an object, and the transaction that wrote it."""
        tid = None
        with suppress(Exception):  # this may be the damage
            tid = self.tid(oid)
        return Bad(blk, oid, error, tid)

    def ask(self, oids: list[bytes]) -> None:
        """Load records together. If one of them fails, none is loaded: load() shows which."""
        try:
            self.known = dict(zip(oids, self.load_all(oids), strict=True))
        except (TransientError, MemoryError):
            raise
        except Exception:
            self.known = {}


def verify_blocks(zfile: FileInDatabase) -> Iterator[Checked]:
    """Yield findings in the block table, and in each of its blocks, in ascending order.

    Parameters
    ----------
    zfile : FileInDatabase
        In a Connection.

    Raises
    ------
    TransientError
        The storage is not available now, which says nothing about the file.
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
        raise RecordError(f"it has {len(block.data)} bytes, but a block has {blksize}")
    return block.has_checksum
