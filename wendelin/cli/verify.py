"""wendelin verify: whether every block of every array loads."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click
from ZODB.POSException import POSKeyError

from wendelin.bigfile.zodb.verify import verify_blocks
from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.database import opened
from wendelin.cli.errors import explain
from wendelin.cli.globs import walk_all
from wendelin.cli.output import Advance, console, print_json, progress, shown_tid, table, warn
from wendelin.cli.stored import StoredFile
from wendelin.cli.storedragged import StoredPiece, StoredRagged, problems
from wendelin.cli.storedzarr import StoredZarr, verify_values
from wendelin.cli.tree import Found, Unknown, Unreadable, is_of_object
from wendelin.lib.storage.record import ChecksumError, RecordError

__all__ = ["verify"]


@dataclass(frozen=True)
class Trouble:
    """An object that does not load, or is damaged."""

    path: str
    blk: int | None
    oid: bytes | None
    what: str
    tid: bytes | None = None  # of the transaction that wrote it
    mismatch: bool = False  # with its checksum


def troubles_of(path: str, error: Exception) -> Trouble:
    """Return the finding for an object that does not load."""
    oid = error.args[0] if isinstance(error, POSKeyError) and error.args else None
    return Trouble(path, None, oid if isinstance(oid, bytes) else None, explain(error))


class Work:
    """A check of many objects, and what it has found."""

    def __init__(self, tell: Advance) -> None:
        self._tell = tell
        self.arrays = self.blocks = self.values = self.checksums = 0
        self.bad: list[Trouble] = []

    def check(self, found: Found) -> None:
        """Check an array, or an object with several."""
        obj, path = found.obj, join(found.path)
        if isinstance(obj, StoredPiece):  # its rows are in blocks that other pieces are in, too
            obj = obj.ragged
        if isinstance(obj, StoredZarr):
            self._zarr(path, obj)
        elif isinstance(obj, StoredRagged):
            self._ragged(path, obj)
        else:
            self.arrays += 1
            self._blocks(path, obj if isinstance(obj, StoredFile) else obj.zfile)

    def _found(self, path: str, blk: int | None, found: tuple[Any, ...]) -> None:
        oid, error, tid = found
        mismatch = isinstance(error, ChecksumError)
        self.bad.append(Trouble(path, blk, oid, explain(error), tid, mismatch))

    def _blocks(self, path: str, zfile: StoredFile) -> None:
        for checked in verify_blocks(zfile):
            self.blocks += checked.blocks
            self.checksums += checked.checksums
            for blk, *found in checked.bad:
                self._found(path, blk, tuple(found))
            self._tell(checked.blocks)

    def _zarr(self, path: str, group: StoredZarr) -> None:
        for checked in verify_values(group):
            self.values += checked.values
            self.checksums += checked.checksums
            for key, *found in checked.bad:
                at = f"{path}/{key.removeprefix(group.prefix)}" if key is not None else path
                self._found(at, None, tuple(found))
            self._tell(checked.values)
        with suppress(RecordError):  # of the tree, which is reported
            self.arrays += len(group.described())

    def _ragged(self, path: str, ragged: StoredRagged) -> None:
        self.arrays += 1
        for oid, error in problems(ragged):
            self.bad.append(Trouble(path, None, oid, explain(error)))
        for segment in ragged.segments():
            self._blocks(path, segment.data.zfile)


def counted(n: int, what: str) -> str:
    """Return a number with its noun."""
    return f"{n} {what}{'s' * (n != 1)}"


@click.command(
    short_help="Load every block; report bad ones.",
    epilog="""\b
Examples:
  wendelin verify data.fs
  wendelin verify zeo://host:9991#runs/2024
  wendelin verify --json data.fs | jq '.bad[].path' | sort -u""",
)
@click.argument("address", metavar="URL[#path]", type=AddressType("possible"))
@json_option
def verify(address: Address, as_json: bool) -> int:
    """Load every block of every array of a database, or under a path, which may have * and ?.

    Also all values of ZarrGroups.

    Reports blocks that do not load, or break the rules of their format: a block longer than the
    block size, chunks that overlap, a foreign object in the block table, bytes that do not match
    their checksum. So of the values of a ZarrGroup; and metadata that is not JSON, and pieces of a
    ZRagged outside of its rows, or that overlap. Names the transaction that wrote each. Then the
    exit code is 1. No code runs that the database names.
    """
    with opened(address.url, once=True) as database, progress("blocks") as tell:
        work = Work(tell)
        bad = work.bad
        for found in walk_all(database, address):
            path = join(found.path)
            if isinstance(found, Unknown):
                warn("verify", f"{address.url}#{path}: {found}")
                continue
            try:
                if isinstance(found, Unreadable):
                    raise found.error
                work.check(found)
            except Exception as e:
                if not is_of_object(e):
                    raise
                bad.append(troubles_of(path, e))
    if as_json:
        print_json(
            {
                "arrays": work.arrays,
                "blocks": work.blocks,
                "values": work.values,
                "checksums": work.checksums,
                "mismatches": sum(t.mismatch for t in bad),
                "bad": [
                    {
                        "path": t.path,
                        "block": t.blk,
                        "oid": t.oid.hex() if t.oid else None,
                        "written": None if t.tid is None else shown_tid(t.tid),
                        "what": t.what,
                    }
                    for t in bad
                ],
            }
        )
    else:
        rows = (
            (
                t.path,
                "-" if t.blk is None else str(t.blk),
                f"0x{t.oid.hex()}" if t.oid else "-",
                f"0x{t.tid.hex()}" if t.tid else "-",
                t.what,
            )
            for t in bad
        )
        if bad:
            columns = ("path", "block", "oid", "written by", "what")
            console().print(table(columns, rows, "block", "oid"))
        mismatches = sum(t.mismatch for t in bad)
        result = f"{len(bad)} bad" if bad else "all good"
        if mismatches:
            result += f", of which {mismatches} not as their checksums say"
        values = f"{counted(work.values, 'value')} of Zarr, " if work.values else ""
        print(
            f"{counted(work.arrays, 'array')}, {counted(work.blocks, 'block')}, {values}"
            f"{work.checksums} with a checksum: {result}"
        )
    return 1 if bad else 0
