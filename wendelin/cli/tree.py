"""Objects in a database, by path; and all of its arrays.

Mappings and BTrees have what their keys say, sequences what their indices say, and other objects
their attributes; so has an object of a class that cannot be imported. A database may be larger than
memory: objects are let go when they were looked at, and blocks are not looked at.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from persistent import Persistent
from transaction.interfaces import TransientError
from ZODB.broken import Broken
from ZODB.POSException import POSKeyError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.file_zodb import ZBigFile, ZData
from wendelin.bigfile.zblk import ZBlkBase
from wendelin.cli.address import Address, Path, quote
from wendelin.cli.errors import Failure

__all__ = ["Found", "Unreadable", "find", "find_array", "is_of_object", "walk"]

_MANY = 200  # objects after which the Connection's cache is told to shrink
_SHOWN = 8  # names that an error tells

#: they have no arrays in them
_LEAVES = (ZBlkBase, ZData)


def _attributes(obj: Any) -> dict[str, Any]:
    """Return the persistent attributes of an object."""
    if isinstance(obj, Persistent):
        obj._p_activate()
    state = obj.__Broken_state__ if isinstance(obj, Broken) else getattr(obj, "__dict__", None)
    if not isinstance(state, dict):
        return {}
    container = "data" if isinstance(obj, Mapping | Sequence) else None
    return {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and not name.startswith(("_p_", "_v_")) and name != container
    }


def _items(obj: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (key, value) of what is in an object, without its attributes."""
    if isinstance(obj, Mapping):
        yield from obj.items()
    elif isinstance(obj, Sequence) and not isinstance(obj, str | bytes):
        yield from enumerate(obj)


def _name(key: Any) -> str:
    """Return the name that a key has in paths."""
    return key if isinstance(key, str) else repr(key)


def _child(obj: Any, name: str) -> Any:
    """Return what an object has by a name.

    Raises
    ------
    KeyError
        It has nothing of that name.
    _AmbiguousError
        It has more than one.
    """
    found: dict[str, Any] = {}
    for key in _keys(name):
        try:
            if isinstance(obj, Mapping):
                if key in obj:
                    found[f"key {key!r}"] = obj[key]
            elif isinstance(obj, Sequence) and isinstance(key, int):
                found[f"index {key}"] = obj[key]
        except POSKeyError:
            raise
        except (LookupError, TypeError):  # a BTree has keys of one type
            pass
    attributes = _attributes(obj)
    if name in attributes:
        found[f"attribute {name!r}"] = attributes[name]
    if len({id(value) for value in found.values()}) > 1:
        raise _AmbiguousError(", ".join(found))
    if not found:
        raise KeyError(name)
    return next(iter(found.values()))


class _AmbiguousError(Exception):
    """A name stands for several things: which ones."""


def _keys(name: str) -> list[Any]:
    """Return the keys that a name may stand for."""
    try:
        key = ast.literal_eval(name)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [name]
    return [name, key]


def _names(obj: Any) -> Iterator[str]:
    for key, _ in _items(obj):
        yield _name(key)
    yield from _attributes(obj)


def _kind(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def find(root: Any, address: Address) -> Any:
    """Return the object at an address; of a database, its root is given.

    Raises
    ------
    Failure
        There is none.
    """
    obj = root
    for i, name in enumerate(address.path):
        try:
            obj = _child(obj, name)
        except POSKeyError:
            raise
        except _AmbiguousError as e:
            raise Failure(
                f"{Address(address.url, address.path[:i])} has more than one {quote(name)}: {e}. A "
                f"path cannot tell them apart: a program can, and can give one another name"
            ) from None
        except KeyError:
            names = list(islice(_names(obj), _SHOWN + 1))
            have = ", ".join(map(quote, names[:_SHOWN])) + (", ..." if names[_SHOWN:] else "")
            raise Failure(
                f"{Address(address.url, address.path[:i])} has no {name!r}: "
                + (f"it has {have}" if names else f"it is a {_kind(obj)}, with nothing in it")
            ) from None
    return obj


def find_array(root: Any, address: Address) -> ZBigArray:
    """Return the array at an address.

    Raises
    ------
    Failure
        There is none.
    """
    obj = find(root, address)
    if not isinstance(obj, ZBigArray):
        raise Failure(f"{address} is no array: it is a {_kind(obj)}")
    return obj


class Found(NamedTuple):
    """An array of a database."""

    path: Path
    obj: ZBigArray | ZBigFile


class Unreadable(NamedTuple):
    """An object that does not load."""

    path: Path
    error: Exception


class _Node(NamedTuple):
    """An object on the way: paths are put together when they are asked for."""

    obj: Any
    name: str
    parent: _Node | None

    def path(self) -> Path:
        names = []
        node: _Node | None = self
        while node is not None and node.parent is not None:
            names.append(node.name)
            node = node.parent
        return tuple(reversed(names))


def is_of_object(error: Exception) -> bool:
    """Say whether an exception is of one object, and others may well be read."""
    return not isinstance(error, TransientError | MemoryError)


def walk(
    conn: Any, start: Any, path: Path = (), tell: Callable[[int], None] = lambda n: None
) -> Iterator[Found | Unreadable]:
    """Yield all arrays that can be reached from an object; each once, by the shortest path.

    Parameters
    ----------
    conn : Connection
    start : object
        Of it, or in one of it. Memory holds the numbers of all objects under it, and no more of
        most.
    path : tuple of str
        Of the object.
    tell
        Is told how many objects were looked at.
    """
    todo = deque([_Node(start, "", None)])
    seen = {start._p_oid} if isinstance(start, Persistent) else set()
    count = 0
    while todo:
        node = todo.popleft()
        obj = node.obj
        if isinstance(obj, ZBigArray | ZBigFile):
            yield Found(path + node.path(), obj)
        else:
            try:
                for new in _children(node, conn, seen):
                    todo.append(new)
            except Exception as e:
                if not is_of_object(e):
                    raise
                yield Unreadable(path + node.path(), e)
        if isinstance(obj, Persistent):
            obj._p_deactivate()
        count += 1
        if count % _MANY == 0:
            conn.cacheGC()
        tell(1)


def _children(node: _Node, conn: Any, seen: set[bytes]) -> Iterator[_Node]:
    """Yield the persistent objects in an object that were not seen; also in containers in it."""
    todo = deque([(node.obj, node)])
    inside = {id(node.obj)}
    count = 0
    while todo:
        container, at = todo.popleft()
        for pairs in (_items(container), _attributes(container).items()):
            for key, value in pairs:
                if isinstance(value, Persistent):
                    oid = value._p_oid
                    known = oid in seen or value._p_jar is not conn
                    if not known and not isinstance(value, _LEAVES):
                        seen.add(oid)
                        yield _Node(value, _name(key), at)
                elif _may_hold(value) and id(value) not in inside:
                    inside.add(id(value))
                    # not the container: a node stays as long as there is something under it
                    todo.append((value, _Node(None, _name(key), at)))
                count += 1
                if count % _MANY == 0:
                    conn.cacheGC()  # of a BTree, the nodes that were passed


def _may_hold(value: Any) -> bool:
    """Say whether a value that is no persistent object may have such in it."""
    return isinstance(value, Mapping | list | tuple)
