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
    if hasattr(x, "__index__"):
        return (_int(x),)
    if isinstance(x, Iterable) and not isinstance(x, str | bytes):
        return tuple(_int(i) for i in x)
    raise TypeError(f"{x!r} is neither an integer nor a sequence of integers")


def _int(x: object) -> int:
    try:
        return operator.index(x)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{x!r} is not an integer") from None
