"""netCDF files of the classic formats: variables, dimensions and attributes. See Contents.

scipy reads formats 1 and 2, and netCDF4 all of them; one of these must be installed. netCDF-4 files
are HDF5: see hdf5tree. Values are as they are in the file: no scale, offset or mask is applied.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from wendelin.cli.errors import Failure, explain
from wendelin.cli.files.attributes import Attributes, kept
from wendelin.cli.files.base import Source
from wendelin.cli.files.contents import DIMS, Contents, Member
from wendelin.cli.files.datasets import DatasetSource

__all__ = ["netcdf_contents"]


def netcdf_contents(path: str, identity: dict[str, Any]) -> Contents:
    """Return the contents of a netCDF file of a classic format.

    Raises
    ------
    Failure
        It is not one; or neither scipy nor netCDF4 is installed.
    """
    with open(path, "rb") as file:
        modern = file.read(4) == b"CDF\x05"
    readers = [_by_netcdf4] if modern else [_by_scipy, _by_netcdf4]
    for reader in readers:
        try:
            return reader(path, identity)
        except ImportError:
            continue
        except FileNotFoundError:
            raise
        except Exception as e:  # of any kind, in scipy's reader of a damaged file
            raise Failure(f"{path} is not a readable netCDF file: {explain(e)}") from e
    needed = "netCDF4 is" if modern else "scipy or netCDF4 is"
    raise Failure(f"{needed} needed, but not installed: pip install 'wendelin.core[sparse]'")


def _contents(
    path: str,
    identity: dict[str, Any],
    attributes: Attributes,
    variables: Iterable[tuple[str, Any, Attributes, tuple[str, ...]]],
    close: Callable[[], None],
) -> Contents:
    """Return contents of (name, variable, attributes, dimensions)."""
    members = [Member((), attrs=attributes[0], unkept=attributes[1])]
    for name, variable, (attrs, unkept), dimensions in variables:
        if dimensions and DIMS not in attrs:
            attrs[DIMS] = list(dimensions)
        opens = partial(_source, variable, {**identity, "member": name}, (attrs, unkept))
        layout = opens().layout
        members.append(Member((name,), layout, attrs, unkept, open=opens))
    return Contents(path, members, identity, close)


def _source(variable: Any, identity: dict[str, Any], attributes: Attributes) -> Source:
    return DatasetSource(variable, (), identity, attributes=attributes)


def _by_scipy(path: str, identity: dict[str, Any]) -> Contents:
    netcdf_file = import_module("scipy.io").netcdf_file
    file = netcdf_file(path, "r", mmap=True)
    attributes = kept(_plain(file._attributes))
    variables = [
        (name, variable.data, kept(_plain(variable._attributes)), variable.dimensions)
        for name, variable in file.variables.items()
    ]

    def close() -> None:
        variables.clear()
        with warnings.catch_warnings(action="ignore"):  # arrays may be in use: then later
            file.close()

    return _contents(path, identity, attributes, list(variables), close)


def _plain(attributes: Any) -> Iterable[tuple[str, Any]]:
    """Yield attributes; texts are bytes in scipy."""
    for name, value in attributes.items():
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                value = value.decode("latin-1")
        yield name, value


def _by_netcdf4(path: str, identity: dict[str, Any]) -> Contents:
    file = import_module("netCDF4").Dataset(path)
    file.set_auto_maskandscale(False)
    file.set_auto_chartostring(False)

    def attributes_of(obj: Any) -> Attributes:
        return kept((name, obj.getncattr(name)) for name in obj.ncattrs())

    variables = [
        (name, _Variable(variable), attributes_of(variable), variable.dimensions)
        for name, variable in file.variables.items()
    ]
    return _contents(path, identity, attributes_of(file), variables, file.close)


class _Variable:
    """A variable of netCDF4, with a dtype of NumPy and indices as h5py takes them."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable
        self.shape = tuple(map(int, variable.shape))
        self.dtype = np.dtype(variable.dtype)

    def __getitem__(self, where: Any) -> Any:
        return np.asarray(self._variable[where])
