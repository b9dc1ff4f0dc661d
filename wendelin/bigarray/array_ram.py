"""RAMArray: an array in memory only, with the interface of all arrays.

Its file has no data, and is never asked to store any: all data is in pages. So views taken before
an append show the same memory as views taken after it, while numpy.append() copies.

This module knows a file without data. What an array does with it, BigArray knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wendelin.bigarray.array import BigArray, Order
from wendelin.bigarray.html import Overview
from wendelin.bigfile import HOLE, BigFile
from wendelin.lib.utils import renamed

__all__ = ["RAMArray"]

BLKSIZE = 64 << 10  # memory is taken in pieces of this size, when they are written [bytes]


class _Nothing(BigFile):
    """A file of zeros, whose pages are never asked to be stored."""

    def __init__(self) -> None:
        super().__init__(BLKSIZE)

    def __repr__(self) -> str:
        return "<memory of a RAMArray>"

    def mapblk(self, blk: int) -> Any:
        return HOLE

    def truncate(self, blk: int) -> None:
        """Leave zeros: the file has no data."""


class RAMArray(BigArray):
    """An array in memory: zeros at first. Parts that were never written take no memory.

    Written parts count as page memory, which WENDELIN_CORE_RAM limits; what does not fit is in a
    file of WENDELIN_CORE_SPOOL. They stay until the array and all its views are gone, or a resize()
    drops them.

    Pickled, it is copied.

    Parameters
    ----------
    shape, dtype, order
        See BigArray.
    """

    @renamed(dtype_="dtype")
    def __init__(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        dtype: DTypeLike,
        order: Order = "C",
    ) -> None:
        super().__init__(shape, dtype, _Nothing().fileh_open(), order)

    def _overview(self) -> Overview:
        """Return False: written pages are not changes, as the file has no data."""
        about = super()._overview()
        memory = about.memory and about.memory._replace(dirty=0)
        return replace(about, memory=memory, changed=())

    def __reduce__(self) -> tuple[Any, ...]:
        """Return a pickle with all data and attributes."""
        state: Any = object.__getstate__(self)
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        own = BigArray.__annotations__.keys()
        attributes = {k: v for k, v in attributes.items() if k not in own}
        return (
            _filled,
            (type(self), np.array(self), self._order),
            (attributes, slots) if slots else attributes or None,
        )


def _filled(cls: type[RAMArray], values: NDArray[Any], order: Order) -> RAMArray:
    A = cls(values.shape, values.dtype, order)
    A[...] = values
    return A
