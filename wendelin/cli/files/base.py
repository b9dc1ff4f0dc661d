"""Sources and sinks: arrays in files, read and written in ranges that fit into memory.

An array is its elements in their order in memory, C or F, and a range is [start, stop) of
them. If a file has axes and no such order, slabs() says which boxes these are.

This module knows elements and their order. It knows no kind of file, and no database.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wendelin.bigarray.array import Order
from wendelin.cli.errors import Failure
from wendelin.cli.files.convert import describe, elements
from wendelin.lib.calc import mul
from wendelin.lib.utils import override

__all__ = ["FileSource", "Layout", "Sink", "Slab", "Source", "slabs"]

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """What an array is, besides its elements."""

    shape: Shape
    dtype: np.dtype[Any]
    order: Order

    @property
    def size(self) -> int:
        """Number of elements."""
        return mul(self.shape)

    def as_dict(self) -> dict[str, Any]:
        """Return the same, of plain values."""
        return {
            "shape": list(self.shape),
            "dtype": repr(describe(self.dtype)),
            "order": self.order,
        }

    def with_axes(self) -> Layout:
        """Return a layout in which elements that are arrays are axes: the last ones.

        Raises
        ------
        ValueError
            The order of elements is 'F': they would not be the last ones.
        """
        shape, dtype = self.shape, self.dtype
        if dtype.subdtype is not None and self.order == "F":
            raise ValueError(f"its elements are arrays, {dtype}, in Fortran order")
        while dtype.subdtype is not None:  # they may be nested
            shape, dtype = (*shape, *dtype.shape), dtype.base
        return Layout(shape, dtype, self.order)


class Source(ABC):
    """An array that is read."""

    layout: Layout
    #: of text: the first line, if it has names and not data
    header: list[str] | None = None
    #: of text whose dtype was guessed: name and dtype of each column
    guessed: Sequence[str] = ()
    #: attributes, as an array takes them, and the names of those that it cannot take
    attrs: Mapping[str, Any] = MappingProxyType({})
    left_out: Sequence[str] = ()
    #: of structures that were arrays: attributes of each field
    column_attrs: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop), as a 1-d array of the layout's dtype.

        Raises
        ------
        Failure
            There are not as many, or they have another dtype.
        """
        try:
            values = elements(self._read(start, stop), self.layout.dtype)
        except TypeError as e:
            raise Failure(f"{self.identity().get('file', 'the source')} gave {e}") from e
        if len(values) != stop - start:
            raise Failure(
                f"{self.identity().get('file', 'the source')} gave {len(values)} elements instead "
                f"of {stop - start}"
            )
        return values

    @abstractmethod
    def _read(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) in C order, as they are read: see elements()."""

    def next_data(self, start: int) -> int:
        """Return the first element from `start` on that may not be zero; or the end."""
        return start

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return plain values that say whether another source is the same as this one."""

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Close what is open."""


class FileSource(Source):
    """An array of a file, which is closed with it.

    Parameters
    ----------
    identity : dict
        See Source.
    close
        Closes the file.
    """

    def __init__(self, identity: dict[str, Any], close: Callable[[], None]) -> None:
        self._identity, self._close = identity, close

    @override
    def identity(self) -> dict[str, Any]:
        return self._identity

    @override
    def close(self) -> None:
        self._close()


class Sink(ABC):
    """An array that is written: from its first element on, in order."""

    #: what was written and synced stays when the process is killed: another process can go on
    resumable = False
    #: what was written since the last sync() takes more than a moment to write again
    worth_saving = True
    #: elements that are not written are zeros
    sparse = False
    #: elements that are best written together
    together = 1
    #: of elements in the file: byte order and offsets of fields may differ from the array's
    dtype: np.dtype[Any]

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Write elements [start, start + len(values)).

        Parameters
        ----------
        start : int
        values : ndarray, 1-d
            Of the array's dtype.
        """
        self._write(start, elements(values, self.dtype))

    @abstractmethod
    def _write(self, start: int, values: NDArray[Any]) -> None:
        """Write elements, which have the dtype of the file."""

    @abstractmethod
    def finish(self) -> None:
        """Sync everything to the disk, and close."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open, finished or not."""

    def set_attrs(self, attrs: Mapping[str, Any]) -> list[str]:
        """Write attributes; return the names of those that such a file cannot have."""
        return list(attrs)

    def sync(self) -> int:
        """Sync what was written to the disk; return what resume() needs to know."""
        return 0

    def resume(self, position: int) -> None:  # noqa: B027  # some just go on
        """Go on after what another sink had written when its sync() returned `position`."""


class Slab(NamedTuple):
    """A box: ranges along the axes, whose elements follow each other in C order."""

    where: tuple[slice, ...]
    shape: Shape


def slabs(shape: Shape, start: int, stop: int) -> Iterator[Slab]:
    """Yield slabs that, one after the other, are elements [start, stop) of an array in C order.

    They are as few as possible: for each axis, a part of a row, rows, and a part of a row.
    """
    rows = [mul(shape[axis + 1 :]) for axis in range(len(shape))]  # elements of one, of each axis
    at = start
    while at < stop:
        if not shape:
            yield Slab((), ())
            return
        axis = next(i for i, n in enumerate(rows) if at % n == 0 and stop - at >= n)
        first = [at // n % length for n, length in zip(rows, shape, strict=True)]
        count = min((stop - at) // rows[axis], shape[axis] - first[axis])
        inner = shape[axis + 1 :]
        yield Slab(
            (
                *(slice(i, i + 1) for i in first[:axis]),
                slice(first[axis], first[axis] + count),
                *(slice(0, n) for n in inner),
            ),
            (*(1 for _ in first[:axis]), count, *inner),
        )
        at += count * rows[axis]
