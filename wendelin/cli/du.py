"""wendelin du: the space of groups and arrays."""

from __future__ import annotations

from collections import Counter

import click

from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.database import opened
from wendelin.cli.errors import explain
from wendelin.cli.globs import expand, walk_all
from wendelin.cli.ls import rows_of
from wendelin.cli.output import console, print_json, progress, size_text, table, warn
from wendelin.cli.tree import Unknown, Unreadable, is_of_object

__all__ = ["du"]


@click.command(
    short_help="Show how much space groups and arrays take.",
    epilog="""\b
Examples:
  wendelin du data.fs
  wendelin du --depth 3 data.fs#run
  wendelin du 'data.fs#run/*'""",
)
@click.argument("address", metavar="URL[#path]", type=AddressType("possible"))
@click.option(
    "-d", "--depth", type=click.IntRange(0), default=1, help="Levels below the path.  [default: 1]"
)
@json_option
def du(address: Address, depth: int, as_json: bool) -> int:
    """Show how much space groups and arrays take in a database.

    It is that of the newest state of their blocks, and of the values of ZarrGroups.
    Each array counts once, at the shortest path. Until a pack, the file also has past states.
    """
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    failed = 0
    with opened(address.url, once=True) as database, progress("objects and blocks") as tell:
        for start in expand(database, address):
            for found in walk_all(database, Address(address.url, start), tell):
                if isinstance(found, Unknown):
                    warn("du", f"{address.url}#{join(found.path)}: {found}")
                    continue
                try:
                    if isinstance(found, Unreadable):
                        raise found.error
                    rows = rows_of(found, tell)
                except Exception as e:
                    if not is_of_object(e):
                        raise
                    failed += 1
                    warn("du", f"{address.url}#{join(found.path)}: {explain(e)}")
                    continue
                # what the arrays of a ZarrGroup do not have, metadata, is the group's own
                rows[0].size -= sum(row.size for row in rows[1:])
                for row in rows:
                    at = tuple(row.path.split("/")) if row.path else ()
                    last = min(len(at), len(start) + depth)
                    for i in range(len(start), last + 1):
                        sizes["/".join(at[:i])] += row.size
                        counts["/".join(at[:i])] += row is not rows[0] or len(rows) == 1
    if as_json:
        print_json([{"path": p, "bytes": sizes[p], "arrays": counts[p]} for p in sorted(sizes)])
    elif sizes:
        texts = ((size_text(sizes[p]), str(counts[p]), p or "/") for p in sorted(sizes))
        console().print(table(("stored", "arrays", "path"), texts, "stored arrays"))
    return 1 if failed else 0
