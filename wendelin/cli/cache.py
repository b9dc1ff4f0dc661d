"""wendelin cache: the cache of blocks that all processes of a machine share."""

from __future__ import annotations

import os
from datetime import datetime

import click

from wendelin.cli.arguments import json_option
from wendelin.cli.errors import Failure
from wendelin.cli.output import console, print_json, say, size_text, table
from wendelin.lib.shown import shown
from wendelin.lib.storage.blockcache import Folder, cache_folder

__all__ = ["cache"]


@click.command(
    short_help="Show, verify or empty the cache of blocks of this machine.",
    epilog="""\b
Examples:
  wendelin cache
  wendelin cache --verify
  wendelin cache --empty /var/cache/arrays""",
)
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path())
@click.option("--verify", is_flag=True, help="Compare all blocks with their checksums.")
@click.option("--empty", is_flag=True, help="Remove all blocks.")
@json_option
def cache(folder: str | None, verify: bool, empty: bool, as_json: bool) -> None:
    """Show what the cache of blocks has: of which databases, how much, and when it was used.

    DIR is by default the folder that WENDELIN_CORE_CACHE names. A damaged block that --verify finds
    is thrown away, and is loaded from its database again. Running programs keep what they have
    mapped when blocks are removed.
    """
    if verify and empty:
        raise click.UsageError("--verify and --empty: give one of them")
    opened = _opened(folder)
    try:
        if verify:
            checked = opened.verify()
            if as_json:
                print_json({"folder": opened.path, **checked._asdict()})
            else:
                say(f"{shown(opened.path)}: {checked.blocks} blocks, {checked.damaged} damaged")
            if checked.damaged:
                raise Failure(f"{checked.damaged} damaged blocks were thrown away")
        elif empty:
            freed = opened.clear()
            if as_json:
                print_json({"folder": opened.path, "freed": freed})
            else:
                say(f"{shown(opened.path)}: {size_text(freed)} removed")
        else:
            _show(opened, as_json)
    except OSError as e:
        raise Failure(str(e)) from e


def _opened(path: str | None) -> Folder:
    """Return the folder; it is not made."""
    try:
        if path is not None:
            if not os.path.isdir(path):
                raise Failure(f"{path}: there is no such folder")
            return Folder(os.path.abspath(path))
        found = cache_folder()
    except (OSError, ValueError) as e:
        raise Failure(str(e)) from e
    if found is None:
        raise Failure("the cache is off: set WENDELIN_CORE_CACHE=DIR or DIR:SIZE, or give a DIR")
    return found


def _show(opened: Folder, as_json: bool) -> None:
    usage = opened.usage()
    total = sum(of.size for of in usage)
    if as_json:
        print_json(
            {
                "folder": opened.path,
                "limit": opened.limit,
                "size": total,
                "databases": [of._asdict() for of in usage],
            }
        )
        return
    say(f"{shown(opened.path)}: {size_text(total)} of {size_text(opened.limit)}")
    rows = [
        (str(of.blocks), size_text(of.size), _time_text(of.used) if of.used else "-", of.name)
        for of in usage
    ]
    if rows:
        console().print(table(("blocks", "size", "used", "database"), rows, "blocks size"))


def _time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")  # local time, for people
