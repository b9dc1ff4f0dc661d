"""Datasets, as h5py and zarr have them: shape, dtype, chunks, and indices.

The modules hdf5 and zarrs know the files of these libraries, and what is refused in them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.errors import Failure
from wendelin.cli.files.attributes import Attributes
from wendelin.cli.files.base import FileSource, Layout, Sink, slabs
from wendelin.cli.files.convert import elements, plain
from wendelin.lib.calc import mul
from wendelin.lib.utils import override

__all__ = ["NUMBERS", "DatasetSink", "DatasetSource", "chunks_of", "library"]

_TOGETHER = 64 << 20  # see DatasetSource [bytes]
NUMBERS = "biufc"  # kinds of dtypes whose elements are zeros where nothing is written
_CHUNK = 4 << 20  # about the size of chunks that are written [bytes]


def library(name: str, extra: str) -> ModuleType:
    """Return an optional library.

    Raises
    ------
    Failure
        It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as e:
        raise Failure(
            f"{name} is needed, but not installed: pip install 'wendelin.core[{extra}]'"
        ) from e


class DatasetSource(FileSource):
    """A dataset, as h5py and zarr have it.

    A row of chunks that is not too large is read once, as a whole. Elements that are arrays are
    axes: the last ones.

    Parameters
    ----------
    dataset
        With shape, dtype, and indices.
    chunk : sequence of int
        Shape of a chunk; empty if there are none.
    identity : dict
        See Source.
    close
        Closes its file.
    stored : list of tuple of int, optional
        Where the stored chunks begin: others are zeros. None: all may be stored.
    attributes : Attributes
    together : int, optional
        A row of chunks up to this size [bytes] is read once, and larger ones in parts.
    """

    def __init__(
        self,
        dataset: Any,
        chunk: Sequence[int],
        identity: dict[str, Any],
        close: Callable[[], None] = lambda: None,
        stored: list[tuple[int, ...]] | None = None,
        attributes: Attributes = ({}, []),
        together: int = _TOGETHER,
    ) -> None:
        super().__init__(identity, close)
        self._dataset = dataset
        self.attrs, self.left_out = attributes
        shape = tuple(map(int, dataset.shape))
        self._axes = len(shape)  # of the dataset
        self.layout = Layout(shape, plain(dataset.dtype), "C").with_axes()
        rows = mul(self.layout.shape[1:])
        row = chunk[0] * rows if chunk else 0  # without chunks, no byte is read twice
        itemsize = self.layout.dtype.itemsize
        self._together = row if 0 < row * itemsize <= together else 0
        self._cached: tuple[int, NDArray[Any]] | None = None
        self._firsts: list[int] | None = None  # elements with which stored chunks begin
        if stored is not None:
            steps = [mul(self.layout.shape[axis + 1 :]) for axis in range(self._axes)]
            self._firsts = sorted(
                sum(i * step for i, step in zip(at, steps, strict=True)) for at in stored
            )
            # from the first of a chunk to its last one, at most
            self._span = sum((n - 1) * step for n, step in zip(chunk, steps, strict=False))
            self._span += mul(self.layout.shape[self._axes :]) - 1

    def next_data(self, start: int) -> int:
        """See Source: chunks that are not stored are zeros."""
        if self._firsts is None:
            return start
        # all have the same length: the first one that ends behind `start`
        i = bisect_left(self._firsts, start - self._span)
        return max(start, self._firsts[i]) if i < len(self._firsts) else self.layout.size

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        if not self._together:
            return self._elements(start, stop)
        result = np.empty(stop - start, self.layout.dtype)
        at = start
        while at < stop:
            n, behind = divmod(at, self._together)
            whole = (stop - at) // self._together * self._together
            if not behind and whole:  # whole rows of chunks: no chunk is read again
                values = self._elements(at, at + whole)
            else:
                values = self._rows(n)[behind : behind + stop - at]
            result[at - start : at - start + len(values)] = values
            at += len(values)
        return result

    def _rows(self, n: int) -> NDArray[Any]:
        """Return all elements of the n-th row of chunks."""
        if self._cached is None or self._cached[0] != n:
            first = n * self._together
            self._cached = None
            stop = min(first + self._together, self.layout.size)
            self._cached = n, self._elements(first, stop)
        return self._cached[1]

    def _elements(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) of the layout's dtype, as the library reads them."""
        result = np.empty(stop - start, self.layout.dtype)
        at = 0
        for slab in slabs(self.layout.shape, start, stop):
            size = mul(slab.shape)
            # a scalar is one with (), and may not be an ndarray
            values = np.asarray(self._dataset[slab.where[: self._axes]])
            if inner := slab.where[self._axes :]:
                index: Any = (..., *inner)
                values = values[index]
            result[at : at + size] = elements(values, self.layout.dtype)
            at += size
        return result


# ---- sinks ----


def chunks_of(layout: Layout) -> tuple[int, ...]:
    """Return a shape of chunks whose elements follow each other in the array's order."""
    most = max(1, _CHUNK // layout.dtype.itemsize)
    chunk = []
    for n in reversed(layout.shape) if layout.order == "C" else layout.shape:
        length = max(1, min(n, most))
        chunk.append(length)
        most //= length
    return tuple(reversed(chunk) if layout.order == "C" else chunk)


class DatasetSink(Sink):
    """A dataset, as h5py and zarr have it.

    Parameters
    ----------
    dataset
        It takes values by indices.
    layout : Layout
    dtype : data-type
        The library's dtype for it.
    close
        Closes its file.
    resumable : bool
        See Sink.
    set_attrs
        Writes attributes to a dataset: see Sink.
    """

    def __init__(
        self,
        dataset: Any,
        layout: Layout,
        dtype: np.dtype[Any],
        close: Callable[[], None] = lambda: None,
        resumable: bool = False,
        *,
        set_attrs: Callable[[Any, Mapping[str, Any]], list[str]],
    ) -> None:
        self._set_attrs = set_attrs
        self._dataset = dataset
        self._layout = layout
        self.dtype = dtype
        self._close = close
        self.resumable = resumable
        self.sparse = layout.dtype.kind in NUMBERS
        self.together = mul(chunks_of(layout))

    @override
    def set_attrs(self, attrs: Mapping[str, Any]) -> list[str]:
        return self._set_attrs(self._dataset, attrs)

    def _write(self, start: int, values: NDArray[Any]) -> None:
        shape, fortran = self._layout.shape, self._layout.order == "F"
        values = self._shown(values)
        at = 0
        for slab in slabs(tuple(reversed(shape)) if fortran else shape, start, start + len(values)):
            size = mul(slab.shape)
            block = values[at : at + size].reshape(slab.shape)
            if fortran:
                self._dataset[tuple(reversed(slab.where))] = block.T
            else:
                self._dataset[slab.where] = block
            at += size

    def _shown(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.view(self.dtype)  # with the library's metadata

    @override
    def finish(self) -> None:
        self.close()

    @override
    def close(self) -> None:
        self._close()
