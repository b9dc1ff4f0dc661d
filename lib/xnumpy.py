"""Other views of NumPy arrays."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["structured"]


def structured(arr: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Return a view of arr in which each row of the minor axis is one element of dtype.

    The minor axis is the one whose elements are side by side: the last one in C order, the first
    one in Fortran order.

    Parameters
    ----------
    arr : ndarray
        Of shape (..., n), or (n, ...) in Fortran order. The other axes may have any strides. If
        both axes could be the minor one, as in an array of one column, the last one is taken if its
        size fits.
    dtype : data-type
        Its size must be that of a row, n * arr.itemsize [bytes].

    Returns
    -------
    ndarray, shape (...)
        Nothing is copied.

    Raises
    ------
    ValueError
        No such axis is contiguous, or its size does not fit.
    """
    dtype = np.dtype(dtype)
    if arr.ndim == 0:
        raise ValueError("a 0-d array has no minor axis")
    # strides have no meaning for an axis of one element, and for an empty array
    axes = [
        axis
        for axis in dict.fromkeys((arr.ndim - 1, 0))
        if arr.size == 0 or arr.shape[axis] == 1 or arr.strides[axis] == arr.itemsize
    ]
    if not axes:
        raise ValueError(
            f"the minor axis is not contiguous: an item has {arr.itemsize} bytes, and the strides "
            f"are {arr.strides}"
        )
    sizes = {axis: arr.shape[axis] * arr.itemsize for axis in axes}
    minor = next((axis for axis in axes if sizes[axis] == dtype.itemsize), None)
    if minor is None:
        raise ValueError(f"a row has {sizes[axes[0]]} bytes, and dtype {dtype} {dtype.itemsize}")
    rows = np.moveaxis(arr, minor, -1)
    if arr.size == 0:
        return np.empty(rows.shape[:-1], dtype)
    return rows.view(dtype)[..., 0]
