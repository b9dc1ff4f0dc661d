"""BigArray: an n-dimensional array over a file handle.

This module knows shapes, dtypes and bytes: an array is bytes [0, nbytes) of a file. Bytes past the
end are zeros, in memory and in the file, before the array grows into them. resize() keeps this
true, and relies on it.

Organization: a view A[idx] is an ndarray over a VMA, which it holds. The array itself holds no
mapping, only a weak reference to the last one. Other views share that one as long as it lives.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wendelin.bigarray.assigning import assign
from wendelin.bigarray.html import Overview, to_html
from wendelin.bigarray.indexing import BasicIndex, page_runs, pages_of, split_index
from wendelin.bigarray.loaded import Loaded
from wendelin.bigarray.meaning import elements_of
from wendelin.bigarray.memory import make_ready, strides_of
from wendelin.bigarray.moving import resize_keeping
from wendelin.bigarray.ndarraylike import NDArrayLike
from wendelin.bigarray.reading import copy_in_steps, load_view
from wendelin.bigarray.saving import Saving
from wendelin.bigfile.virtmem.abilities import Truncates, able
from wendelin.bigfile.virtmem.blocked import warn_of_blocked_threads
from wendelin.bigfile.virtmem.handle import VMA, BigFileH, check_range, keep, ram_stat
from wendelin.bigfile.virtmem.pins import pin, ready
from wendelin.bigfile.virtmem.stats import stats_of
from wendelin.bigfile.zodb.prefetch import prefetch
from wendelin.lib.calc import mul
from wendelin.lib.shown import shown
from wendelin.lib.utils import inttuple, renamed

__all__ = ["BigArray"]

Order = Literal["C", "F"]
Rows = list[tuple[int, int]]  # [lo, hi) for each axis
_ALL = slice(None)


def _raise_pending() -> None:
    """Raise the exception of a failed touch of this thread, if there is one.

    The function is empty: Python raises asynchronous exceptions when it enters a function.
    """


class BigArray(Saving, NDArrayLike):
    """An ndarray-like array over a file handle.

    Parameters
    ----------
    shape : int or sequence of int
        Of any size, even larger than memory, or than 2**63 bytes.
    dtype : data-type
        Of numbers, or structures of numbers. One of subarrays, '(2,)f4', adds axes, as in NumPy.
    bigfileh : BigFileH
        Handle of the file: the array is its first bytes.
    order : {'C', 'F'}
        Layout. The major axis, the one with the largest stride, is the first in 'C' and the last
        in 'F'. Mapping, append() and len() go along this axis.

    Raises
    ------
    TypeError
        The dtype holds objects; the shape is not made of integers.
    ValueError
        The shape has a negative number; the dtype has no size.
    NotImplementedError
        The order is another.
    """

    _dtype: np.dtype[Any]
    _shape: tuple[int, ...]
    _order: Order
    _stridev: tuple[int, ...]
    # found here by an array that has none, before __getattr__() is asked
    _v_fileh: BigFileH | None = None
    _v_vma: weakref.ref[VMA] | None = None

    @renamed(dtype_="dtype")
    def __init__(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        dtype: DTypeLike,
        bigfileh: BigFileH,
        order: Order = "C",
    ) -> None:
        self._create(shape, dtype, order)
        self._v_fileh = bigfileh

    def _create(self, shape: object, dtype: DTypeLike, order: Order) -> None:
        """Initialize a new array."""
        dtype, shape = np.dtype(dtype), self._check_shape(shape)
        while dtype.subdtype is not None:  # they may be nested
            shape, dtype = (*shape, *dtype.shape), dtype.base
        self._init(shape, dtype, order)

    def _init(self, shape: object, dtype: DTypeLike, order: Order) -> None:
        dtype = np.dtype(dtype)
        if dtype.hasobject:
            raise TypeError(f"dtype {dtype} holds objects, and an array holds bytes only")
        if dtype.itemsize == 0:
            raise ValueError(f"dtype {dtype} has no size: say it, as in 'S10'")
        if order not in ("C", "F"):
            raise NotImplementedError(f"order is {order!r}: it must be 'C' or 'F'")
        self._dtype = dtype
        self._order = order
        self._set_shape(self._check_shape(shape))

    @staticmethod
    def _check_shape(shape: Any) -> tuple[int, ...]:
        result = inttuple(shape)
        if min(result, default=0) < 0:
            raise ValueError(f"shape is {result}: negative dimensions are not allowed")
        return result

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._stridev = strides_of(shape, self._dtype.itemsize, self._order)

    # ---- as ndarray ----

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        return self._dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self._shape

    @shape.setter
    def shape(self, shape: object) -> None:
        raise AttributeError(
            f"shape cannot be set: A.resize({shape}) changes the array, and A.reshape({shape}) is "
            f"a view"
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps to the next element along the axes [bytes]; as in NumPy 0 if there is none."""
        return self._stridev if self.size else (0,) * self.ndim

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return mul(self._shape)

    @property
    def itemsize(self) -> int:
        """Size of an element [bytes]."""
        return self._dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Size of the array [bytes]."""
        return self.size * self.itemsize

    @property
    def data(self) -> Any:
        """Not available, as an array has no memory of its own; a view has it."""
        raise TypeError("an array has no direct buffer: take that of a view, A[:].data")

    def __repr__(self) -> str:
        return (
            f"{shown(type(self).__name__)}(shape={self._shape}, dtype={self._dtype}, "
            f"order={self._order!r})"
        )

    def _repr_html_(self) -> str | None:
        """Return HTML for a notebook; nothing is loaded."""
        return to_html(self._overview())

    def _overview(self) -> Overview:
        fileh = self._v_fileh
        return Overview(
            type(self).__name__,
            self._shape,
            self._dtype,
            self._order,
            self.nbytes,
            self._blksize(),
            stats_of(fileh) if fileh is not None else None,
            changed=fileh.dirty_blocks() if fileh is not None else (),
        )

    @property
    def _major(self) -> int:
        return 0 if self._order == "C" else max(0, self.ndim - 1)

    def __len__(self) -> int:
        """Return the length along the major axis.

        Raises
        ------
        TypeError
            The array is 0-d.
        OverflowError
            It is 2**63 or more, too large for Python's len(): use shape.
        """
        if not self._shape:
            raise TypeError("len() of unsized object")
        return self._shape[self._major]

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the first axis, as ndarrays do."""
        if not self._shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self._shape[0]))

    def __reversed__(self) -> Iterator[Any]:
        """Iterate over the first axis from its end, as ndarrays do."""
        if not self._shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in reversed(range(self._shape[0])))

    def _is_frozen(self) -> bool:
        """Say whether the array is read-only."""
        return self._fileh().read_only

    # ---- the handle ----

    def _fileh(self) -> BigFileH:
        """Return the handle of the file."""
        assert self._v_fileh is not None
        return self._v_fileh

    def _blksize(self) -> int:
        """Return the block size [bytes]."""
        return self._fileh().blksize

    def _pages(self, start: int, stop: int) -> tuple[int, int]:
        """Return (first, number) of the pages that have bytes [start, stop), start < stop."""
        return pages_of(start, stop, self._fileh().blksize)

    def _runs(self, rows: Rows, fileh: BigFileH) -> list[tuple[int, int]]:
        return page_runs(rows, self._stridev, self.itemsize, fileh.blksize)

    def _map(self, start: int, stop: int) -> tuple[VMA, int]:
        """Return (VMA, offset of byte `start` in it) that has bytes [start, stop) of the file."""
        fileh = self._fileh()
        blksize = fileh.blksize
        first, n = pages_of(start, stop, blksize)
        self._expect(fileh, first, n)
        ref = self._v_vma
        vma = ref() if ref is not None else None
        if vma is not None and vma.fileh is fileh:
            have = vma.filerange()[0] * blksize
            if have <= start and stop <= have + len(vma):
                return vma, start - have
        # All of the array, if there is address space: then views share one mapping, and NumPy
        # sees where they overlap.
        try:
            vma = self._mmap(fileh, 0, max(stop, self.nbytes))
        except (MemoryError, OverflowError):
            try:
                vma = self._mmap(fileh, first * blksize, stop)
            except (MemoryError, OverflowError) as e:
                raise MemoryError(
                    f"{stop - start} bytes of {self!r} do not fit into the address space: work in "
                    f"smaller parts, as in A[i:j] ({e})"
                ) from e
        return vma, start - vma.filerange()[0] * blksize

    def _expect(self, fileh: BigFileH, first: int, n: int) -> None:
        """Called when a view of these pages is taken; for subclasses."""

    def _mmap(self, fileh: BigFileH, start: int, stop: int) -> VMA:
        vma = fileh.mmap(*pages_of(start, stop, fileh.blksize), stop - start)
        keep(vma)
        vma.pyuser = self
        self._v_vma = weakref.ref(vma)
        return vma

    def _span(self, rows: Rows) -> tuple[int, int]:
        """Return the range of bytes that rows [lo, hi) of the axes lie in; empty: (0, 0)."""
        start = stop = 0
        for (lo, hi), stride in zip(rows, self._stridev, strict=True):
            if lo == hi:
                return 0, 0
            start += lo * stride
            stop += (hi - 1) * stride
        return start, stop + self._dtype.itemsize

    def _mapped(self, rows: Rows, limited: bool | None = None) -> NDArray[Any]:
        """Return rows [lo, hi) of the axes as an ndarray; nothing is loaded.

        Blocks that can be mapped are, within a limit of time, or all; None: none is.
        """
        shape = [hi - lo for lo, hi in rows]
        start, stop = self._span(rows)
        vma, offset = self._map(start, stop) if start != stop else (None, 0)
        if vma is not None and not self._is_ready(vma, rows, start, stop, limited):
            warn_of_blocked_threads(repr(self))
        try:
            if vma is None:
                return np.empty(shape, self._dtype, self._order)
            # the stride of an axis of length 1 has no meaning, and may be too large for NumPy
            strides = [min(stride, sys.maxsize) for stride in self._stridev]
            mapped = np.ndarray(shape, self._dtype, vma, offset, strides)  # type: ignore[arg-type]
            if self._is_frozen():
                mapped.flags.writeable = False
            return mapped
        except ValueError as e:
            raise MemoryError(f"{self!r} has a shape that NumPy cannot have: {e}") from e

    def _is_ready(self, vma: VMA, rows: Rows, start: int, stop: int, limited: bool | None) -> bool:
        """Show rows, which lie in bytes [start, stop), as _mapped() does; False: not all are."""
        if limited is None:
            return True
        blksize = vma.fileh.blksize
        first = start // blksize
        if first == (stop - 1) // blksize:  # of a small array, of which there are many
            return ready(vma, first, 1, limited)
        return make_ready(vma, self._runs(rows, vma.fileh), limited)

    def _all(self) -> Rows:
        return [(0, n) for n in self._shape]

    # ---- indexing ----

    def _split(self, idx: BasicIndex) -> tuple[Rows, Any]:
        """See split_index(). NumPy handles names of fields, on a view of the whole array."""
        names = idx if isinstance(idx, list) and idx else [idx]
        if self._dtype.names is not None and all(isinstance(name, str) for name in names):
            return self._all(), idx
        return split_index(idx, self._shape)

    def __getitem__(self, idx: BasicIndex) -> Any:
        """Return A[idx] as ndarrays do: a view or a scalar. A view copies and loads nothing.

        For structures, idx may be the name of a field, or a list of names.

        Raises
        ------
        IndexError
            As for ndarrays; also for advanced indexing.
        MemoryError
            It does not fit into the address space: work in smaller parts.
        """
        if idx is ... or (isinstance(idx, slice) and idx == _ALL and self._shape):
            return self._mapped(self._all(), limited=True)
        rows, rest = self._split(idx)
        return self._mapped(rows, limited=True)[rest]

    def __setitem__(self, idx: BasicIndex, values: Any) -> None:
        """Set A[idx] = values as ndarrays do, with broadcasting."""
        rows, rest = self._split(idx)
        mapped = self._mapped(rows)
        assign(mapped, rest, np.asarray(values) if isinstance(values, BigArray) else values)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all of the array as an ndarray; see numpy.asarray for dtype and copy.

        Raises
        ------
        MemoryError
            It does not fit into the address space: work in smaller parts.
        ValueError
            copy is False, but another dtype needs a copy.
        """
        view = self._mapped(self._all(), limited=False)
        if dtype is None or np.dtype(dtype) == self._dtype:
            return view.copy(self._order) if copy else view
        if copy is False:
            raise ValueError(f"dtype {np.dtype(dtype)} needs a copy of an array of {self._dtype}")
        return view.astype(dtype)

    def read(self, idx: BasicIndex = ...) -> Any:
        """Return a copy of A[idx]; load first what is not in memory.

        Errors of the storage are raised here, before anything is computed, and do not doom the
        transaction. The copy may be larger than page memory: more than a quarter of that is read
        in steps.

        Raises
        ------
        BlockLoadError
            A block cannot be loaded.
        MemoryError
            It does not fit into the address space: work in smaller parts.
        """
        rows, rest = self._split(idx)
        mapped = self._mapped(rows)
        start, stop = self._span(rows)
        fileh = self._fileh()
        step = ram_stat()[0] // 4
        if stop - start > max(step, self.itemsize):
            view = mapped[rest]
            result = np.empty_like(view)
            copy_in_steps(fileh, result, view, step)
            return result
        # with one more axis it is a view, even of one element
        load_view(fileh, mapped[(*rest, None)] if isinstance(rest, tuple) else mapped[rest])
        result = mapped[rest]
        return result.copy("K") if isinstance(result, np.ndarray) else result

    def load(self, idx: BasicIndex = ..., write: bool = False) -> Loaded:
        """Load or map A[idx], and keep it accessible until the next transaction boundary.

        Then system calls, and threads that block SIGSEGV, can use a view of these rows: no touch
        of them is a fault. This ends with the transaction, or with Loaded.release().

        Parameters
        ----------
        idx : int, slice, Ellipsis, or a tuple of them
        write : bool
            The rows can be written, too: `f.readinto(A.load(idx, write=True).view)`. This counts
            as a change of these rows.

        Returns
        -------
        Loaded
            A context manager that returns A[idx], and releases the rows at the end of the block.

        Raises
        ------
        BlockLoadError
            A block cannot be loaded. The transaction is not doomed.
        MemoryError
            The rows do not fit into page memory, or into what the kernel can map.
        ValueError
            write is True, but the array is read-only.
        """
        if write and self._is_frozen():
            raise ValueError(f"{self!r} is read-only: it cannot be loaded to be written")
        rows, rest = self._split(idx)
        mapped = self._mapped(rows)
        start, stop = self._span(rows)
        view = mapped[rest]
        if start == stop:
            return Loaded(view)
        fileh, pages = self._fileh(), self._pages(start, stop)
        pin(fileh, *pages, write)
        return Loaded(view, fileh, pages, self)

    def prefetch(self, idx: BasicIndex = ...) -> None:
        """Start loading A[idx] in the background, without waiting.

        A block that cannot be loaded raises no exception here, but when a thread touches it.

        Raises
        ------
        OverflowError
            It ends past the last byte that a file can have, 2**63.
        """
        rows, _ = self._split(idx)
        fileh = self._fileh()
        runs = self._runs(rows, fileh)
        for run in runs:
            check_range(fileh, *run)
        ranges = [range(first, first + n) for first, n in runs]
        prefetch(self, fileh, ranges[0] if len(ranges) == 1 else list(chain(*ranges)))

    # ---- size ----

    def resize(
        self,
        new_shape: SupportsIndex | Iterable[SupportsIndex],
        refcheck: bool = True,
        *,
        keep: bool = False,
    ) -> None:
        """Give the array another shape, in place and in constant time.

        As with ndarrays, bytes keep their place in the file. So elements keep their indices only if
        the minor axes stay; see `keep`. New elements are zeros, even where there was data before a
        shrink: data past the end is dropped. Views taken before keep their size, and show zeros
        there.

        Parameters
        ----------
        new_shape : int or sequence of int
        refcheck : bool
            Ignored; for programs that resize ndarrays.
        keep : bool
            Elements keep their indices along all axes, as in zarr and h5py. If a minor axis
            changes, elements are moved, in time proportional to the array; page memory has to hold
            what is changed.

        Raises
        ------
        TypeError, ValueError
            new_shape is not a shape, or the array is read-only; it stays as it was.
        MemoryError
            keep, and page memory cannot hold what would be moved; it stays as it was.
        BlockLoadError
            keep, and a block cannot be loaded: abort the transaction.
        """
        if not isinstance(refcheck, bool | np.bool):
            raise TypeError(f"refcheck is {refcheck!r}: it must be a bool. A shape is one argument")
        if self._is_frozen():
            raise ValueError(
                f"{self!r} is read-only: it is a past state, or its database was opened to be read"
            )
        new = self._check_shape(new_shape)
        if keep:
            resize_keeping(self, new)
            return
        end = mul(new) * self.itemsize
        if end != self.nbytes:
            self._drop(min(end, self.nbytes), max(end, self.nbytes))
        self._set_shape(new)

    def _drop(self, start: int, stop: int) -> None:
        """Clear the file from byte `start` on; the array has, or will have, bytes up to `stop`.

        Needed for growth, too: wendelin.core 2 leaves data past the end.
        """
        fileh = self._fileh()
        limit = sys.maxsize // fileh.blksize * fileh.blksize  # no file has bytes past it
        shrinks = stop == self.nbytes
        start, stop = min(start, limit), min(stop, limit)
        if start == stop:
            return
        block = -(-start // fileh.blksize)  # the first one that is wholly past the end
        partial = min(block * fileh.blksize, stop)
        truncates = able(fileh.file, Truncates)
        if start != partial:
            fileh.load(block - 1, 1)
            self._zero(start, partial)
        if truncates:
            if block * fileh.blksize < limit:
                fileh.truncate(block)
        elif shrinks:
            step = 1 << 26
            for at in range(partial, stop, step):
                self._zero(at, min(at + step, stop))

    def _zero(self, start: int, stop: int) -> None:
        if start != stop:
            vma, offset = self._map(start, stop)
            mapped = np.ndarray((stop - start,), np.uint8, vma, offset)  # type: ignore[arg-type]
            if mapped.any():
                mapped[:] = 0
            _raise_pending()

    def append(self, values: Any) -> None:
        """Append along the major axis, in place, in time proportional to the size of values.

        Parameters
        ----------
        values : array_like
            The other axes are those of the array; converted to its dtype as by assignment. For
            structures, a list of tuples.

        Raises
        ------
        ValueError
            The shape does not fit, as for numpy.append. The array stays as it was, as after any
            failure of the copy.
        """
        structures = self._dtype.names is not None and isinstance(values, list | tuple)
        values = np.asarray(elements_of(values), self._dtype if structures else None)
        if not self._shape:
            raise ValueError("a 0-d array cannot be appended to")
        axis = self._major
        if values.ndim != self.ndim or any(
            i != axis and m != n
            for i, (m, n) in enumerate(zip(values.shape, self._shape, strict=True))
        ):
            raise ValueError(
                f"values of shape {values.shape} cannot be appended to an array of shape "
                f"{self._shape} along axis {axis}: the other axes must be the same"
            )
        old = self._shape
        n = values.shape[axis]
        if n == 0:
            return
        new = list(old)
        new[axis] += n
        self.resize(new)
        try:
            rows = self._all()
            rows[axis] = (old[axis], new[axis])
            mapped = self._mapped(rows)
            assign(mapped, ..., values)
            _raise_pending()
        except BaseException:
            self.resize(old)
            raise
