"""Dtypes and scalars of NumPy, made from the values of pickles that inert has read.

NumPy's own code trusts sizes and offsets in the pickled state of a dtype. This module makes a dtype
from its description, as a program does.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np

from wendelin.lib.storage.inert import Global, InertError, Object, Pairs, shown

__all__ = ["dtype_of", "scalar_of"]

_PLAIN = re.compile(r"\??|[biufcSUVMm?]\d{0,10}")
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_RECORDS = ("numpy.record", "numpy.core.records.record", "numpy.rec.record")
_MOST = 10_000  # fields, at all depths; NumPy describes, and compares, each of them
_ORDERS = ("<", ">", "=", "|")
_ALIGNED = 0x80  # of a dtype's flags


def _text(value: object) -> str:
    """Return a text, also one of Python 2."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise InertError(f"{shown(value)}, where a dtype has a text")
    return value


def dtype_of(value: object) -> np.dtype[Any]:
    """Return the dtype of an Object.

    Raises
    ------
    InertError
        It is not a dtype, or is one that holds objects, or has thousands of fields.
    """
    try:
        return _Maker().make(value)
    except InertError:
        raise
    except (TypeError, ValueError, OverflowError, KeyError, IndexError) as e:
        raise InertError(f"no dtype: {e}") from e


class _Maker:
    """Makes a dtype; counts its parts."""

    def __init__(self) -> None:
        self._left = _MOST

    def make(self, value: object, depth: int = 20) -> np.dtype[Any]:
        self._left -= 1
        if self._left < 0 or not depth:
            raise InertError("a dtype of thousands of fields, or of many in each other")
        if not isinstance(value, Object) or value.cls != "numpy.dtype" or not value.args:
            raise InertError(f"{shown(value)} is not a dtype")
        # (version, byteorder, subarray, names, fields, itemsize, alignment, flags[, metadata])
        state = value.states[-1] if value.states else (3, "=", None, None, None, -1, -1, 0)
        if not isinstance(state, tuple) or not 5 <= len(state) <= 9:
            raise InertError(f"a dtype with state {shown(state)}")
        _, order, subarray, names, fields, *sizes = state
        kind = value.args[0]
        record = isinstance(kind, Global) and kind.name in _RECORDS
        if subarray is not None:
            base, shape = subarray
            return np.dtype((self.make(base, depth - 1), _shape(shape)))
        if names is not None:
            dtype = self._structure(names, fields, sizes, depth)
        else:
            dtype = self._simple("V" if record else _text(kind), state)
        if record:
            dtype = np.dtype((np.record, dtype))
        order = _text(order)
        if order not in _ORDERS:
            raise InertError(f"a dtype of byte order {shown(order)}")
        # each field of a structure has its own; and NumPy writes '<' for the native order
        native = order in ("|", "=", "<" if sys.byteorder == "little" else ">")
        return dtype if names is not None or native else dtype.newbyteorder("S")

    @staticmethod
    def _simple(text: str, state: tuple[Any, ...]) -> np.dtype[Any]:
        if _PLAIN.fullmatch(text) is None or not text:
            raise InertError(f"a dtype {shown(text)}")
        if text[0] not in "Mm":
            dtype = np.dtype(text)
            size = state[5] if len(state) > 5 else -1
            flexible = dtype.kind in "SUV" and type(size) is int and 0 <= size < 1 << 31
            return np.dtype(f"V{size}") if flexible and dtype.kind == "V" else dtype
        unit = ""
        if len(state) > 8 and isinstance(state[8], tuple):
            name, number, *_ = state[8][1]
            if type(number) is not int or not re.fullmatch(r"[A-Za-z]{1,7}", _text(name)):
                raise InertError(f"a dtype with the unit {shown(state[8][1])}")
            unit = "" if _text(name) == "generic" else f"[{number}{_text(name)}]"
        return np.dtype(f"{text}{unit}")

    def _structure(
        self, names: object, fields: object, sizes: list[Any], depth: int
    ) -> np.dtype[Any]:
        if not isinstance(names, tuple) or not isinstance(fields, Pairs):
            raise InertError("a structure without fields")
        found = {_text(name): field for name, field in fields.pairs}
        described = [found[_text(name)] for name in names]
        size, _, flags = [*sizes, -1, -1, 0][:3]
        spec = {
            "names": [_text(name) for name in names],
            "formats": [self.make(field[0], depth - 1) for field in described],
            "offsets": [_integer(field[1]) for field in described],
            "itemsize": _integer(size),
        }
        titles = [field[2] if len(field) > 2 else None for field in described]
        if any(title is not None for title in titles):
            spec["titles"] = [None if t is None else _text(t) for t in titles]
        aligned = type(flags) is int and bool(flags & _ALIGNED)
        return np.dtype(spec, align=aligned)  # type: ignore[call-overload, no-any-return]


def _integer(value: object) -> int:
    if type(value) is not int:
        raise InertError(f"{shown(value)}, where a dtype has an integer")
    return value


def _shape(value: object) -> tuple[int, ...]:
    shape = value if isinstance(value, tuple) else (value,)
    if len(shape) > 32:
        raise InertError("a dtype of too many axes")
    return tuple(map(_integer, shape))


def scalar_of(value: object) -> Any:
    """Return the number of an Object of NumPy, or any other value as it is.

    Raises
    ------
    InertError
        It is not a number.
    """
    if not isinstance(value, Object):
        return value
    if value.cls not in _SCALARS or len(value.args) != 2:
        raise InertError(f"{shown(value)} is not a number")
    dtype, data = dtype_of(value.args[0]), value.args[1]
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes) or len(data) != dtype.itemsize or dtype.hasobject:
        raise InertError(f"{shown(value)} is not a number")
    return np.frombuffer(data, dtype)[0]
