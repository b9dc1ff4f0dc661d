"""Containers of a database that commands change, as objects of ZODB.

Objects are loaded here, so classes that a database names are imported. Commands that only read do
not: see stored.

This module knows containers, but not what is put into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import transaction

from wendelin.cli.address import Address, Path, join
from wendelin.cli.database import opened_to_write
from wendelin.cli.errors import Failure, explain
from wendelin.cli.stored import Database, class_of
from wendelin.cli.tree import find, keys_of
from wendelin.tree.containers import is_container
from wendelin.tree.group import Group

__all__ = ["Entry", "changed", "entry_of", "group_at", "group_of"]


@contextmanager
def changed(url: str, note: str) -> Iterator[Any]:
    """Open a database to change it; yield its root object. At the end the change is committed.

    Raises
    ------
    Failure
        The error to report.
    """
    with opened_to_write(url) as root:
        try:
            yield root
            transaction.get().note(f"wendelin: {note}")
            transaction.commit()
        except (KeyError, TypeError, ValueError) as e:
            raise Failure(str(e.args[0]) if e.args else explain(e)) from e


class Entry(NamedTuple):
    """The place of an object: its container and its key."""

    container: Any
    key: Any
    value: Any


def entry_of(root: Any, address: Address) -> Entry:
    """Return the place of an object in an open database.

    Raises
    ------
    Failure
        There is none; or it is not in a mapping.
    """
    find(Database(root._p_jar), address)  # its error lists what there is
    container, key = root, None
    for i, name in enumerate(address.path):
        if i:
            container = container[key]
        if not is_container(container):
            where = Address(address.url, address.path[:i])
            raise Failure(
                f"{where} is a {class_of(container)}: what is in it can be changed by a program "
                f"only"
            )
        key = next((k for k in keys_of(name) if _has(container, k)), None)
        if key is None:
            where = Address(address.url, address.path[:i])
            raise Failure(f"{where} has no {name!r} as a key: it is an attribute")
    return Entry(container, key, container[key])


def _has(container: Any, key: Any) -> bool:
    try:
        return key in container
    except TypeError:  # a BTree with keys of another type
        return False


def group_of(root: Any, address: Address) -> Group:
    """Return the group at an address; without a path, the root.

    Raises
    ------
    Failure
        It is not a group.
    """
    value = entry_of(root, address).value if address.path else root
    if not is_container(value):
        raise Failure(f"{address} is a {class_of(value)}, not a group")
    return Group(value, join(address.path))


def group_at(root: Any, url: str, path: Path) -> Group:
    """Return the group of a path; missing groups are made.

    Raises
    ------
    Failure
        The path has an object that is not a group.
    """
    group = Group(root)
    for i, name in enumerate(path):
        container = group.obj
        key = next((k for k in keys_of(name) if _has(container, k)), None)
        here = join(path[: i + 1])
        if key is None:
            group.create_group(name)
            key = name
        value = container[key]
        if not is_container(value):
            raise Failure(f"{url}#{here} is a {class_of(value)}, not a group")
        group = Group(value, here)
    return group
