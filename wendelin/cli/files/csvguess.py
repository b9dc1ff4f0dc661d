"""Dtypes of the columns of a CSV file, found in its cells.

A column is of the first of these that all its cells are: bool, int64, uint64, float64,
datetime64 in the unit of its finest time, text of the longest cell. Integers that begin with a
zero are text: these are codes, of which a number would lose the zeros. This module sees cells, and
knows no file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wendelin.cli.errors import Failure

__all__ = ["MISSING", "Column", "guessed_dtype"]

#: cells that stand for a missing value, in lower case
MISSING = {"", "na", "n/a", "#n/a", "nan", "nat", "null", "none", "-nan"}

_EXACT = 1 << 53  # integers up to this one are float64 without loss
_WASTE = 64 << 20  # texts of one length may always have so many bytes,
_MOST_TIMES = 32  # or so many times what they have in the file

_SPACE = "[ \t]*"
_SEPARATOR = "\x1f"
_INTEGER = r"(?:0|[1-9]\d*)"  # 007 is a text: a number does not keep its zeros


def _all(cell: str) -> re.Pattern[str]:
    """Return the pattern of cells that are joined by the separator."""
    one = f"{_SPACE}(?:{cell}){_SPACE}"
    # possessive: a pattern that does not match says so in linear time
    return re.compile(f"(?:{one}{_SEPARATOR})*+{one}", re.IGNORECASE | re.ASCII)


_KINDS = {
    "bool": _all("true|false"),
    "int": _all(rf"[+-]?{_INTEGER}"),
    "float": _all(
        rf"[+-]?(?:{_INTEGER}|(?:\d+\.\d*|\.\d+|\d+(?=e))(?:e[+-]?\d+)?|nan|inf(?:inity)?)"
    ),
    "time": _all(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)?"),
}


def _time_unit(cells: Sequence[str]) -> str:
    """Return the finest unit in which times are written."""
    longest = max(len(cell.strip()) for cell in cells)
    # 2026-01-31T18:30:00.123456789
    for length, unit in (10, "D"), (16, "m"), (19, "s"), (23, "ms"), (26, "us"):
        if longest <= length:
            return unit
    return "ns"


class Column:
    """What the cells of a column are.

    Parameters
    ----------
    name : str
        In messages.
    decimal : str
        Between the digits of a number.
    """

    def __init__(self, name: str, decimal: str = ".") -> None:
        self.name = name
        self.missing = False  # some cells are missing values
        self.least = self.most = 0  # of integers
        self._decimal = decimal
        self._kind = ""  # '': no cell has a value
        self._width = 1
        self._chars = 0
        self._unit = "D"

    def take(self, cells: Sequence[str]) -> None:
        """Take further cells."""
        if any("\0" in cell for cell in cells):
            raise Failure(f"column {self.name} has NUL characters, which a text does not keep")
        self._width = max(self._width, *map(len, cells))
        self._chars += sum(map(len, cells))
        if self._kind == "text":
            return
        kind = self._kind_of(cells)
        if not kind:  # as most columns have no missing values, these are looked for last
            cells = [cell for cell in cells if cell.strip().lower() not in MISSING]
            self.missing = True
            if not cells:
                return
            kind = self._kind_of(cells)
        if kind == "int":
            numbers = list(map(int, cells))
            self.least, self.most = min(self.least, *numbers), max(self.most, *numbers)
            if self.least < -(1 << 63) or self.most >= 1 << (64 if self.least >= 0 else 63):
                kind = "text"  # a float would lose digits
        elif kind == "time":
            kind = self._take_times(cells)
        if {kind, self._kind} == {"int", "float"}:
            self._kind = "float"
        else:
            self._kind = kind if self._kind in ("", kind) else "text"

    def _kind_of(self, cells: Sequence[str]) -> str:
        """Return the kind of cells that have values; '' if a cell may be a missing value."""
        joined = _SEPARATOR.join(cells)
        if joined.count(_SEPARATOR) != len(cells) - 1:
            return "text"
        number = joined
        if self._decimal != ".":
            number = joined.replace(".", "?").replace(self._decimal, ".")
        for kind, pattern in _KINDS.items():
            if pattern.fullmatch(number if kind == "float" else joined):
                return kind
        missing = any(cell.strip().lower() in MISSING for cell in cells)
        return "" if missing else "text"

    def _take_times(self, cells: Sequence[str]) -> str:
        """Note the unit of times; they may be none, as 2026-02-30."""
        unit = _time_unit(cells)
        try:
            times = np.array([cell.strip() for cell in cells], "M8[s]")
        except ValueError:
            return "text"
        units = ("D", "m", "s", "ms", "us", "ns")
        self._unit = max(unit, self._unit, key=units.index)
        if self._unit == "ns":
            ends = np.array(["1677-09-22", "2262-04-11"], "M8[s]")
            if times.min() < ends[0] or times.max() > ends[1]:
                return "text"
        return "time"

    def dtype(self, rows: int, missing: str | None) -> np.dtype[Any]:
        """Return the dtype of a column of `rows` cells.

        Integers with missing values are float64, except if `missing` is an integer.

        Parameters
        ----------
        rows : int
        missing : str, optional
            What the user wants for a missing value.

        Raises
        ------
        Failure
            Its texts would take far more room than in the file; or no value of its dtype is a
            missing one.
        """
        if self._kind == "text":
            width = max(self._width, len(missing or ""))
            size = 4 * width * rows
            if size > max(_WASTE, _MOST_TIMES * 4 * (self._chars + rows)):
                raise Failure(
                    f"column {self.name} has texts of very different lengths: {size} bytes as "
                    f"U{width}, and {self._chars} in the file; --columns leaves it out"
                )
            return np.dtype(f"U{width}")
        if self._kind == "time":
            return np.dtype(f"M8[{self._unit}]")
        if self._kind == "int":
            dtype = np.dtype("u8" if self.most >= 1 << 63 else "i8")
            if not self.missing or re.fullmatch(r"[+-]?\d+", missing or ""):
                return dtype
            if self.is_exact:
                return np.dtype("f8")
            why = f"as {dtype}, and float64 would lose digits"
        elif self._kind == "bool":
            if not self.missing or (missing or "").lower() in ("true", "false", "0", "1"):
                return np.dtype("?")
            why = "and truth values"
        else:
            return np.dtype("f8")
        raise Failure(
            f"column {self.name} has missing values {why}: --missing says what is read for them, "
            f"or --columns leaves it out"
        )

    @property
    def is_exact(self) -> bool:
        """Whether its numbers are float64 without loss."""
        return self.least >= -_EXACT and self.most <= _EXACT


def _names(columns: Sequence[Column]) -> Iterator[str]:
    """Yield names of fields: each one is different."""
    counts = Counter(column.name for column in columns)
    for i, column in enumerate(columns):
        yield column.name if column.name and counts[column.name] == 1 else f"{column.name}_{i}"


def guessed_dtype(
    columns: Sequence[Column], dtypes: Sequence[np.dtype[Any]], named: bool
) -> np.dtype[Any]:
    """Return the dtype of an array of all columns.

    It is that of numbers, if all columns are such, and no digit is lost: the array then has an axis
    of columns. Else it is a structure.

    Parameters
    ----------
    columns : sequence of Column
    dtypes : sequence of data-type
        Of each of them.
    named : bool
        The columns have names.
    """
    first, floats = dtypes[0], np.dtype("f8")
    if len(dtypes) == 1:
        return first
    if all(dtype.kind in "iuf" for dtype in dtypes):
        if all(dtype == first for dtype in dtypes):
            return first
        if all(column.is_exact or t == floats for column, t in zip(columns, dtypes, strict=True)):
            return floats
    names = list(_names(columns)) if named else [f"f{i}" for i in range(len(dtypes))]
    if len(set(names)) != len(names):  # a name such as a_1 was there
        names = [f"f{i}" for i in range(len(dtypes))]
    return np.dtype(list(zip(names, dtypes, strict=True)))
