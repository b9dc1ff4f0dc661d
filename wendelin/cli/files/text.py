"""Arrays as text: columns of CSV files, read and written, and the output of `cat`.

csvguess knows dtypes of cells, and csvfast a quicker reader. This module knows lines and fields,
but not the database that arrays are copied from, or to.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.errors import Failure
from wendelin.cli.files.base import FileSource, Layout, Sink
from wendelin.cli.files.csvcells import CellReader
from wendelin.cli.files.csvfast import FastReader
from wendelin.cli.files.csvguess import MISSING, Column, guessed_dtype
from wendelin.cli.files.csvlines import CsvLines, check_delimiter
from wendelin.lib.utils import override

__all__ = ["CsvSink", "CsvSource", "fields", "leaves", "words"]

_GUESSED = 1 << 20  # lines whose cells are looked at together [characters]


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


def leaves(values: NDArray[Any], name: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (name, elements) of each text column of an array of structures."""
    if values.ndim > 1:
        for index in np.ndindex(values.shape[1:]):
            of = name + "".join(f"[{i}]" for i in index)
            yield from leaves(values[(slice(None), *index)], of)
    elif values.dtype.names:
        for field in values.dtype.names:
            yield from leaves(values[field], f"{name}.{field}" if name else field)
    else:
        yield name, values


def _kinds(dtype: np.dtype[Any]) -> list[str]:
    """Return the kind of number of each column of a dtype; g and G for long doubles."""
    columns = (leaf.dtype for _, leaf in leaves(np.empty(0, dtype)))
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
    result.real, result.imag = (np.longdouble(digits or 0) for digits in match.groups())
    return result[()]


#: kinds of columns that NumPy does not read -> their reader
_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "b": _truth,
    "g": np.longdouble,
    "G": _long_complex,
}


def _value(dtype: np.dtype[Any], text: str) -> Any:
    """Return the element of a text."""
    return np.array(text.strip()).astype(dtype)[()]


class _CellError(ValueError):
    """What is wrong with a cell, in words that say it better than NumPy's."""


def _whole_text(dtype: np.dtype[Any], text: str) -> Any:
    """Return a text, if the dtype takes all of it: NumPy would cut it off."""
    most = dtype.itemsize // (4 if dtype.kind == "U" else 1)
    if len(text) > most:
        raise _CellError(f"{text!r} has {len(text)} characters, and {dtype} takes {most}")
    return text if dtype.kind == "U" else text.encode("latin1")


def _whole_time(dtype: np.dtype[Any], text: str) -> Any:
    """Return the time of a text, if the dtype takes all of it: NumPy would cut it off."""
    time = np.datetime64(text.strip().removesuffix("Z"))  # all are UTC
    value = time.astype(dtype)
    if not np.isnat(time) and value != time:
        raise _CellError(f"{text!r} is finer than {dtype}")
    return value


#: kinds of which NumPy would read a part of a text -> what reads all of it, or refuses
_WHOLE = {"U": _whole_text, "S": _whole_text, "M": _whole_time}


def _with_point(parse: Callable[[str], Any], decimal: str, text: str) -> Any:
    """Return the number of a text with another decimal character than a point."""
    _check_point(text, decimal)
    return parse(text.replace(decimal, "."))


def _check_point(text: str, decimal: str) -> None:
    if "." in text:
        raise _CellError(f"there is a '.', and numbers have {decimal!r}: see --decimal")


def _or_missing(parse: Callable[[str], Any], missing: Any, text: str) -> Any:
    """Return the element of a text; of a missing one, what stands for it."""
    return missing if text.strip().lower() in MISSING else parse(text)


def _is_value(cell: str, kinds: str, decimal: str) -> bool:
    """Say whether a cell is a number, or a value of another kind."""
    text = cell.strip().replace(decimal, ".")
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


