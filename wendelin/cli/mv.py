"""wendelin mv: another name or place for an array or a group."""

from __future__ import annotations

import click

from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.changing import changed, entry_of, group_at
from wendelin.cli.errors import Failure
from wendelin.cli.output import print_json, say
from wendelin.tree.containers import put

__all__ = ["mv"]


@click.command(
    short_help="Give an array or a group another name or place.",
    epilog="""\b
Examples:
  wendelin mv data.fs#signal data.fs#run/7/signal
  wendelin mv data.fs#run/7 '#old/7'""",
)
@click.argument("address", metavar="URL#path", type=AddressType())
@click.argument("new", metavar="[URL]#path")
@json_option
def mv(address: Address, new: str, as_json: bool) -> None:
    """Give an array or a group another name or place in its database; nothing is copied.

    Missing groups of the path are made.
    """
    text = f"{address.url}{new}" if new.startswith("#") else new
    target: Address = AddressType().convert(text, None, click.get_current_context())
    if target.url != address.url:
        raise click.UsageError(
            f"{target} is in another database: `wendelin copy` copies an array there"
        )
    *way, name = target.path
    with changed(address.url, f"mv {join(address.path)} {join(target.path)}") as root:
        container, key, value = entry_of(root, address)
        if target.path[: len(address.path)] == address.path and target.path != address.path:
            raise Failure(f"{address} cannot be moved to {target}, which is in it")
        group = group_at(root, address.url, tuple(way))
        if group.obj is not container or name != key:
            if name in group.obj:
                raise Failure(f"{target} exists already: `wendelin rm` removes it")
            put(group.obj, name, value, str(target))
            del container[key]
    if as_json:
        print_json({"from": join(address.path), "to": join(target.path)})
    else:
        say(f"{target}")
