"""Cells of a CSV file, split by pyarrow if it is installed.

pyarrow says where a cell begins and ends, and reads plain numbers. Each other text is read by our
own code, once for all cells that have it. So the values are those that NumPy and our converters
read.
Lines that pyarrow may split in another way, and those where anything is wrong, are left to NumPy.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CellReader", "values_of"]

_FEWEST = 64  # lines

Parse = Callable[[str], Any]


def values_of(column: Any) -> NDArray[Any]:
    """Return a column of numbers: to_numpy() imports pandas, which takes a second."""
    return np.from_dlpack(column)


class CellReader:
    """Splits lines into cells, and reads these.

    Parameters
    ----------
    pa, csv, compute : module
        pyarrow, its reader of CSV, and its functions.
    delimiter : str
    width : int
        Columns of the file.
    columns : list of int
        Numbers of the columns that are read.
    """

    def __init__(
        self, pa: Any, csv: Any, compute: Any, delimiter: str, width: int, columns: list[int]
    ) -> None:
        self._pa, self._csv, self._compute = pa, csv, compute
        self._delimiter = delimiter
        self._names = [str(i) for i in range(width)]
        self._columns = columns
        one = re.escape(delimiter)
        # a cell in quotes, without quotes and ends of lines in it
        self._quoted = re.compile(rf'(?:(?<=[\r\n{one}])|\A)"[^"\r\n]*"(?=[\r\n{one}]|\Z)')

    @classmethod
    def of(cls, delimiter: str, width: int, columns: list[int]) -> CellReader | None:
        """Return a reader of such columns; None if pyarrow is not there, or not for them."""
        if not delimiter.isascii() or len(set(columns)) != len(columns):
            return None
        try:
            pa, csv = import_module("pyarrow"), import_module("pyarrow.csv")
            compute = import_module("pyarrow.compute")
        except ImportError:
            return None
        return cls(pa, csv, compute, delimiter, width, columns)

    def split(self, lines: list[str]) -> list[Any] | None:
        """Return the texts of each column, as an array of pyarrow; None: NumPy is to split."""
        if len(lines) < _FEWEST:
            return None
        text = "".join(lines)
        if "\0" in text or ('"' in text and '"' in self._quoted.sub("", text)):
            return None
        data = text.encode()
        names = [self._names[i] for i in self._columns]
        csv = self._csv
        try:
            table = csv.read_csv(
                io.BytesIO(data),
                read_options=csv.ReadOptions(
                    use_threads=False,
                    column_names=self._names,
                    block_size=max(1 << 16, len(data) + 1),
                ),
                parse_options=csv.ParseOptions(
                    delimiter=self._delimiter, quote_char='"', ignore_empty_lines=False
                ),
                convert_options=csv.ConvertOptions(
                    check_utf8=False,
                    column_types=dict.fromkeys(names, self._pa.string()),
                    include_columns=names,
                ),
            )
        except self._pa.ArrowException:
            return None
        if table.num_rows != len(lines):
            return None
        return [column.combine_chunks() for column in table.columns]

    def read(
        self, cells: Any, dtype: np.dtype[Any], parse: Parse | None, decimal: str
    ) -> NDArray[Any] | None:
        """Return the values of a column; None: NumPy is to read them.

        Parameters
        ----------
        cells
            What split() returned for it.
        dtype : data-type
        parse : (str) -> value, optional
            Reads a cell. None: NumPy does.
        decimal : str
            Between the digits of a number.
        """
        try:
            if dtype.kind in "iuf" and dtype.itemsize in (1, 2, 4, 8) and dtype != np.float16:
                return self._numbers(cells, dtype, parse, decimal)
            return self._others(cells, dtype, parse)
        except (self._pa.ArrowException, ValueError, KeyError, OverflowError):
            return None  # NumPy says what is wrong

    def _numbers(
        self, cells: Any, dtype: np.dtype[Any], parse: Parse | None, decimal: str
    ) -> NDArray[Any] | None:
        pa, compute = self._pa, self._compute
        point = re.escape(decimal)
        pattern = "^-?[0-9]+$"
        if dtype.kind == "f":
            pattern = rf"^-?(?:[0-9]+{point}?[0-9]*|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?$"
        plain = compute.match_substring_regex(cells, pattern)
        numbers, others = cells, None
        if compute.all(plain).as_py() is False:
            if parse is None:
                return None
            numbers, others = cells.filter(plain), cells.filter(compute.invert(plain))
        if dtype.kind == "f" and decimal != ".":
            numbers = compute.replace_substring(numbers, decimal, ".")
        # NumPy reads small floats as doubles, too, and rounds them then
        native = pa.float64() if dtype.kind == "f" else pa.from_numpy_dtype(dtype.newbyteorder("="))
        found = values_of(numbers.cast(native))
        result = np.empty(len(cells), dtype)
        with np.errstate(over="ignore"):  # as NumPy reads a number that is too large
            if others is None:
                result[:] = found
                return result
            where = values_of(plain.cast(pa.uint8())).view(bool)
            result[where] = found
        values = self._others(others, dtype, parse)
        if values is None:
            return None
        result[~where] = values
        return result

    def _others(self, cells: Any, dtype: np.dtype[Any], parse: Parse | None) -> NDArray[Any] | None:
        """Return values of which each text is read once."""
        if parse is None and dtype.kind not in "UM":
            return None
        texts = cells.dictionary_encode()
        different = texts.dictionary.to_pylist()
        values = np.empty(len(different), dtype)
        values[:] = different if parse is None else list(map(parse, different))
        result: NDArray[Any] = values[values_of(texts.indices)]
        return result
