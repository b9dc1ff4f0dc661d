"""One array of an HDF5 file, read or written by h5py, which need not be installed.

The module hdf5tree knows what is in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.errors import Failure
from wendelin.cli.files.attributes import to_hdf5
from wendelin.cli.files.base import Layout, Source
from wendelin.cli.files.contents import DIMS, ENUM, is_dims
from wendelin.cli.files.convert import packed, plain, without_titles
from wendelin.cli.files.datasets import DatasetSink, chunks_of, library
from wendelin.cli.files.flat import only_member
from wendelin.cli.files.hdf5tree import Datasets, opened_hdf5
from wendelin.lib.utils import override

__all__ = ["dataset_sink", "hdf5_sink", "hdf5_source"]


def hdf5_source(path: str, member: str, external: bool, identity: dict[str, Any]) -> Source:
    """Return a dataset of an HDF5 file; the only one, if no name is given.

    Raises
    ------
    Failure
        There is none; or it has bytes in other files and external is False.
    """
    h5py, file = opened_hdf5(path)
    try:
        found = Datasets(h5py, file, path, external, identity, file.close)
        name = member
        dataset = None
        if member:
            dataset = file.get(member) if external else found.inside.find(member)
        if not isinstance(dataset, h5py.Dataset):
            names: list[str] = []
            # it follows no link out of the file
            file.visititems(
                lambda name, obj: names.append(name) if isinstance(obj, h5py.Dataset) else None
            )
            name = only_member(path, member, names)
            dataset = file[name]
        if not external:
            found.inside.check(dataset)
        if dataset.shape is None:
            raise Failure(f"{path}:{name} is an empty dataset, without a shape")
        try:
            return found.source(dataset)
        except ValueError as e:
            raise Failure(f"{path}:{name} has {e}") from e
    except BaseException:
        file.close()
        raise


def _dtype_for(h5py: Any, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype for h5py: times are opaque, with a tag that h5py knows."""
    if dtype.subdtype is not None:
        return np.dtype((_dtype_for(h5py, dtype.base), dtype.shape))
    if dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
        return np.dtype(
            {
                "names": list(dtype.names),
                "formats": [_dtype_for(h5py, field[0]) for field in fields],
                "offsets": [field[1] for field in fields],
                "itemsize": dtype.itemsize,
            }
        )
    opaque: np.dtype[Any] = h5py.opaque_dtype(dtype) if dtype.kind in "Mm" else dtype
    return opaque


class _TextSink(DatasetSink):
    """Texts, which are of variable length in the file."""

    @override
    def write(self, start: int, values: NDArray[Any]) -> None:
        try:
            self._write(start, values.astype(object))
        except ValueError as e:
            raise Failure(f"an HDF5 file cannot have one of the texts: {e}") from e

    @override
    def _shown(self, values: NDArray[Any]) -> NDArray[Any]:
        return values


def hdf5_sink(path: str, layout: Layout, member: str, attrs: Mapping[str, Any]) -> DatasetSink:
    """Return a new HDF5 file with one dataset.

    Parameters
    ----------
    path : str
    layout : Layout
    member : str
    attrs : mapping
        Only the names of an enumeration matter here.

    Raises
    ------
    Failure
        HDF5 has no such dtype.
    """
    h5py = library("h5py", "hdf5")
    file = h5py.File(path, "w")
    try:
        return dataset_sink(h5py, file, layout, member, attrs, file.close)
    except BaseException:
        file.close()
        raise


def dataset_sink(
    h5py: Any,
    file: Any,
    layout: Layout,
    member: str,
    attrs: Mapping[str, Any],
    close: Callable[[], None] = lambda: None,
) -> DatasetSink:
    """Return a new dataset of an HDF5 file; texts have variable length there.

    Raises
    ------
    Failure
        HDF5 has no such dtype.
    """
    dtype = without_titles(layout.dtype)
    chunks = chunks_of(layout) if layout.shape and layout.size else None
    set_attrs = partial(_set_attrs, h5py)
    try:
        if dtype.kind == "U":
            told = h5py.string_dtype()
            dataset = file.create_dataset(member, layout.shape, told, chunks=chunks)
            return _TextSink(dataset, layout, told, close, set_attrs=set_attrs)
        names = _enumeration(dtype, attrs)
        for known in dtype, packed(dtype):  # fields may overlap
            told = _dtype_for(h5py, known)
            if names:
                told = h5py.enum_dtype(names, basetype=known)
            dataset = file.create_dataset(member, layout.shape, told, chunks=chunks)
            if plain(dataset.dtype) == known:
                return DatasetSink(dataset, layout, told, close, set_attrs=set_attrs)
            del file[member]
        raise TypeError(f"h5py makes {dataset.dtype} of it")
    except (TypeError, ValueError) as e:
        raise Failure(f"an HDF5 file cannot have dtype {layout.dtype}: {e}") from e


def _enumeration(dtype: np.dtype[Any], attrs: Mapping[str, Any]) -> dict[str, int]:
    """Return the names of an enumeration; none if an attribute is not such, or does not fit."""
    names = attrs.get(ENUM)
    if dtype.kind not in "iu" or not isinstance(names, Mapping) or not names:
        return {}
    info = np.iinfo(dtype)
    fits = all(type(n) is int and info.min <= n <= info.max for n in names.values())
    return dict(names) if fits else {}


def _set_attrs(h5py: Any, dataset: Any, attrs: Mapping[str, Any]) -> list[str]:
    """Write attributes; dimensions become labels of axes, and names of numbers are the dtype's."""
    attrs = dict(attrs)
    if h5py.check_enum_dtype(dataset.dtype) is not None:
        attrs.pop(ENUM, None)
    dims = attrs.get(DIMS)
    if is_dims(dims, len(dataset.shape)):
        for i, name in enumerate(attrs.pop(DIMS)):
            if name and "\0" not in name:
                dataset.dims[i].label = name
    return to_hdf5(h5py, dataset, attrs)
