"""Slices of arrays, as sources: the elements that a basic index selects, range by range.

On each axis, an index selects a range of rows. If these lie in the array one after another, as in
A[10:20], the source is a range of the array's bytes. Others are read in boxes: blocks in which
nothing is selected are not read.

This module knows arrays of a database, and those of zarr by their shape, dtype and indices.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.bigarray.array import Order
from wendelin.bigarray.indexing import split_index
from wendelin.cli.address import Index
from wendelin.cli.arrays import ArraySource
from wendelin.cli.files.base import Layout, Source, slabs
from wendelin.cli.files.contents import DIMS
from wendelin.cli.files.convert import plain
from wendelin.cli.stored import StoredArray
from wendelin.lib.calc import mul
from wendelin.lib.utils import override

__all__ = ["Selection", "dataset_slice", "expanded", "slice_of"]

Ranges = Sequence[range]


def _count(selected: range) -> int:
    """Return the length of a range, which may be more than len() can return."""
    return (selected[-1] - selected[0]) // selected.step + 1 if selected else 0


def expanded(index: Index, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    """Return an index with an item for each axis.

    Raises
    ------
    IndexError, ValueError
        The array has no such part.
    """
    split_index(index, shape)
    missing = len(shape) - sum(item is not ... for item in index)
    at = index.index(...) if ... in index else len(index)
    items = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    return tuple(item for item in items if item is not ...)


class Selection:
    """What a basic index selects.

    Parameters
    ----------
    index : Index
    shape : tuple of int
        Of the array.

    Raises
    ------
    IndexError, ValueError
        The array has no such part.
    """

    def __init__(self, index: Index, shape: tuple[int, ...]) -> None:
        items = expanded(index, shape)
        #: the rows of each axis
        self.ranges: list[range] = []
        #: the axes that the result has
        self.axes = [axis for axis, item in enumerate(items) if isinstance(item, slice)]
        for item, n in zip(items, shape, strict=True):
            if isinstance(item, slice):
                self.ranges.append(range(n)[item])
            else:
                i = operator.index(item) % n
                self.ranges.append(range(i, i + 1))
        self.shape = tuple(_count(self.ranges[axis]) for axis in self.axes)

    def moved(self, rows: int) -> Selection:
        """Return the same of an array that has so many rows before these."""
        new = copy(self)
        first = self.ranges[0]
        moved = range(first.start + rows, first.stop + rows, first.step)
        new.ranges = [moved, *self.ranges[1:]]
        return new

    def layout(self, dtype: np.dtype[Any], order: Order) -> Layout:
        """Return the layout of the result."""
        return Layout(self.shape, plain(dtype), order if len(self.shape) > 1 else "C")

    def with_attrs(self, selected: Source, of: Source) -> Source:
        """Give the result the attributes of the array, with the names of the axes that it has."""
        attrs = dict(of.attrs)
        names = attrs.get(DIMS)
        if isinstance(names, list | tuple) and len(names) == len(self.ranges):
            attrs[DIMS] = [names[axis] for axis in self.axes]
            if not self.axes:
                del attrs[DIMS]
        selected.attrs, selected.left_out = attrs, of.left_out
        return selected


def _first_of(ranges: Ranges, shape: Sequence[int]) -> int | None:
    """Return the first element, if the selected ones follow each other; else None.

    Parameters
    ----------
    ranges : list of range
        The axis whose elements are closest together is the last one.
    shape : sequence of int
        Of the array.
    """
    first, size, whole = 0, 1, True
    for selected, n in zip(reversed(ranges), reversed(shape), strict=True):
        if not selected:
            return 0
        if _count(selected) > 1 and not (whole and selected.step == 1):
            return None
        first += selected.start * size
        whole = whole and _count(selected) == n
        size *= n
    return first


def slice_of(array: StoredArray, selection: Selection, order: Order | None = None) -> Source:
    """Return the elements of an array that a selection has, in an order: by default the array's."""
    layout = selection.layout(array.dtype, order or array._order)
    if layout.order == array._order or len(layout.shape) < 2:
        turn = -1 if array._order == "F" else 1
        first = _first_of(selection.ranges[::turn], array.shape[::turn])
        if first is not None:
            return ArraySource(array, {}, (layout, first))
    array._fileh().file.verify = True  # what is copied to somewhere else is as it was stored
    return _SliceSource(layout, selection, lambda ranges: _read(array, ranges))


def dataset_slice(dataset: Any, selection: Selection, of: Source) -> Source:
    """Return the elements of a dataset that a selection has; of zarr, whose steps are positive."""

    def read(ranges: Ranges) -> NDArray[Any]:
        ascending = [r if r.step > 0 else r[::-1] for r in ranges]
        values = np.asarray(dataset[tuple(map(_slice, ascending))])
        return values[tuple(slice(None, None, 1 if r.step > 0 else -1) for r in ranges)]

    return _SliceSource(selection.layout(of.layout.dtype, "C"), selection, read)


def _slice(selected: range) -> slice:
    return slice(selected.start, selected.stop if selected.stop >= 0 else None, selected.step)


def _read(array: StoredArray, ranges: Ranges) -> NDArray[Any]:
    """Return the elements in ranges of all axes; at least one.

    A read loads all blocks from the first to the last. So rows between which a block may be left
    out are read one by one.
    """
    inner = array.itemsize  # from the first byte of a row to its last
    gaps = False
    by_stride = sorted(range(array.ndim), key=lambda axis: array.strides[axis])
    outer = None  # the axis of the largest stride that has several rows
    for axis in by_stride:
        selected = ranges[axis]
        if len(selected) > 1:
            stride = array.strides[axis] * abs(selected.step)
            gaps = gaps or stride - inner >= array.zfile.blksize
            inner += stride * (len(selected) - 1)
            outer = axis
    if outer is None or not gaps:
        values: NDArray[Any] = array.read(tuple(map(_slice, ranges)))
        return values
    result = np.empty([len(r) for r in ranges], array.dtype)
    for i in range(len(ranges[outer])):
        row = [*ranges]
        row[outer] = ranges[outer][i : i + 1]
        here = (*[slice(None)] * outer, slice(i, i + 1))
        result[here] = _read(array, row)
    return result


class _SliceSource(Source):
    """The elements of a selection.

    Parameters
    ----------
    layout : Layout
    selection : Selection
    read
        Returns the elements in ranges of all axes.
    """

    def __init__(
        self, layout: Layout, selection: Selection, read: Callable[[Ranges], NDArray[Any]]
    ) -> None:
        self.layout, self._get = layout, read
        self._turn = -1 if layout.order == "F" else 1
        self._ranges = selection.ranges[:: self._turn]

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        """See Source."""
        result = np.empty(stop - start, self.layout.dtype)
        at = 0
        for slab in slabs(tuple(map(_count, self._ranges)), start, stop):
            ranges = [r[within] for r, within in zip(self._ranges, slab.where, strict=True)]
            values = self._get(ranges[:: self._turn])
            n = mul(slab.shape)
            result[at : at + n].reshape(slab.shape)[...] = values.T if self._turn < 0 else values
            at += n
        return result

    @override
    def identity(self) -> dict[str, Any]:
        return {}
