"""Arrays of a ZarrGroup, decoded: for what prints and exports them. This module needs zarr.

A store gives zarr the values of one state of the database, from records. Codecs that unpickle are
refused, as those of folders are: see files.zarrs.

This module knows zarr, and a group by its keys and values.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from typing import Any

import zarr

from wendelin.cli.errors import Failure
from wendelin.cli.files.attributes import from_zarr
from wendelin.cli.files.datasets import DatasetSource
from wendelin.cli.files.readonlystore import ReadOnlyStore
from wendelin.cli.storedzarr import StoredZarr
from wendelin.lib.utils import override

__all__ = ["array_of", "source_of"]


class _Values(ReadOnlyStore):
    """The values of a group, read-only."""

    def __init__(self, group: StoredZarr) -> None:
        super().__init__()
        self._group = group

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Values) and other._group is self._group

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return "a ZarrGroup of a command"

    @override
    def read(self, key: str, byte_range: slice) -> bytes | None:
        if key not in self._group.values:
            return None
        return bytes(memoryview(self._group.read(key))[byte_range])

    @override
    async def exists(self, key: str) -> bool:
        return key in self._group.values

    @override
    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._group.values:
            if key.startswith(prefix):
                yield key

    @override
    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        folder = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        under = [key[len(folder) :] for key in self._group.values if key.startswith(folder)]
        for name in dict.fromkeys(key.partition("/")[0] for key in under):
            yield name

    @override
    def again(self) -> _Values:
        return _Values(self._group)


def array_of(group: StoredZarr, name: str) -> Any:
    """Return an array of zarr.

    Parameters
    ----------
    group : StoredZarr
        What is under the path of the array.
    name : str
        Of it, in errors.

    Raises
    ------
    Failure
        It is not an array, or zarr cannot read it.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about dtypes that are not settled yet
            found = zarr.open(_Values(group), mode="r")
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise Failure(f"{name} is not read by zarr: {e}") from e
    if not isinstance(found, zarr.Array):
        names = ", ".join(group.names())
        raise Failure(f"{name} is a group of Zarr, not an array: it has {names or 'nothing'}")
    codecs = [*(found.filters or ()), *(found.compressors or ())]
    if any(getattr(codec, "codec_id", "") == "pickle" for codec in codecs):
        raise Failure(f"{name} has pickled objects, which could run any program")
    return found


def source_of(group: StoredZarr, name: str) -> DatasetSource:
    """Return an array, to be copied range by range. See array_of()."""
    found = array_of(group, name)
    chunk = found.shards or found.chunks
    return DatasetSource(found, chunk, {"file": name}, attributes=from_zarr(found.attrs))
