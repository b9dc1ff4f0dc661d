"""Arrays in Zarr folders, by zarr, which need not be installed: version 2 and 3.

A folder may have symbolic links to any file of the machine, and a codec that unpickles chunks.
Links are followed only if the user says so, and the codec is never used.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from wendelin.cli.errors import Failure
from wendelin.cli.files.attributes import from_zarr, to_zarr
from wendelin.cli.files.base import Layout, Source
from wendelin.cli.files.contents import DIMS, is_dims
from wendelin.cli.files.convert import packed, plain, without_titles
from wendelin.cli.files.datasets import NUMBERS, DatasetSink, DatasetSource, chunks_of, library
from wendelin.cli.files.derived import TextSource, text_layout
from wendelin.cli.files.flat import only_member

__all__ = [
    "array_sink",
    "array_source",
    "check_codecs",
    "folder_store",
    "versions_for",
    "zarr_sink",
    "zarr_source",
]

_WRITE_ALL = {"write_empty_chunks": True}  # -0.0 would be empty


def folder_store(path: str, external: bool) -> Any:
    """Return what zarr reads a folder from; only with external, symbolic links are followed."""
    if external:
        return path
    from wendelin.cli.files.zarrstore import FolderStore  # it needs zarr

    return FolderStore(path)


def zarr_source(path: str, member: str, external: bool, identity: dict[str, Any]) -> Source:
    """Return an array of a Zarr folder; the only one, if no name is given.

    Raises
    ------
    Failure
        There is none; or there are symbolic links and external is False.
    """
    zarr = library("zarr", "zarr")
    if not os.path.exists(path):
        raise FileNotFoundError(2, "No such file or directory", path)
    if not os.path.isdir(path):
        raise Failure(f"{path} is not a Zarr folder: unpack a zip file first")
    member = member.strip("/")
    try:
        with warnings.catch_warnings(action="ignore"):  # about dtypes that Zarr has not settled yet
            found = _array(zarr, zarr.open(folder_store(path, external), mode="r"), path, member)
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise Failure(f"{path} is neither a Zarr array nor a group of arrays: {e}") from e
    check_codecs(found, path)
    meta = [os.path.join(path, found.path, file) for file in ("zarr.json", ".zarray")]
    changed = [os.stat(file).st_mtime_ns for file in meta if os.path.exists(file)]
    identity = {**identity, "member": found.path, "changed": changed}
    try:
        return array_source(found, identity)
    except ValueError as e:
        raise Failure(f"{path}:{found.path} has {e}") from e


def check_codecs(found: Any, path: str) -> None:
    """Refuse an array of zarr whose codecs run programs that a file names.

    Raises
    ------
    Failure
        It has such.
    """
    # version 2 has one compressor, or None
    codecs = [*(found.filters or ()), *(found.compressors or ())]
    if any(getattr(codec, "codec_id", "") == "pickle" for codec in codecs):
        raise Failure(f"{path} has pickled objects, which could run any program")


def array_source(found: Any, identity: dict[str, Any], layout: Layout | None = None) -> Source:
    """Return a source of an array of zarr; texts of variable length are read for it.

    Raises
    ------
    ValueError
        They cannot be elements of one length.
    """
    attrs, unkept = from_zarr(found.attrs)
    if not found.shape and attrs.get(DIMS) == []:
        del attrs[DIMS]
    names = getattr(found.metadata, "dimension_names", None)
    if names and DIMS not in attrs and any(names):
        attrs[DIMS] = [name or "" for name in names]
    if found.dtype.kind in "OT":
        told = text_layout(found) if layout is None else layout
        return TextSource(found, told, identity, attributes=(attrs, unkept))
    return DatasetSource(found, found.shards or found.chunks, identity, attributes=(attrs, unkept))


def _array(zarr: Any, found: Any, path: str, member: str) -> Any:
    """Return an array of a folder: the one with a name, or the only one."""
    if isinstance(found, zarr.Array):
        if member:
            raise Failure(f"{path} is an array, and has no member {member!r}")
        return found
    array = found[member] if member and member in found else None
    if isinstance(array, zarr.Array):
        return array
    names = [key for key, obj in found.members(max_depth=None) if isinstance(obj, zarr.Array)]
    return found[only_member(path, member, sorted(names))]


def zarr_sink(
    path: str, layout: Layout, member: str, resume: bool, attrs: Mapping[str, Any]
) -> DatasetSink:
    """Return a Zarr array in a folder of its own: a new one, or an unfinished one.

    Raises
    ------
    Failure
        Zarr has no such dtype.
    """
    zarr = library("zarr", "zarr")
    if resume:
        dataset = zarr.open_array(path, path=member, mode="r+", config=_WRITE_ALL)
        dtype = plain(dataset.dtype)
        sink = DatasetSink(dataset, layout, dtype, resumable=True, set_attrs=_set_attrs)
        sink.sparse = sink.sparse and dataset.metadata.zarr_format == 3
        return sink
    why: Failure | None = None
    for version in versions_for(layout.dtype):
        try:
            if member:
                zarr.open_group(path, mode="w", zarr_format=version)
            return array_sink(zarr, path, layout, member, version, attrs)
        except Failure as e:
            why = why or e
    raise why or Failure(f"a Zarr array cannot have dtype {layout.dtype}")


def versions_for(dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Return the versions of Zarr in which an array of a dtype is written, the best one first.

    Version 3 has numbers, but no byte order; its structures, text and bytes are not settled. These
    are written in version 2, if it has them.
    """
    return (3,) if dtype.kind in NUMBERS and dtype.isnative else (2, 3)


