"""URL#path[slice]: how the command line names databases, objects in them, and parts of arrays.

The last # separates. A path is names, separated by slashes: keys of mappings, indices of sequences,
attributes. In a name, characters that mean something here are written as in URLs: %2F, %23, %5B.

It knows texts; what is in a database it does not know.
"""

from __future__ import annotations

import re
from types import EllipsisType
from typing import NamedTuple, NoReturn
from urllib.parse import unquote

import click
from click.shell_completion import CompletionItem

__all__ = ["Address", "AddressType", "Index", "join", "quote"]

Path = tuple[str, ...]
Index = tuple[int | slice | EllipsisType, ...]

_SPECIAL = re.compile(r"[%/#\[\]\x00-\x1f\x7f]")


def quote(name: str) -> str:
    """Return a name as it is in a path."""
    return _SPECIAL.sub(lambda match: f"%{ord(match[0]):02X}", name)


def join(path: Path) -> str:
    """Return a path as it is written."""
    return "/".join(map(quote, path))


class Address(NamedTuple):
    """Where something is."""

    url: str
    path: Path = ()
    index: Index | None = None

    def __str__(self) -> str:
        """Return URL#path."""
        return f"{self.url}#{join(self.path)}"


def parse_index(text: str) -> Index:
    """Return the index that is in brackets: integers, slices and '...', separated by commas.

    Raises
    ------
    ValueError
        It is none.
    """
    return tuple(_parse_item(item.strip()) for item in text.split(","))


def _parse_item(text: str) -> int | slice | EllipsisType:
    if text == "...":
        return ...
    parts = [part.strip() for part in text.split(":")]
    if len(parts) > 3 or (len(parts) == 1 and not text):
        raise ValueError(f"{text!r} is no index: it must be like 5, 2:10, ::-1 or ...")
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError as e:
        raise ValueError(f"{text!r} is no index: it must be like 5, 2:10, ::-1 or ...") from e
    if len(numbers) == 1 and numbers[0] is not None:
        return numbers[0]
    return slice(*numbers)


class AddressType(click.ParamType):
    """An argument that is an Address.

    Parameters
    ----------
    path : {'needed', 'possible', 'none'}
        Whether a #path may follow the URL.
    index : bool
        Whether a [slice] may follow the path.
    """

    def __init__(self, path: str = "needed", index: bool = False) -> None:
        self._path, self._index = path, index
        self.name = {"needed": "URL#path", "possible": "URL[#path]", "none": "URL"}[path]

    def convert(
        self, value: str | Address, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        """See click.ParamType."""
        if isinstance(value, Address):
            return value
        url, sep, rest = value.rpartition("#")
        if not sep:
            url, rest = value, ""

        def wrong(why: str) -> NoReturn:
            self.fail(f"{value!r} {why}", param, ctx)

        if not url:
            wrong("names no database: it must be like data.fs, or zeo://host:9991")
        match = re.fullmatch(r"([^\[\]]*)(?:\[([^\[\]]*)\])?", rest)
        if match is None:
            wrong("has brackets that are no [slice]: in a name, write %5B and %5D for [ and ]")
        path = tuple(unquote(name, errors="strict") for name in match[1].split("/") if name)
        if path and self._path == "none":
            wrong("names an object: here it must be a database, without #path")
        if not path and self._path == "needed":
            wrong("names no array: it must be like data.fs#path/of/array (`wendelin ls` tells)")
        if match[2] is None:
            return Address(url, path)
        if not self._index:
            wrong("has a slice: here it must be a whole array")
        try:
            return Address(url, path, parse_index(match[2]))
        except ValueError as e:
            wrong(f"is not right: {e}")

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of files: of databases, most often."""
        return [CompletionItem(incomplete, type="file")]
