"""Sizes [bytes] as people write and read them: '1.5G', '7.63 MiB'.

Units are powers of 1024 in each spelling: G, GB and GiB are the same.
"""

import re
from fractions import Fraction

__all__ = ["parse_size", "size_text"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
_POWERS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def size_text(n: float) -> str:
    """Return a number of bytes as text, in three digits.

    >>> [size_text(n) for n in (0, 999, 1000, 8_000_000, 3 << 51)]
    ['0 B', '999 B', '0.977 KiB', '7.63 MiB', '6 PiB']
    """
    unit = _UNITS[0]
    for larger in _UNITS[1:]:
        if n < 999.5:
            break
        n /= 1024
        unit = larger
    return f"{n:.3g} {unit}" if n < 99.5 and unit != "B" else f"{n:.0f} {unit}"


def parse_size(text: str, unit: str = "") -> int:
    """Return the number of bytes that a text means.

    >>> [parse_size(text) for text in ("4096", "512K", "1.5 GiB")]
    [4096, 524288, 1610612736]

    Parameters
    ----------
    text : str
    unit : {'', 'K', 'M', 'G', 'T'}
        The unit of a number without one.

    Raises
    ------
    ValueError
        It is not a size, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(?:i?B)?|(B))?\s*", text, re.I)
    size = 0
    if match and len(match[1]) < 100:
        power = _POWERS[(match[2] or ("" if match[3] else unit)).upper()]
        size = int(Fraction(match[1]) * (1 << power))
    if size <= 0:
        raise ValueError(f"{text!r} is not a size: it must be like 4096, 512K, 32M or 1.5G")
    return size
