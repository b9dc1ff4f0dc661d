"""Paths with * and ?: which objects of a database they mean.

An existing name with such a character means itself.

This module knows paths and names, but not what an object has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from wendelin.cli.address import Address, Path
from wendelin.cli.errors import Failure
from wendelin.cli.stored import Database
from wendelin.cli.tree import children, find, walk

__all__ = ["expand", "walk_all"]


def expand(database: Database, address: Address) -> list[Path]:
    """Return the paths that an address means, in their order in the database.

    Raises
    ------
    Failure
        There is none.
    """
    found: list[tuple[Path, Any]] = [((), database.root)]
    for i, name in enumerate(address.path):
        pattern = "*" in name or "?" in name
        below: list[tuple[Path, Any]] = []
        for path, obj in found:
            try:
                below.append(((*path, name), find(database, Address("", (name,)), obj)))
            except Failure:
                if pattern:
                    below += [
                        ((*path, child), value)
                        for child, value in children(obj)
                        if fnmatchcase(child, name)
                    ]
                elif len(found) == 1:
                    find(database, Address(address.url, (*path, name)))  # its error lists the names
        found = [(path, database.get(value)) for path, value in below]
        if not found:
            raise Failure(f"{Address(address.url, address.path[: i + 1])} matches nothing")
    return [path for path, _ in found]


def walk_all(
    database: Database,
    address: Address,
    tell: Callable[[int], None] = lambda n: None,
    by: Callable[..., Iterator[Any]] = walk,
) -> Iterator[Any]:
    """Yield all arrays under the paths that an address means, by walk(), or by a function like it.

    Raises
    ------
    Failure
        It means none.
    """
    for path in expand(database, address):
        yield from by(database, find(database, Address(address.url, path)), path, tell)
