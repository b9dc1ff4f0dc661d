"""Arrays written as columns of Parquet and Arrow files, by pyarrow, which need not be installed.

An array of one axis is a column. One of two axes has a column for each index of the second. Each
field of a structure is a column, at any depth, as in CSV. Rows are written in batches.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.errors import Failure
from wendelin.cli.files.base import Layout, Sink
from wendelin.cli.files.columns import JSON
from wendelin.cli.files.datasets import library
from wendelin.cli.files.text import leaves
from wendelin.lib.utils import override

__all__ = ["ColumnSink"]

_TOGETHER = 1 << 20  # rows that are at least a batch, or a row group of Parquet [bytes]
#: kind of times -> their unit -> the one that Arrow has for it
_FINE = {"h": "s", "m": "s", "s": "s", "ms": "ms", "us": "us", "ns": "ns"}
_UNITS = {
    "M": {"Y": "D", "M": "D", "W": "D", "D": "D", **_FINE},
    "m": {"W": "s", "D": "s", **_FINE},
}


def _time_dtype(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return the dtype of times that Arrow has for a dtype; None if it has none."""
    unit = _UNITS[dtype.kind].get(np.datetime_data(dtype)[0])
    return None if unit is None else np.dtype(f"{dtype.kind}8[{unit}]")


def _type(pa: Any, dtype: np.dtype[Any], timezone: Any) -> Any:
    """Return the type of a column; None if there is none."""
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8):
        return pa.from_numpy_dtype(dtype.newbyteorder("="))
    if dtype.kind in "SU":
        return pa.binary() if dtype.kind == "S" else pa.string()
    times = _time_dtype(dtype) if dtype.kind in "Mm" else None
    if times is None:
        return None
    unit, _ = np.datetime_data(times)
    if times.kind == "m":
        return pa.duration(unit)
    return pa.date32() if unit == "D" else pa.timestamp(unit, timezone)


def _array(pa: Any, name: str, values: NDArray[Any], kind: Any) -> Any:
    """Return a column of a type; a NaT is a null.

    Raises
    ------
    Failure
        It cannot have one of the values.
    """
    dtype = values.dtype
    if dtype.kind in "SU":
        try:
            return pa.array(values.tolist(), kind)
        except UnicodeEncodeError as e:
            raise Failure(f"column {name} has a text that is not Unicode: {e}") from e
    if dtype.kind not in "Mm":
        return pa.array(np.ascontiguousarray(values, dtype.newbyteorder("=")), kind)
    times = _time_dtype(dtype)
    assert times is not None
    missing = np.isnat(values)
    with np.errstate(over="ignore"):
        shown = values.astype(times)
        numbers = shown.view("i8")
        if pa.types.is_date(kind):
            numbers = numbers.astype("i4")
            shown = numbers.astype("i8").view(times)
    if not np.array_equal(shown[~missing].astype(dtype), values[~missing]):
        raise Failure(f"column {name} has times that {kind} cannot have")
    return pa.array(numbers, mask=missing).cast(kind)


