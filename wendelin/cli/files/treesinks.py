"""Files that a group is written to: HDF5, which netCDF-4 is, and Zarr folders.

Names of dimensions are dimension scales in HDF5: an array of one axis with the name of the axis, in
the same group or above, is its scale. A netCDF file has a dimension for other names, too; an HDF5
file has labels. Zarr has them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from wendelin.cli.files.attributes import to_hdf5, to_zarr
from wendelin.cli.files.base import Layout, Sink
from wendelin.cli.files.contents import DIMS, Path, is_dims
from wendelin.cli.files.datasets import library
from wendelin.cli.files.hdf5 import dataset_sink
from wendelin.cli.files.zarrs import array_sink, versions_for
from wendelin.lib.utils import override

__all__ = ["Hdf5Tree", "TreeSink", "ZarrTree"]

_ONLY_DIMENSION = "This is a netCDF dimension but not a netCDF variable."


class TreeSink(ABC):
    """A file that groups and arrays are written to, one after the other."""

    #: arrays that are complete stay when the process is killed: another process can go on
    resumable = False

    @abstractmethod
    def group(self, path: Path, attrs: Mapping[str, Any]) -> list[str]:
        """Make a group; return the names of attributes that are left out."""

    @abstractmethod
    def array(self, path: Path, layout: Layout, attrs: Mapping[str, Any]) -> tuple[Sink, list[str]]:
        """Begin an array; its group exists. Return also the names of attributes left out.

        Raises
        ------
        Failure
            The file cannot have such an array.
        """

    def same(self, path: Path, other: Path) -> bool:
        """Give an object another name; return False if the file cannot have it."""
        return False

    @abstractmethod
    def finish(self) -> None:
        """Write what is left to write, sync everything to the disk, and close."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open, finished or not."""


class Hdf5Tree(TreeSink):
    """A new HDF5 file.

    Parameters
    ----------
    path : str
    netcdf : bool
        netCDF reads it: all names of dimensions are dimensions.
    """

    def __init__(self, path: str, netcdf: bool) -> None:
        self._h5py = library("h5py", "hdf5")
        self._path, self._netcdf = path, netcdf
        self._file = self._h5py.File(path, "w", track_order=netcdf)
        self._dims: dict[Path, Sequence[str]] = {}
        self._shapes: dict[Path, tuple[int, ...]] = {}

    @override
    def group(self, path: Path, attrs: Mapping[str, Any]) -> list[str]:
        if path:
            group = self._file.create_group("/".join(path), track_order=self._netcdf)
        else:
            group = self._file
        return to_hdf5(self._h5py, group, attrs)

    @override
    def array(self, path: Path, layout: Layout, attrs: Mapping[str, Any]) -> tuple[Sink, list[str]]:
        sink = dataset_sink(self._h5py, self._file, layout, "/".join(path), attrs)
        attrs = dict(attrs)
        if is_dims(attrs.get(DIMS), len(layout.shape)):
            self._dims[path], self._shapes[path] = attrs.pop(DIMS), layout.shape
        return sink, sink.set_attrs(attrs)

    @override
    def same(self, path: Path, other: Path) -> bool:
        self._file["/".join(path)] = self._file["/".join(other)]
        return True

    def _write_scales(self) -> None:
        found: dict[Path, Any] = {}
        for path, dims in self._dims.items():
            if len(dims) == 1 and dims[0] == path[-1]:
                found[path] = self._file["/".join(path)]
        for dataset in found.values():
            dataset.make_scale()
        for path, dims in self._dims.items():
            if path in found:
                continue
            dataset = self._file["/".join(path)]
            for axis, (name, length) in enumerate(zip(dims, self._shapes[path], strict=True)):
                scale = self._scale(path, name, length, found)
                if scale is not None:
                    dataset.dims[axis].attach_scale(scale)
                elif name and "\0" not in name:
                    dataset.dims[axis].label = name

    def _scale(self, path: Path, name: str, length: int, found: dict[Path, Any]) -> Any:
        """Return the scale of an axis; None if it is a label only."""
        for n in range(len(path) - 1, -1, -1):
            scale = found.get((*path[:n], name))
            if scale is not None and scale.shape == (length,):
                return scale
        at = (*path[:-1], name)
        if not self._netcdf or not name or "/" in name or "/".join(at) in self._file:
            return None
        scale = self._file.create_dataset("/".join(at), (length,), ">f4")
        scale.make_scale(f"{_ONLY_DIMENSION}{length:10d}")
        found[at] = scale
        return scale

    @override
    def finish(self) -> None:
        self._write_scales()
        self.close()

    @override
    def close(self) -> None:
        self._file.close()


class ZarrTree(TreeSink):
    """A Zarr folder: a new one, or an unfinished one.

    Parameters
    ----------
    path : str
    layouts : sequence of Layout
        Of all arrays: all in a folder has one version of Zarr; it is 3 if all arrays are numbers.
    """

    resumable = True

    def __init__(self, path: str, layouts: Sequence[Layout]) -> None:
        self._zarr = library("zarr", "zarr")
        self._path = path
        self._version = min((versions_for(layout.dtype)[0] for layout in layouts), default=3)

    @override
    def group(self, path: Path, attrs: Mapping[str, Any]) -> list[str]:
        inner = "/".join(path)
        group = self._zarr.open_group(self._path, path=inner, mode="a", zarr_format=self._version)
        return to_zarr(group, attrs)

    @override
    def array(self, path: Path, layout: Layout, attrs: Mapping[str, Any]) -> tuple[Sink, list[str]]:
        member = "/".join(path)
        sink = array_sink(self._zarr, self._path, layout, member, self._version, attrs)
        return sink, sink.set_attrs(attrs)

    @override
    def finish(self) -> None:
        if self._version == 2:  # in version 3 it is not settled
            with suppress(NotImplementedError):
                self._zarr.consolidate_metadata(self._path, zarr_format=2)

    @override
    def close(self) -> None:
        pass
