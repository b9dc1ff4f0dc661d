"""Columns of Parquet and Arrow files, by pyarrow, which need not be installed: see Contents.

A column is an array of one axis: numbers, truth values, times, or texts of variable length.
Missing values are what the user says; else NaN, NaT, or an empty text. Integers with missing values
are float64 then, if that loses no digit; else the column is left out, and so are columns of lists,
structures and decimals. Metadata of the file and of columns are attributes.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.errors import Failure, explain
from wendelin.cli.files.attributes import Attributes, kept
from wendelin.cli.files.base import Source
from wendelin.cli.files.contents import Contents, Member
from wendelin.cli.files.datasets import DatasetSource, library
from wendelin.cli.files.derived import TextSource, text_layout

__all__ = ["JSON", "column_contents"]

#: key of metadata: which others are JSON, and not text
JSON = "wendelin:json"
#: what Arrow and pandas keep for themselves
_OF_LIBRARIES = ("ARROW:", "PARQUET:", "pandas")
_EXACT = 1 << 53  # integers up to this one are float64 without loss


def _attributes(metadata: dict[bytes, bytes] | None) -> Attributes:
    """Return metadata as attributes: those that we wrote have the values that they had."""
    items: list[tuple[str, Any]] = []
    unread: list[str] = []
    given = metadata or {}
    try:
        in_json = json.loads(given.get(JSON.encode(), b"[]"))
    except ValueError:
        in_json = []
    for key, data in given.items():
        name = key.decode(errors="backslashreplace")
        if name == JSON or name.startswith(_OF_LIBRARIES):
            continue
        try:
            text = data.decode()
            items.append((name, json.loads(text) if name in in_json else text))
        except UnicodeDecodeError:
            items.append((name, data))
        except ValueError:
            unread.append(name)
    attrs, left = kept(items)
    return attrs, unread + left


class _Column:
    """A column, with a shape, a dtype and slices, as a dataset of h5py has them.

    Parameters
    ----------
    lengths : list of int
        Rows of each batch: a row group of Parquet, a record batch of Arrow.
    load : (int) -> pyarrow array
        Reads the column in a batch.
    dtype : data-type
    """

    def __init__(
        self, lengths: list[int], load: Callable[[int], Any], dtype: np.dtype[Any]
    ) -> None:
        self._stops = list(accumulate(lengths))
        self._load = load
        self.shape = (sum(lengths),)
        self.dtype = dtype
        self._cached: tuple[int, NDArray[Any]] | None = None

    def batch(self, i: int) -> NDArray[Any]:
        """Return the values in a batch."""
        if self._cached is None or self._cached[0] != i:
            self._cached = None
            values = self._load(i).to_numpy(zero_copy_only=False)
            if self.dtype.kind == "f":  # integers of which some, in this part or not, are missing
                values = values.astype(self.dtype, copy=False)
            self._cached = i, values
        return self._cached[1]

    def __getitem__(self, where: tuple[slice]) -> NDArray[Any]:
        start, stop = where[0].start, where[0].stop
        found = []
        while start < stop:
            i = bisect_right(self._stops, start)
            end = min(stop, self._stops[i])
            first = self._stops[i - 1] if i else 0
            found.append(self.batch(i)[start - first : end - first])
            start = end
        return np.concatenate(found) if found else np.empty(0, self.dtype)


def column_contents(
    path: str, kind: str, missing: str | None, identity: dict[str, Any]
) -> Contents:
    """Return the columns of a file.

    Parameters
    ----------
    path : str
    kind : {'parquet', 'arrow'}
    missing : str, optional
        What is read for a missing value, in columns that have such values.
    identity : dict
        See Source.

    Raises
    ------
    Failure
        It cannot be read; or pyarrow is not installed.
    """
    pa = library("pyarrow", "arrow")
    try:
        if kind == "parquet":
            file = library("pyarrow.parquet", "arrow").ParquetFile(path)
            schema, close = file.schema_arrow, file.close
            lengths = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        else:
            source = pa.memory_map(path)
            file = library("pyarrow.ipc", "arrow").open_file(source)
            schema, close = file.schema, source.close
            lengths = [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
    except (pa.ArrowException, OSError, ValueError) as e:
        raise Failure(f"{path} is not a readable {kind} file: {explain(e)}") from e

    def load(column: int, batch: int) -> Any:
        if kind == "parquet":
            # a column of structures has a number for each field: these are left out, not read
            table = file.read_row_group(batch, columns=[schema.names[column]])
            found = table.column(0).combine_chunks()
        else:
            found = file.get_batch(batch).column(column)
        return found.dictionary_decode() if pa.types.is_dictionary(found.type) else found

    attrs, unkept = _attributes(schema.metadata)
    members = [Member((), attrs=attrs, unkept=unkept)]
    identity = {**identity, "missing": missing} if missing is not None else identity
    for i, field in enumerate(schema):
        try:
            members.append(_member(pa, field, lengths, partial(load, i), missing, identity))
        except (pa.ArrowException, OSError, TypeError, ValueError) as e:
            members.append(Member((field.name,), why=explain(e)))
    return Contents(path, members, identity, close)


def _filled(pa: Any, kind: Any, missing: str | None) -> Any:
    """Return what is read for a missing value of a type; None if the user says nothing of it."""
    if missing is None:
        return None
    try:
        return pa.array([missing]).cast(kind)[0]
    except pa.ArrowException:
        return None


def _fill(value: Any, load: Callable[[int], Any], part: int) -> Any:
    """Return a part of a column without missing values."""
    return load(part).fill_null(value)


def _is_exact(pa: Any, load: Callable[[int], Any], part: int) -> bool:
    """Say whether integers are float64 without loss."""
    ends = import_module("pyarrow.compute").min_max(load(part)).as_py()
    return all(n is None or -_EXACT <= n <= _EXACT for n in ends.values())


def _member(
    pa: Any,
    field: Any,
    lengths: list[int],
    load: Callable[[int], Any],
    missing: str | None,
    identity: dict[str, Any],
) -> Member:
    """Return a column as a member."""
    types = pa.types
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind)
    takes_missing = types.is_floating(kind) or types.is_temporal(kind)
    number = types.is_integer(kind) or types.is_boolean(kind)
    if not (text or number or takes_missing) or types.is_time(kind):
        return Member((field.name,), why=f"values of type {kind}")
    fill = _filled(pa, kind, missing)
    with_floats = False
    if text:
        fill = pa.scalar("" if missing is None else missing, kind)
    elif number and fill is None:
        gaps = sum(load(part).null_count for part in range(len(lengths)))
        with_floats = bool(gaps) and types.is_integer(kind)
        if gaps and not (
            with_floats and all(_is_exact(pa, load, part) for part in range(len(lengths)))
        ):
            why = f"{gaps} missing values, which {kind} does not have: --missing says what they are"
            return Member((field.name,), why=why)
    if fill is not None:
        load = partial(_fill, fill, load)
    dtype = np.dtype(object)
    attrs, unkept = _attributes(field.metadata)
    if types.is_date(kind):
        dtype = np.dtype("M8[D]" if types.is_date32(kind) else "M8[ms]")
    elif types.is_timestamp(kind) or types.is_duration(kind):
        dtype = np.dtype(f"{'M' if types.is_timestamp(kind) else 'm'}8[{kind.unit}]")
        if getattr(kind, "tz", None):
            attrs["timezone"] = str(kind.tz)
    elif with_floats:
        dtype = np.dtype("f8")
    elif not text:
        dtype = np.dtype(kind.to_pandas_dtype())
    column = _Column(lengths, load, dtype)
    layout = text_layout(column) if text else None
    if layout is not None and types.is_binary(kind):
        compute = import_module("pyarrow.compute")
        sizes = [
            compute.max(compute.binary_length(load(part))).as_py() for part in range(len(lengths))
        ]
        most = max((n for n in sizes if n is not None), default=0)
        layout = layout._replace(dtype=np.dtype(f"S{max(1, most)}"))

    def opens() -> Source:
        told = {**identity, "member": field.name}
        if layout is not None:
            return TextSource(column, layout, told, attributes=(attrs, unkept))
        return DatasetSource(column, (), told, attributes=(attrs, unkept))

    return Member((field.name,), opens().layout, attrs, unkept, open=opens)
