"""Sources that make elements of others: texts of variable length, axes of MATLAB, complex numbers.

Texts of variable length become elements of one length, that of the longest one: a NumPy dtype `U`,
or `S` if they are not UTF-8. So they are all read once before.

This module knows sources, or what has slices as a dataset has. It knows no kind of file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.files.attributes import Attributes
from wendelin.cli.files.base import FileSource, Layout, Source, slabs
from wendelin.lib.calc import mul
from wendelin.lib.utils import override

__all__ = ["ArrayInMemory", "TextSource", "Viewed", "text_layout"]

_TOGETHER = 1 << 16  # texts that are read at a time
_WASTE = 64 << 20  # texts of one length may always have so many bytes,
_MOST_TIMES = 32  # or so many times what they have in the file


def _texts(dataset: Any, shape: tuple[int, ...], start: int, stop: int) -> Iterator[Any]:
    """Yield values of a dataset, in C order: str or bytes."""
    for slab in slabs(shape, start, stop):
        values = np.asarray(dataset[slab.where])
        yield from values.reshape(-1).tolist() if values.ndim else [values.item()]


def text_layout(dataset: Any) -> Layout:
    """Return the layout of texts of variable length.

    Raises
    ------
    ValueError
        They cannot have one length.
    """
    shape = tuple(map(int, dataset.shape))
    size = mul(shape)
    longest, longest_bytes, total, is_text = 1, 1, 0, True
    for start in range(0, size, _TOGETHER):
        for value in _texts(dataset, shape, start, min(size, start + _TOGETHER)):
            data = value.encode(errors="surrogatepass") if isinstance(value, str) else bytes(value)
            total += len(data)
            longest_bytes = max(longest_bytes, len(data))
            if data.endswith(b"\0"):
                raise ValueError("texts that end with a NUL, which NumPy's do not")
            if is_text and len(data) >= longest:
                try:
                    longest = max(longest, len(data.decode()))
                except UnicodeDecodeError:
                    is_text = False
            elif is_text and not data.isascii():
                try:
                    data.decode()
                except UnicodeDecodeError:
                    is_text = False
    dtype = np.dtype(f"U{longest}" if is_text else f"S{longest_bytes}")
    if size * dtype.itemsize > max(_WASTE, _MOST_TIMES * 4 * (total + size)):
        raise ValueError(
            f"texts of very different lengths: {size * dtype.itemsize} bytes as {dtype}, and "
            f"{total} in the file"
        )
    return Layout(shape, dtype, "C")


class TextSource(FileSource):
    """Texts of variable length, as elements of one length.

    Parameters
    ----------
    dataset
        Its values are str or bytes.
    layout : Layout
        See text_layout().
    identity : dict
        See Source.
    close
        Closes its file.
    attributes : Attributes
    """

    def __init__(
        self,
        dataset: Any,
        layout: Layout,
        identity: dict[str, Any],
        close: Callable[[], None] = lambda: None,
        attributes: Attributes = ({}, []),
    ) -> None:
        super().__init__(identity, close)
        self._dataset, self.layout = dataset, layout
        self.attrs, self.left_out = attributes

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        values = list(_texts(self._dataset, self.layout.shape, start, stop))
        if self.layout.dtype.kind == "U":
            values = [v if isinstance(v, str) else bytes(v).decode() for v in values]
        else:
            values = [v.encode() if isinstance(v, str) else bytes(v) for v in values]
        return np.array(values, self.layout.dtype)


class Viewed(Source):
    """The elements of a source, in their order, with another layout: shape, order, and dtype.

    Parameters
    ----------
    source : Source
    layout : Layout
        Of as many elements, of as many bytes.
    close
        Called at the end, too.
    """

    def __init__(
        self, source: Source, layout: Layout, close: Callable[[], None] = lambda: None
    ) -> None:
        self._source, self.layout, self._close = source, layout, close
        self.attrs, self.left_out = source.attrs, source.left_out

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return self._source.read(start, stop).view(self.layout.dtype)

    @override
    def next_data(self, start: int) -> int:
        return self._source.next_data(start)

    @override
    def identity(self) -> dict[str, Any]:
        return self._source.identity()

    @override
    def close(self) -> None:
        self._source.close()
        self._close()


class ArrayInMemory(FileSource):
    """An array that a library has read as a whole.

    Parameters
    ----------
    values : ndarray
    layout : Layout
    identity : dict
        See Source.
    close
        Closes its file.
    """

    def __init__(
        self,
        values: NDArray[Any],
        layout: Layout,
        identity: dict[str, Any],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(identity, close)
        self._flat, self.layout = values.reshape(-1, order=layout.order), layout

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return self._flat[start:stop]
