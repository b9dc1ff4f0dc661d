"""NumPy arrays looked at in other ways."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["structured"]


def structured(arr: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Return a view of arr in which each row of the minor axis is one element of dtype.

    Parameters
    ----------
    arr : ndarray, shape (..., n)
        The minor axis must be contiguous.
    dtype : data-type
        Its size must be that of a row, n * arr.itemsize [bytes].

    Returns
    -------
    ndarray, shape (...)
        Nothing is copied.

    Raises
    ------
    ValueError
        The minor axis is not contiguous, or its size is another.
    """
    dtype = np.dtype(dtype)
    if arr.ndim == 0:
        raise ValueError("a 0-d array has no minor axis")
    size = arr.shape[-1] * arr.itemsize
    if size != dtype.itemsize:
        raise ValueError(f"a row has {size} bytes, and dtype {dtype} has {dtype.itemsize}")
    if arr.size == 0:  # strides say nothing
        return np.empty(arr.shape[:-1], dtype)
    if arr.shape[-1] > 1 and arr.strides[-1] != arr.itemsize:
        raise ValueError(
            f"the minor axis is not contiguous: stride {arr.strides[-1]}, item {arr.itemsize} bytes"
        )
    return arr.view(dtype)[..., 0]
