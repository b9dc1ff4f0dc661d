"""Elements and their bytes: what a library read, or is to write, as elements of exactly one dtype.

All that is read from a file, and all that is written to one, goes through elements(). Libraries
return the native byte order, scalars, other offsets of fields; NumPy's own functions do as well
(np.concatenate). A view of that as bytes would be bytes of another dtype.
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
        raise TypeError(f"values of dtype {flat.dtype} where {dtype} was announced")
    result = np.zeros(flat.size, dtype)
    # equal structures would be copied as a whole, with what lies between their fields
    result[...] = flat.astype(packed(dtype)) if dtype.names else flat
    return result


def as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of a 1-d array, as elements() returns it; they are shared."""
    return values.view(np.uint8)


# ---- dtypes ----


def _mapped(dtype: np.dtype[Any], titles: bool = True, pack: bool = False) -> np.dtype[Any]:
    """Return a dtype without metadata; maybe without titles, or bytes between fields, either."""
    if dtype.subdtype is not None:
        return np.dtype((_mapped(dtype.base, titles, pack), dtype.shape))
    if dtype.names is None:
        return np.dtype(dtype.str) if dtype.metadata else dtype
    fields = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
    parts: Any = {
        "names": list(dtype.names),
        "formats": [_mapped(field[0], titles, pack) for field in fields],
    }
    if not pack:
        parts.update(offsets=[field[1] for field in fields], itemsize=dtype.itemsize)
    if titles:
        parts["titles"] = [(*field, None)[2] for field in fields]
    mapped: np.dtype[Any] = np.dtype(parts)
    return mapped


def plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype without what libraries note on it (metadata)."""
    return _mapped(dtype)


def without_titles(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype without metadata, and without titles of fields."""
    return _mapped(dtype, titles=False)


def packed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype of the same fields, in the same order, one after the other."""
    return _mapped(dtype, pack=True)


def is_described(dtype: np.dtype[Any]) -> bool:
    """Say whether a list of fields, as .npy has it, is all about a dtype."""
    try:
        descr = np.lib.format.dtype_to_descr(dtype)
        return bool(np.lib.format.descr_to_dtype(descr) == dtype)
    except ValueError:  # fields that overlap, or do not follow each other
        return False


def describe(dtype: np.dtype[Any]) -> Any:
    """Return plain values that np.dtype() takes, or .npy has: text, a list of fields, or a dict."""
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
