"""wendelin stats: counters of the pager of a running process."""

from __future__ import annotations

import click

from wendelin.bigfile.statserver import ask_stats
from wendelin.cli.arguments import json_option
from wendelin.cli.errors import Failure
from wendelin.cli.output import console, print_json, say, size_text, table

__all__ = ["stats"]

_SIZES = ("mapped", "resident", "dirty", "spooled")  # [bytes]
_COUNTS = ("faults", "loads", "reclaims", "failures", "waits", "hits", "misses")


@click.command(
    short_help="Show what the pager of a running process does.",
    epilog="""\b
Examples:
  wendelin stats 4711
  wendelin stats --json 4711""",
)
@click.argument("pid", type=click.IntRange(1))
@json_option
def stats(pid: int, as_json: bool) -> None:
    """Show what the pager of a running process does: memory of pages, and counters of each file.

    The process must have been started with WENDELIN_CORE_STATS=1 in its environment, by the same
    user. The counters are those of wendelin.bigfile.stats(), since each file was opened.
    """
    try:
        found = ask_stats(pid)
    except OSError as e:
        raise Failure(str(e)) from e
    if as_json:
        print_json({"pid": pid, **found})
        return
    say(
        f"page memory: {size_text(found['clean'])} clean, {size_text(found['dirty'])} changed, "
        f"{size_text(found['spare'])} spare, limit {size_text(found['limit'])}; "
        f"{size_text(found['spooled'])} of changes on disk; "
        f"{found['mappings']} mappings"
    )
    columns = (*_SIZES, *_COUNTS)
    rows = [
        (
            *(size_text(handle[name]) for name in _SIZES),
            *(str(handle[name]) for name in _COUNTS),
            handle["file"],
        )
        for handle in found["handles"]
    ]
    if rows:
        console().print(table((*columns, "file"), rows, " ".join(columns)))
