"""wendelin tag: names for moments of a database."""

from __future__ import annotations

import click

from wendelin.cli.address import Address
from wendelin.cli.arguments import AddressType, at_option, json_option
from wendelin.cli.changing import changed
from wendelin.cli.database import storage_opened
from wendelin.cli.output import console, print_json, shown_tid, shown_time, table
from wendelin.lib.storage.tags import tags_of
from wendelin.lib.zodb import zdb_last
from wendelin.tree.group import Group

__all__ = ["tag"]


@click.command(
    short_help="Name a moment of a database; list such names.",
    epilog="""\b
Examples:
  wendelin tag data.fs
  wendelin tag data.fs calibrated
  wendelin tag data.fs before-the-move --at 2026-01-31T18:30
  wendelin tag data.fs --delete calibrated""",
)
@click.argument("address", metavar="URL", type=AddressType("none"))
@click.argument("name", required=False)
@at_option
@click.option("--delete", is_flag=True, help="Remove the name.")
@json_option
def tag(
    address: Address, name: str | None, at: bytes | str | None, delete: bool, as_json: bool
) -> None:
    """Name a moment of a database, the last transaction or that of --at; without NAME, list names.

    A pack keeps named states, and all later ones.
    """
    if name is None and (delete or at is not None):
        raise click.UsageError("NAME is missing")
    if delete and at is not None:
        raise click.UsageError("--delete and --at exclude each other")
    if name is not None:
        with changed(address.url, f"tag {'--delete ' if delete else ''}{name}") as root:
            group = Group(root)
            if delete:
                group.untag(name)
            else:
                group.tag(name, zdb_last(root._p_jar.db()) if at is None else at)
    with storage_opened(address.url) as storage:
        tags = sorted(tags_of(storage).items(), key=lambda item: item[1])
    if as_json:
        print_json([{"name": name, **(shown_tid(tid) or {})} for name, tid in tags])
    elif tags:
        rows = ((name, tid.hex(), shown_time(tid)) for name, tid in tags)
        console().print(table(("name", "tid", "time"), rows))
