"""Engine: opens a group of a database as an xarray dataset.

A variable has a reference to one state of its array, (URL, oid, tid), which any process can follow.
So a dataset shows one moment, may be pickled, and outlives what opened it. What is taken out of a
variable is a read-only view of the database, not a copy, until something computes with it.

    Variable ──► indexing and decoding of xarray ──► _Lazy ──► ZBigArray of this process, a view

This module knows arrays, references and xarray's interface for engines.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray
from xarray.backends import AbstractDataStore, BackendArray, BackendEntrypoint
from xarray.backends.store import StoreBackendEntrypoint
from xarray.core import indexing

from wendelin.bigarray.array_zodb import ZBigArray, array_at
from wendelin.tree.group import Group
from wendelin.tree.group import open as open_group
from wendelin.tree.moments import Moment
from wendelin.tree.opening import file_of
from wendelin.xarray.layout import arrays_of, attributes_of, dimensions_of, split_address

__all__ = ["Engine"]

SMALL = 64 << 20  # limit of an array that may be one chunk of Dask [bytes]

Where = tuple[str, bytes, bytes]  # URL, oid, tid


class _Lazy(BackendArray):  # type: ignore[misc]  # Any, where xarray is not installed
    """A state of an array, as xarray indexes it.

    Parameters
    ----------
    where : (URL, oid, tid)
    shape, dtype
        Of the array.
    copies : bool
        What is taken out is a copy: an index of pandas may go to another process by system calls,
        which need it in memory.
    """

    def __init__(
        self, where: Where, shape: tuple[int, ...], dtype: np.dtype[Any], copies: bool
    ) -> None:
        self.where, self.shape, self.dtype, self.copies = where, shape, dtype, copies
        self._array: ZBigArray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    def __getitem__(self, key: Any) -> Any:
        # by slices only: all else is indexed in the view that they give, which loads nothing else
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._view
        )

    def _view(self, key: tuple[Any, ...]) -> NDArray[Any]:
        A = self._array
        if A is None:
            A = self._array = array_at(*self.where)
        return A.read(key) if self.copies else np.asarray(A[key])


class _Variable(xarray.Variable):  # type: ignore[misc]
    """A variable whose Dask array is named by the state, and sends chunks that are in memory.

    xarray names Dask arrays by the text that was opened. That may mean another state a moment
    later, and Dask takes arrays of one name for equal.

    Chunks that are "auto" are those of wendelin.bigarray.dask.from_array(). open_dataset() chooses
    them itself, and tells us the result: there is no room for ours.
    """

    __slots__ = ()

    def chunk(
        self,
        chunks: Any = None,
        *args: Any,
        from_array_kwargs: Any = None,
        **kw: Any,
    ) -> xarray.Variable:
        """Return the variable as a Dask array; see xarray.Variable.chunk()."""
        from wendelin.bigarray.dask import in_memory

        options = dict(from_array_kwargs or {})
        options.pop("name", None)
        chunks = self._chosen(chunks or {})
        result = super().chunk(chunks, *args, from_array_kwargs=options, **kw)
        data = result.data
        if hasattr(data, "map_blocks"):
            data = data.map_blocks(
                in_memory, dtype=data.dtype, meta=np.empty((0,) * data.ndim, data.dtype)
            )
        return result.copy(deep=False, data=data).to_base_variable()

    def _chosen(self, chunks: Any) -> Any:
        """Return chunks without "auto"."""
        asked = chunks
        if isinstance(chunks, Mapping):
            asked = tuple(chunks.get(dim, -1) for dim in self.dims)
        if "auto" not in (asked if isinstance(asked, tuple | list) else [asked]):
            return chunks
        from wendelin.bigarray.dask import chosen_chunks

        preferred = self.encoding.get("preferred_chunks", {})
        blocks = tuple(preferred.get(dim, n) for dim, n in self.sizes.items())
        # Dask cannot know the size of objects, such as dates of other calendars
        dtype = np.dtype(float) if self.dtype.hasobject else self.dtype
        least = math.prod(blocks) * dtype.itemsize if preferred else 1
        return chosen_chunks(asked, self.shape, dtype, blocks, least)


class _Store(AbstractDataStore):  # type: ignore[misc]
    """The variables and attributes of a group, as xarray takes them to decode them."""

    def __init__(self, group: Group, drop: Iterable[str] = ()) -> None:
        arrays = {name: A for name, A in arrays_of(group).items() if name not in set(drop)}
        dims = dimensions_of(arrays)
        self._attrs = attributes_of(group.attrs)
        self._variables = {name: _variable(name, A, dims[name]) for name, A in arrays.items()}

    def get_attrs(self) -> Mapping[str, Any]:
        """Return the attributes of the dataset."""
        return self._attrs

    def get_variables(self) -> Mapping[str, Any]:
        """Return the variables, coded."""
        return self._variables

    def get_dimensions(self) -> Mapping[str, int]:
        """Return the lengths of the dimensions."""
        return {
            dim: n for v in self._variables.values() for dim, n in zip(v.dims, v.shape, strict=True)
        }

    def close(self) -> None:
        """Do nothing: the database is closed when no variable is left."""


def _variable(name: str, A: ZBigArray, dims: tuple[str, ...]) -> xarray.Variable:
    _, where = A.__reduce__()
    lazy = _Lazy(where, A.shape, A.dtype, copies=dims == (name,))
    encoding = {"preferred_chunks": {dims[axis]: n for axis, n in _chunks(A).items()}}
    data = indexing.LazilyIndexedArray(lazy)
    return xarray.Variable(dims, data, attributes_of(A.attrs, A.dtype), encoding)


def _chunks(A: ZBigArray) -> dict[int, int]:
    """Return {axis: rows of a block}: chunks of Dask that are multiples of it load a block once.

    It is empty for a small array, which is one chunk, if nothing else is asked for.
    """
    if A.nbytes <= SMALL:
        return {}
    axis = A._major
    return {axis: max(1, int(A.zfile.blksize) // (A.nbytes // A.shape[axis]))}


class Engine(BackendEntrypoint):  # type: ignore[misc]
    """xarray's engine "wendelin"."""

    description = "Open groups of ZODB databases: x.fs#path, zeo://host:port#path"
    open_dataset_parameters = (
        "filename_or_obj",
        "mask_and_scale",
        "decode_times",
        "concat_characters",
        "decode_coords",
        "drop_variables",
        "use_cftime",
        "decode_timedelta",
        "at",
    )

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Say whether it is a group, or a name like x.fs or zeo://host:port#path."""
        if isinstance(filename_or_obj, Group):
            return True
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        url, _ = split_address(os.fspath(filename_or_obj))
        if url.startswith(("zeo://", "neo://", "neos://")):
            return True
        path = file_of(url)
        return path is not None and path.endswith(".fs")

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        mask_and_scale: Any = True,
        decode_times: Any = True,
        concat_characters: Any = True,
        decode_coords: Any = True,
        drop_variables: str | Iterable[str] | None = None,
        use_cftime: Any = None,
        decode_timedelta: Any = None,
        at: Moment | None = None,
    ) -> xarray.Dataset:
        """Open a group of a database.

        Parameters
        ----------
        filename_or_obj : str, path or Group
            URL#path, as for `wendelin ls`; or a group of an open database, whose changes are
            committed.
        at : tid, datetime or str, optional
            A past state: see wendelin.open(). For a URL.
        mask_and_scale, ..., decode_timedelta
            See xarray.open_dataset().

        Raises
        ------
        KeyError
            There is no such group.
        TypeError
            It is an array, not a group; or `at` is given with a Group.
        pickle.PicklingError
            A Group has changes that are not committed.
        ValueError, OSError
            See wendelin.open().
        """
        drop = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        store = _store(filename_or_obj, at, drop)
        ds = StoreBackendEntrypoint().open_dataset(
            store,
            mask_and_scale=mask_and_scale,
            decode_times=decode_times,
            concat_characters=concat_characters,
            decode_coords=decode_coords,
            drop_variables=drop_variables,
            use_cftime=use_cftime,
            decode_timedelta=decode_timedelta,
        )
        for variable in ds.variables.values():
            if type(variable) is xarray.Variable:
                # the decoders make Variables, and their lazy data has no public name
                variable.__class__ = _Variable
        return ds


def _store(source: Any, at: Moment | None, drop: Iterable[str]) -> _Store:
    if isinstance(source, Group):
        if at is not None:
            raise TypeError(f"at={at!r} is for a URL: g.at({at!r}) is the group of a past state")
        return _Store(source, drop)
    url, path = split_address(os.fspath(source))
    with open_group(url, "r", at) as root:
        group = root[path] if path.strip("/") else root
        if not isinstance(group, Group):
            raise TypeError(
                f"{source} is a {type(group).__name__}, and a dataset is a group of arrays: open "
                f"the group that it is in"
            )
        return _Store(group, drop)