def _metadata(attrs: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return attributes as text, others than texts in JSON; and the names of those that are not."""
    found: dict[str, str] = {}
    left_out = []
    in_json = []
    for name, value in attrs.items():
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        try:
            text = plain if isinstance(plain, str) else json.dumps(plain)
            name.encode(), text.encode()
        except (TypeError, ValueError):
            left_out.append(name)
            continue
        found[name] = text
        if not isinstance(plain, str):
            in_json.append(name)
    if in_json:
        found[JSON] = json.dumps(in_json)
    return found, left_out


def _is_of(column: str, field: str) -> bool:
    """Say whether a column is of a field, or of a part of it."""
    return column == field or column.startswith((f"{field}[", f"{field}."))


class ColumnSink(Sink):
    """A Parquet or Arrow file.

    Parameters
    ----------
    path : str
    kind : {'parquet', 'arrow'}
    layout : Layout
    name : str
        Of the column, or of the columns of the second axis.
    columns : list of str
        Names of those that are written; empty: all of them.
    attrs : mapping
        Attributes, metadata of the file. One named 'timezone' is that of times.
    column_attrs : mapping
        Field -> its attributes, metadata of its columns, and their time zone.

    Raises
    ------
    Failure
        Such a file cannot have such an array, or pyarrow is not installed.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        layout: Layout,
        name: str,
        columns: list[str],
        attrs: Mapping[str, Any],
        column_attrs: Mapping[str, Mapping[str, Any]],
    ) -> None:
        pa = self._pa = library("pyarrow", "arrow")
        if len(layout.shape) not in (1, 2) or (layout.order == "F" and len(layout.shape) == 2):
            raise Failure(
                f"a {kind} file has columns: an array of shape {layout.shape} in order "
                f"{layout.order!r} has none; .npy takes any"
            )
        if layout.dtype.names and len(layout.shape) != 1:
            raise Failure(f"a {kind} file has columns: structures are rows of a 1-d array only")
        self.dtype, self._name = layout.dtype, name
        self._shape = (-1, *layout.shape[1:])
        self._axis = layout.shape[1] if len(layout.shape) == 2 else 1
        row = max(1, self._axis * layout.dtype.itemsize)
        self.together = max(1, self._axis) * max(1, _TOGETHER // row)
        found = list(leaves(np.empty((0, *layout.shape[1:]), layout.dtype), self._top))
        empty = dict(found)
        if len(empty) != len(found):
            names = [column for column, _ in found]
            twice = next(column for column in names if names.count(column) > 1)
            raise Failure(
                f"two columns of the {kind} file would have the name {twice!r}: rename one of them"
            )
        self._columns = columns or list(empty)
        for column in self._columns:
            if column not in empty:
                have = ", ".join(list(empty)[:8]) + (", ..." if len(empty) > 8 else "")
                raise Failure(f"there is no column {column!r}: there are {have}")
        if not self._columns:
            raise Failure(f"a {kind} file has columns, and the array has none")
        metadata, self._left_out = _metadata(attrs)
        fields = []
        for column in self._columns:
            of = max((n for n in column_attrs if _is_of(column, n)), key=len, default="")
            own = column_attrs.get(of, {})
            timezone = {**attrs, **own}.get("timezone")
            kept = _type(pa, empty[column].dtype, timezone if isinstance(timezone, str) else None)
            if kept is None:
                raise Failure(
                    f"a {kind} file has no type for {column}, of dtype {empty[column].dtype}; "
                    f".npy takes any"
                )
            told, left_out = _metadata(own)
            self._left_out += [f"{column}: {each}" for each in left_out]
            fields.append(pa.field(column, kept, metadata=told or None))
        self._schema = pa.schema(fields, metadata=metadata or None)
        self._file = open(path, "wb")  # noqa: SIM115
        self._writer: Any = None
        try:
            if kind == "parquet":
                parquet = library("pyarrow.parquet", "arrow")
                self._writer = parquet.ParquetWriter(self._file, self._schema)
            else:
                self._writer = library("pyarrow.ipc", "arrow").new_file(self._file, self._schema)
        except BaseException:
            self._file.close()
            raise

    @property
    def _top(self) -> str:
        return "" if self.dtype.names else self._name

    @override
    def set_attrs(self, attrs: Mapping[str, Any]) -> list[str]:
        return self._left_out

    def _write(self, start: int, values: NDArray[Any]) -> None:
        found = dict(leaves(values.reshape(self._shape), self._top))
        arrays = [
            _array(self._pa, field.name, found[field.name], field.type) for field in self._schema
        ]
        self._writer.write_batch(self._pa.record_batch(arrays, schema=self._schema))

    @override
    def finish(self) -> None:
        writer, self._writer = self._writer, None
        writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    @override
    def close(self) -> None:
        if self._writer is not None:  # after an error: it would write its end later
            writer, self._writer = self._writer, None
            with suppress(OSError, self._pa.ArrowException):
                writer.close()
        self._file.close()
