"""Attributes of arrays and groups: names, units, numbers, small arrays, in the database.

They are in a BTree of their own, so that a change of one conflicts neither with an append to the
array nor with a change of another one. Values are of Python and NumPy, so stock ZODB reads them.

This module knows values, and functions that find or make the BTree. It does not know arrays and
groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
from BTrees.OOBTree import OOBTree

from wendelin.bigarray.meaning import elements_of

__all__ = ["MOST", "Attributes", "check_value"]

#: limit of a value; a larger one should be an array [bytes]
MOST = 1 << 20

_PLAIN: tuple[Any, ...] = (bool, int, float, complex, str, bytes)
_DEEP = 32  # nesting of lists and dicts


class Attributes(MutableMapping[str, Any]):
    """A mapping of names to small values; changes take part in the transaction.

    A value is None, a number, text, bytes, a scalar or an array of NumPy, or a list, tuple or dict
    of these. Reading returns a copy: `attrs["limits"] = [0, 5]` changes the value, and
    `attrs["limits"].append(5)` does not.

    Parameters
    ----------
    name_of : str
        Its name in messages.
    find : () -> mapping or None
        Finds the BTree of the values.
    make : () -> mapping
        Finds it, or makes it.
    """

    __slots__ = ("_find", "_make", "_name_of")

    def __init__(
        self,
        name_of: str,
        find: Callable[[], MutableMapping[str, Any] | None],
        make: Callable[[], MutableMapping[str, Any]],
    ) -> None:
        self._name_of, self._find, self._make = name_of, find, make

    def _all(self) -> Mapping[str, Any]:
        found = self._find()
        return {} if found is None else found

    def __getitem__(self, name: str) -> Any:
        """Return a copy of a value."""
        try:
            return _copy(self._all()[name])
        except KeyError:
            have = ", ".join(map(repr, self._all())) or "none"
            raise KeyError(f"{self._name_of} has no attribute {name!r}: it has {have}") from None

    def __setitem__(self, name: str, value: Any) -> None:
        """Set a value.

        Raises
        ------
        TypeError
            The name is not a str; the value is of a type that cannot be kept.
        ValueError
            The value is larger than 1 MiB.
        """
        if not isinstance(name, str):
            raise TypeError(f"the name of an attribute is {name!r}: it must be a str")
        self._make()[str(name)] = check_value(value, name)

    def __delitem__(self, name: str) -> None:
        """Remove an attribute."""
        self[name]
        del self._make()[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in their alphabetical order."""
        return iter(list(self._all()))

    def __len__(self) -> int:
        """Return the number of attributes."""
        return len(self._all())

    def __repr__(self) -> str:
        return repr({name: self[name] for name in self})


def new_table() -> OOBTree:
    """Return the mapping that keeps the attributes."""
    return OOBTree()


def check_value(value: Any, name: str = "", deep: int = 0) -> Any:
    """Return a value as it is kept.

    Raises
    ------
    TypeError, ValueError
        It cannot be kept.
    """
    if deep > _DEEP:
        raise ValueError(f"attribute {name!r}: lists and dicts are nested more than {_DEEP} deep")
    if isinstance(value, np.generic | np.ndarray):
        try:
            value = elements_of(value)
        except TypeError as e:
            raise TypeError(f"attribute {name!r}: {e}") from e
        return _numpy(value, name, deep)
    for plain in _PLAIN:
        if isinstance(value, plain):
            if isinstance(value, str | bytes) and len(value) > MOST:
                raise _too_large(name, len(value))
            return value if type(value) is plain else plain(value)
    if value is None:
        return None
    if isinstance(value, list | tuple):
        items = [check_value(item, name, deep + 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"attribute {name!r}: a dict has the key {key!r}: it must be a str")
        return {str(key): check_value(item, name, deep + 1) for key, item in value.items()}
    raise TypeError(
        f"attribute {name!r} is a {type(value).__name__}: it must be None, a number, text, bytes, "
        f"a scalar or an array of NumPy, or a list or dict of these"
    )


def _numpy(value: Any, name: str, deep: int) -> Any:
    if value.dtype.kind == "T" or value.dtype.hasobject:  # text, mostly
        return check_value(value.tolist(), name, deep + 1)
    if value.nbytes > MOST:
        raise _too_large(name, value.nbytes)
    if value.ndim == 0:
        if value.dtype.kind in "US":
            return value.item()
        return value[()] if isinstance(value, np.ndarray) else value
    # in the byte order of the machine, as NumPy unpickles it
    return np.array(value, value.dtype.newbyteorder("="), order="C", subok=False)


def _too_large(name: str, size: int) -> ValueError:
    return ValueError(
        f"attribute {name!r} has {size} bytes, more than {MOST}: make it an array, as in "
        f"g.create_array({name!r}, data=…)"
    )


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list | tuple):
        items = [_copy(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value
