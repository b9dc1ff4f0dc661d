"""Arrays as text: columns of CSV files, read and written, and the output of `cat`."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.errors import Failure
from wendelin.cli.files.base import Layout, Sink, Source
from wendelin.lib.utils import override

__all__ = ["CsvSink", "CsvSource", "fields", "words"]

_LONGEST = 64 << 20  # row, with quoted fields [characters]


def fields(value: Any) -> Iterator[str]:
    """Yield the fields of a structure as text."""
    for name in value.dtype.names:
        field = np.atleast_1d(value[name]).reshape(-1)
        yield from words(field)


def words(values: NDArray[Any]) -> Iterator[str]:
    """Yield elements of a 1-d array as text that is different for different values."""
    if values.dtype.names:
        for value in values:
            yield "\t".join(fields(value))
    elif values.dtype.kind == "S":
        for value in values:
            yield value.decode("ascii", "backslashreplace")
    elif values.dtype.kind == "V":
        for value in values:
            yield value.tobytes().hex()
    elif values.dtype.kind in "fc" and values.dtype.itemsize not in (8,):
        yield from map(str, values)  # in as many digits as their precision needs
    elif values.dtype.kind in "Mm":
        yield from map(str, values)
    else:
        yield from map(str, values.tolist())


def _leaves(values: NDArray[Any], name: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (name, elements) of each text column of an array of structures."""
    if values.ndim > 1:
        for index in np.ndindex(values.shape[1:]):
            of = name + "".join(f"[{i}]" for i in index)
            yield from _leaves(values[(slice(None), *index)], of)
    elif values.dtype.names:
        for field in values.dtype.names:
            yield from _leaves(values[field], f"{name}.{field}" if name else field)
    else:
        yield name, values


def _kinds(dtype: np.dtype[Any]) -> list[str]:
    """Return the kind of number of each column of a dtype; g and G for long doubles."""
    columns = (leaf.dtype for _, leaf in _leaves(np.empty(0, dtype)))
    return [column.char if column.char in "gG" else column.kind for column in columns]


def _truth(text: str) -> bool:
    """Return the bool of a text."""
    word = text.strip().lower()
    return {"true": True, "false": False}[word] if word.isalpha() else bool(int(word))


_REAL = r"[+-]?(?:nan|inf|[\d.]+(?:e[+-]?\d+)?)"
_COMPLEX = re.compile(rf"\(?({_REAL}(?![\w.]))?(?:({_REAL})j)?\)?", re.IGNORECASE)


def _long_complex(text: str) -> Any:
    """Return the complex long double of a text: NumPy reads it in the precision of doubles."""
    match = _COMPLEX.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"could not convert string {text!r} to complex256")
    result = np.zeros((), np.clongdouble)
    result.real, result.imag = (np.longdouble(part or 0) for part in match.groups())
    return result[()]


#: kinds of columns that NumPy does not read -> their reader
_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "b": _truth,
    "g": np.longdouble,
    "G": _long_complex,
}


_MISSING = {"", "na", "n/a", "#n/a", "nan", "nat", "null", "none", "-nan"}  # in lower case


def _value(dtype: np.dtype[Any], text: str) -> Any:
    """Return the element of a text."""
    return np.array(text.strip()).astype(dtype)[()]


def _or_missing(parse: Callable[[str], Any], missing: Any, text: str) -> Any:
    """Return the element of a text; of a missing one, what stands for it."""
    return missing if text.strip().lower() in _MISSING else parse(text)


def _is_value(cell: str, kinds: str) -> bool:
    """Say whether a cell is a number, or a value of another kind."""
    text = cell.strip()
    parsers: list[Any] = [float]
    if any(map(str.isdecimal, text)):
        parsers.append(complex)
        if "M" in kinds:
            parsers.append(np.datetime64)
    if "b" in kinds:
        parsers.append(_truth)
    for parse in parsers:
        try:
            parse(text)
            return True
        except (ValueError, KeyError):
            pass
    return text.lower() == "nat" and bool({"M", "m"}.intersection(kinds))


