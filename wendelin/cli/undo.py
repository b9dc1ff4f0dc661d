"""wendelin undo: undoes a transaction."""

from __future__ import annotations

import click
import transaction
from ZODB.POSException import UndoError

from wendelin.cli.address import Address
from wendelin.cli.arguments import AddressType, MomentType, json_option
from wendelin.cli.database import opened_to_write
from wendelin.cli.errors import Failure
from wendelin.cli.output import print_json, say
from wendelin.lib.zodb import zdb_last
from wendelin.tree.group import Group

__all__ = ["undo"]


@click.command(
    short_help="Undo a transaction.",
    epilog="""\b
Examples:
  wendelin undo data.fs 0x0400c3a1f2b4c6d8
  wendelin undo zeo://host:9991 0x0400c3a1f2b4c6d8""",
)
@click.argument("address", metavar="URL", type=AddressType("none"))
@click.argument("tid", type=MomentType(), metavar="TID")
@json_option
def undo(address: Address, tid: bytes, as_json: bool) -> None:
    """Undo a transaction: restore the previous state of what it changed. `wendelin log` lists tids.

    This is refused if a later transaction has changed the same objects: undo that one first.
    """
    with opened_to_write(address.url) as root:
        try:
            Group(root).undo(tid)
        except (ValueError, UndoError) as e:
            raise Failure(str(e)) from e
        done = zdb_last(root._p_jar.db())
        transaction.abort()
    if as_json:
        print_json({"undone": tid.hex(), "by": done.hex()})
    else:
        say(f"{address.url}: {tid.hex()} is undone, by transaction {done.hex()}")
