"""Arrays in Zarr folders, by zarr, which need not be installed: version 2 and 3.

A folder may have symbolic links to any file of the machine, and a codec that unpickles chunks.
Links are followed only if the user says so, and the codec is never used.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

from wendelin.cli.errors import Failure
from wendelin.cli.files.attributes import from_zarr, to_zarr
from wendelin.cli.files.base import Layout
from wendelin.cli.files.convert import packed, plain, without_titles
from wendelin.cli.files.datasets import NUMBERS, DatasetSink, DatasetSource, chunks_of, library
from wendelin.cli.files.flat import only_member

__all__ = ["zarr_sink", "zarr_source"]

_WRITE_ALL = {"write_empty_chunks": True}  # -0.0 would be empty


def _store(path: str, external: bool) -> Any:
    if external:
        return path
    from wendelin.cli.files.zarrstore import FolderStore  # it needs zarr

    return FolderStore(path)


def zarr_source(path: str, member: str, external: bool, identity: dict[str, Any]) -> DatasetSource:
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
            found = _array(zarr, zarr.open(_store(path, external), mode="r"), path, member)
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise Failure(f"{path} is neither a Zarr array nor a group of arrays: {e}") from e
    # version 2 has one compressor, or None
    codecs = [*(found.filters or ()), *(found.compressors or ())]
    if any(getattr(codec, "codec_id", "") == "pickle" for codec in codecs):
        raise Failure(f"{path} has pickled objects, which could run any program")
    meta = [os.path.join(path, found.path, file) for file in ("zarr.json", ".zarray")]
    changed = [os.stat(file).st_mtime_ns for file in meta if os.path.exists(file)]
    identity = {**identity, "member": found.path, "changed": changed}
    chunk = found.shards or found.chunks
    return DatasetSource(found, chunk, identity, attributes=from_zarr(found.attrs))


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


def zarr_sink(path: str, layout: Layout, member: str, resume: bool) -> DatasetSink:
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
        return DatasetSink(dataset, layout, dtype, resumable=True, set_attrs=to_zarr)
    dtype = packed(without_titles(layout.dtype))  # it has fields, and no offsets of them
    # Version 3 has numbers, but no byte order; its structures, text and bytes are not settled.
    # These are written in version 2, if it has them.
    number = dtype.kind in NUMBERS
    versions = (3,) if number and dtype.isnative else (2, 3)
    why: Exception | None = None
    with warnings.catch_warnings(action="ignore"):  # about dtypes that are not settled
        for version in versions:
            settings: dict[str, Any] = {"dtype": dtype, "zarr_format": version}
            if number:
                settings["fill_value"] = 0
            try:
                found = _tried(zarr, settings)
            except (TypeError, ValueError) as e:
                why = e
                continue
            if member:
                zarr.open_group(path, mode="w", zarr_format=version)
            dataset = zarr.create_array(
                path,
                name=member or None,
                shape=layout.shape,
                chunks=chunks_of(layout),
                config=_WRITE_ALL,
                overwrite=True,
                **settings,
            )
            return DatasetSink(dataset, layout, found, resumable=True, set_attrs=to_zarr)
    raise Failure(f"a Zarr array cannot have dtype {layout.dtype}: {why}") from why


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
