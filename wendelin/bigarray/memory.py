"""Whose memory an ndarray shows: the way from a view down to its root.

This module knows ndarrays and VMAs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.bigfile.virtmem.handle import VMA
from wendelin.bigfile.virtmem.pins import ready

__all__ = ["bases", "in_file", "make_ready", "strides_of"]


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
