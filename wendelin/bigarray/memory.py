"""Whose memory an ndarray shows: the way from a view down to its root.

This module knows ndarrays and VMAs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.bigfile.virtmem.handle import VMA
from wendelin.bigfile.virtmem.pins import ready

__all__ = ["bases", "copy_in_steps", "in_file", "make_ready", "strides_of"]


def bases(a: NDArray[Any]) -> Iterator[Any]:
    """Yield the bases of an ndarray: ndarrays, and at last their VMA, if any."""
    base: Any = a.base
    while base is not None:
        if isinstance(base, np.ndarray):
            yield base
            base = base.base
        elif isinstance(base, memoryview):
            base = base.obj
        elif isinstance(base, VMA):
            yield base
            return
        elif hasattr(base, "__array_interface__"):
            base = getattr(base, "base", None)  # as_strided() puts an object in between
        else:
            return


def in_file(view: NDArray[Any]) -> tuple[VMA, int, int] | None:
    """Return (VMA, start, stop): a view lies in bytes [start, stop) of its file; None: no file."""
    *_, base = (None, *bases(view))
    if not isinstance(base, VMA) or view.size == 0:
        return None
    start, stop = np.lib.array_utils.byte_bounds(view)
    first = base.filerange()[0] * base.pagesize() - base.addr_start
    return base, start + first, stop + first


def copy_in_steps(
    out: NDArray[Any], view: NDArray[Any], step: int, load: Callable[[int, int], object]
) -> None:
    """Load and copy a view, at most `step` bytes, or an element, at a time.

    Parameters
    ----------
    out, view : ndarray
    step : int
        [bytes]
    load : (start, stop) -> object
        Loads bytes [start, stop) of the file that the view shows.
    """
    found = in_file(view)
    if found is None:
        return
    _, start, stop = found
    if stop - start <= step or view.size == 1:
        load(start, stop)
        out[...] = view
        return
    axis = max(range(view.ndim), key=lambda i: (view.shape[i] > 1, abs(view.strides[i])))
    middle = view.shape[axis] // 2
    for half in (slice(middle), slice(middle, None)):
        idx = (slice(None),) * axis + (half,)
        copy_in_steps(out[idx], view[idx], step, load)


def strides_of(shape: tuple[int, ...], itemsize: int, order: str) -> tuple[int, ...]:
    """Return the strides of a contiguous array [bytes]."""
    strides = []
    stride = itemsize
    for n in reversed(shape) if order == "C" else shape:
        strides.append(stride)
        stride *= n
    return tuple(reversed(strides) if order == "C" else strides)


def make_ready(vma: VMA, runs: Iterable[tuple[int, int]], limited: bool) -> bool:
    """Show pages, runs of (first, number), as pins.ready() does; say whether all are shown."""
    runs = list(runs)
    if len(runs) == 1:
        return ready(vma, *runs[0], limited)
    until = time.monotonic() + vma.fileh.ready_seconds
    shown = True
    for first, n in runs:
        if limited and time.monotonic() > until:
            return False
        shown &= ready(vma, first, n, limited)
    return shown
