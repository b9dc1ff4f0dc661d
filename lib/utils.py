"""Small conversions."""

import functools
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any, ParamSpec, SupportsIndex, TypeVar

__all__ = ["inttuple", "override", "renamed", "seconds_of"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Python 3.11 has no typing.override, and typing_extensions is for type checkers only.
if TYPE_CHECKING:
    from typing_extensions import override
elif sys.version_info >= (3, 12):
    from typing import override
else:

    def override(method: _T) -> _T:
        """Mark a method as one that a base class, or a Protocol, defines and documents."""
        method.__override__ = True
        return method


def inttuple(x: SupportsIndex | Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Return an integer, or a sequence of integers, as a tuple of exact Python integers.

    NumPy integers are integers here; floats and bools are not.

    Raises
    ------
    TypeError
        An element of x is not an integer; or x has no order, like a set or a dict.

    Examples
    --------
    >>> inttuple(3), inttuple([4, 5])
    ((3,), (4, 5))
    """
    n = _int(x)
    if n is not None:
        return (n,)
    if isinstance(x, Iterable) and not isinstance(x, str | bytes | Set | Mapping):
        items = list(x)
        result = [n for n in map(_int, items) if n is not None]
        if len(result) == len(items):
            return tuple(result)
    raise TypeError(f"{x!r} is neither an integer nor a sequence of integers")


def _int(x: object) -> int | None:
    try:
        return None if isinstance(x, bool) else operator.index(x)  # type: ignore[arg-type]
    except TypeError:
        return None


def seconds_of(variable: str, default: float) -> float:
    """Return how many seconds a variable of the environment sets.

    Raises
    ------
    ValueError
        It has another value.
    """
    value = os.environ.get(variable, str(default))
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= 1e9:
        raise ValueError(f"{variable} is {value!r}: it must be seconds, from 0 to 1e9")
    return seconds


def renamed(**names: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Let a function also take keywords by their names in 0.x: renamed(old="new")."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(function)
        def call(*args: Any, **kw: Any) -> _T:
            for old, new in names.items():
                if old in kw:
                    if new in kw:
                        raise TypeError(f"{old!r} and {new!r} are the same: give one of them")
                    kw[new] = kw.pop(old)
            return function(*args, **kw)

        return call

    return decorate
