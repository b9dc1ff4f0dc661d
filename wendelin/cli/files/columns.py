"""Columns of Parquet and Arrow files, by pyarrow, which need not be installed: see Contents.

A column is an array of one axis: numbers, truth values, times, or texts of variable length.
Missing values are NaN or NaT; a column of another type that has some is left out, and so are
columns of lists, structures and decimals.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.errors import Failure, explain
from wendelin.cli.files.base import Source
from wendelin.cli.files.contents import Contents, Member
from wendelin.cli.files.datasets import DatasetSource, library
from wendelin.cli.files.derived import TextSource, text_layout

__all__ = ["column_contents"]


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
            self._cached = i, self._load(i).to_numpy(zero_copy_only=False)
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


def column_contents(path: str, kind: str, identity: dict[str, Any]) -> Contents:
    """Return the columns of a file.

    Parameters
    ----------
    path : str
    kind : {'parquet', 'arrow'}
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

    members = [Member(())]
    for i, field in enumerate(schema):
        try:
            members.append(_member(pa, field, lengths, partial(load, i), identity))
        except (pa.ArrowException, OSError, TypeError, ValueError) as e:
            members.append(Member((field.name,), why=explain(e)))
    return Contents(path, members, identity, close)


def _member(
    pa: Any,
    field: Any,
    lengths: list[int],
    load: Callable[[int], Any],
    identity: dict[str, Any],
) -> Member:
    """Return a column as a member."""
    types = pa.types
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    text = types.is_string(kind) or types.is_large_string(kind)
    takes_missing = types.is_floating(kind) or types.is_temporal(kind)
    number = types.is_integer(kind) or types.is_boolean(kind)
    if not (text or number or takes_missing) or types.is_time(kind):
        return Member((field.name,), why=f"values of type {kind}")
    if not takes_missing:
        missing = sum(load(batch).null_count for batch in range(len(lengths)))
        if missing:
            why = f"{missing} missing values, which {kind} does not have"
            return Member((field.name,), why=why)
    dtype = np.dtype(object)
    attrs = {}
    if types.is_date(kind):
        dtype = np.dtype("M8[D]" if types.is_date32(kind) else "M8[ms]")
    elif types.is_timestamp(kind) or types.is_duration(kind):
        dtype = np.dtype(f"{'M' if types.is_timestamp(kind) else 'm'}8[{kind.unit}]")
        if getattr(kind, "tz", None):
            attrs["timezone"] = str(kind.tz)
    elif not text:
        dtype = np.dtype(kind.to_pandas_dtype())
    column = _Column(lengths, load, dtype)
    layout = text_layout(column) if text else None

    def opens() -> Source:
        told = {**identity, "member": field.name}
        if layout is not None:
            return TextSource(column, layout, told, attributes=(attrs, []))
        return DatasetSource(column, (), told, attributes=(attrs, []))

    return Member((field.name,), opens().layout, attrs, open=opens)
