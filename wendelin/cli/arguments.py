"""Arguments and options of commands: they are parsed and checked here.

This module knows texts, and click. It opens no database and no file.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn
from urllib.parse import unquote

import click
import numpy as np
from click.shell_completion import CompletionItem

from wendelin.bigfile.virtmem.backend import BigFile
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.cli.address import Address, parse_index
from wendelin.cli.transfer import STEP
from wendelin.lib.sizes import parse_size
from wendelin.lib.utils import override
from wendelin.tree.moments import moment

__all__ = [
    "AddressType",
    "DtypeType",
    "MomentType",
    "ShapeType",
    "SizeType",
    "at_option",
    "blksize_option",
    "csv_options",
    "delimiter_option",
    "format_option",
    "json_option",
    "replace_option",
    "step_option",
]


class _Type(click.ParamType):  # type: ignore[type-arg]  # it is generic in new versions only
    """The type of an argument."""


class AddressType(_Type):
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

    @override
    def convert(
        self, value: str | Address, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        if isinstance(value, Address):
            return value
        url, sep, rest = value.rpartition("#")
        if not sep:
            url, rest = value, ""

        def wrong(why: str) -> NoReturn:
            self.fail(f"{value!r} {why}", param, ctx)

        if not url:
            wrong("does not name a database: it must be like data.fs, or zeo://host:9991")
        match = re.fullmatch(r"([^\[\]]*)(?:\[([^\[\]]*)\])?", rest)
        if match is None:
            wrong("has brackets that are not a [slice]: in a name, write %5B and %5D for [ and ]")
        try:
            path = tuple(
                unquote(name, errors="surrogatepass") for name in match[1].split("/") if name
            )
        except UnicodeDecodeError as e:
            wrong(f"has a % escape that is not UTF-8: {e}")
        if path and self._path == "none":
            wrong("names an object: a database is expected here, without #path")
        if not path and self._path == "needed":
            wrong(
                "does not name an array: it must be like data.fs#path/of/array; see `wendelin ls`"
            )
        if match[2] is None:
            return Address(url, path)
        if not self._index:
            wrong("has a slice: a whole array is expected here")
        try:
            return Address(url, path, parse_index(match[2]))
        except ValueError as e:
            wrong(f"is not valid: {e}")

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of files, mostly databases; behind a #, paths in a file."""
        url, sep, path = incomplete.rpartition("#")
        if not sep or not os.path.isfile(url):
            return [CompletionItem(incomplete, type="file")]
        from wendelin.cli.completion import paths  # it needs what opens databases

        return [CompletionItem(f"{url}#{found}") for found in paths(url, path)]


class MomentType(_Type):
    """A moment of a database: a tid, the end of the day or minute that is named, '3 days ago'."""

    def __init__(self, tags: bool = False) -> None:
        self._tags = tags
        self.name = "TID|TIME|TAG" if tags else "TID|TIME"

    def convert(
        self, value: str | bytes, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes | str:
        """Return the last tid of the moment; of what may be a tag, its name."""
        if isinstance(value, bytes):
            return value
        try:
            return moment(value)
        except ValueError as e:
            if self._tags and value.isprintable() and "future" not in str(e):
                return value  # the database says whether it has such
            self.fail(str(e), param, ctx)


class SizeType(_Type):
    """An argument that is a number of bytes: 4096, 512K, 32M, 1.5G."""

    name = "SIZE"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)


