"""Elements that are copied out of an array: what is loaded for them, and read from the disk.

A thread that touches a mapped block lets the kernel read what lies around it in the file, up to
megabytes. That is right for rows one after another, not for a column. So before the elements of a
column are copied, the kernel is told which bytes are wanted.

This module knows views, and blocks of their files. It does not know arrays.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from wendelin.bigarray.indexing import byte_runs, pages_of
from wendelin.bigarray.memory import in_file
from wendelin.bigfile.virtmem.handle import BigFileH
from wendelin.bigfile.virtmem.pins import ready, will_read

__all__ = ["copy_in_steps", "load_view"]


def load_view(fileh: BigFileH, view: NDArray[Any]) -> None:
    """Load the blocks that a view shows.

    If there are others between them, these are neither looked up nor read from the disk.

    Raises
    ------
    BlockLoadError
        A block cannot be loaded.
    """
    found = in_file(view)
    if found is None:
        return
    vma, start, _ = found
    blksize = fileh.blksize
    rows, strides = [(0, n) for n in view.shape], tuple(map(abs, view.strides))
    runs = byte_runs(rows, strides, view.itemsize, blksize, start)
    first = vma.filerange()[0] * blksize
    strided = len(runs) > 1
    for at, size in runs:
        ready(vma, *pages_of(at, at + size, blksize), not strided)
        if strided:
            will_read(vma, at - first, size)
    for at, size in runs:
        fileh.load(*pages_of(at, at + size, blksize))


def copy_in_steps(fileh: BigFileH, out: NDArray[Any], view: NDArray[Any], step: int) -> None:
    """Load and copy a view, at most `step` bytes of its file, or an element, at a time.

    Parameters
    ----------
    fileh : BigFileH
    out, view : ndarray
    step : int
        [bytes]

    Raises
    ------
    BlockLoadError
        A block cannot be loaded.
    """
    found = in_file(view)
    if found is None:
        return
    _, start, stop = found
    if stop - start <= step or view.size == 1:
        load_view(fileh, view)
        out[...] = view
        return
    axis = max(range(view.ndim), key=lambda i: (view.shape[i] > 1, abs(view.strides[i])))
    middle = view.shape[axis] // 2
    for half in (slice(middle), slice(middle, None)):
        idx = (slice(None),) * axis + (half,)
        copy_in_steps(fileh, out[idx], view[idx], step)
