"""Numbers of a CSV file, read by pyarrow if it is installed.

It reads lines that have plain numbers only, where it reads what NumPy reads, all columns at once.
csvcells reads other lines by their cells.
"""

from __future__ import annotations

import io
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.cli.files.csvcells import values_of

__all__ = ["FastReader"]

_PLAIN = b"0123456789+-.eE\r\n"
_FEWEST = 64  # lines


class FastReader:
    """Reads lines of columns of numbers.

    Parameters
    ----------
    pa, reader : module
        pyarrow, and its reader of CSV.
    dtype : data-type
        Of a row, if it is a structure; of each column, if not.
    delimiter : str
    columns : list of int
        Numbers of the columns that are read.
    chosen : bool
        Lines may have further columns.
    fills : dict of int -> value
        Number of a column -> what is read for an empty cell.
    """

    def __init__(
        self,
        pa: Any,
        reader: Any,
        dtype: np.dtype[Any],
        delimiter: str,
        columns: list[int],
        fills: dict[int, Any],
    ) -> None:
        self._pa, self._reader, self._dtype = pa, reader, dtype
        self._delimiter = delimiter
        self._columns, self._fills = columns, fills
        self._plain = _PLAIN + delimiter.encode()

    @classmethod
    def of(
        cls,
        dtype: np.dtype[Any],
        delimiter: str,
        columns: list[int],
        chosen: bool,
        fills: dict[int, Any],
    ) -> FastReader | None:
        """Return a reader of such columns; None if pyarrow is not there, or not for them."""
        dtypes = [dtype] if dtype.names is None else [dtype[name] for name in dtype.names]
        if (
            chosen
            or any(t.kind not in "iuf" or t.itemsize > 8 or t == np.float16 for t in dtypes)
            or not delimiter.isascii()
            or delimiter.encode() in _PLAIN
        ):
            return None
        try:
            return cls(
                import_module("pyarrow"),
                import_module("pyarrow.csv"),
                dtype,
                delimiter,
                columns,
                fills,
            )
        except ImportError:
            return None

    def _dtype_of(self, i: int) -> np.dtype[Any]:
        return self._dtype if self._dtype.names is None else self._dtype[i]

    def read(self, lines: list[str]) -> NDArray[Any] | None:
        """Return the rows of lines; None if NumPy is to read them."""
        if len(lines) < _FEWEST:
            return None
        data = "".join(lines).encode()
        if data.translate(None, self._plain):
            return None
        pa, csv = self._pa, self._reader
        names = [str(i) for i in self._columns]
        # NumPy reads small floats as doubles, too, and rounds them then
        types = {
            name: pa.float64() if t.kind == "f" else pa.from_numpy_dtype(t.newbyteorder("="))
            for name, t in ((name, self._dtype_of(i)) for i, name in enumerate(names))
        }
        try:
            table = csv.read_csv(
                io.BytesIO(data),
                read_options=csv.ReadOptions(
                    use_threads=False, column_names=names, block_size=max(1 << 16, len(data) + 1)
                ),
                parse_options=csv.ParseOptions(
                    delimiter=self._delimiter, quote_char=False, ignore_empty_lines=False
                ),
                convert_options=csv.ConvertOptions(
                    check_utf8=False, column_types=types, null_values=[""]
                ),
            )
        except pa.ArrowException:
            return None
        if table.num_rows != len(lines):
            return None
        shape = len(lines) if self._dtype.names else (len(lines), len(names))
        result = np.zeros(shape, self._dtype)  # also bytes between fields
        for i, number in enumerate(self._columns):
            column = table.column(i)
            gaps = None
            if column.null_count:
                if number not in self._fills:
                    return None
                gaps = values_of(column.is_null().cast(pa.uint8()).combine_chunks()).view(bool)
                column = column.fill_null(0)
            values = values_of(column.combine_chunks())
            into = result[self._dtype.names[i]] if self._dtype.names else result[:, i]
            with np.errstate(over="ignore"):  # as NumPy reads a number that is too large
                into[:] = values
            if gaps is not None:
                into[gaps] = self._fills[number]
        return result
