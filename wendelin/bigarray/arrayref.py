"""ArrayRef: a picklable reference to an ndarray: its root array and a view of it.

    view ──► root, offset, shape, strides, dtype, type

The root of a view of a BigArray is the BigArray. A reference to it takes a few bytes in a database,
or in a message to another process, whatever the size of the view. The root of any other ndarray is
the ndarray that has the memory.

A reference is not trusted: it may come from anywhere, and the root may have changed since. deref()
returns memory of the root, or raises. It computes with Python's integers, which do not overflow,
and builds views through NumPy's own checks.

This module knows ndarrays and BigArrays. The root knows how it is pickled. The pickled state of a
reference is fixed: see docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from operator import index
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from wendelin.bigarray.array import BigArray
from wendelin.bigarray.memory import bases

__all__ = ["ArrayRef", "InvalidArrayRef"]

_MOST_PLACES = 1 << 12  # where items of a view may begin in an item of the root


class InvalidArrayRef(ValueError):  # noqa: N818  # the name that is known
    """A reference does not fit its root: it is damaged, or the root has changed."""


class ArrayRef:
    """A reference to an ndarray.

    Parameters
    ----------
    a : ndarray or BigArray
        A BigArray stands for all of it.

    Attributes
    ----------
    root : BigArray or ndarray
        The array that has the bytes.
    offset : int
        Of the first element in the root's memory [bytes].
    shape : tuple of int
    strides : tuple of int
        [bytes]
    dtype : numpy.dtype
    type : type
        ndarray, or a subclass, as numpy.recarray.
    writeable : bool

    Raises
    ------
    TypeError
        a is not an array; or is more than its memory: a masked array, or one of StringDType.

    Examples
    --------
    >>> a = np.arange(10)
    >>> ref = ArrayRef(a[8:2:-2])
    >>> ref.root is a, ref.offset, ref.strides
    (True, 64, (-16,))
    >>> ref.deref()
    array([8, 6, 4])
    """

    __module__ = "wendelin.bigarray"  # as databases have it

    root: BigArray | NDArray[Any]

    def __init__(self, a: NDArray[Any] | BigArray) -> None:
        if not isinstance(a, BigArray | np.ndarray):
            raise TypeError(f"{type(a).__name__} is not an array: a reference is to an ndarray")
        if isinstance(a.dtype, np.dtypes.StringDType):
            raise TypeError("items of StringDType are not in the array's memory: use objects, or U")
        if isinstance(a, np.ma.MaskedArray):
            raise TypeError("a masked array has a mask besides its data: refer to each of them")
        self.shape = a.shape
        self.strides = a.strides
        self.dtype = a.dtype
        if isinstance(a, BigArray):
            self.root, self.offset = a, 0
            self.type: type = np.ndarray
            self.writeable = True
        else:
            self.root, self.offset = _root(a)
            self.type = type(a)
            self.writeable = a.flags.writeable

    # The state has the names of docs/formats.md, and attributes of users and subclasses.
    # A damaged state stays as it was stored.

    def __getstate__(self) -> Any:
        state: Any = object.__getstate__(self)
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        if attributes.keys() >= _NAMES:
            attributes = _as_stored(attributes)
        return (attributes, slots) if slots else attributes

    def __setstate__(self, state: Any) -> None:
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            attributes = _from_stored(attributes)
        self.__dict__.update(attributes or {})
        for name, value in (slots or {}).items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        if "lo" in self.__dict__:
            return f"<damaged ArrayRef {self.__dict__!r:.300}>"
        root = self.root
        what = (
            repr(root)
            if isinstance(root, BigArray)
            else f"{type(root).__name__} of {getattr(root, 'nbytes', '?')} bytes"
        )
        return (
            f"ArrayRef({what}, offset={self.offset}, shape={self.shape}, strides={self.strides}, "
            f"dtype={self.dtype}, type={getattr(self.type, '__name__', self.type)})"
        )

    def deref(self) -> NDArray[Any]:
        """Return the array: a view of the root's memory. Nothing of a BigArray is loaded.

        Raises
        ------
        InvalidArrayRef
            It does not fit the root.
        MemoryError
            It does not fit into the address space.
        """
        try:
            return self._deref()
        except (TypeError, ValueError, OverflowError, AttributeError, RecursionError) as e:
            if isinstance(e, InvalidArrayRef):
                raise
            raise InvalidArrayRef(f"the reference is damaged: {type(e).__name__}: {e}") from e

    def _deref(self) -> NDArray[Any]:
        if "lo" in self.__dict__:
            raise InvalidArrayRef(f"{self!r}: its values contradict each other")
        shape, strides = _integers(self.shape), _integers(self.strides)
        dtype, cls = self.dtype, self.type
        if not isinstance(dtype, np.dtype) or dtype.subdtype is not None:
            raise InvalidArrayRef(f"dtype is {dtype!r}: it must be that of an array")
        if not (isinstance(cls, type) and issubclass(cls, np.ndarray)):
            raise InvalidArrayRef(f"type is {cls!r}: it must be ndarray, or a subclass")
        if len(shape) != len(strides) or any(n < 0 for n in shape):
            raise InvalidArrayRef(f"shape {shape} and strides {strides} do not fit each other")
        offset = index(self.offset)
        span = _span(offset, shape, strides, dtype.itemsize)
        if span is None:
            view: NDArray[Any] = np.zeros(shape, dtype)
        elif isinstance(self.root, BigArray):
            view = _in_bigarray(self.root, offset, shape, strides, dtype, span)
        elif isinstance(self.root, np.ndarray):
            view = _in_ndarray(self.root, offset, shape, strides, dtype, span)
        else:
            raise InvalidArrayRef(f"the root is a {type(self.root).__name__}, not an array")
        if cls is not np.ndarray:
            view = view.view(cls)
        if not self.writeable:  # NumPy does not always allow to set True
            view.flags.writeable = False
        return view


def _integers(x: Iterable[Any]) -> tuple[int, ...]:
    if not isinstance(x, tuple | list):
        raise InvalidArrayRef(f"{x!r} is not a shape and strides")
    return tuple(map(index, x))


# ---- as databases have it ----

_NAMES = {"offset", "shape", "strides", "dtype", "type", "writeable"}


def _as_stored(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a reference by the names of docs/formats.md."""
    stored = attributes.copy()
    offset, strides = stored.pop("offset"), stored.pop("strides")
    lo, hi = _span(offset, stored["shape"], strides, stored["dtype"].itemsize) or (offset, offset)
    stored.update(lo=lo, hi=hi, z0=offset - lo, stridev=strides, atype=stored.pop("type"))
    if stored["writeable"]:
        del stored["writeable"]  # other versions do not know it
    return stored