def _together(lines: Iterator[str]) -> Iterator[str]:
    """Yield a few of the lines."""
    size = 0
    for line in lines:
        yield line
        size += len(line)
        if size >= _GUESSED:
            return


def _fitting(dtype: np.dtype[Any], missing: str | None) -> str:
    """Return what is read for a missing value in a guessed column: the user's, if it is of it."""
    if missing is not None:
        parse: Callable[[str], Any] = _CONVERTERS.get(dtype.kind) or partial(_value, dtype)
        with suppress(ValueError, KeyError, OverflowError):
            parse(missing)
            return missing
    return "NaT" if dtype.kind == "M" else "NaN"


class CsvSource(FileSource):
    """Columns of a CSV file: 1-d if there is one, else an axis for rows and one for columns.

    The first line may have names. Empty lines are skipped, and a quoted field may have line ends.

    Parameters
    ----------
    path : str
    delimiter : str
    columns : list of str
        Names, or numbers from 0; empty: all of them.
    dtype : data-type, optional
        None: it is guessed, from all cells.
    header : bool, optional
        Whether the first line has names. None: it has if there is no number in it, or if `columns`
        has a name.
    identity : dict
        See Source.
    missing : str, optional
        What is read for an empty cell, NA, NaN, null, and the like. None: as NumPy reads it; if
        the dtype is guessed, NaN and NaT.
    comment : str, optional
        The character with which comments begin, which end with the line; outside of quotes.
    decimal : str
        The character between the digits of a number.
    delimiter_given : bool
        The user gave the delimiter: if not, a file that has another one is refused.
    """

    def __init__(
        self,
        path: str,
        delimiter: str,
        columns: list[str],
        dtype: np.dtype[Any] | None,
        header: bool | None,
        identity: dict[str, Any],
        missing: str | None = None,
        comment: str | None = None,
        decimal: str = ".",
        delimiter_given: bool = True,
    ) -> None:
        self._missing, self._decimal = missing, decimal
        self._path, self._delimiter = path, delimiter
        self._lines = CsvLines(path, comment)
        try:
            if not delimiter_given:
                check_delimiter(path, self._lines, delimiter, decimal)
            self._begin(columns, header, "bM" if dtype is None else "".join(_kinds(dtype)))
            gaps = None
            if dtype is None:
                dtype, gaps, rows = self._guess()
            else:
                rows = sum(1 for _ in self._rows())
            self._dtype = dtype
            self._prepare(gaps)
        except BaseException as e:
            self._lines.close()
            if isinstance(e, UnicodeDecodeError):
                raise Failure(f"{path} is not text in UTF-8: {e}") from e
            raise
        shape = (rows,) if self._width == 1 else (rows, self._width)
        self.layout = Layout(shape, dtype, "C")
        told = {"missing": missing, "comment": comment, "decimal": decimal.strip(".") or None}
        read_as = {
            "columns": self._columns,
            "delimiter": delimiter,
            "header": self.header,
            **{name: value for name, value in told.items() if value is not None},
        }
        super().__init__({**identity, **read_as}, self._lines.close)
        self._next = 0  # the row behind _left
        self._left = self._rows()

    def _begin(self, columns: list[str], header: bool | None, kinds: str) -> None:
        """Find out whether the first line has names, and which columns are read."""
        first = next(iter(self._lines), "")
        try:
            cells = [cell.strip() for cell in next(csv.reader([first], delimiter=self._delimiter))]
        except (StopIteration, csv.Error):
            cells = []
        if not cells:
            raise Failure(
                f"{self._path} is empty" if not first else f"{self._path} is not a CSV file"
            )
        if header is None:
            by_name = any(column in cells and not column.isdecimal() for column in columns)
            header = by_name or not any(_is_value(cell, kinds, self._decimal) for cell in cells)
        if header:
            self.header = cells
        self._columns = self._numbers(columns, cells if header else [], len(cells))
        # the parser checks that all rows have the same number, unless columns are given
        self._chosen = self._columns if columns else None
        self._cell_reader = CellReader.of(self._delimiter, len(cells), self._columns)

    def _cells(self, lines: list[str]) -> list[list[str]]:
        """Return the cells of each column, as texts."""
        if self._cell_reader is not None and (split := self._cell_reader.split(lines)) is not None:
            return [column.to_pylist() for column in split]
        cells = self._load(lines, np.dtype(object), {}, len(self._columns))
        columns: list[list[str]] = cells.reshape(len(lines), -1).T.tolist()
        return columns

    def _guess(self) -> tuple[np.dtype[Any], list[bool], int]:
        """Return the dtype of the cells, which columns have missing values, and the rows."""
        names = self.header or [""] * (max(self._columns) + 1)
        columns = [Column(names[i] or str(i), self._decimal) for i in self._columns]
        rows = 0
        left = self._rows()
        while lines := list(_together(left)):
            try:
                cells = self._cells(lines)
            except (ValueError, KeyError) as e:
                raise self._failure(rows, lines, self._cells, e) from e
            for column, values in zip(columns, cells, strict=True):
                try:
                    column.take(values)
                except Failure as e:
                    raise Failure(f"{self._path}: {e}") from None
            rows += len(lines)
        try:
            dtypes = [column.dtype(rows, self._missing) for column in columns]
        except Failure as e:
            raise Failure(f"{self._path}: {e}") from None
        self.guessed = [
            f"{column.name} {dtype}" for column, dtype in zip(columns, dtypes, strict=True)
        ]
        named = self.header is not None
        gaps = [column.missing for column in columns]
        return guessed_dtype(columns, dtypes, named), gaps, rows

    def _prepare(self, gaps: list[bool] | None) -> None:
        """Find out how the cells of each column are read.

        Parameters
        ----------
        gaps : list of bool, optional
            If the dtype was guessed: which columns have missing values.
        """
        dtypes = [leaf.dtype for _, leaf in leaves(np.empty(0, self._dtype))]
        n = len(self._columns)
        if self._dtype.names and len(dtypes) != n:
            raise Failure(
                f"{self._path}: {self._dtype} has {len(dtypes)} columns, and these are "
                f"{n}: --columns selects columns"
            )
        self._width = 1 if self._dtype.names else n  # elements of a row
        dtypes = dtypes if self._dtype.names else dtypes * n
        kinds = [leaf.char if leaf.char in "gG" else leaf.kind for leaf in dtypes]
        self._converters: dict[int | str, Callable[[str], Any]] = {
            number: _CONVERTERS[kind]
            for number, kind in zip(self._columns, kinds, strict=True)
            if kind in _CONVERTERS
        }
        if gaps is None:  # else the dtype is that of the longest text, or of the finest time
            for number, leaf in zip(self._columns, dtypes, strict=True):
                if leaf.kind in _WHOLE:
                    self._converters[number] = partial(_WHOLE[leaf.kind], leaf)
        # all characters may be changed, if there is no other than of numbers
        self._swapped = self._decimal != "." and all(kind in "iufc" for kind in kinds)
        if self._decimal != "." and not self._swapped:
            for number, leaf, kind in zip(self._columns, dtypes, kinds, strict=True):
                if kind in "fcgG":
                    parse = self._converters.get(number) or partial(_value, leaf)
                    self._converters[number] = partial(_with_point, parse, self._decimal)
        self._fills: dict[int, Any] = {}  # number of a column -> what is read for a missing value
        for i, (number, leaf) in enumerate(zip(self._columns, dtypes, strict=True)):
            if gaps is None or leaf.kind in "US":
                missing = self._missing
            else:
                missing = _fitting(leaf, self._missing) if gaps[i] else None
            if missing is not None:
                self._take_missing(number, leaf, missing)
        self._fast = FastReader.of(
            self._dtype, self._delimiter, self._columns, self._chosen is not None, self._fills
        )

    def _take_missing(self, number: int, dtype: np.dtype[Any], missing: str) -> None:
        """Read missing values of a column as a given one."""
        default = partial(_WHOLE.get(dtype.kind, _value), dtype)
        parse: Callable[[str], Any] = self._converters.get(number) or default
        reads = parse.args[0] if isinstance(parse, partial) and parse.func is _with_point else parse
        try:
            value = reads(missing)
        except (ValueError, KeyError, OverflowError) as e:
            raise Failure(f"--missing: {missing!r} is not a value of {dtype}: {e}") from e
        self._fills[number] = value
        self._converters[number] = partial(_or_missing, parse, value)

    def _rows(self) -> Iterator[str]:
        """Yield lines that are data."""
        return islice(self._lines, 0 if self.header is None else 1, None)

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
        if self._swapped:
            for line in lines:
                _check_point(line, self._decimal)
            lines = [line.replace(self._decimal, ".") for line in lines]
        if self._fast is not None:
            found = self._fast.read(lines)
            if found is not None:
                return found.reshape(-1)
        if self._cell_reader is not None:
            found = self._read_cells(self._cell_reader, lines)
            if found is not None:
                return found.reshape(-1)
        return self._load(lines, self._dtype, self._converters, self._width)

    def _read_cells(self, reader: CellReader, lines: list[str]) -> NDArray[Any] | None:
        """Return what pyarrow splits into cells; None if NumPy is to read the lines."""
        split = reader.split(lines)
        if split is None:
            return None
        shape = len(lines) if self._dtype.names else (len(lines), self._width)
        result = np.zeros(shape, self._dtype)  # also bytes between fields
        into = [leaf for _, leaf in leaves(result)] if self._dtype.names else list(result.T)
        decimal = "." if self._swapped else self._decimal
        for number, cells, column in zip(self._columns, split, into, strict=True):
            parse = self._converters.get(number)
            values = reader.read(cells, column.dtype, parse, decimal)
            if values is None:
                return None
            column[...] = values
        return result

    def _load(
        self,
        lines: list[str],
        dtype: np.dtype[Any],
        converters: dict[int | str, Callable[[str], Any]],
        width: int,
    ) -> NDArray[Any]:
        values = np.loadtxt(
            lines,
            dtype,
            comments=None,
            delimiter=self._delimiter,
            quotechar='"',
            usecols=self._chosen,
            converters=converters,
        ).reshape(-1)
        if len(values) != len(lines) * width:
            n = len(values) // len(lines)
            raise ValueError(f"the number of columns is {n}, and {width} in the first line")
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
            raise self._failure(first, lines, self._parse, e) from e
        return values[start - first * n : stop - first * n]

    def _failure(
        self,
        first: int,
        lines: list[str],
        parse: Callable[[list[str]], Any],
        error: Exception,
    ) -> Failure:
        """Return what names the first line that is not read, by its number in the file, and why."""
        bad = 0
        for i, line in enumerate(lines):
            try:
                parse([line])
            except (ValueError, KeyError) as e:
                why = str(e.__cause__ if isinstance(e.__cause__, _CellError) else e)
                # in the words of NumPy, it is row 0
                why = re.sub(r" at row \d+, column (\d+)\.?", r" in column \1", why)
                bad, error = i, ValueError(why)
                break
        skipped = first + bad + (self.header is not None)
        number, _ = next(islice(self._lines.numbered(), skipped, None))
        return Failure(
            f"{self._path}, line {number}: {error}; --columns selects columns, --dtype sets "
            f"their type (without it, they have the type of their cells), and --missing says what "
            f"is read for a missing value"
        )


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
            self._write_rows(zip(*(self._cells(leaf) for _, leaf in leaves(values)), strict=True))
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
                self._write_rows([[name for name, _ in leaves(np.empty(0, self.dtype))]])

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
