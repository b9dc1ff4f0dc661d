"""Paths in a database that begin with what was typed, for the shell.

This module knows paths and the shell's completion, but not what an object has.
"""

from __future__ import annotations

from itertools import islice

from wendelin.cli.address import Address, join, quote
from wendelin.cli.database import opened
from wendelin.cli.stored import StoredArray, StoredFile
from wendelin.cli.tree import children, find

__all__ = ["paths"]

_MOST = 1000


def paths(url: str, typed: str) -> list[str]:
    """Return paths that begin with what was typed; those of groups end with a slash.

    A database that cannot be read has none, as the shell cannot show errors.
    """
    above, _, begin = typed.rpartition("/")
    try:
        names = tuple(name for name in above.split("/") if name)
        with opened(url) as database:
            found = []
            for name, value in islice(children(find(database, Address(url, names))), _MOST):
                if quote(name).startswith(begin):
                    leaf = isinstance(database.get(value), StoredArray | StoredFile)
                    found.append(join((*names, name)) + ("" if leaf else "/"))
            return found
    except Exception:
        return []
