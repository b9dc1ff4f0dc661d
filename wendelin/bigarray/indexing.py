"""Basic indexing, split in two: which rows have to be mapped, and the rest for NumPy.

On each axis, the selected elements lie in rows [lo, hi). NumPy does the rest, on an ndarray of
these rows. So the result is NumPy's in all cases.

This module knows indices and shapes, but not memory.
"""

from __future__ import annotations

import operator
from types import EllipsisType
from typing import SupportsIndex

import numpy as np

__all__ = ["BasicIndex", "byte_runs", "page_runs", "pages_of", "split_index"]

BasicIndex = (
    SupportsIndex
    | slice
    | EllipsisType
    | None
    | str
    | list[str]
    | tuple[SupportsIndex | slice | EllipsisType | None, ...]
)


def _integer(item: object) -> int | None:
    """Return an integer index of NumPy as int; None if it is not one."""
    if isinstance(item, bool | np.bool_) or (isinstance(item, np.ndarray) and item.ndim):
        return None
    try:
        return operator.index(item)  # type: ignore[arg-type]
    except TypeError:
        return None


def split_index(
    idx: object, shape: tuple[int, ...]
) -> tuple[list[tuple[int, int]], tuple[object, ...]]:
    """Split an index.

    Parameters
    ----------
    idx : int, slice, Ellipsis, None, or a tuple of these
    shape : tuple of int
        Of the array.

    Returns
    -------
    rows : list of (lo, hi)
        For each axis, rows [lo, hi) have all selected elements; lo == hi: there are none.
    rest : tuple
        The index that selects the same elements in an array of these rows.

    Raises
    ------
    IndexError
        An index is out of range, there are too many, or it is an advanced one.
    """
    items = idx if isinstance(idx, tuple) else (idx,)
    used = 0
    ellipses = 0
    for item in items:
        if item is Ellipsis:
            ellipses += 1
        elif isinstance(item, slice) or _integer(item) is not None:
            used += 1
        elif item is not None:
            raise IndexError(
                f"{item!r} is not a basic index (integer, slice, ..., None): advanced indexing "
                f"loads and copies elements; index a view for that, as in A[:][idx]"
            )
    if ellipses > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if used > len(shape):
        raise IndexError(
            f"too many indices for array: array is {len(shape)}-dimensional, but {used} were "
            f"indexed"
        )

    rows = [(0, n) for n in shape]
    rest: list[object] = []
    axis = 0
    for item in items:
        if item is Ellipsis:
            axis += len(shape) - used
        elif item is not None:
            rows[axis], item = _rows(item, shape[axis], axis)
            axis += 1
        rest.append(item)
    return rows, tuple(rest)


_MOST_RUNS = 1 << 15


def pages_of(start: int, stop: int, blksize: int) -> tuple[int, int]:
    """Return (first, number) of the pages of a file that have bytes [start, stop), start < stop."""
    first = start // blksize
    return first, -(-stop // blksize) - first


def page_runs(
    rows: list[tuple[int, int]], strides: tuple[int, ...], itemsize: int, blksize: int
) -> list[tuple[int, int]]:
    """Return (first, number) of the pages of a file that some rows of an array lie in, ascending.

    See byte_runs().
    """
    runs = byte_runs(rows, strides, itemsize, blksize)
    return [pages_of(at, at + size, blksize) for at, size in runs]


def byte_runs(
    rows: list[tuple[int, int]],
    strides: tuple[int, ...],
    itemsize: int,
    blksize: int,
    offset: int = 0,
) -> list[tuple[int, int]]:
    """Return (first, number) of the bytes of a file that some rows of an array lie in, ascending.

    If there are pages without any of these rows between them, as for a column, these are left out,
    unless that makes too many runs.

    Parameters
    ----------
    rows : list of (lo, hi)
        For each axis, rows [lo, hi).
    strides : tuple of int
        Of the array, not negative [bytes].
    itemsize, blksize : int
        [bytes]
    offset : int
        Where the array begins in the file [bytes].
    """
    if any(lo == hi for lo, hi in rows):
        return []
    ends = list(zip(rows, strides, strict=True))
    start = offset + sum(lo * stride for (lo, _), stride in ends)
    stop = offset + sum((hi - 1) * stride for (_, hi), stride in ends) + itemsize
    if start // blksize == (stop - 1) // blksize:  # of a small array, of which there are many
        return [(start, stop - start)]
    axes = sorted(((stride, hi - lo) for (lo, hi), stride in ends if hi - lo > 1), reverse=True)
    size = sum(stride * (n - 1) for stride, n in axes[1:]) + itemsize
    step, count = axes[0] if axes else (0, 1)
    if step < size + 2 * blksize or count > _MOST_RUNS:
        return [(start, stop - start)]
    return [(start + i * step, size) for i in range(count)]


def _rows(item: object, size: int, axis: int) -> tuple[tuple[int, int], object]:
    """Return ((lo, hi), index relative to lo) of an integer or slice in an axis."""
    if isinstance(item, slice):
        start, stop, step = item.indices(size)
        rows = range(start, stop, step)
        if not rows:
            return (0, 0), slice(0, 0, step)
        lo, hi = min(rows[0], rows[-1]), max(rows[0], rows[-1]) + 1
        if step > 0:
            return (lo, hi), slice(0, hi - lo, step)
        return (lo, hi), slice(hi - lo - 1, None, step)
    i = _integer(item)
    assert i is not None
    if not -size <= i < size:
        raise IndexError(f"index {i} is out of bounds for axis {axis} with size {size}")
    i %= size
    return (i, i + 1), 0
