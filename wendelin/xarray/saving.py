"""ds.wendelin.save(): a dataset of xarray into a group of a database, or at the end of one there.

Values are stored as they are, not coded: times are datetime64, texts have the width of the longest
one. So a variable is an array that any program can use. Where a group was imported from netCDF, and
its values are coded, values that are appended are coded likewise.

This module knows groups and xarray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray
from xarray import conventions

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.tree.group import Group
from wendelin.tree.group import open as open_group
from wendelin.xarray.layout import (
    DIMENSIONS,
    arrays_of,
    attributes_of,
    dimensions_of,
    split_address,
)

__all__ = ["DatasetAccessor", "save"]

STEP = 32 << 20  # values in memory at a time [bytes]

#: attributes that say how values are coded
_CODING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")


@xarray.register_dataset_accessor("wendelin")
class DatasetAccessor:
    """`ds.wendelin`, once wendelin.xarray is imported."""

    def __init__(self, ds: xarray.Dataset) -> None:
        self._ds = ds

    def save(
        self,
        to: str | os.PathLike[str] | Group,
        *,
        append_dim: str | None = None,
        replace: bool = False,
    ) -> None:
        """Save the dataset in a group of a database; see save()."""
        save(self._ds, to, append_dim=append_dim, replace=replace)


def save(
    ds: xarray.Dataset,
    to: str | os.PathLike[str] | Group,
    *,
    append_dim: str | None = None,
    replace: bool = False,
) -> None:
    """Save a dataset in a group of a database, in one transaction.

    Parameters
    ----------
    ds : xarray.Dataset
        Lazy variables and Dask arrays are computed in batches of 32 MiB, or of a row of chunks.
    to : str, path or Group
        URL#path: the database is opened, and made if it is a file that does not exist; the change
        is committed. Or a group of an open database: the change belongs to its transaction.
    append_dim : str, optional
        Append along this dimension to what the group has; what the dataset has without it must be
        there already, with the same values. If the group has no arrays yet, they are made.
    replace : bool
        Arrays with the names of variables are replaced. By default they must not exist.

    Raises
    ------
    ValueError
        A variable exists already; or it does not fit what it is appended to.
    TypeError
        A name or a value is of a type that a database does not have.
    OSError, zc.lockfile.LockError
        See wendelin.open().
    """
    if not isinstance(ds, xarray.Dataset):
        raise TypeError(f"a {type(ds).__name__} is not a dataset: DataArray.to_dataset() makes one")
    if isinstance(to, Group):
        _save(ds, to, append_dim, replace)
        return
    url, path = split_address(os.fspath(to))
    with open_group(url) as root:
        group = root.require_group(path) if path.strip("/") else root
        _save(ds, group, append_dim, replace)


def _save(ds: xarray.Dataset, group: Group, append_dim: str | None, replace: bool) -> None:
    _check_names(ds)
    variables, attrs = conventions.encode_dataset_coordinates(ds)
    there = arrays_of(group)
    if append_dim is not None:
        if replace:
            raise ValueError(f"append_dim={append_dim!r} and replace exclude each other")
        if append_dim not in ds.dims:
            raise ValueError(f"the dataset has no dimension {append_dim!r}: it has {list(ds.dims)}")
        if there:
            _append(variables, group, there, append_dim)
            return
    for name in variables:
        if name in group and not (replace and name in there):
            raise ValueError(
                f"{group!r} has {name!r} already: append_dim= appends to arrays, replace=True "
                f"replaces them"
            )
    left = {name: A for name, A in there.items() if name not in variables}
    prepared = {name: _plain(name, v) for name, v in variables.items()}
    for name, v in prepared.items():
        if name in group:
            del group[name]
        A = group.create_array(name, v.shape, v.dtype, attrs=_attrs(v))
        for idx, values in _batches(v):
            A[idx] = values
        left[name] = A
    dimensions_of({name: A for name, A in left.items() if DIMENSIONS in A.attrs})
    group.attrs.update(attrs)


def _check_names(ds: xarray.Dataset) -> None:
    for name in (*ds.variables, *ds.dims):
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is not a name in a database: it must be a str")
        if "/" in name:
            raise ValueError(f"{name!r} is not a name in a group: it may not have a slash")
    for name, v in ds.variables.items():
        index = v.to_index() if v.dims == (name,) else None
        if index is not None and index.nlevels > 1:
            raise TypeError(
                f"{name!r} is an index of several levels: ds.reset_index({name!r}) makes variables "
                f"of them"
            )


def _attrs(v: xarray.Variable) -> dict[str, Any]:
    return {**v.attrs, DIMENSIONS: list(v.dims)}


# ---- values ----


def _plain(name: str, v: xarray.Variable) -> xarray.Variable:
    """Return a variable with values that an array can have.

    Raises
    ------
    TypeError
        They cannot be stored: objects other than texts and times of other calendars.
    """
    v = xarray.Variable(v.dims, v.values, v.attrs) if not isinstance(v.dtype, np.dtype) else v
    if v.dtype.kind == "T":
        return _texts(name, v)
    if v.dtype.kind != "O":
        if v.dtype.kind in "SU" and v.dtype.itemsize == 0:
            return v.astype(f"{v.dtype.kind}1")
        return v
    values = v.values
    if all(isinstance(x, str) for x in values.flat):
        return _texts(name, v)
    if all(isinstance(x, bytes) for x in values.flat):
        return xarray.Variable(v.dims, np.asarray(values, "S"), v.attrs)
    if all(type(x).__module__.startswith("cftime") for x in values.flat):
        return xarray.coders.CFDatetimeCoder().encode(v, name=name)
    kinds = ", ".join(sorted({type(x).__name__ for x in values.flat}))
    raise TypeError(
        f"variable {name!r} has objects ({kinds}), and an array has numbers, times and texts: "
        f"convert it with .astype(), or fill missing texts with .fillna('')"
    )


def _texts(name: str, v: xarray.Variable) -> xarray.Variable:
    try:
        values = np.asarray(v.values).astype("U")
    except ValueError as e:
        raise TypeError(f"variable {name!r}: {e}; .fillna('') fills missing texts") from None
    return xarray.Variable(v.dims, values.astype(f"U{max(1, values.dtype.itemsize // 4)}"), v.attrs)


def _batches(v: xarray.Variable) -> Iterator[tuple[Any, NDArray[Any]]]:
    """Yield (index, values) of batches of a variable, along its first dimension."""
    if v.ndim == 0 or v.size == 0:
        if v.size:
            yield ..., v.values
        return
    n = v.shape[0]
    if v.chunks is not None:  # a chunk is computed once
        stops = np.cumsum(v.chunks[0]).tolist()
    else:
        step = max(1, STEP // max(1, v.nbytes // n))
        stops = [*range(step, n, step), n]
    start = 0
    for stop in stops:
        yield slice(start, stop), v[start:stop].values
        start = stop


# ---- append ----


def _append(
    variables: dict[str, xarray.Variable], group: Group, there: dict[str, ZBigArray], dim: str
) -> None:
    dims = dimensions_of(there)
    for name in dims:
        if dim in dims[name] and name not in variables:
            raise ValueError(
                f"the dataset has no {name!r}, which {group!r} has along {dim!r}: all variables of "
                f"a dimension grow together"
            )
    # all are looked at before one is changed
    prepared = {}
    for name, v in variables.items():
        if name not in there:
            raise ValueError(f"{group!r} has no {name!r} to append to: it has {sorted(there)}")
        A = there[name]
        v = _coded_like(A, _plain(name, v))
        _check_fits(name, v, A, dims[name], dim)
        prepared[name] = v
    for name, v in prepared.items():
        if dim not in v.dims:
            continue
        A, axis = there[name], v.dims.index(dim)
        old = A.shape[axis]
        shape = (*A.shape[:axis], old + v.shape[axis], *A.shape[axis + 1 :])
        A.resize(shape, keep=True)
        for idx, values in _batches(v):
            at = [slice(0, None)] * A.ndim
            at[axis] = slice(old, None)
            first = at[0].start + idx.start
            at[0] = slice(first, first + len(values))
            A[tuple(at)] = values


def _coded_like(A: ZBigArray, v: xarray.Variable) -> xarray.Variable:
    """Return a variable with its values coded as those of an array that was imported."""
    attrs = attributes_of(A.attrs, A.dtype)
    coding = {name: attrs[name] for name in _CODING if name in attrs}
    units = attrs.get("units")
    if v.dtype.kind in "mM" and A.dtype.kind not in "mM" and isinstance(units, str):
        coding.update(units=units)
        if "calendar" in attrs:
            coding["calendar"] = attrs["calendar"]
    if not coding:
        return v
    v = xarray.Variable(
        v.dims, v.data, {k: x for k, x in v.attrs.items() if k not in coding}, coding
    )
    v.encoding["dtype"] = A.dtype
    return conventions.encode_cf_variable(v)


def _check_fits(
    name: str, v: xarray.Variable, A: ZBigArray, dims: tuple[str, ...], dim: str
) -> None:
    if v.dims != dims:
        raise ValueError(f"variable {name!r} has the dimensions {v.dims}, and the array has {dims}")
    for d, n, m in zip(dims, v.shape, A.shape, strict=True):
        if d != dim and n != m:
            raise ValueError(f"dimension {d!r} of variable {name!r} is {n} long, and {m} there")
    if dim not in dims:
        if not np.array_equal(v.values, A[...], equal_nan=v.dtype.kind in "fcmM"):
            raise ValueError(
                f"variable {name!r} has other values than the database, and no dimension {dim!r} "
                f"along which it could be appended: drop it, or save it with replace=True"
            )
    elif not np.can_cast(v.dtype, A.dtype, "safe"):
        raise ValueError(
            f"variable {name!r} is {v.dtype}, which not all fits into the array's {A.dtype}: "
            f"convert it, ds[{name!r}].astype({A.dtype.str!r}); or replace the array by a wider one"
        )
