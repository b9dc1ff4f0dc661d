"""wendelin rm: removes arrays and groups from a database."""

from __future__ import annotations

import click

from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.changing import changed, entry_of
from wendelin.cli.errors import Failure
from wendelin.cli.globs import expand
from wendelin.cli.output import print_json, say
from wendelin.cli.stored import Database
from wendelin.tree.containers import is_container

__all__ = ["rm"]


@click.command(
    short_help="Remove arrays or groups from a database.",
    epilog="""\b
Examples:
  wendelin rm data.fs#run/7/signal
  wendelin rm -r data.fs#run/7
  wendelin rm 'data.fs#run/*/raw'""",
)
@click.argument("address", metavar="URL#path", type=AddressType())
@click.option("-r", "--recursive", is_flag=True, help="Also groups, with their contents.")
@json_option
def rm(address: Address, recursive: bool, as_json: bool) -> None:
    """Remove arrays or groups from a database; names may have the wildcards * and ?.

    This is one transaction, which `wendelin undo` undoes. A pack frees the space in a file.
    """
    with changed(address.url, f"rm {join(address.path)}") as root:
        paths = expand(Database(root._p_jar), address)
        for path in paths:
            at = Address(address.url, path)
            container, key, value = entry_of(root, at)
            if is_container(value) and not recursive:
                raise Failure(f"{at} is a group: -r removes it, with its contents")
            del container[key]
    if as_json:
        print_json({"removed": [join(path) for path in paths]})
    else:
        for path in paths:
            say(f"removed {Address(address.url, path)}")
