"""What ndarrays have besides indexing: for an array, of its view A[...]; or what to do instead.

Views are given, as whatever is a view costs nothing: A.T, A.view(dtype), A.flat. What would compute
or copy is not, since an array may be larger than memory: a view is one step more, of which who
takes it knows how large it is. NumPy's functions take arrays as they are: np.sum(A).

It knows of an array that it can be indexed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NDArrayLike"]

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
}


class NDArrayLike:
    """What an array has of its view A[...]."""

    def __getitem__(self, idx: Any) -> Any:
        raise NotImplementedError

    @property
    def T(self) -> NDArray[Any]:
        """The view of all, with its axes in reverse order."""
        return self.transpose()

    @property
    def flat(self) -> np.flatiter[NDArray[Any]]:
        """The elements one by one, in C order: ndarray.flat of the view of all."""
        return self._all_of_it().flat

    def transpose(self, *axes: Any) -> NDArray[Any]:
        """Return the view of all, with axes as in ndarray.transpose()."""
        return self._all_of_it().transpose(*axes)

    def view(self, *args: Any, **kw: Any) -> NDArray[Any]:
        """Return the view of all as of another dtype or type: ndarray.view(dtype, type)."""
        return self._all_of_it().view(*args, **kw)

    def reshape(self, *shape: Any, **kw: Any) -> NDArray[Any]:
        """Return the view of all with another shape, as ndarray.reshape(shape, order='C').

        Nothing is copied where the order is that of the array. To give the array itself another
        shape: resize().
        """
        return self._all_of_it().reshape(*shape, **kw)

    def ravel(self, *args: Any, **kw: Any) -> NDArray[Any]:
        """Return the view of all in one dimension, as ndarray.ravel(order='C'); see reshape()."""
        return self._all_of_it().ravel(*args, **kw)

    def __dlpack__(self, **kw: Any) -> Any:
        """Be exchanged with other libraries, as the view of all."""
        return self._all_of_it().__dlpack__(**kw)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Say where the data is: in memory of the processor."""
        return (1, 0)

    def _all_of_it(self) -> NDArray[Any]:
        view: NDArray[Any] = self[...]
        return view

    # ---- what to do instead ----

    def __getattr__(self, name: str) -> Any:
        what = f"{type(self).__name__!r} object has no attribute {name!r}"
        if name in _NAMES:
            call = "()" if callable(getattr(np.ndarray, name)) else ""
            function = f", or np.{name}(A)" if call and callable(getattr(np, name, None)) else ""
            what += f": take that of a view, A[...].{name}{call} or A[i:j].{name}{call}{function}"
        raise AttributeError(what, name=name, obj=self)


def _refuses(name: str, sign: str, right: bool, inplace: bool) -> Callable[[Any, Any], Any]:
    """Return a method of an operator, which leaves ndarrays to do it and says so to others."""

    def method(self: NDArrayLike, other: object) -> Any:
        if not inplace and isinstance(other, np.ndarray | np.generic):
            return NotImplemented  # it can, and makes an array
        if inplace:
            view = f"A[...] {sign}= x does it in place"
        elif right:
            view = f"x {sign} A[...]"
        else:
            view = f"A[...] {sign} x"
        more = "" if inplace else " makes an array as large"
        kind = type(self).__name__
        raise TypeError(
            f"{sign}{'=' if inplace else ''} is not defined for {kind}, which may be larger than "
            f"memory: take a view, {view}{more}; or go through it in parts, A[i:j]"
        )

    method.__name__ = name
    return method


for _name, _sign in _OPERATORS.items():
    for _prefix in "", "r", "i":
        _method = f"__{_prefix}{_name}__"
        setattr(NDArrayLike, _method, _refuses(_method, _sign, _prefix == "r", _prefix == "i"))