class CsvSource(Source):
    """Columns of a CSV file: 1-d if there is one, else an axis for rows and one for columns.

    The first line may have names. Empty lines are skipped, and a quoted field may have line ends.

    Parameters
    ----------
    path : str
    delimiter : str
    columns : list of str
        Names, or numbers from 0; empty: all of them.
    dtype : data-type
    header : bool, optional
        Whether the first line has names. None: it has if there is no number in it, or if `columns`
        has a name.
    identity : dict
        See Source.
    missing : str, optional
        What is read for an empty cell, NA, NaN, null, and the like. None: as NumPy reads it.
    """

    def __init__(
        self,
        path: str,
        delimiter: str,
        columns: list[str],
        dtype: np.dtype[Any],
        header: bool | None,
        identity: dict[str, Any],
        missing: str | None = None,
    ) -> None:
        self._missing = missing
        self._path, self._delimiter, self._dtype = path, delimiter, dtype
        self._file = open(path, encoding="utf-8-sig", newline="")  # noqa: SIM115
        try:
            self._begin(columns, header)
            rows = sum(1 for _ in self._rows())
        except BaseException as e:
            self._file.close()
            if isinstance(e, UnicodeDecodeError):
                raise Failure(f"{path} is not text in UTF-8: {e}") from e
            raise
        shape = (rows,) if self._width == 1 else (rows, self._width)
        self.layout = Layout(shape, dtype, "C")
        self._identity = {
            **identity,
            "columns": self._columns,
            "delimiter": delimiter,
            "header": self.header,
            **({} if missing is None else {"missing": missing}),
        }
        self._next = 0  # the row behind _left
        self._left = self._rows()

    def _begin(self, columns: list[str], header: bool | None) -> None:
        """Find out whether the first line has names, and which columns are read."""
        first = next(self._lines(), "")
        try:
            cells = [cell.strip() for cell in next(csv.reader([first], delimiter=self._delimiter))]
        except (StopIteration, csv.Error):
            cells = []
        if not cells:
            raise Failure(
                f"{self._path} is empty" if not first else f"{self._path} is not a CSV file"
            )
        kinds = _kinds(self._dtype)
        if header is None:
            by_name = any(column in cells and not column.isdecimal() for column in columns)
            header = by_name or not any(_is_value(cell, "".join(kinds)) for cell in cells)
        if header:
            self.header = cells
        self._columns = self._numbers(columns, cells if header else [], len(cells))
        # the parser checks that all rows have the same number, unless columns are given
        self._chosen = self._columns if columns else None
        if self._dtype.names and len(kinds) != len(self._columns):
            raise Failure(
                f"{self._path}: {self._dtype} has {len(kinds)} columns, and these are "
                f"{len(self._columns)}: --columns selects columns"
            )
        self._width = 1 if self._dtype.names else len(self._columns)  # elements of a row
        kinds = kinds if self._dtype.names else kinds * self._width
        self._converters: dict[int | str, Callable[[str], Any]] = {
            number: _CONVERTERS[kind]
            for number, kind in zip(self._columns, kinds, strict=True)
            if kind in _CONVERTERS
        }
        if self._missing is not None:
            self._take_missing(self._missing)

    def _take_missing(self, missing: str) -> None:
        """Read missing values as a given one."""
        leaves = [leaf.dtype for _, leaf in _leaves(np.empty(0, self._dtype))]
        leaves = leaves if self._dtype.names else leaves * self._width
        for number, dtype in zip(self._columns, leaves, strict=True):
            parse: Callable[[str], Any] = self._converters.get(number) or partial(_value, dtype)
            try:
                value = parse(missing)
            except (ValueError, KeyError, OverflowError) as e:
                raise Failure(f"--missing: {missing!r} is not a value of {dtype}: {e}") from e
            self._converters[number] = partial(_or_missing, parse, value)

    def _lines(self) -> Iterator[str]:
        """Yield non-empty lines from the first one on, including those of quoted fields."""
        return (line for _, line in self._numbered())

    def _numbered(self) -> Iterator[tuple[int, str]]:
        """Yield the same, with the number of the line in the file where each begins."""
        self._file.seek(0)
        parts: list[str] = []
        quotes = size = first = 0
        for number, line in enumerate(self._file, 1):
            first = first if parts else number
            parts.append(line)
            size += len(line)
            quotes += line.count('"')
            if quotes % 2 == 0:
                whole = "".join(parts)
                parts = []
                size = 0
                if whole.strip("\r\n"):
                    yield first, whole
            elif size > _LONGEST:
                break
        if parts:
            raise Failure(f"{self._path} has a quote in line {first} that is not closed")

    def _rows(self) -> Iterator[str]:
        """Yield lines that are data."""
        return islice(self._lines(), 0 if self.header is None else 1, None)

    def _numbers(self, columns: list[str], names: list[str], n: int) -> list[int]:
        """Return the numbers of columns."""
        numbers = []
        for column in columns:
            if column in names:
                numbers.append(names.index(column))
            elif column.isdecimal() and int(column) < n:
                numbers.append(int(column))
            else:
                have = ", ".join(names[:8]) + (", ..." if names[8:] else "")
                have = have or f"{n} columns, without names"
                raise Failure(f"{self._path} has no column {column!r}: it has {have}")
        return numbers or list(range(n))

    def _parse(self, lines: list[str]) -> NDArray[Any]:
        values = np.loadtxt(
            lines,
            self._dtype,
            comments=None,
            delimiter=self._delimiter,
            quotechar='"',
            usecols=self._chosen,
            converters=self._converters,
        ).reshape(-1)
        if len(values) != len(lines) * self._width:
            n = len(values) // len(lines)
            raise ValueError(f"the number of columns is {n}, and {self._width} in the first line")
        return values

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        n = self._width
        first, last = start // n, -(-stop // n)
        if first < self._next:
            self._next, self._left = 0, self._rows()
        lines = list(islice(self._left, first - self._next, last - self._next))
        self._next = last
        if len(lines) != last - first:
            raise Failure(f"{self._path} has become shorter: it ends after row {self._next}")
        try:
            values = self._parse(lines)
        except (ValueError, KeyError) as e:
            number, why = self._wrong(first, lines, e)
            raise Failure(
                f"{self._path}, line {number}: {why}; --columns selects columns, --dtype sets "
                f"their type, and --missing says what is read for a missing value"
            ) from e
        return values[start - first * n : stop - first * n]

    def _wrong(self, first: int, lines: list[str], error: Exception) -> tuple[int, Exception]:
        """Return the number in the file of the first line that is not read, and why it is not."""
        bad = 0
        for i, line in enumerate(lines):
            try:
                self._parse([line])
            except (ValueError, KeyError) as e:
                # in the words of NumPy, it is row 0
                bad, error = (
                    i,
                    ValueError(re.sub(r" at row \d+, column (\d+)", r" in column \1", str(e))),
                )
                break
        skipped = first + bad + (self.header is not None)
        number, _ = next(islice(self._numbered(), skipped, None))
        return number, error

    @override
    def identity(self) -> dict[str, Any]:
        return self._identity

    @override
    def close(self) -> None:
        self._file.close()


