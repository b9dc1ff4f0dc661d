"""Elements and their bytes: values of a library as elements of exactly one dtype.

All values that are read from a file, or written to one, go through elements(). Libraries return
the native byte order, scalars, other offsets of fields; so do NumPy's own functions
(np.concatenate). A view of these as bytes would be bytes of another dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "as_bytes",
    "describe",
    "elements",
    "is_described",
    "packed",
    "plain",
    "without_titles",
]


def elements(values: ArrayLike, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return values, in C order, as a 1-d array of a dtype; bytes of no field are zeros then.

    Parameters
    ----------
    values : array_like
        Elements, or one. They are returned as they are if they have the dtype already.
    dtype : data-type
        Of the same kind: byte order, lengths of text, offsets of fields may differ.

    Raises
    ------
    TypeError
        The values may not fit.
    """
    flat = np.asarray(values).reshape(-1)
    if flat.dtype == dtype and flat.flags.c_contiguous:
        return flat
    if not np.can_cast(flat.dtype, dtype, "safe"):
        raise TypeError(f"values of dtype {flat.dtype} instead of {dtype}")
    result = np.zeros(flat.size, dtype)
    # equal structures would be copied as a whole, with the bytes between their fields
    result[...] = flat.astype(packed(dtype)) if dtype.names else flat
    return result


def as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of a 1-d array, as elements() returns it; they are shared."""
    return values.view(np.uint8)


# ---- dtypes ----


def _mapped(dtype: np.dtype[Any], titles: bool = True, pack: bool = False) -> np.dtype[Any]:
    """Return a dtype without metadata; maybe also without titles, or bytes between fields."""
    if dtype.subdtype is not None:
        return np.dtype((_mapped(dtype.base, titles, pack), dtype.shape))
    if dtype.names is None:
        return np.dtype(dtype.str) if dtype.metadata else dtype
    fields = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
    spec: Any = {
        "names": list(dtype.names),
        "formats": [_mapped(field[0], titles, pack) for field in fields],
    }
    if not pack:
        spec.update(offsets=[field[1] for field in fields], itemsize=dtype.itemsize)
    if titles:
        spec["titles"] = [(*field, None)[2] for field in fields]
    mapped: np.dtype[Any] = np.dtype(spec)
    return mapped


def plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype without metadata, the notes of libraries."""
    return _mapped(dtype)


def without_titles(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype without metadata, and without titles of fields."""
    return _mapped(dtype, titles=False)


def packed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype of the same fields, in the same order, one after the other."""
    return _mapped(dtype, pack=True)


def is_described(dtype: np.dtype[Any]) -> bool:
    """Say whether a list of fields, as .npy has it, describes all of a dtype."""
    try:
        descr = np.lib.format.dtype_to_descr(dtype)
        return bool(np.lib.format.descr_to_dtype(descr) == dtype)
    except ValueError:  # fields that overlap, or do not follow each other
        return False


def describe(dtype: np.dtype[Any]) -> Any:
    """Return a dtype as plain values, for np.dtype() or .npy: text, a list of fields, a dict."""
    if is_described(dtype):
        return np.lib.format.dtype_to_descr(dtype)
    if dtype.subdtype is not None:
        return describe(dtype.base), list(dtype.shape)
    if dtype.names is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
    return {
        "names": list(dtype.names),
        "formats": [describe(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }
