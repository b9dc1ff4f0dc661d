"""Datasets: of HDF5 files, by h5py, and of Zarr, by zarr; neither has to be installed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.errors import Failure
from wendelin.cli.files.base import Layout, Sink, Source, slabs
from wendelin.cli.files.flat import only_member
from wendelin.lib.calc import mul

__all__ = ["DatasetSink", "DatasetSource", "hdf5_sink", "hdf5_source", "zarr_sink", "zarr_source"]

_CACHED = 64 << 20  # of rows of chunks, at most, which are read once [bytes]
_NUMBERS = "biufc"  # kinds of dtypes for which what is not written is zeros
_CHUNK = 4 << 20  # of chunks that are written, about [bytes]


def _library(name: str, extra: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as e:
        raise Failure(
            f"{name} is needed for that, and is not installed: pip install 'wendelin.core[{extra}]'"
        ) from e


class DatasetSource(Source):
    """A dataset, as h5py and zarr have it.

    Where rows of chunks are not too large, each is read once, as a whole.

    Parameters
    ----------
    dataset
        With shape, dtype, and indices.
    chunk_rows : int
        Rows, along the first axis, of a chunk.
    identity : dict
        See Source.
    close
        Closes what it is in.
    """

    def __init__(
        self,
        dataset: Any,
        chunk_rows: int,
        identity: dict[str, Any],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._dataset = dataset
        # what libraries note on it is not NumPy's
        dtype = np.lib.format.drop_metadata(dataset.dtype)
        self.layout = Layout(tuple(map(int, dataset.shape)), dtype, "C")
        self._identity = identity
        self._close = close
        together = chunk_rows * mul(self.layout.shape[1:])
        self._together = together if together * dtype.itemsize <= _CACHED else 0
        self._cached: tuple[int, NDArray[Any]] | None = None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See Source."""
        if not self._together:
            return self._read(start, stop)
        parts = []
        for n in range(start // self._together, -(-stop // self._together)):
            first = n * self._together
            rows = self._rows(n)
            parts.append(rows[max(0, start - first) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rows(self, n: int) -> NDArray[Any]:
        """Return all elements of the n-th row of chunks."""
        if self._cached is None or self._cached[0] != n:
            first = n * self._together
            self._cached = None
            stop = min(first + self._together, self.layout.size)
            self._cached = n, self._read(first, stop)
        return self._cached[1]

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        result = np.empty(stop - start, self.layout.dtype)
        at = 0
        for slab in slabs(self.layout.shape, start, stop):
            size = mul(slab.shape)
            result[at : at + size] = np.asarray(self._dataset[slab.where]).reshape(-1)
            at += size
        return result

    def identity(self) -> dict[str, Any]:
        """See Source."""
        return self._identity

    def close(self) -> None:
        """See Source."""
        self._close()


def hdf5_source(path: str, member: str, identity: dict[str, Any]) -> DatasetSource:
    """Return a dataset of an HDF5 file; the only one, if no name is given."""
    h5py = _library("h5py", "hdf5")
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise
    except OSError as e:
        raise Failure(f"{path} is no HDF5 file that can be read: {e}") from e
    try:
        names: list[str] = []
        if member:
            names = [member] if isinstance(file.get(member), h5py.Dataset) else []
        if not names:
            file.visititems(
                lambda name, obj: names.append(name) if isinstance(obj, h5py.Dataset) else None
            )
        name = only_member(path, member, names)
        dataset = file[name]
        if dataset.shape is None:
            raise Failure(f"{path}:{name} is an empty dataset, without a shape")
        rows = dataset.chunks[0] if dataset.chunks else 1
        return DatasetSource(dataset, rows, {**identity, "member": name}, file.close)
    except BaseException:
        file.close()
        raise


def zarr_source(path: str, member: str, identity: dict[str, Any]) -> DatasetSource:
    """Return an array of a Zarr folder; the only one, if no name is given."""
    zarr = _library("zarr", "zarr")
    if not os.path.exists(path):
        raise FileNotFoundError(2, "No such file or directory", path)
    try:
        found = zarr.open(path, mode="r")
    except (ValueError, KeyError, OSError) as e:
        raise Failure(f"{path} is no Zarr array, nor a group of such: {e}") from e
    name = ""
    if isinstance(found, zarr.Group):
        names = [key for key, obj in found.members(max_depth=None) if isinstance(obj, zarr.Array)]
        name = only_member(path, member.strip("/"), sorted(names))
        found = found[name]
    elif member:
        raise Failure(f"{path} is an array, and has none by the name {member!r}")
    chunks = found.shards or found.chunks
    meta = [os.path.join(path, name, file) for file in ("zarr.json", ".zarray")]
    changed = [os.stat(file).st_mtime_ns for file in meta if os.path.exists(file)]
    rows = chunks[0] if chunks else 1
    return DatasetSource(found, rows, {**identity, "member": name, "changed": changed})


# ---- sinks ----


def _chunks(layout: Layout) -> tuple[int, ...]:
    """Return a shape of chunks whose elements follow each other in the array's order."""
    most = max(1, _CHUNK // layout.dtype.itemsize)
    chunk = []
    for n in reversed(layout.shape) if layout.order == "C" else layout.shape:
        length = max(1, min(n, most))
        chunk.append(length)
        most //= length
    return tuple(reversed(chunk) if layout.order == "C" else chunk)


class DatasetSink(Sink):
    """A dataset, as h5py and zarr have it.

    Parameters
    ----------
    dataset
        Which takes values by indices.
    layout : Layout
    close
        Closes what it is in.
    resumable : bool
        See Sink.
    """

    def __init__(
        self,
        dataset: Any,
        layout: Layout,
        close: Callable[[], None] = lambda: None,
        resumable: bool = False,
    ) -> None:
        self._dataset = dataset
        self._layout = layout
        self._close = close
        self.resumable = resumable
        self.sparse = layout.dtype.kind in _NUMBERS
        self.together = mul(_chunks(layout))

    def write(self, start: int, values: NDArray[Any]) -> None:
        """See Sink."""
        shape, fortran = self._layout.shape, self._layout.order == "F"
        at = 0
        for slab in slabs(tuple(reversed(shape)) if fortran else shape, start, start + len(values)):
            size = mul(slab.shape)
            part = values[at : at + size].reshape(slab.shape)
            if fortran:
                self._dataset[tuple(reversed(slab.where))] = part.T
            else:
                self._dataset[slab.where] = part
            at += size

    def finish(self) -> None:
        """See Sink."""
        self.close()

    def close(self) -> None:
        """See Sink."""
        self._close()


def hdf5_sink(path: str, layout: Layout, member: str) -> DatasetSink:
    """Return a new HDF5 file with one dataset."""
    h5py = _library("h5py", "hdf5")
    file = h5py.File(path, "w")
    try:
        chunks = _chunks(layout) if layout.shape and layout.size else None
        dataset = file.create_dataset(member, layout.shape, layout.dtype, chunks=chunks)
    except TypeError as e:
        file.close()
        raise Failure(f"an HDF5 file cannot have dtype {layout.dtype}: {e}") from e
    return DatasetSink(dataset, layout, file.close)


def zarr_sink(path: str, layout: Layout, member: str, resume: bool) -> DatasetSink:
    """Return a Zarr array in a folder of its own; a new one, or one to go on with."""
    zarr = _library("zarr", "zarr")
    if resume:
        return DatasetSink(zarr.open_array(path, path=member, mode="r+"), layout, resumable=True)
    number = layout.dtype.kind in _NUMBERS
    known: dict[str, Any] = {"fill_value": 0} if number else {}
    # version 3 has numbers, and no byte order of theirs
    version = 3 if number and layout.dtype.isnative else 2
    try:
        with warnings.catch_warnings(action="ignore"):  # of dtypes that Zarr has not settled yet
            if member:
                zarr.open_group(path, mode="w", zarr_format=version)
            dataset = zarr.create_array(
                path,
                name=member or None,
                shape=layout.shape,
                dtype=layout.dtype,
                chunks=_chunks(layout),
                config={"write_empty_chunks": True},  # -0.0 would be empty
                overwrite=True,
                zarr_format=version,
                **known,
            )
    except (TypeError, ValueError) as e:
        raise Failure(f"a Zarr array cannot have dtype {layout.dtype}: {e}") from e
    return DatasetSink(dataset, layout, resumable=True)
