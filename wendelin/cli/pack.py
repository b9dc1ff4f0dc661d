"""wendelin pack: frees the space of old states and unused objects."""

from __future__ import annotations

import time

import click
from persistent.TimeStamp import TimeStamp
from ZODB.serialize import referencesf

from wendelin.cli.address import Address
from wendelin.cli.arguments import AddressType, MomentType, json_option
from wendelin.cli.database import storage_opened
from wendelin.cli.errors import Failure
from wendelin.cli.output import print_json, say, shown_tid, shown_time, size_text
from wendelin.lib.storage.tags import oldest_tag, pack_time

__all__ = ["pack"]


@click.command(
    short_help="Drop states before a time, and unused objects.",
    epilog="""\b
Examples:
  wendelin pack data.fs
  wendelin pack --before '30 days ago' data.fs""",
)
@click.argument("address", metavar="URL", type=AddressType("none"))
@click.option("--before", type=MomentType(), help="Keep all later states.  [default: now]")
@json_option
def pack(address: Address, before: bytes | None, as_json: bool) -> None:
    """Drop states before a time, and objects that nothing refers to; a file gets smaller.

    After it, states before that time cannot be seen, nor transactions undone. Tagged states are
    kept: a pack goes at most to the oldest tag.
    """
    asked = time.time() if before is None else TimeStamp(before).timeTime()
    with storage_opened(address.url, write=True) as storage:
        if not hasattr(storage, "pack"):
            raise Failure(f"{address.url} cannot be packed by a client")
        at = pack_time(storage, asked)
        tag = oldest_tag(storage) if at < asked else None
        size = storage.getSize()
        storage.pack(at, referencesf)
        after = storage.getSize()
    stamp = TimeStamp(*time.gmtime(at)[:5], at % 60).raw()
    if as_json:
        print_json(
            {
                "before": shown_tid(stamp),
                "kept_by_tag": tag[0] if tag else None,
                "bytes": after,
                "bytes_before": size,
            }
        )
    else:
        kept = f": the tag {tag[0]!r} keeps later states" if tag else ""
        say(
            f"{address.url}: packed as of {shown_time(stamp)}{kept}; {size_text(size)} before, "
            f"{size_text(after)} now"
        )
