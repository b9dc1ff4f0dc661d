"""wendelin attrs: shows and changes attributes of an array or a group."""

from __future__ import annotations

import json
from typing import Any

import click

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.attributes import attrs_of
from wendelin.cli.changing import changed, entry_of
from wendelin.cli.database import opened
from wendelin.cli.errors import Failure
from wendelin.cli.files.attributes import to_json
from wendelin.cli.output import console, print_json, table, warn
from wendelin.cli.stored import class_of
from wendelin.cli.tree import find
from wendelin.ragged import ZRagged
from wendelin.tree.containers import is_container
from wendelin.tree.group import Group

__all__ = ["attrs"]


@click.command(
    short_help="Show or change attributes of an array or a group.",
    epilog="""\b
Examples:
  wendelin attrs data.fs#run/7/signal
  wendelin attrs data.fs#run/7/signal unit=mV gain=[1.0,2.5]
  wendelin attrs data.fs --delete title""",
)
@click.argument("address", metavar="URL[#path]", type=AddressType("possible"))
@click.argument("values", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--delete", metavar="NAME", multiple=True, help="Remove an attribute.")
@json_option
def attrs(
    address: Address, values: tuple[str, ...], delete: tuple[str, ...], as_json: bool
) -> None:
    """Show the attributes of an array, a ZRagged or a group, or set some.

    A value is JSON, such as 5, 0.5, true, [1,2] or "text"; anything else is text.
    """
    if values or delete:
        _change(address, values, delete)
    with opened(address.url) as database:
        found, unread = attrs_of(database, find(database, address))
    if unread:
        warn("attrs", f"{address}: not shown, as they are of other types: {', '.join(unread)}")
    if as_json:
        print_json({name: _json(value) for name, value in found.items()})
    elif found:
        rows = ((name, _text(value)) for name, value in found.items())
        console().print(table(("name", "value"), rows))


def _change(address: Address, values: tuple[str, ...], delete: tuple[str, ...]) -> None:
    changes: dict[str, Any] = {}
    for text in values:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise click.UsageError(f"{text!r} is not NAME=VALUE")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
    with changed(address.url, f"attrs {join(address.path)}") as root:
        obj = entry_of(root, address).value if address.path else root
        if is_container(obj):
            obj = Group(obj, join(address.path))
        elif not isinstance(obj, ZBigArray | ZRagged):
            raise Failure(f"{address} is a {class_of(obj)}: it has no attributes of this kind")
        for name in delete:
            del obj.attrs[name]
        obj.attrs.update(changes)


def _json(value: Any) -> Any:
    try:
        return to_json(value)
    except TypeError:
        return repr(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    found = _json(value)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