class CsvSink(Sink):
    """A CSV file: a line for each row of a 1-d or 2-d array; fields of structures are columns."""

    resumable = True

    def __init__(self, path: str, layout: Layout, delimiter: str) -> None:
        if len(layout.shape) not in (1, 2) or layout.order == "F":
            raise Failure(
                f"a CSV file has rows: an array of shape {layout.shape} in order {layout.order!r} "
                f"has neither; .npy takes any"
            )
        if layout.dtype.names and len(layout.shape) != 1:
            raise Failure("a CSV file has columns: structures are rows of a 1-d array only")
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        self._delimiter = delimiter
        self.together = self._columns = layout.shape[1] if len(layout.shape) == 2 else 1
        self._started = False
        self.dtype = layout.dtype
        self._special = re.compile(f'[\\s"{re.escape(delimiter)}]|^$')

    @override
    def resume(self, position: int) -> None:
        self._started = True
        self._file.truncate(position)
        self._file.seek(position)

    def _write(self, start: int, values: NDArray[Any]) -> None:
        self._begin()
        if self.dtype.names:
            self._write_rows(zip(*(self._cells(leaf) for _, leaf in _leaves(values)), strict=True))
        else:
            texts, n = self._cells(values), self._columns
            self._write_rows(islice(texts, n) for _ in range(len(values) // n))

    @staticmethod
    def _cells(values: NDArray[Any]) -> Iterator[str]:
        """Yield elements as text from which the same elements can be read."""
        if values.dtype.kind == "S":
            for value in values:
                if not value.isascii():
                    raise Failure(
                        f"a CSV file is text, and {bytes(value)!r} is not ASCII: .npy takes any"
                    )
        elif values.dtype.kind == "m":
            values = np.where(np.isnat(values), "NaT", values.astype("i8").astype("U"))
        return words(values)

    def _quoted(self, text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if self._special.search(text) else text

    def _write_rows(self, rows: Iterable[Iterable[str]]) -> None:
        lines = (self._delimiter.join(map(self._quoted, row)) + "\n" for row in rows)
        self._file.write("".join(lines).encode())

    def _begin(self) -> None:
        if not self._started:
            self._started = True
            self._file.truncate(0)
            if self.dtype.names:
                self._write_rows([[name for name, _ in _leaves(np.empty(0, self.dtype))]])

    @override
    def sync(self) -> int:
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    @override
    def finish(self) -> None:
        self._begin()
        self.sync()
        self.close()

    @override
    def close(self) -> None:
        self._file.close()
