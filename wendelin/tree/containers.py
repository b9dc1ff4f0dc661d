"""Containers: mappings of names to objects in ZODB; and what groups keep in them besides.

A container is any persistent mapping: a BTree, a PersistentMapping, the root. A group keeps its own
data there by names that begin with `~`. So any mapping may be a group, and stock ZODB reads all of
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from difflib import get_close_matches
from itertools import islice
from typing import Any

from BTrees.OOBTree import OOBTree
from persistent import Persistent

from wendelin.lib.storage.tags import TAGS

__all__ = [
    "ATTRS",
    "IMPORT",
    "find",
    "is_container",
    "is_hidden",
    "names",
    "new_container",
    "path_names",
    "put",
    "what_is_there",
]

#: the key of a group's attributes
ATTRS = "~attrs"

#: the suffix of the name of an unfinished import
IMPORT = "~import"

_SHOWN = 8  # names that a message lists


def new_container() -> OOBTree:
    """Return the container of a new group."""
    return OOBTree()


def is_container(obj: Any) -> bool:
    """Say whether an object can be a group: it is a mapping, and saves its values."""
    return isinstance(obj, Persistent) and isinstance(obj, Mapping)


def is_hidden(name: Any) -> bool:
    """Say whether a key is hidden, as it is for the group's own data."""
    return isinstance(name, str) and (name in (ATTRS, TAGS) or name.endswith(IMPORT))


def names(container: Mapping[Any, Any]) -> Iterator[Any]:
    """Iterate over the keys that a group has."""
    return (name for name in container if not is_hidden(name))


def path_names(path: str) -> list[str]:
    """Return the names in a path; slashes at its ends, and double ones, are ignored.

    Raises
    ------
    TypeError
        It is not a str.
    ValueError
        There is no name in it, or one that is reserved for groups.
    """
    if not isinstance(path, str):
        raise TypeError(f"a name in a group is {path!r}: it must be a str")
    found = [name for name in path.split("/") if name]
    if not found:
        raise ValueError(f"{path!r} has no name in it: it must be like 'x', or 'run/7/x'")
    for name in found:
        if is_hidden(name) or name in (".", ".."):
            raise ValueError(f"{name!r} cannot be a name in a group: it is reserved")
    return found


def find(container: Any, path: Any, where: str) -> tuple[Any, Any]:
    """Return (container, key) of the object at a path.

    Parameters
    ----------
    container : mapping
    path : str or other key
        An existing key with slashes, as other programs make them, goes before a path. Any other
        type than str is a key.
    where : str
        The container's name in messages.

    Raises
    ------
    KeyError
        There is nothing at that path; the message lists what there is.
    """
    if not isinstance(path, str):
        if _has(container, path):
            return container, path
        raise KeyError(f"{where} has nothing at {path!r}: {what_is_there(container, path)}")
    rest = path.strip("/")
    while not (_has(container, rest) and not is_hidden(rest)):
        name, slash, rest = rest.partition("/")
        rest = rest.lstrip("/")
        if not _has(container, name) or is_hidden(name) or not slash:
            raise KeyError(f"{where} has no {name!r}: {what_is_there(container, name)}")
        where = f"{where}/{name}"
        container = container[name]
        if not is_container(container):
            raise KeyError(
                f"{where} is a {type(container).__name__}, which has no {rest!r} in it: it is not "
                f"a "
                f"group"
            )
    return container, rest


def _has(container: Any, key: Any) -> bool:
    try:
        return key in container
    except TypeError:  # a BTree with keys of another type
        return False


def what_is_there(container: Mapping[Any, Any], name: Any = None) -> str:
    """Return a text with the names in a container, and the one that may be meant."""
    some = list(islice(names(container), 1000))
    if not some:
        return "there is nothing in it"
    alike = get_close_matches(str(name), [str(key) for key in some], 1)
    have = ", ".join(map(repr, some[:_SHOWN])) + (", …" if some[_SHOWN:] else "")
    return f"did you mean {alike[0]!r}? It has {have}" if alike else f"it has {have}"


def put(container: MutableMapping[Any, Any], name: str, value: Any, where: str) -> None:
    """Put an object into a container by name; it belongs to the Connection at once.

    Raises
    ------
    TypeError
        The keys of the container are not names.
    """
    try:
        container[name] = value
    except TypeError as e:
        raise TypeError(
            f"{name!r} cannot be put into {where}, which is a {type(container).__name__} and has "
            f"no "
            f"names for keys ({e})"
        ) from None
    conn = getattr(container, "_p_jar", None)
    if conn is not None and isinstance(value, Persistent) and value._p_jar is None:
        conn.add(value)
