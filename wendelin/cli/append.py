"""wendelin append: rows of a file, appended to an array."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import click
import numpy as np
import transaction

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.cli.address import Address, join
from wendelin.cli.arguments import (
    AddressType,
    DtypeType,
    csv_options,
    json_option,
    step_option,
)
from wendelin.cli.changing import entry_of
from wendelin.cli.database import opened_to_write
from wendelin.cli.errors import Failure, explain
from wendelin.cli.files import File, Options, open_source, parse_file
from wendelin.cli.files.base import Source
from wendelin.cli.files.text import leaves
from wendelin.cli.output import print_json, progress, say
from wendelin.cli.stored import class_of

__all__ = ["append"]


@click.command(
    short_help="Append the rows of a file to an array.",
    epilog="""\b
Examples:
  wendelin append today.npy data.fs#signal
  wendelin append --columns time,price today.csv data.fs#ticks
  wendelin append --decimal , --missing NaN today.csv data.fs#measured""",
)
@click.argument("file", metavar="FILE[:NAME]")
@click.argument("address", metavar="URL#path", type=AddressType())
@click.option("--dtype", type=DtypeType(), help="For raw bytes or a CSV file.  [CSV: the array's]")
@csv_options
@step_option
@json_option
def append(
    file: str,
    address: Address,
    dtype: np.dtype[Any] | None,
    csv: dict[str, Any],
    step: int,
    as_json: bool,
) -> None:
    """Append the rows of a file to an array, along its first axis.

    The other axes of the file's array must be those of the array; numbers are converted to its
    dtype. Those of a CSV file are read as it; if its header has the names of all fields in another
    order, they are taken by name. The command works in transactions of some rows each. If one
    fails, it says how many rows were appended.
    """
    what = parse_file(file, raw=dtype is not None)
    with opened_to_write(address.url) as root:
        A = entry_of(root, address).value
        if not isinstance(A, ZBigArray):
            raise Failure(f"{address} is a {class_of(A)}, not an array")
        if what.kind == "csv" and dtype is None:
            dtype = A.dtype
        with closing(_opened(what, Options(dtype=dtype, **csv))) as source:
            layout = source.layout
            if A.ndim == 0 or A._order != "C" or layout.order != "C":
                raise Failure(f"{address} and {file} must have rows, in C order")
            if layout.shape[1:] != A.shape[1:] or len(layout.shape) != A.ndim:
                raise Failure(
                    f"{file} has shape {layout.shape}, but {address} has {A.shape}: all axes "
                    f"except the first must be the same"
                )
            before = len(A)
            row = max(1, layout.size // max(1, layout.shape[0]))
            n = max(1, step // max(1, row * A.itemsize))
            with progress(f"append {join(address.path)}", layout.shape[0]) as tell:
                for start in range(0, layout.shape[0], n):
                    stop = min(start + n, layout.shape[0])
                    try:
                        values = source.read(start * row, stop * row)
                        A.append(values.reshape(stop - start, *A.shape[1:]))
                        transaction.get().note(f"wendelin: append to {join(address.path)}")
                        transaction.commit()
                    except (Exception, KeyboardInterrupt) as e:
                        transaction.abort()
                        raise Failure(
                            f"{explain(e)}: {start} of {layout.shape[0]} rows were appended"
                        ) from e
                    tell(stop - start)
        rows = len(A)
    if as_json:
        print_json({"path": join(address.path), "appended": rows - before, "rows": rows})
    else:
        say(f"{address}: {rows - before} rows appended, {rows} now")


def _opened(file: File, options: Options) -> Source:
    """Open a file; columns of text that have the names of all fields are in their order."""
    source = open_source(file, options)
    names = list(dict(leaves(np.empty(0, options.dtype)))) if options.dtype is not None else []
    header = source.header
    if not header or options.columns or header == names or sorted(header) != sorted(names):
        return source
    source.close()
    return open_source(file, replace(options, columns=names))
