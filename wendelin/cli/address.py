"""URL#path[slice]: how the command line names databases, objects in them, and parts of arrays.

The last # separates. A path is names, separated by slashes: keys of mappings, indices of sequences,
attributes. In a name, special and unprintable characters are written as in URLs: %2F, %23, %5B,
%E2%80%AE; an empty name is ''.

This module knows texts, but not databases.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

__all__ = ["Address", "Index", "Path", "join", "parse_index", "quote"]

Path = tuple[str, ...]
Index = tuple[int | slice | EllipsisType, ...]

_SPECIAL = "%/#[]"


def quote(name: str) -> str:
    """Return a name as it is written in a path; an empty one as Python writes it.

    Special characters of paths, and those that control a terminal, are written as in URLs.
    """
    return "".join(_quoted(c) if c in _SPECIAL or not c.isprintable() else c for c in name) or "''"


def _quoted(character: str) -> str:
    # a key may have half of a surrogate pair
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))


def join(path: Path) -> str:
    """Return a path as it is written."""
    return "/".join(map(quote, path))


@dataclass(frozen=True)
class Address:
    """A URL, and maybe a path and an index in it."""

    url: str
    path: Path = ()
    index: Index | None = None

    def __str__(self) -> str:
        """Return URL#path, or URL."""
        return f"{self.url}#{join(self.path)}" if self.path else self.url


def parse_index(text: str) -> Index:
    """Return the index of a text in brackets: integers, slices and '...', separated by commas.

    Raises
    ------
    ValueError
        The text is not an index.
    """
    return tuple(_parse_item(item.strip()) for item in text.split(","))


def _parse_item(text: str) -> int | slice | EllipsisType:
    if text == "...":
        return ...
    bounds = [bound.strip() for bound in text.split(":")]
    if len(bounds) > 3 or (len(bounds) == 1 and not text):
        raise ValueError(f"{text!r} is not an index: it must be like 5, 2:10, ::-1 or ...")
    try:
        numbers = [int(bound) if bound else None for bound in bounds]
    except ValueError as e:
        raise ValueError(f"{text!r} is not an index: it must be like 5, 2:10, ::-1 or ...") from e
    if len(numbers) == 1 and numbers[0] is not None:
        return numbers[0]
    return slice(*numbers)
