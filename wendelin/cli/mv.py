"""wendelin mv: another name or place for an array or a group."""

from __future__ import annotations

from typing import Any

import click

from wendelin.cli.address import Address, Path, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.changing import changed, entry_of, group_at
from wendelin.cli.errors import Failure
from wendelin.cli.globs import expand
from wendelin.cli.output import print_json, say
from wendelin.cli.stored import Database
from wendelin.tree.containers import put

__all__ = ["mv"]


@click.command(
    short_help="Give an array or a group another name or place.",
    epilog="""\b
Examples:
  wendelin mv data.fs#signal data.fs#run/7/signal
  wendelin mv data.fs#run/7 '#old/7'
  wendelin mv 'data.fs#run/*' '#old'""",
)
@click.argument("address", metavar="URL#path", type=AddressType())
@click.argument("new", metavar="[URL]#path", shell_complete=AddressType().shell_complete)
@json_option
def mv(address: Address, new: str, as_json: bool) -> None:
    """Give an array or a group another name or place in its database; nothing is copied.

    Missing groups of the path are made. With the wildcards * and ? in the first path, all that it
    means is moved into the second one, a group.
    """
    text = f"{address.url}{new}" if new.startswith("#") else new
    target: Address = AddressType().convert(text, None, click.get_current_context())
    if target.url != address.url:
        raise click.UsageError(f"{target} is in another database: `wendelin copy` copies it there")
    moved: list[tuple[Path, Path]] = []
    with changed(address.url, f"mv {join(address.path)} {join(target.path)}") as root:
        paths = expand(Database(root._p_jar), address)
        for path in paths:
            to = target.path if paths == [address.path] else (*target.path, path[-1])
            _move(root, Address(address.url, path), Address(address.url, to))
            moved.append((path, to))
    if as_json:
        pairs = [{"from": join(path), "to": join(to)} for path, to in moved]
        print_json(pairs[0] if paths == [address.path] else pairs)
    else:
        for _, to in moved:
            say(f"{Address(address.url, to)}")


def _move(root: Any, address: Address, target: Address) -> None:
    container, key, value = entry_of(root, address)
    if target.path[: len(address.path)] == address.path and target.path != address.path:
        raise Failure(f"{address} cannot be moved to {target}, which is in it")
    *way, name = target.path
    group = group_at(root, address.url, tuple(way))
    if group.obj is not container or name != key:
        if name in group.obj:
            raise Failure(f"{target} exists already: `wendelin rm` removes it")
        put(group.obj, name, value, str(target))
        del container[key]
