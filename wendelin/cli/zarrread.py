"""Arrays of a ZarrGroup, decoded: for what prints and exports them. This module needs zarr.

A store gives zarr the values of one state of the database, from records. Codecs that unpickle are
refused, as those of folders are: see files.zarrs.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import zarr
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)

from wendelin.cli.errors import Failure
from wendelin.cli.files.attributes import from_zarr
from wendelin.cli.files.datasets import DatasetSource
from wendelin.cli.storedzarr import StoredZarr
from wendelin.lib.utils import override

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = ["array_of", "source_of"]


class _Values(Store):
    """The values of a group, read-only."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, group: StoredZarr) -> None:
        super().__init__(read_only=True)
        self._group = group

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Values) and other._group is self._group

    __hash__ = None  # type: ignore[assignment]

    @override
    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key not in self._group.values:
            return None
        data = memoryview(self._group.read(key))
        match byte_range:
            case RangeByteRequest():
                data = data[byte_range.start : byte_range.end]
            case OffsetByteRequest():
                data = data[byte_range.offset :]
            case SuffixByteRequest():
                data = data[max(0, len(data) - byte_range.suffix) :]
        return prototype.buffer.from_bytes(bytes(data))

    @override
    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    @override
    async def exists(self, key: str) -> bool:
        return key in self._group.values

    @override
    async def list(self) -> AsyncIterator[str]:
        for key in self._group.values:
            yield key

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
    def with_read_only(self, read_only: bool = False) -> _Values:
        if not read_only:
            self._refuse()
        return _Values(self._group)

    @override
    async def set(self, key: str, value: Buffer) -> None:
        self._refuse()

    @override
    async def delete(self, key: str) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError("it is only read")


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
