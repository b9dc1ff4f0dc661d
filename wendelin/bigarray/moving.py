"""Moves elements of an array so that they keep their indices while its axes change their lengths.

In a file, elements lie one after the other, so they move when an axis other than the major one
changes. Axes that shrink are handled first: elements move towards the beginning of the file, the
first ones first. Then axes that grow: elements move towards the end, the last ones first. So no
byte is written before it was read, and one step at a time is copied.

This module knows the bytes of arrays, but not pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.lib.calc import mul

if TYPE_CHECKING:
    from wendelin.bigarray.array import BigArray

__all__ = ["resize_keeping"]

_STEP = 16 << 20  # copied at a time [bytes]

Dims = tuple[int, ...]  # lengths of axes, the major one first


def resize_keeping(A: BigArray, shape: Dims) -> None:
    """Give an array other lengths of its axes; elements that are in both keep their indices.

    Raises
    ------
    ValueError
        The shape has another number of axes.
    MemoryError
        The moved elements do not fit into page memory: nothing was changed.
    BlockLoadError
        A block cannot be loaded; abort the transaction.
    """
    if len(shape) != A.ndim:
        raise ValueError(
            f"shape is {shape}, but the array has {A.ndim} axes: with keep=True their number stays"
        )
    old, new = _dims(A, A.shape), _dims(A, shape)
    common = tuple(map(min, old, new))
    if not mul(common) or old[1:] == new[1:]:
        if not mul(common):
            A.resize(A._check_shape([0] * A.ndim))  # so that grown parts are zeros
        A.resize(shape)
        return
    _check_memory(A, max(mul(common), mul((common[0], *new[1:]))) * A.itemsize)
    try:
        if common[1:] != old[1:]:
            _move(A, common, 0, 0, _strides(A, old), _strides(A, common), up=False)
        A.resize(_dims(A, common))
        if common[1:] != new[1:]:
            A.resize(_dims(A, (common[0], *new[1:])))
            _move(A, common, 0, 0, _strides(A, common), _strides(A, new), up=True)
        A.resize(shape)
    except BaseException as e:
        e.add_note(f"{A!r} was moved in part: transaction.abort() restores it")
        raise


def _dims(A: BigArray, shape: Dims) -> Dims:
    """Return a shape with the major axis first; or the reverse."""
    return shape if A._order == "C" else shape[::-1]


def _strides(A: BigArray, dims: Dims) -> Dims:
    return tuple(mul(dims[i + 1 :]) * A.itemsize for i in range(len(dims)))


def _check_memory(A: BigArray, size: int) -> None:
    limit, _, dirty = ram_stat()
    if A._fileh().spool is None and size + dirty > limit // 4 * 3:
        raise MemoryError(
            f"{A!r}: {size} bytes would be moved in one transaction, but the limit of page memory "
            f"is {limit}. Make a new array of that shape, copy A[i:j] to it with a commit after "
            f"each step, and replace this one, as by g.move(); raise WENDELIN_CORE_RAM, or set "
            f"WENDELIN_CORE_SPOOL to a folder on a disk"
        )


def _move(
    A: BigArray, dims: Dims, start: int, to: int, strides: Dims, others: Dims, up: bool
) -> None:
    """Move elements of these dims from bytes at `start` to bytes at `to`.

    Parameters
    ----------
    strides, others : tuple of int
        The present strides, and the new ones [bytes].
    up : bool
        Towards the end of the file; what is between them there becomes zeros.
    """
    row = mul(dims[1:]) * A.itemsize
    n = max(1, _STEP // max(row, others[0]))
    for i, j in _ranges(dims[0], n, up):
        at, target = start + i * strides[0], to + i * others[0]
        if len(dims) > 1 and row > _STEP:  # one row is too large
            _move(A, dims[1:], at, target, strides[1:], others[1:], up)
            if up:
                _zero(A, target + dims[1] * others[1], target + others[0])
            continue
        shape = (j - i, *dims[1:])
        values = _elements(A, at, shape, strides).copy()
        if up:
            _zero(A, target, target + (j - i) * others[0])
        _elements(A, target, shape, others)[...] = values


def _ranges(n: int, step: int, backwards: bool) -> Iterator[tuple[int, int]]:
    starts = range(0, n, step)
    return ((i, min(n, i + step)) for i in (reversed(starts) if backwards else starts))


def _elements(A: BigArray, start: int, dims: Dims, strides: Dims) -> NDArray[Any]:
    """Return elements in the file, loaded, so that a failed load raises here."""
    stop = start + sum((n - 1) * s for n, s in zip(dims, strides, strict=True)) + A.itemsize
    vma, offset = A._map(start, stop)
    A._fileh().load(*A._pages(start, stop))
    whole = np.dtype((np.void, A.itemsize))
    return np.ndarray(dims, whole, vma, offset, strides)  # type: ignore[arg-type]


def _zero(A: BigArray, start: int, stop: int) -> None:
    for at in range(start, stop, _STEP):
        size = min(stop - at, _STEP)
        vma, offset = A._map(at, at + size)
        np.ndarray((size,), np.uint8, vma, offset)[:] = 0  # type: ignore[arg-type]
