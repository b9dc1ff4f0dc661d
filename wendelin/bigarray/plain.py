"""Warnings about arrays inside plain dicts and lists, whose changes are not saved.

A plain dict in a database is a part of the object that it is in. So a change of it alone is not
saved, and an array in it is loaded and stored, as a reference, together with that object.

This module knows states of objects, and which class an array is of, but not what an array has.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from persistent import Persistent

from wendelin.bigarray.array import BigArray
from wendelin.lib.adapters.trees import is_bucket, is_tree

__all__ = ["PlainContainerWarning", "has_array", "warn_of_changes", "warn_of_plain"]

_DEEP = 8  # nesting of containers that is searched
_MOST = 10_000  # values that are searched


class PlainContainerWarning(UserWarning):
    """An array is inside a plain dict or list, which is not saved when it changes."""


def has_array(value: Any) -> bool:
    """Say whether an array is inside a plain dict, list, tuple or set."""
    todo = [(value, 0)]
    for _ in range(_MOST):
        if not todo:
            return False
        value, deep = todo.pop()
        if isinstance(value, BigArray):
            return deep > 0
        if deep < _DEEP:
            todo += ((item, deep + 1) for item in _inside(value))
    return False


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Persistent):
        return ()
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set | frozenset) else ()


def warn_of_plain(value: Any, what: str, stacklevel: int = 2) -> None:
    """Warn if an array is inside a plain dict or list.

    Parameters
    ----------
    value : object
    what : str
        Its name in the message.
    stacklevel : int
        See warnings.warn().
    """
    if isinstance(value, dict | list | set) and has_array(value):
        kind = type(value).__name__
        warnings.warn(
            f"{what} is a plain {kind} with an array inside: a change of the {kind} is not saved, "
            f"unless the object that it is in is changed, too. Use a persistent mapping "
            f"(persistent.mapping.PersistentMapping, BTrees.OOBTree.OOBTree), a group of "
            f"wendelin.open(), or persistent.list.PersistentList",
            PlainContainerWarning,
            stacklevel=stacklevel + 1,
        )


def warn_of_changes(objects: Iterable[Any]) -> None:
    """Warn before a commit stores objects with arrays in plain dicts and lists."""
    seen: set[int] = set()
    todo = [obj for obj in objects if not isinstance(obj, BigArray)]
    while todo:
        obj = todo.pop()
        if id(obj) in seen or not isinstance(obj, Persistent) or obj._p_changed is None:
            continue
        seen.add(id(obj))
        for name, value in _values(obj):
            if isinstance(value, Persistent):
                # a new one is stored with the object that it is in
                if value._p_serial == _NEW and not isinstance(value, BigArray):
                    todo.append(value)
            else:
                warn_of_plain(value, f"{name!r} of a {type(obj).__name__}", 5)


_NEW = b"\0" * 8


def _inline(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the values in a tree's own state, which has them if it has one bucket."""
    state = tree.__getstate__()
    if isinstance(state, tuple) and len(state) == 1:
        flat = state[0][0][0]
        yield from zip(flat[0::2], flat[1::2], strict=True)


def _values(obj: Any) -> Iterator[tuple[Any, Any]]:
    if is_tree(obj) or is_bucket(obj):
        # a tree that is not new is stored without its buckets, which are changed themselves
        if is_tree(obj) and obj._p_serial != _NEW:
            yield from _inline(obj)
        elif hasattr(obj, "items"):
            yield from obj.items()
        return
    attributes = getattr(obj, "__dict__", {})
    data = attributes.get("data")
    if isinstance(data, dict) and hasattr(obj, "keys"):
        yield from data.items()
    elif isinstance(data, list) and hasattr(obj, "append"):
        yield from enumerate(data)
    yield from ((n, v) for n, v in attributes.items() if n != "data" and not n.startswith("_v_"))
