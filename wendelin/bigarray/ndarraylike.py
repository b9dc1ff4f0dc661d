"""Attributes and methods of ndarrays besides indexing: those of the view A[...], or an error.

Methods that return a view work, as a view costs nothing: A.T, A.view(dtype), A.flat. Methods that
compute or copy raise an error, since an array may be larger than memory; the error says which view
to take. NumPy's functions take arrays as they are: np.sum(A). `x in A` goes through it in parts.

This module knows only that an array can be indexed.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NDArrayLike"]

#: functions of NumPy that take only ndarrays
_OF_NDARRAYS = ("astype", "put")

_NAMES = {name for name in dir(np.ndarray) if not name.startswith("_")}

_OPERATORS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "matmul": "@",
    "truediv": "/",
    "floordiv": "//",
    "mod": "%",
    "pow": "**",
    "lshift": "<<",
    "rshift": ">>",
    "and": "&",
    "xor": "^",
    "or": "|",
    "divmod": "divmod",
}

_ORDERINGS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_EQUALITIES = {"eq": "==", "ne": "!="}
_UNARY = {"neg": "-{}", "pos": "+{}", "invert": "~{}", "abs": "abs({})"}
_CONVERSIONS = ["int", "float", "complex"]

#: types that an ndarray is compared with element by element. All other comparisons are by
#: identity, as for any object of a database: with None, other arrays, in containers.
_VALUES = (Number, list, tuple, range)

_TOGETHER = 1 << 18  # elements that are compared at a time


class NDArrayLike:
    """Attributes and methods of the view A[...]."""

    size: Any  # a property: see BigArray
    ndim: Any

    def __getitem__(self, idx: Any) -> Any:
        raise NotImplementedError

    @property
    def T(self) -> NDArray[Any]:
        """The view of all, with its axes in reverse order."""
        return self.transpose()

    @property
    def flat(self) -> np.flatiter[NDArray[Any]]:
        """The elements one by one, in C order, as ndarray.flat of the view of all."""
        return self._all_of_it().flat

    def transpose(self, *axes: Any) -> NDArray[Any]:
        """Return the view of all, with axes as in ndarray.transpose()."""
        return self._all_of_it().transpose(*axes)

    def view(self, *args: Any, **kw: Any) -> NDArray[Any]:
        """Return the view of all as of another dtype or type: ndarray.view(dtype, type)."""
        return self._all_of_it().view(*args, **kw)

    def reshape(self, *shape: Any, **kw: Any) -> NDArray[Any]:
        """Return the view of all with another shape, as ndarray.reshape(shape, order='C').

        Nothing is copied if the order is that of the array. resize() gives the array itself
        another shape.
        """
        return self._all_of_it().reshape(*shape, **kw)

    def ravel(self, *args: Any, **kw: Any) -> NDArray[Any]:
        """Return the view of all in one dimension, as ndarray.ravel(order='C'); see reshape()."""
        return self._all_of_it().ravel(*args, **kw)

    def __dlpack__(self, **kw: Any) -> Any:
        """Return the view of all as a DLPack capsule, for other libraries."""
        return self._all_of_it().__dlpack__(**kw)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return where the data is: in memory of the processor."""
        return (1, 0)

    def _all_of_it(self) -> NDArray[Any]:
        view: NDArray[Any] = self[...]
        return view

    def __bool__(self) -> bool:
        """Be the truth of the only element, as ndarrays of one element are.

        Raises
        ------
        ValueError
            There are more, or none.
        """
        size: int = self.size
        if size != 1:
            raise ValueError(
                f"the truth of an array of {size} elements is ambiguous: A.size says whether it "
                f"has "
                f"any, A[...].any() or A[...].all() what they are; and `A is not None` whether "
                f"there "
                f"is an array"
            )
        return bool(self[(0,) * self.ndim])

    def __contains__(self, value: Any) -> bool:
        """Say whether any element is equal, as ndarrays do: (A[...] == value).any().

        Values with axes are broadcast. Not more than a part of the array is compared at a time.

        Raises
        ------
        ValueError
            The value cannot be broadcast.
        """
        # a number stays as it is: NumPy compares it as one of the array's dtype
        value = value if np.ndim(value) == 0 else np.asarray(value)
        operands = [self._all_of_it(), *([value] if np.ndim(value) else [])]
        buffers = np.nditer(
            operands,
            ["external_loop", "buffered", "zerosize_ok"],
            [["readonly"]] * len(operands),
            buffersize=_TOGETHER,
        )
        for buffer in buffers:
            these, to = buffer if len(operands) > 1 else (buffer, value)
            if np.any(these == to):
                return True
        return False

    # ---- what to do instead ----

    def __getattr__(self, name: str) -> Any:
        what = f"{type(self).__name__!r} object has no attribute {name!r}"
        if name in _NAMES:
            call = "()" if callable(getattr(np.ndarray, name)) else ""
            takes = call and name not in _OF_NDARRAYS and callable(getattr(np, name, None))
            function = f", or np.{name}(A)" if takes else ""
            what += f": take that of a view, A[...].{name}{call} or A[i:j].{name}{call}{function}"
        raise AttributeError(what, name=name, obj=self)


