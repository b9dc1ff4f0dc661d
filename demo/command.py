"""wendelin demo: demo-zbigarray in one go, in a database of its own if none is given."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict

import click

from wendelin.cli.address import Address
from wendelin.cli.arguments import AddressType, SizeType, json_option
from wendelin.cli.database import opened_to_write
from wendelin.cli.output import print_json
from wendelin.demo.demo_zbigarray import MB, UserError, gen, print_result, read

__all__ = ["demo"]


@click.command(
    short_help="Write an array, and compute on it.",
    epilog="""\b
Examples:
  wendelin demo
  wendelin demo --worksize 64G data.fs
  wendelin demo zeo://host:9991""",
)
@click.argument("address", metavar="[URL]", type=AddressType("none"), required=False)
@click.option(
    "--worksize",
    type=SizeType(),
    default=512 * MB,
    help="How much to write; try more than RAM.  [default: 512M]",
)
@json_option
def demo(address: Address | None, worksize: int, as_json: bool) -> None:
    """Write an array into a database, and compute on it with plain NumPy functions.

    Appends a signal, sin(0.2 t) * 15, in transactions of 32 MB. Then computes its mean and sum, on
    one view of the whole array. Without URL, the database is removed at the end. demo-zbigarray
    does the two steps one at a time.
    """
    with ExitStack() as stack:
        if address is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wendelin-demo-"))
            url = os.path.join(folder, "demo.fs")
        else:
            url = address.url
        try:
            with opened_to_write(url) as root:
                gen(root, worksize, quiet=None)
                result = read(root)
        except UserError as e:
            raise click.ClickException(str(e)) from e
    if as_json:
        print_json(asdict(result))
    else:
        print_result(result)