def array_sink(
    zarr: Any, path: str, layout: Layout, member: str, version: int, attrs: Mapping[str, Any]
) -> DatasetSink:
    """Return a new array in a Zarr folder.

    Raises
    ------
    Failure
        Such an array cannot have the dtype.
    """
    dtype = packed(without_titles(layout.dtype))  # it has fields, and no offsets of them
    settings: dict[str, Any] = {"dtype": dtype, "zarr_format": version}
    # in version 2, xarray takes the fill value for what is missing: then all chunks are written
    if version == 2:
        settings["fill_value"] = None
    elif dtype.kind in NUMBERS:
        settings["fill_value"] = 0
    with warnings.catch_warnings(action="ignore"):  # about dtypes that are not settled
        try:
            found = _tried(zarr, settings)
        except (TypeError, ValueError) as e:
            raise Failure(f"a Zarr array cannot have dtype {layout.dtype}: {e}") from e
        dims = attrs.get(DIMS)
        if version == 3 and is_dims(dims, len(layout.shape)):
            settings["dimension_names"] = [name or None for name in dims or ()]
        dataset = zarr.create_array(
            path,
            name=member or None,
            shape=layout.shape,
            chunks=chunks_of(layout),
            config=_WRITE_ALL,
            overwrite=True,
            **settings,
        )
    sink = DatasetSink(dataset, layout, found, resumable=True, set_attrs=_set_attrs)
    sink.sparse = sink.sparse and version == 3
    return sink


def _set_attrs(dataset: Any, attrs: Mapping[str, Any]) -> list[str]:
    """Write attributes; version 3 has names of dimensions elsewhere."""
    attrs = dict(attrs)
    if getattr(dataset.metadata, "dimension_names", None):
        attrs.pop(DIMS, None)
    elif not dataset.shape and dataset.metadata.zarr_format == 2:
        attrs[DIMS] = []  # xarray needs it
    return to_zarr(dataset, attrs)


def _tried(zarr: Any, settings: dict[str, Any]) -> np.dtype[Any]:
    """Write and read an element, return its dtype: zarr makes arrays that it cannot write or read.

    Raises
    ------
    TypeError, ValueError
        Zarr does not have the dtype.
    """
    store = zarr.storage.MemoryStore()
    dtype = settings["dtype"]
    zeros = np.zeros(1, dtype)
    array = zarr.create_array(store, shape=(1,), chunks=(1,), config=_WRITE_ALL, **settings)
    array[:] = zeros
    found = plain(zarr.open_array(store, mode="r")[:].dtype)
    if found.newbyteorder("=") != dtype.newbyteorder("="):
        raise TypeError(f"zarr makes it {found}")
    return found
