"""A group whose arrays have one length, as a table: its rows are structures of an element of each.

So what takes rows of structures takes such a group: CSV, Parquet and Arrow. Rows are read from all
arrays for one range at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.address import Address
from wendelin.cli.arrays import ArraySource, layout_of
from wendelin.cli.attributes import attrs_of
from wendelin.cli.errors import Failure
from wendelin.cli.files.base import Layout, Source
from wendelin.cli.files.names import name_in_group
from wendelin.cli.output import warn
from wendelin.cli.slices import Selection, slice_of
from wendelin.cli.stored import Database, Stored, StoredArray, class_of, items, name_of
from wendelin.lib.calc import mul
from wendelin.lib.utils import override
from wendelin.tree.containers import is_hidden

__all__ = ["TableSource"]


class TableSource(Source):
    """The rows of all arrays of a group. What is not an array is left out, and named.

    Parameters
    ----------
    database : Database
    address : Address
        Of the group.
    group : Stored

    Raises
    ------
    Failure
        It has no arrays, or these have different lengths, or one name.
    """

    def __init__(self, database: Database, address: Address, group: Stored) -> None:
        self._columns: list[Source] = []
        self._row_sizes: list[int] = []  # elements of a row
        fields: list[Any] = []
        lengths: dict[str, int] = {}
        column_attrs: dict[str, Mapping[str, Any]] = {}
        self.attrs, left_out = attrs_of(database, group)
        for key, ref in items(group):
            if is_hidden(key):
                continue
            obj = database.get(ref)
            name = name_in_group(name_of(key))
            if not isinstance(obj, StoredArray) or not obj.shape:
                what = f"a {class_of(obj)}" if not isinstance(obj, StoredArray) else "one value"
                warn("export", f"left out: {address}/{name} is {what}, not a column")
                continue
            if name in lengths:
                raise Failure(f"{address} has two columns of the name {name!r}: rename one of them")
            layout = layout_of(obj)
            lengths[name] = layout.shape[0]
            fields.append((name, layout.dtype, layout.shape[1:]))
            self._columns.append(
                slice_of(obj, Selection((...,), layout.shape), "C")
                if layout.order == "F"
                else ArraySource(obj, {})
            )
            self._row_sizes.append(mul(layout.shape[1:]))
            attrs, unread = attrs_of(database, obj)
            column_attrs[name] = attrs
            left_out += [f"{name}: {each}" for each in unread]
        if not fields:
            raise Failure(f"{address} is a group without arrays: it has no columns")
        if len(set(lengths.values())) != 1:
            shown = ", ".join(f"{name} has {n}" for name, n in list(lengths.items())[:8])
            raise Failure(
                f"{address} is a group of arrays of different lengths, and a table has rows of all "
                f"of them: {shown}; .h5, .nc and .zarr take any group"
            )
        self.layout = Layout((next(iter(lengths.values())),), np.dtype(fields), "C")
        self.column_attrs, self.left_out = column_attrs, left_out

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        result = np.zeros(stop - start, self.layout.dtype)
        names = self.layout.dtype.names or ()
        for name, column, n in zip(names, self._columns, self._row_sizes, strict=True):
            values = column.read(start * n, stop * n)
            result[name] = values.reshape(result[name].shape)
        return result

    @override
    def identity(self) -> dict[str, Any]:
        return {}
