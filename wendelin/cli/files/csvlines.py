"""Lines of a CSV file: without comments and empty lines, with all lines of a quoted field.

This module also finds out that a file has another delimiter than the usual one. It knows no dtypes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import islice

from wendelin.cli.errors import Failure

__all__ = ["CsvLines", "check_delimiter"]

_LONGEST = 64 << 20  # row, with quoted fields [characters]
_TRIED = 100  # lines that say what the delimiter is
_DELIMITERS = ",;\t| "
_NUMBER = re.compile(r"[+-]?[\d.,]+(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


class CsvLines:
    """The lines of a file.

    Parameters
    ----------
    path : str
    comment : str, optional
        The character with which comments begin, which end with the line; outside of quotes.

    Raises
    ------
    OSError
    """

    def __init__(self, path: str, comment: str | None) -> None:
        self._path, self._comment = path, comment
        self._file = open(path, encoding="utf-8-sig", newline="")  # noqa: SIM115

    def __iter__(self) -> Iterator[str]:
        """Yield non-empty lines from the first one on, including those of quoted fields."""
        return (line for _, line in self.numbered())

    def numbered(self) -> Iterator[tuple[int, str]]:
        """Yield the same, with the number of the line in the file where each begins."""
        self._file.seek(0)
        lines: list[str] = []
        quotes = size = first = 0
        for number, line in enumerate(self._file, 1):
            first = first if lines else number
            if self._comment is not None and self._comment in line:
                line = self._without_comment(line, quotes % 2 == 1)
                if not lines and not line.strip():
                    continue
            lines.append(line)
            size += len(line)
            quotes += line.count('"')
            if quotes % 2 == 0:
                whole = "".join(lines)
                lines = []
                size = 0
                if whole.strip("\r\n"):
                    yield first, whole
            elif size > _LONGEST:
                break
        if lines:
            raise Failure(f"{self._path} has a quote in line {first} that is not closed")

    def _without_comment(self, line: str, quoted: bool) -> str:
        """Return a line without its comment, and without the spaces before it."""
        if not quoted and '"' not in line:
            return line.partition(self._comment or "")[0].rstrip(" ") + "\n"
        for i, character in enumerate(line):
            if character == '"':
                quoted = not quoted
            elif character == self._comment and not quoted:
                return line[:i].rstrip(" ") + "\n"
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _split(lines: list[str], delimiter: str) -> list[list[str]]:
    """Return the cells of lines; none, if there are too long ones."""
    try:
        return list(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        return []


def check_delimiter(path: str, lines: Iterable[str], delimiter: str, decimal: str) -> None:
    """Check that a delimiter which the user did not give is that of a file.

    It is not, if lines have one column with it, or not all as many; and with another delimiter
    they all have the same number of columns, more than one. With a space, these have to be numbers.

    Parameters
    ----------
    path : str
    lines : iterable of str
    delimiter, decimal : str

    Raises
    ------
    Failure
        It is another one; the message says which.
    """
    first = list(islice(lines, _TRIED))
    usual = {len(row) for row in _split(first, delimiter)}
    if len(usual) == 1 and usual != {1}:
        return
    for other in _DELIMITERS:
        if other in (delimiter, decimal):
            continue
        rows = _split(first, other)
        if len({len(row) for row in rows}) != 1 or len(rows[0]) == 1:
            continue
        if other == " " and not all(map(_NUMBER.fullmatch, rows[-1])):
            continue
        shown = "$'\\t'" if other == "\t" else f"{other!r}"
        comma = decimal != "," and any(map(_DECIMAL_COMMA.fullmatch, rows[-1]))
        raise Failure(
            f"{path} has {len(rows[0])} columns with the delimiter {other!r}, and "
            f"{'one' if usual == {1} else 'lines of different lengths'} with {delimiter!r}: say "
            f"which one by --delimiter {shown}"
            + (", and --decimal , for numbers such as 1,5" if comma else "")
        )
