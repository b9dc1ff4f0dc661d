"""wendelin trim: the room of old revisions, given back without writing the file anew."""

from __future__ import annotations

from typing import Any

import click
from ZODB.utils import p64, u64

from wendelin.cli.address import Address
from wendelin.cli.arguments import AddressType, MomentType, json_option
from wendelin.cli.database import storage_opened
from wendelin.cli.errors import Failure
from wendelin.cli.output import print_json, say, shown_tid, shown_time, size_text

__all__ = ["trim"]


@click.command(
    short_help="Give back the room of old revisions of blocks, in place.",
    epilog="""\b
Examples:
  wendelin trim data.fs
  wendelin trim --before '30 days ago' zeo://host:9991
  wendelin trim --keep 3 data.fs""",
)
@click.argument("address", metavar="URL", type=AddressType("none"))
@click.option(
    "--before", type=MomentType(), help="Keep this moment, and all that is later.  [default: now]"
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Of each block keep N revisions, the one at that moment included.  [default: 1]",
)
@json_option
def trim(address: Address, before: bytes | None, keep: int, as_json: bool) -> None:
    """Give back the room of revisions before a time: holes are punched into the file.

    The file keeps its length, and takes less room. An array in a state before that time says that
    it was trimmed. Small objects of the past stay until a pack. What is tagged is kept, and what a
    program looks at now. The storage of a server must be a file that wendelin.core has open.
    """
    with storage_opened(address.url, write=True) as storage:
        ask: Any = getattr(storage, "trim", None)
        if ask is None:
            raise Failure(
                f"{address.url} cannot be trimmed: it is neither a local file, nor served by ZEO "
                f"from one"
            )
        found = ask(None if before is None else p64(u64(before) + 1), keep)
    if found is None:
        if as_json:
            print_json({"before": None, "revisions": None, "freed": None})
        else:
            say(f"{address.url}: trimmed by its server, whose log says what")
        return
    if as_json:
        print_json(
            {
                "before": shown_tid(found.before),
                "revisions": found.revisions,
                "freed": found.freed,
            }
        )
    else:
        say(
            f"{address.url}: trimmed before {shown_time(found.before)}; "
            f"{found.revisions} revisions, {size_text(found.freed)} freed"
        )
