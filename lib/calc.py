"""Arithmetic."""

from collections.abc import Iterable
from typing import TypeVar

__all__ = ["mul"]

T = TypeVar("T")


def mul(seq: Iterable[T], start: T = 1) -> T:  # type: ignore[assignment]
    """Return the product of start and all elements of seq, as sum() returns their sum.

    Exact for Python integers of any size, unlike numpy.prod.
    """
    result = start
    for x in seq:
        result = result * x  # type: ignore[operator]
    return result
