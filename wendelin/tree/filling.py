"""Fills arrays with a program's data: an ndarray, or an object with shape, dtype and slices.

This module knows shapes and slices, but not groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from wendelin.bigarray import BigArray
from wendelin.bigarray.meaning import check_elements, elements_of

__all__ = ["fill", "labels_of", "layout_of"]

DIMENSIONS = "_ARRAY_DIMENSIONS"  # the attribute that xarray reads

STEP = 32 << 20  # read at a time [bytes]


def layout_of(name: str, shape: Any, dtype: DTypeLike | None, data: Any) -> tuple[Any, Any, Any]:
    """Return shape, dtype and data of a new array.

    Raises
    ------
    TypeError
        Neither a shape nor data is given.
    ValueError
        The data has another shape.
    """
    if data is None:
        if shape is None:
            raise TypeError(f"array {name!r} has neither shape nor data: give one of them")
        return shape, float if dtype is None else dtype, None
    check_elements(data)
    if not _is_sliced(data):
        data = np.asarray(elements_of(data))
    dtype = data.dtype if dtype is None else np.dtype(dtype)
    if shape is None:
        return data.shape, dtype, data
    shape = BigArray._check_shape(shape)
    if shape != tuple(data.shape):
        raise ValueError(f"array {name!r}: shape is {shape}, and the data has {data.shape}")
    return shape, dtype, data


def labels_of(data: Any) -> dict[str, Any] | None:
    """Return attributes, and names of dimensions, of an xarray.DataArray; None for other data."""
    if not all(hasattr(type(data), name) for name in ("dims", "coords", "attrs")):
        return None
    return {**data.attrs, DIMENSIONS: [str(name) for name in data.dims]}


def _is_sliced(data: Any) -> bool:
    return all(hasattr(data, name) for name in ("shape", "dtype", "__getitem__"))


def fill(A: BigArray, data: Any, step: int = STEP) -> None:
    """Fill an array with data of its shape, rows of about `step` bytes at a time."""
    if A.size == 0:
        return
    if A.ndim == 0 or isinstance(data, np.ndarray):
        A[...] = data[()] if A.ndim == 0 else data
        return
    n = A.shape[0]
    rows = max(1, step // max(1, A.nbytes // n))
    for i in range(0, n, rows):
        A[i : i + rows] = data[i : min(n, i + rows)]
