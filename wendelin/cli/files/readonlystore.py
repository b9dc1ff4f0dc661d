"""Stores of zarr that are only read: what zarr asks of a store, in terms of keys and bytes.

It knows zarr's interface, and not where the bytes are. This module needs zarr.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, NoReturn, Self

from zarr.abc.store import ByteRequest, Store

from wendelin.lib.utils import override
from wendelin.zarr.byteranges import byte_slice

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = ["ReadOnlyStore"]


class ReadOnlyStore(Store):
    """A store whose values are read by key; a subclass also lists keys, and has a text."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self) -> None:
        super().__init__(read_only=True)

    @abstractmethod
    def read(self, key: str, byte_range: slice) -> bytes | None:
        """Return bytes of a value; None: there is no such key."""

    @abstractmethod
    def again(self) -> Self:
        """Return another store of the same values."""

    @override
    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        data = self.read(key, byte_slice(byte_range) or slice(None))
        return None if data is None else prototype.buffer.from_bytes(data)

    @override
    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    @override
    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    @override
    def with_read_only(self, read_only: bool = False) -> Self:
        if not read_only:
            self._refuse_writes()
        return self.again()

    @override
    async def set(self, key: str, value: Buffer) -> None:
        self._refuse_writes()

    @override
    async def delete(self, key: str) -> None:
        self._refuse_writes()

    def _refuse_writes(self) -> NoReturn:
        raise ValueError(f"{self} is only read")
