"""wendelin log: transactions of a database, and their changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.database import storage_opened
from wendelin.cli.output import print_json, say, shown_tid
from wendelin.cli.stored import Database, Stored, StoredArray, StoredFile, node_oids
from wendelin.cli.tree import visit
from wendelin.lib.storage.snapshot import Snapshot
from wendelin.lib.storage.tags import TAGS, tags_of
from wendelin.tree.containers import ATTRS
from wendelin.tree.history import Entry, Place, last_transactions, resolve

__all__ = ["log"]


@click.command(
    short_help="Show the last transactions, and their changes.",
    epilog="""\b
Examples:
  wendelin log data.fs
  wendelin log -n 100 --json zeo://host:9991""",
)
@click.argument("address", metavar="URL", type=AddressType("none"))
@click.option("-n", "--count", type=click.IntRange(0), default=10, help="How many.  [default: 10]")
@json_option
def log(address: Address, count: int, as_json: bool) -> None:
    """Show the last transactions of a database: the newest one first.

    For each: tid, time, user, note; the arrays and groups that it changed, with ranges of rows
    (those of the stored blocks); and its tags.
    """
    with storage_opened(address.url) as storage:

        @contextmanager
        def places_at(tid: bytes | None) -> Iterator[tuple[Any, Iterator[Place]]]:
            database = Database(Snapshot(storage, tid))
            yield database.conn, places(database)

        entries = resolve(last_transactions(storage, count) if count else [], places_at)
        tags = tags_of(storage)
    if as_json:
        print_json([_json(entry, tags) for entry in entries])
        return
    for entry in entries:
        named = [name for name, tid in tags.items() if tid == entry.tid]
        head, *lines = str(entry).splitlines()
        say("  ".join([head, *(f"({name})" for name in named)]))
        for line in lines:
            say(line)


def _json(entry: Entry, tags: dict[str, bytes]) -> dict[str, Any]:
    return {
        **(shown_tid(entry.tid) or {}),
        "user": entry.user,
        "note": entry.note,
        "tags": [name for name, tid in tags.items() if tid == entry.tid],
        "changes": [
            {"path": change.path, "what": change.what, "rows": change.rows}
            for change in entry.changes
        ],
        "other_objects": entry.others,
    }


def places(database: Database) -> Iterator[Place]:
    """Yield the objects of a database with their paths; nothing is loaded."""
    for path, obj in visit(database, database.root):
        if isinstance(obj, Exception):
            continue
        at = join(path)
        if path[:1] == (TAGS,):
            yield Place("", [], extra={obj.oid: "tags"})
        elif path[-1:] == (ATTRS,):
            oids = node_oids(obj)
            yield Place(join(path[:-1]), [], extra=dict.fromkeys(oids, "attributes"))
        elif isinstance(obj, StoredArray):
            file = obj.zfile
            attrs = obj.attrs.oid if obj.attrs is not None else None
            yield Place(at, [obj._p_oid], attrs, file._p_oid, file.table, file.blksize, obj)
        elif isinstance(obj, StoredFile):
            yield Place(at, [], None, obj._p_oid, obj.table, obj.blksize)
        elif isinstance(obj, Stored):
            yield Place(at, node_oids(obj))