def _no(what: str, A: NDArrayLike, instead: str) -> TypeError:
    return TypeError(
        f"{what} is not defined for {type(A).__name__}, which may be larger than memory: {instead}"
    )


def _makes(expression: str) -> str:
    return f"take a view, {expression} makes an array as large; or go through it in parts, A[i:j]"


def _binary(sign: str, right: bool = False) -> Callable[[Any, Any], Any]:
    """Return a method of an operator: ndarrays do the work, other operands get an error."""
    a, b = ("x", "A[...]") if right else ("A[...]", "x")
    expression = f"divmod({a}, {b})" if sign == "divmod" else f"{a} {sign} {b}"

    def method(self: NDArrayLike, other: object) -> Any:
        if isinstance(other, np.ndarray | np.generic):
            return NotImplemented  # the ndarray can, and makes an array
        raise _no(sign, self, _makes(expression))

    return method


def _equality(sign: str) -> Callable[[Any, Any], Any]:
    refuses = _binary(sign)

    def method(self: NDArrayLike, other: object) -> Any:
        return refuses(self, other) if isinstance(other, _VALUES) else NotImplemented

    return method


def _inplace(sign: str) -> Callable[[Any, Any], Any]:
    def method(self: NDArrayLike, other: object) -> Any:
        view = f"A[...] {sign}= x"
        raise _no(
            f"{sign}=",
            self,
            f"take a view, {view} does it in place; or go through it in parts, A[i:j]",
        )

    return method


def _unary(expression: str) -> Callable[[Any], Any]:
    def method(self: NDArrayLike) -> Any:
        raise _no(expression.format("A"), self, _makes(expression.format("A[...]")))

    return method


def _conversion(name: str) -> Callable[[Any], Any]:
    def method(self: NDArrayLike) -> Any:
        raise _no(
            f"{name}()", self, f"take an element, {name}(A[i]), or a view, A[i:j].astype({name})"
        )

    return method


def _methods() -> dict[str, Callable[..., Any]]:
    methods: dict[str, Callable[..., Any]] = {}
    for name, sign in _OPERATORS.items():
        methods[name], methods[f"r{name}"] = _binary(sign), _binary(sign, right=True)
        if name != "divmod":
            methods[f"i{name}"] = _inplace(sign)
    methods |= {name: _binary(sign) for name, sign in _ORDERINGS.items()}
    methods |= {name: _equality(sign) for name, sign in _EQUALITIES.items()}
    methods |= {name: _unary(expression) for name, expression in _UNARY.items()}
    methods |= {name: _conversion(name) for name in _CONVERSIONS}
    return methods


for _name, _method in _methods().items():
    _method.__name__ = f"__{_name}__"
    setattr(NDArrayLike, _method.__name__, _method)
