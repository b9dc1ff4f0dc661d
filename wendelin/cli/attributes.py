"""Attributes of arrays and groups, read as data: nothing that a record names is called.

This module knows how they are kept: see wendelin.bigarray.attrs and wendelin.tree.containers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.bigarray.attrs import MOST
from wendelin.cli.stored import Database, StoredArray, items, lookup
from wendelin.cli.storedragged import StoredRagged
from wendelin.lib.storage.inert import InertError, Object, Pairs, shown
from wendelin.lib.storage.inertdtype import dtype_of, scalar_of
from wendelin.tree.containers import ATTRS

__all__ = ["attrs_of"]

_ARRAYS = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")
_COMPLEX = ("builtins.complex", "__builtin__.complex")
_DEEP = 40  # nesting of lists and dicts


def attrs_of(database: Database, obj: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the attributes of an array, ZRagged or group, and the names of those not read.

    Raises
    ------
    RecordError, Exception
        See Database.get().
    """
    if isinstance(obj, StoredArray | StoredRagged):
        table = obj.attrs
    else:
        found = lookup(obj, ATTRS)
        table = found[0] if found else None
    values: dict[str, Any] = {}
    unread: list[str] = []
    for name, value in items(database.get(table)) if table is not None else ():
        try:
            values[str(name)] = _value(value)
        except InertError:
            unread.append(str(name))
    return values, unread


def _value(value: Any, deep: int = 0) -> Any:
    """Return the Python value of a value in a pickle.

    Raises
    ------
    InertError
        Attributes cannot have its type.
    """
    if deep > _DEEP:
        raise InertError("a value of too many levels")
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if isinstance(value, list | tuple):
        values = [_value(item, deep + 1) for item in value]
        return values if isinstance(value, list) else tuple(values)
    if isinstance(value, Pairs):
        return {str(key): _value(item, deep + 1) for key, item in value.pairs}
    if isinstance(value, Object) and value.cls in _ARRAYS:
        return _array(value)
    if isinstance(value, Object) and value.cls in _COMPLEX:
        if len(value.args) != 2 or not all(isinstance(each, float) for each in value.args):
            _refuse(value)
        return complex(*value.args)
    return scalar_of(value) if isinstance(value, Object) else _refuse(value)


def _refuse(value: Any) -> Any:
    raise InertError(f"{shown(value)} is not a value of an attribute")


def _array(value: Object) -> NDArray[Any]:
    state = value.states[-1] if value.states else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise InertError(f"{shown(value)} is not an array")
    _, shape, dtype, fortran, data = state
    dtype = dtype_of(dtype)
    if dtype.hasobject or not isinstance(data, bytes) or len(data) > MOST:
        _refuse(value)
    try:
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()
    except (TypeError, ValueError) as e:
        raise InertError(f"a damaged array: {e}") from e
