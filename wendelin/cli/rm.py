"""wendelin rm: arrays and groups, taken out of a database."""

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
    short_help="Take arrays or groups out of a database.",
    epilog="""\b
Examples:
  wendelin rm data.fs#run/7/signal
  wendelin rm -r data.fs#run/7
  wendelin rm 'data.fs#run/*/raw'""",
)
@click.argument("address", metavar="URL#path", type=AddressType())
@click.option("-r", "--recursive", is_flag=True, help="Groups, too, with all in them.")
@json_option
def rm(address: Address, recursive: bool, as_json: bool) -> None:
    """Take arrays or groups out of a database; * and ? in a name stand for others.

    It is one transaction, which `wendelin undo` undoes. The room in a file is free after a pack.
    """
    with changed(address.url, f"rm {join(address.path)}") as root:
        paths = expand(Database(root._p_jar), address)
        for path in paths:
            at = Address(address.url, path)
            container, key, value = entry_of(root, at)
            if is_container(value) and not recursive:
                raise Failure(f"{at} is a group: -r takes it out, with all in it")
            del container[key]
    if as_json:
        print_json({"removed": [join(path) for path in paths]})
    else:
        for path in paths:
            say(f"removed {Address(address.url, path)}")
