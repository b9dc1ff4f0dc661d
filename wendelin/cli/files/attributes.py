"""Attributes in files: which of them are kept, and how they are written.

HDF5 has numbers, text, times (as h5py writes them), and arrays of these; other values are JSON text
in it. Zarr has JSON: numbers, text, lists and dicts; a scalar or an array of NumPy becomes a number
or a list.

This module knows values, and no file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from wendelin.bigarray.attrs import check_value

__all__ = ["Attributes", "from_hdf5", "from_zarr", "kept", "to_hdf5", "to_json", "to_zarr"]

#: of HDF5 itself, for its dimension scales, and of netCDF: they refer to objects of the file
_OF_HDF5 = (
    *("DIMENSION_LIST", "DIMENSION_LABELS", "REFERENCE_LIST"),
    *("_Netcdf4Coordinates", "_Netcdf4Dimid", "_NCProperties", "_nc3_strict"),
)

Attributes = tuple[dict[str, Any], list[str]]  # kept, and the names of those that are not


def kept(items: Iterable[tuple[str, Any]]) -> Attributes:
    """Return those attributes that an array or a group takes, and the names of the others."""
    values: dict[str, Any] = {}
    left: list[str] = []
    for name, value in items:
        try:
            values[name] = check_value(value, name)
        except (TypeError, ValueError):
            left.append(name)
    return values, left


def from_hdf5(h5py: Any, obj: Any) -> Attributes:
    """Return the attributes of a dataset or a group of an HDF5 file."""
    items = []
    unread = []
    scale = isinstance(obj, h5py.Dataset) and h5py.h5ds.is_scale(obj.id)
    for name in obj.attrs:
        if name in _OF_HDF5 or (scale and name in ("CLASS", "NAME")):
            continue
        try:
            value = obj.attrs[name]
        except (OSError, TypeError, ValueError, RuntimeError):  # of a type that h5py has not
            unread.append(name)
            continue
        if isinstance(value, h5py.Empty):
            value = None
        elif isinstance(value, np.bytes_):  # text of a fixed length; bytes are opaque
            with suppress(UnicodeDecodeError):
                value = value.decode()
        elif isinstance(value, np.void) and value.dtype.names is None and value.dtype.kind == "V":
            value = value.tobytes()
        items.append((name, value))
    values, left = kept(items)
    return values, unread + left


def from_zarr(attrs: Mapping[str, Any]) -> Attributes:
    """Return the attributes of an array or a group of a Zarr folder."""
    return kept(dict(attrs).items())


def to_hdf5(h5py: Any, obj: Any, attrs: Mapping[str, Any]) -> list[str]:
    """Write attributes to an object of an HDF5 file; return the names of those left out."""
    left = []
    for name, value in attrs.items():
        try:
            obj.attrs[name] = _for_hdf5(h5py, value)
        except (TypeError, ValueError, OSError, RuntimeError):
            with suppress(TypeError, ValueError, OSError, RuntimeError):
                obj.attrs[name] = json.dumps(to_json(value))
                continue
            left.append(name)
    return left


def _for_hdf5(h5py: Any, value: Any) -> Any:
    """Return a value for h5py; TypeError if HDF5 cannot have it."""
    if value is None:
        return h5py.Empty("f4")
    if isinstance(value, bytes):
        return np.void(value) if value else h5py.Empty("S1")
    if isinstance(value, bool | int | float | complex | str):
        return value
    if isinstance(value, list | tuple):
        kinds = {type(item) for item in value}
        if len(kinds) != 1 or not kinds <= {bool, int, float, complex, str}:
            raise TypeError("mixed, empty, or of several levels")
        return list(value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return value.astype(h5py.string_dtype())
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "Mm":
        return np.asarray(value).astype(h5py.opaque_dtype(value.dtype))
    if isinstance(value, np.ndarray | np.generic):
        return value
    raise TypeError(type(value).__name__)


def to_json(value: Any) -> Any:
    """Return a value for JSON.

    Raises
    ------
    TypeError
        It is bytes, or complex, or a structure of these.
    """
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind in "Mm":
            return value.astype(str).tolist()
        return to_json(value.tolist())
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"JSON has no {type(value).__name__}")


def to_zarr(dataset: Any, attrs: Mapping[str, Any]) -> list[str]:
    """Write attributes to an array or a group of Zarr; return the names of those left out."""
    values, left = {}, []
    for name, value in attrs.items():
        try:
            values[name] = to_json(value)
        except TypeError:
            left.append(name)
    if values:
        dataset.attrs.update(values)
    return left