class DtypeType(_Type):
    """An argument that is a dtype: f8, >i4, S10, or a list of fields."""

    name = "DTYPE"

    def convert(
        self,
        value: str | np.dtype[Any],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> np.dtype[Any]:
        """Return the dtype."""
        if isinstance(value, np.dtype):
            return value
        try:
            spec = ast.literal_eval(value) if value.lstrip().startswith("[") else value
            dtype = np.dtype(spec)
            if dtype.itemsize == 0 or dtype.hasobject:
                raise TypeError("it has no size")
            if dtype.shape:
                raise TypeError("its subarrays are axes of the shape")
            return dtype
        except (TypeError, ValueError, SyntaxError) as e:
            self.fail(
                f"{value!r} is not a dtype of numbers: it must be like f8, >i4, S10, or "
                f"[('x','f4'),('n','i2')] ({e})",
                param,
                ctx,
            )


class ShapeType(_Type):
    """An argument that is a shape: 100, or 100,200."""

    name = "N,N,..."

    def convert(
        self,
        value: str | tuple[int, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int, ...]:
        """Return the shape."""
        if isinstance(value, tuple):
            return value
        numbers = [n.strip() for n in value.strip("() ").rstrip(",").split(",")]
        if all(n.isascii() and n.isdecimal() for n in numbers):
            return tuple(map(int, numbers))
        self.fail(f"{value!r} is not a shape: it must be like 1000, or 100,200", param, ctx)


class BlksizeType(SizeType):
    """A size of blocks."""

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number of bytes."""
        size = super().convert(value, param, ctx)
        limit, _, _ = ram_stat()
        if isinstance(value, str) and size > limit:
            self.fail(
                f"{value!r} is more than the limit of page memory, {limit} bytes: half of the "
                f"memory, or WENDELIN_CORE_RAM",
                param,
                ctx,
            )
        try:
            return BigFile(size).blksize
        except (ValueError, OverflowError) as e:
            self.fail(str(e), param, ctx)


# ---- options of several commands ----

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
at_option = click.option(
    "--at",
    type=MomentType(tags=True),
    help="A past state of the array: a transaction, a time, or a tag.",
)
step_option = click.option(
    "--step",
    type=SizeType(),
    default=STEP,
    help="Size of a step: one transaction.  [default: 32M]",
)
replace_option = click.option(
    "--replace", is_flag=True, help="Replace an array that exists already."
)
blksize_option = click.option(
    "--blksize", type=BlksizeType(), default=2 << 20, help="Size of blocks.  [default: 2M]"
)
format_option = click.option(
    "--format",
    "zblk_fmt",
    type=click.Choice(["ZBlk0", "ZBlk1", "auto"]),
    help="Format of blocks, as in ZBigArray(zblk_fmt=).",
)


def _one_character(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    # surrogates: bytes of the call that were not text
    if len(value) != 1 or value in '\r\n"' or "\ud800" <= value <= "\udfff":
        raise click.BadParameter(
            f"{value!r} must be one character, not an end of a line and not a quote"
        )
    return value


delimiter_option = click.option(
    "--delimiter", callback=_one_character, help="Of a CSV file: one character."
)

_CSV_OPTIONS = (
    click.option("--columns", help="For a CSV file: names or numbers, as in time,price or 0,3."),
    click.option(
        "--header/--no-header",
        default=None,
        help="Whether the first line of a CSV file has names.  [default: if it has no number]",
    ),
    click.option(
        "--missing",
        metavar="VALUE",
        help="For a CSV file: what is read for an empty cell, NA or null, as in NaN, NaT, -1.",
    ),
    click.option(
        "--comment",
        metavar="CHARACTER",
        callback=_one_character,
        help="For a CSV file: comments begin with it, as #.",
    ),
    click.option(
        "--decimal",
        metavar="CHARACTER",
        callback=_one_character,
        help="For a CSV file: between the digits of a number. With a comma, the delimiter is a "
        "semicolon, if no other is given.  [default: a point]",
    ),
    delimiter_option,
)


def csv_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a CSV file that is read: the command gets them as a dict, `csv`."""

    @wraps(command)
    def with_csv(
        *args: Any,
        columns: str | None,
        header: bool | None,
        missing: str | None,
        comment: str | None,
        decimal: str | None,
        delimiter: str | None,
        **others: Any,
    ) -> None:
        csv = {
            "columns": [name.strip() for name in columns.split(",")] if columns else [],
            "header": header,
            "missing": missing,
            "comment": comment,
            "decimal": decimal,
            "delimiter": delimiter,
        }
        command(*args, csv=csv, **others)

    for option in reversed(_CSV_OPTIONS):
        with_csv = option(with_csv)
    return with_csv
