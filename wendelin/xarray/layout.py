"""What of a group is a dataset: names of dimensions, and attributes that are not a user's.

The dimensions of an array are a list of names in its attribute `_ARRAY_DIMENSIONS`, as xarray and
NCZarr have it in Zarr. An array without it gets dimensions by their lengths, as netCDF4 gives them
to HDF5 files: phony_dim_0, ….

This module knows arrays and attributes, but not xarray.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import numpy as np

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.tree.group import Group

__all__ = ["DIMENSIONS", "arrays_of", "attributes_of", "dimensions_of", "split_address"]

#: the attribute that has the names of an array's dimensions
DIMENSIONS = "_ARRAY_DIMENSIONS"

#: what netCDF writes for itself, and an import brings along
_OF_NETCDF = ("_NCProperties", "_nc3_strict", "_Netcdf4Coordinates", "_Netcdf4Dimid")
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"

#: numbers by which values are coded, which HDF5 has as arrays of one element
_CODING = {
    "_FillValue",
    "missing_value",
    "scale_factor",
    "add_offset",
    "valid_min",
    "valid_max",
}


def split_address(address: str) -> tuple[str, str]:
    """Return the URL and the path of `URL#path`; the last # separates, as in `wendelin ls`."""
    url, _, path = address.rpartition("#")
    return (url, path) if url else (address, "")


def arrays_of(group: Group) -> dict[str, ZBigArray]:
    """Return the arrays of a group by name, without a dimension that netCDF keeps as an array."""
    return {
        str(name): value
        for name, value in group.items()
        if isinstance(value, ZBigArray)
        and not str(value.attrs.get("NAME", "")).startswith(_NO_VARIABLE)
    }


def dimensions_of(arrays: Mapping[str, ZBigArray]) -> dict[str, tuple[str, ...]]:
    """Return the names of the dimensions of each array.

    Raises
    ------
    ValueError
        There are more, or fewer, names than an array has dimensions; or one dimension has two
        lengths.
    """
    result: dict[str, tuple[str, ...]] = {}
    lengths: dict[str, tuple[int, str]] = {}
    phony: dict[int, str] = {}
    for name, A in arrays.items():
        given = A.attrs.get(DIMENSIONS)
        if given is None:
            # a length twice in one array is two dimensions
            dims: tuple[str, ...] = ()
            for n in A.shape:
                dim = phony.setdefault(n, f"phony_dim_{len(phony)}")
                dims += (dim if dim not in dims else f"{dim}_{len(dims)}",)
        else:
            dims = tuple(map(str, np.atleast_1d(given).tolist() if len(given) else ()))
        if len(dims) != A.ndim:
            raise ValueError(
                f"array {name!r} has {A.ndim} dimensions, and its attribute {DIMENSIONS} has "
                f"{len(dims)} names, {list(dims)}: set A.attrs[{DIMENSIONS!r}]"
            )
        for dim, n in zip(dims, A.shape, strict=True):
            known, of = lengths.setdefault(dim, (n, name))
            if known != n:
                raise ValueError(
                    f"dimension {dim!r} is {n} long in array {name!r}, and {known} in {of!r}: a "
                    f"dataset has one length of each. drop_variables=[{name!r}] leaves the array "
                    f"out"
                )
        result[name] = dims
    return result


def attributes_of(attrs: Mapping[str, Any], dtype: np.dtype[Any] | None = None) -> dict[str, Any]:
    """Return the attributes that are a user's, or a convention's.

    Parameters
    ----------
    attrs : mapping
    dtype : numpy.dtype, optional
        Of the array that has them.
    """
    result = {}
    for name, value in attrs.items():
        if name in (DIMENSIONS, "NAME", *_OF_NETCDF):
            continue
        if name in _CODING and isinstance(value, np.ndarray) and value.shape == (1,):
            value = value[0]
        if name == "_FillValue" and isinstance(value, str) and dtype is not None:
            value = _fill_value(value, dtype)
        result[name] = value
    return result


def _fill_value(text: str, dtype: np.dtype[Any]) -> Any:
    """Return a `_FillValue` that xarray has written into Zarr as text."""
    if dtype.kind not in "fc":
        return text
    try:
        return np.frombuffer(b64decode(text), "<f8" if dtype.kind == "f" else "<c16").astype(dtype)[
            0
        ]
    except (ValueError, IndexError):
        return text
