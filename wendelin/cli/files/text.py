"""Arrays as text: columns of CSV files, read and written; and how `cat` prints them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.errors import Failure
from wendelin.cli.files.base import Layout, Sink, Source

__all__ = ["CsvSink", "CsvSource", "fields", "words"]


def fields(value: Any) -> Iterator[str]:
    """Yield the fields of a structure as text."""
    for name in value.dtype.names:
        field = np.atleast_1d(value[name]).reshape(-1)
        yield from words(field)


def words(values: NDArray[Any]) -> Iterator[str]:
    """Yield elements of a 1-d array as text that tells them from each other."""
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


class CsvSource(Source):
    """Columns of a CSV file: 1-d, if it is one; else an axis for rows, and one for columns.

    The first line may have names. Empty lines are not there, and a quoted field may have line ends.

    Parameters
    ----------
    path : str
    delimiter : str
    columns : list of str
        Names, or numbers from 0; empty: all of them.
    dtype : data-type
    identity : dict
        See Source.
    """

    def __init__(
        self,
        path: str,
        delimiter: str,
        columns: list[str],
        dtype: np.dtype[Any],
        identity: dict[str, Any],
    ) -> None:
        self._path, self._delimiter, self._dtype = path, delimiter, dtype
        self._file = open(path, encoding="utf-8-sig", newline="")  # noqa: SIM115
        try:
            first = next(self._lines(), "")
            names = next(csv.reader([first], delimiter=delimiter), [])
            if not names:
                raise Failure(f"{path} is empty")
            names = [name.strip() for name in names]
            self._columns = self._numbers(columns, names)
            by_name = any(column in names and not column.isdecimal() for column in columns)
            self._header = by_name or not self._is_data(first)
            rows = sum(1 for _ in self._rows())
        except UnicodeDecodeError as e:
            raise Failure(f"{path} is no text in UTF-8: {e}") from e
        except BaseException:
            self._file.close()
            raise
        self._width = 1 if dtype.names else len(self._columns)  # elements of a row
        shape = (rows,) if self._width == 1 else (rows, self._width)
        self.layout = Layout(shape, dtype, "C")
        self._identity = {**identity, "columns": self._columns, "delimiter": delimiter}
        self._next = 0  # the row that _left is before
        self._left = self._rows()

    def _lines(self) -> Iterator[str]:
        """Yield lines, from the first one on, that are not empty; with those of quoted fields."""
        self._file.seek(0)
        parts: list[str] = []
        quotes = 0
        for line in self._file:
            parts.append(line)
            quotes += line.count('"')
            if quotes % 2 == 0:
                whole = "".join(parts)
                parts = []
                if not whole.isspace():
                    yield whole
        if parts:
            yield "".join(parts)

    def _rows(self) -> Iterator[str]:
        """Yield lines that are data."""
        return islice(self._lines(), 1 if self._header else 0, None)

    def _numbers(self, columns: list[str], names: list[str]) -> list[int]:
        """Return the numbers of columns."""
        numbers = []
        for column in columns:
            if column in names:
                numbers.append(names.index(column))
            elif column.isdecimal() and int(column) < len(names):
                numbers.append(int(column))
            else:
                have = ", ".join(names[:8]) + (", ..." if names[8:] else "")
                raise Failure(f"{self._path} has no column {column!r}: it has {have}")
        return numbers or list(range(len(names)))

    def _is_data(self, line: str) -> bool:
        try:
            self._parse([line])
        except ValueError:
            return False
        return True

    def _parse(self, lines: list[str]) -> NDArray[Any]:
        return np.loadtxt(
            lines,
            self._dtype,
            comments=None,
            delimiter=self._delimiter,
            quotechar='"',
            usecols=self._columns,
        ).reshape(-1)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See Source."""
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
        except ValueError as e:
            raise Failure(
                f"{self._path}, in rows {first + 1} to {last} of data: {e}; --columns tells which "
                f"columns to take, and --dtype what is in them"
            ) from e
        return values[start - first * n : stop - first * n]

    def identity(self) -> dict[str, Any]:
        """See Source."""
        return self._identity

    def close(self) -> None:
        """See Source."""
        self._file.close()


class CsvSink(Sink):
    """A CSV file: a line for each row of a 1-d or 2-d array; fields of structures are columns."""

    resumable = True

    def __init__(self, path: str, layout: Layout, delimiter: str) -> None:
        if len(layout.shape) not in (1, 2) or layout.order == "F":
            raise Failure(
                f"a CSV file has rows: an array of shape {layout.shape} in order {layout.order!r} "
                f"is none of these; .npy takes any"
            )
        if layout.dtype.names and len(layout.shape) != 1:
            raise Failure("a CSV file has columns: structures are rows of a 1-d array only")
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        self._delimiter = delimiter
        self.together = self._columns = layout.shape[1] if len(layout.shape) == 2 else 1
        self._started = False
        self._names = layout.dtype.names

    def resume(self, position: int) -> None:
        """See Sink."""
        self._started = True
        self._file.truncate(position)
        self._file.seek(position)

    def write(self, start: int, values: NDArray[Any]) -> None:
        """See Sink."""
        self._begin()
        if self._names:
            self._write(fields(value) for value in values)
        else:
            texts, n = words(values), self._columns
            self._write(islice(texts, n) for _ in range(len(values) // n))

    def _write(self, rows: Iterable[Iterable[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, delimiter=self._delimiter, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue().encode())

    def _begin(self) -> None:
        if not self._started:
            self._started = True
            self._file.truncate(0)
            if self._names:
                self._write([self._names])

    def sync(self) -> int:
        """See Sink."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def finish(self) -> None:
        """See Sink."""
        self._begin()
        self.sync()
        self.close()

    def close(self) -> None:
        """See Sink."""
        self._file.close()
