"""Small conversions."""

import operator
from collections.abc import Iterable
from typing import SupportsIndex

__all__ = ["inttuple"]


def inttuple(x: SupportsIndex | Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Return an integer, or a sequence of integers, as a tuple of exact Python integers.

    NumPy integers are integers here; floats and bools are not.

    Raises
    ------
    TypeError
        Something in x is no integer.

    Examples
    --------
    >>> inttuple(3), inttuple([4, 5])
    ((3,), (4, 5))
    """
    n = _int(x)
    if n is not None:
        return (n,)
    if isinstance(x, Iterable) and not isinstance(x, str | bytes):
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
