"""Small conversions."""

import functools
import operator
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, SupportsIndex, TypeVar

__all__ = ["WeakRefs", "inttuple", "override", "renamed", "seconds_of"]

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


_INTEGERS = {int}


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
    if type(x) is tuple and _INTEGERS.issuperset(map(type, x)):  # as arrays have it: soon said
        return x
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


class WeakRefs(Generic[_T]):
    """A set of weak references, for thousands of objects. In any thread.

    An object has one reference for all of them, without a callback, which a WeakSet gives each
    member. Those of objects that are gone are removed later.
    """

    _LEAST = 64

    def __init__(self) -> None:
        self._refs: set[weakref.ref[_T]] = set()
        self._most = self._LEAST

    def add(self, obj: _T) -> None:
        """Add an object."""
        refs = self._refs
        refs.add(weakref.ref(obj))
        if len(refs) > self._most:
            refs.difference_update([ref for ref in refs.copy() if ref() is None])
            self._most = max(self._LEAST, 2 * len(refs))

    def __iter__(self) -> Iterator[_T]:
        return iter([obj for ref in self._refs.copy() if (obj := ref()) is not None])


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
