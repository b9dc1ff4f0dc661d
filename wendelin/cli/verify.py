"""wendelin verify: does every block of every array load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
from ZODB.POSException import POSKeyError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.check import check_blocks
from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.database import opened
from wendelin.cli.errors import explain
from wendelin.cli.output import console, print_json, progress, table
from wendelin.cli.tree import Found, Unreadable, find, is_of_object, walk

__all__ = ["verify"]


@dataclass(frozen=True)
class Trouble:
    """Something that does not load, or is not what it should be."""

    path: str
    blk: int | None
    oid: bytes | None
    what: str


def troubles_of(path: str, error: Exception) -> Trouble:
    """Return what an object that does not load is."""
    oid = error.args[0] if isinstance(error, POSKeyError) and error.args else None
    return Trouble(path, None, oid if isinstance(oid, bytes) else None, explain(error))


def check(found: Found, path: str, tell: Any) -> tuple[int, list[Trouble]]:
    """Check an array; return how many blocks it has, and what is wrong."""
    zfile = found.obj.zfile if isinstance(found.obj, ZBigArray) else found.obj
    blocks = 0
    troubles: list[Trouble] = []
    for checked in check_blocks(zfile):
        blocks += checked.blocks
        troubles += (Trouble(path, b.blk, b.oid, explain(b.error)) for b in checked.bad)
        tell(checked.blocks)
    return blocks, troubles


@click.command(
    short_help="Load every block; tell what is bad.",
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

    Tells what does not load, and what is not as the formats say: a block longer than the block
    size, chunks that overlap, something else in the block table. The exit code is 1 then.
    """
    arrays = blocks = 0
    bad: list[Trouble] = []
    with opened(address.url) as root, progress("blocks") as tell:
        for found in walk(root._p_jar, find(root, address), address.path):
            path = join(found.path)
            try:
                if isinstance(found, Unreadable):
                    raise found.error
                arrays += 1
                n, troubles = check(found, path, tell)
                blocks += n
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
                "bad": [
                    {
                        "path": t.path,
                        "block": t.blk,
                        "oid": t.oid.hex() if t.oid else None,
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
                t.what,
            )
            for t in bad
        )
        if bad:
            console().print(table(("path", "block", "oid", "what"), rows, "block"))
        counted = f"{arrays} array{'s' * (arrays != 1)}, {blocks} block{'s' * (blocks != 1)}"
        print(f"{counted}: {f'{len(bad)} bad' if bad else 'all good'}")
    return 1 if bad else 0