def _from_stored(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a reference from what is stored."""
    attributes = stored.copy()
    if "lo" not in stored:  # of 3.0.0.dev0
        return attributes
    lo, hi, z0 = (index(attributes.pop(name)) for name in ("lo", "hi", "z0"))
    shape, strides = _integers(attributes["shape"]), _integers(attributes.pop("stridev"))
    span = _span(lo + z0, shape, strides, attributes["dtype"].itemsize)
    if span is not None and not lo <= span[0] <= span[1] <= hi:
        raise InvalidArrayRef(f"it is to bytes [{span[0]}, {span[1]}), not in [{lo}, {hi})")
    attributes.update(offset=lo + z0, shape=shape, strides=strides, type=attributes.pop("atype"))
    attributes.setdefault("writeable", True)
    return attributes


# ---- from a view to its root ----


def _root(a: NDArray[Any]) -> tuple[BigArray | NDArray[Any], int]:
    """Return the root of an ndarray, and the offset of the first element in it [bytes]."""
    address = _address(a)
    root = a
    for base in bases(a):
        if isinstance(base, np.ndarray):
            root = base
        elif isinstance(base.pyuser, BigArray):
            first = base.filerange()[0] * base.pagesize()
            return base.pyuser, first + address - base.addr_start
    root = _as_pickled(root)
    start, _ = np.lib.array_utils.byte_bounds(root)
    return root, address - start


def _address(a: NDArray[Any]) -> int:
    return int(np.ndarray.view(a, np.ndarray).__array_interface__["data"][0])


def _as_pickled(root: NDArray[Any]) -> NDArray[Any]:
    """Return a root with the same memory, of which pickle keeps the order.

    pickle copies an array that is neither C- nor F-contiguous in C order.
    """
    if root.flags.c_contiguous or root.flags.f_contiguous:
        return root
    plain = np.ndarray.view(root, np.ndarray)
    ordered = plain.transpose(sorted(range(plain.ndim), key=lambda i: -plain.strides[i]))
    if ordered.flags.c_contiguous:
        return ordered
    if root.dtype.hasobject:
        raise TypeError("an array of objects that has no contiguous memory cannot be referred to")
    return _bytes(plain)


def _bytes(a: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the memory of an array, gaps included, as bytes."""
    start, stop = np.lib.array_utils.byte_bounds(a)
    at = start - _address(a)
    return np.asarray(_Interface(a, at, (stop - start,), (1,), np.dtype(np.uint8)))


# ---- from a root to a view ----


def _span(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> tuple[int, int] | None:
    """Return the range of bytes that a view lies in; None: it has no element."""
    start = stop = offset
    for n, stride in zip(shape, strides, strict=True):
        if n == 0:
            return None
        start += min(0, (n - 1) * stride)
        stop += max(0, (n - 1) * stride)
    return (start, stop + itemsize) if itemsize else None


def _check_span(span: tuple[int, int], nbytes: int) -> None:
    if span[0] < 0 or span[1] > nbytes:
        raise InvalidArrayRef(
            f"the reference is to bytes [{span[0]}, {span[1]}) of a root of {nbytes} bytes"
        )


def _in_bigarray(
    root: BigArray,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    span: tuple[int, int],
) -> NDArray[Any]:
    _check_span(span, root.nbytes)
    if dtype.hasobject:
        raise InvalidArrayRef(f"dtype {dtype} holds objects, and an array holds bytes only")
    vma, at = root._map(*span)
    view = np.ndarray(shape, dtype, vma, at + offset - span[0], strides)  # type: ignore[arg-type]
    view.flags.writeable = not root._is_frozen()
    return view


def _in_ndarray(
    root: NDArray[Any],
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    span: tuple[int, int],
) -> NDArray[Any]:
    plain = np.ndarray.view(root, np.ndarray)
    if not plain.flags.c_contiguous:
        plain = plain.T
    if not plain.flags.c_contiguous:
        raise InvalidArrayRef("the root has no contiguous memory")
    _check_span(span, plain.nbytes)
    flat = plain.reshape(-1)
    if not (flat.dtype.hasobject or dtype.hasobject):
        return np.ndarray(shape, dtype, flat.view(np.uint8), offset, strides)
    for at in _places(offset, shape, strides, flat.itemsize):
        if not _has(flat.dtype, at, dtype) and not _is_bytes(flat.dtype, at, dtype):
            raise InvalidArrayRef(
                f"an item of the root, {flat.dtype}, has no {dtype} at its byte {at}"
            )
    if dtype == flat.dtype:
        return as_strided(flat[offset // flat.itemsize :], shape, strides)
    return np.asarray(_Interface(flat, offset, shape, strides, dtype))


class _Interface:
    """Memory of an array in the array interface: NumPy then checks nothing that protects objects.

    This module makes these checks.
    """

    def __init__(
        self,
        base: NDArray[Any],
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self.base = base
        self.__array_interface__ = {
            "data": (_address(base) + offset, not base.flags.writeable),
            "shape": shape,
            "strides": strides,
            "typestr": dtype.str,
            "descr": dtype.descr,
            "version": 3,
        }


def _places(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], size: int
) -> Iterable[int]:
    """Return the offsets in items of a root, `size` bytes each, at which items of a view begin."""
    places = {offset % size}
    for n, stride in zip(shape, strides, strict=True):
        step = stride % size
        if n > 1 and step:
            around = size // np.gcd(step, size)
            if len(places) * min(n, around) > _MOST_PLACES:
                raise InvalidArrayRef(f"strides {strides} do not fit items of {size} bytes")
            places = {(at + i * step) % size for at in places for i in range(min(n, around))}
    return places


def _fields(dtype: np.dtype[Any]) -> list[tuple[np.dtype[Any], int]]:
    return [] if dtype.fields is None else [f[:2] for f in dtype.fields.values()]


def _has(dtype: np.dtype[Any], at: int, wanted: np.dtype[Any]) -> bool:
    """Say whether an item has one of another dtype at a byte: itself, or in its fields."""
    if at == 0 and dtype == wanted:
        return True
    if dtype.subdtype is not None:
        base = dtype.subdtype[0]
        return at + wanted.itemsize <= dtype.itemsize and _has(base, at % base.itemsize, wanted)
    for field, start in _fields(dtype):
        if start <= at < start + field.itemsize and _has(field, at - start, wanted):
            return True
    # some of the fields of an item
    some = _fields(wanted)
    return bool(some) and all(_has(dtype, at + start, field) for field, start in some)


def _is_bytes(dtype: np.dtype[Any], at: int, wanted: np.dtype[Any]) -> bool:
    """Say whether an item may be read as another one at a byte: neither has objects there."""
    return not wanted.hasobject and _no_objects(dtype, at, at + wanted.itemsize)


def _no_objects(dtype: np.dtype[Any], start: int, stop: int) -> bool:
    """Say whether bytes [start, stop) are in an item, and not in an object of it."""
    if start < 0 or stop > dtype.itemsize:
        return False
    if not dtype.hasobject:
        return True
    if dtype.subdtype is not None:
        base = dtype.subdtype[0]
        first = start - start % base.itemsize
        return _no_objects(base, start - first, stop - first)
    fields = [
        (field, max(0, start - at), min(field.itemsize, stop - at))
        for field, at in _fields(dtype)
        if start < at + field.itemsize and at < stop
    ]
    return dtype.fields is not None and all(_no_objects(*field) for field in fields)
