"""Arithmetic."""

from collections.abc import Iterable
from typing import TypeVar

__all__ = ["mul"]

T = TypeVar("T")


def mul(seq: Iterable[T], start: T = 1) -> T:  # type: ignore[assignment]
    """Return start times every element of seq: as sum(), but a product.

    Exact for Python integers of any size, unlike numpy.prod.
    """
    result = start
    for x in seq:
        result = result * x  # type: ignore[operator]
    return result
