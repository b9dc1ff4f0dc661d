"""wendelin verify: whether every block of every array loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
from ZODB.POSException import POSKeyError

from wendelin.bigfile.zodb.verify import verify_blocks
from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.database import opened
from wendelin.cli.errors import explain
from wendelin.cli.output import console, print_json, progress, shown_tid, table, warn
from wendelin.cli.stored import StoredFile
from wendelin.cli.tree import Found, Unknown, Unreadable, find, is_of_object, walk
from wendelin.lib.storage.record import ChecksumError

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


def check(found: Found, path: str, tell: Any) -> tuple[int, int, list[Trouble]]:
    """Check an array; return the number of its blocks and of checksums, and the findings."""
    zfile = found.obj if isinstance(found.obj, StoredFile) else found.obj.zfile
    blocks = checksums = 0
    troubles: list[Trouble] = []
    for checked in verify_blocks(zfile):
        blocks += checked.blocks
        checksums += checked.checksums
        for blk, oid, error, tid in checked.bad:
            mismatch = isinstance(error, ChecksumError)
            troubles.append(Trouble(path, blk, oid, explain(error), tid, mismatch))
        tell(checked.blocks)
    return blocks, checksums, troubles


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
    """Load every block of every array of a database, or under a path.

    Reports blocks that do not load, or break the rules of their format: a block longer than the
    block size, chunks that overlap, a foreign object in the block table, bytes that do not match
    their checksum. Names the transaction that wrote each. Then the exit code is 1. No code runs
    that the database names.
    """
    arrays = blocks = checksums = 0
    bad: list[Trouble] = []
    with opened(address.url, once=True) as database, progress("blocks") as tell:
        for found in walk(database, find(database, address), address.path):
            path = join(found.path)
            if isinstance(found, Unknown):
                warn("verify", f"{address.url}#{path}: {found}")
                continue
            try:
                if isinstance(found, Unreadable):
                    raise found.error
                arrays += 1
                n, of_them, troubles = check(found, path, tell)
                blocks += n
                checksums += of_them
                bad += troubles
            except Exception as e:
                if not is_of_object(e):
                    raise
                bad.append(troubles_of(path, e))
    if as_json:
        print_json(
            {
                "arrays": arrays,
                "blocks": blocks,
                "checksums": checksums,
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
            console().print(table(("path", "block", "oid", "written by", "what"), rows, "block"))
        mismatches = sum(t.mismatch for t in bad)
        result = f"{len(bad)} bad" if bad else "all good"
        if mismatches:
            result += f", of which {mismatches} not as their checksums say"
        print(
            f"{counted(arrays, 'array')}, {counted(blocks, 'block')}, "
            f"{checksums} with a checksum: {result}"
        )
    return 1 if bad else 0
