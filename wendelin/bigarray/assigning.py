"""Values -> memory of a view: assignment, without a touch where whole blocks get new bytes.

This module knows ndarrays and VMAs. It does not know the arrays that views are of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.bigarray.meaning import elements_of
from wendelin.bigarray.memory import in_file
from wendelin.bigfile.virtmem.overwrite import overwrite

__all__ = ["assign", "no_alias"]

LARGE = 1 << 16  # less than that has no whole block that is worth it [bytes]


def assign(target: NDArray[Any], idx: Any, values: Any) -> None:
    """Set target[idx] = values, as ndarrays do; target is a view of a file."""
    values = no_alias(target, values)
    large = isinstance(values, np.ndarray) and values.nbytes >= LARGE
    part = target[idx] if large else None  # of a single element, this would be a touch
    if isinstance(part, np.ndarray) and _is_copy_of_bytes(part, values):
        if part.flags.c_contiguous:
            _assign_bytes(part.reshape(-1).view(np.uint8), values.reshape(-1).view(np.uint8))
        else:
            _assign_bytes(part.T.reshape(-1).view(np.uint8), values.T.reshape(-1).view(np.uint8))
    else:
        target[idx] = values


def no_alias(target: NDArray[Any], values: Any) -> Any:
    """Return values, or a copy if the assignment would change them meanwhile.

    NumPy compares addresses to see that arrays overlap. But two mappings show the same bytes of a
    file at two addresses, as in A[1:] = A[:-1].
    """
    values = elements_of(values)
    if not isinstance(values, np.ndarray):
        return values
    to, of = in_file(target), in_file(values)
    if to is None or of is None:
        return values
    (vma, start, stop), (other, begin, end) = to, of
    aliased = vma is not other and vma.fileh is other.fileh and start < end and begin < stop
    return values.copy("K") if aliased else values


def _is_copy_of_bytes(part: NDArray[Any], values: NDArray[Any]) -> bool:
    """Say whether the assignment copies a large piece of memory to another one, byte by byte."""
    return (
        type(values) in (np.ndarray, np.memmap)
        and part.dtype == values.dtype
        # NumPy leaves the pads of structures as they are
        and part.dtype.fields is None
        and part.shape == values.shape
        and part.flags.writeable
        and any(part.flags[order] and values.flags[order] for order in ("C", "F"))
        and not np.may_share_memory(part, values)
    )


def _assign_bytes(part: NDArray[np.uint8], values: NDArray[np.uint8]) -> None:
    found = in_file(part)
    assert found is not None
    vma, start, stop = found
    blksize = vma.pagesize()
    at = start
    while at < stop:
        done = 0
        if at % blksize == 0 and stop - at >= blksize:
            done = overwrite(vma.fileh, at // blksize, values[at - start :].data) * blksize
        if not done:  # a part of a block, or one that needs a touch
            done = min(blksize - at % blksize, stop - at)
            part[at - start : at - start + done] = values[at - start : at - start + done]
        at += done
