"""Whose memory an ndarray shows: the way from a view down to what it is a view of.

It knows ndarrays and VMAs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.bigfile.virtmem import VMA

__all__ = ["bases", "in_file"]


def bases(a: NDArray[Any]) -> Iterator[Any]:
    """Yield what an ndarray is a view of: ndarrays, and at last the VMA that they show, if any."""
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
            base = getattr(base, "base", None)  # as_strided() puts such in between
        else:
            return


def in_file(view: NDArray[Any]) -> tuple[VMA, int, int] | None:
    """Return (VMA, start, stop): which bytes of its file a view lies in; None: of no file."""
    *_, base = (None, *bases(view))
    if not isinstance(base, VMA) or view.size == 0:
        return None
    start, stop = np.lib.array_utils.byte_bounds(view)
    first = base.filerange()[0] * base.pagesize() - base.addr_start
    return base, start + first, stop + first
