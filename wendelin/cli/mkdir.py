"""wendelin mkdir: a new group."""

from __future__ import annotations

import click

from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.changing import changed, group_at
from wendelin.cli.errors import Failure
from wendelin.cli.output import print_json, say

__all__ = ["mkdir"]


@click.command(
    short_help="Make a group.",
    epilog="""\b
Examples:
  wendelin mkdir data.fs#run
  wendelin mkdir zeo://host:9991#run/7/raw""",
)
@click.argument("address", metavar="URL#path", type=AddressType())
@json_option
def mkdir(address: Address, as_json: bool) -> None:
    """Make a group, and missing groups of its path; also the file of the database, if needed."""
    *way, name = address.path
    with changed(address.url, f"mkdir {join(address.path)}") as root:
        group = group_at(root, address.url, tuple(way))
        if name in group.obj:
            raise Failure(f"{address} exists already")
        group_at(root, address.url, address.path)
    if as_json:
        print_json({"path": join(address.path)})
    else:
        say(str(address))
