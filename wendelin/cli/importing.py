"""wendelin import: an array out of a file."""

from __future__ import annotations

import ast
import os
from contextlib import closing
from typing import Any

import click
import numpy as np

from wendelin.cli.address import Address, AddressType
from wendelin.cli.database import opened
from wendelin.cli.files import Options, open_source, parse_file
from wendelin.cli.output import (
    SizeType,
    json_option,
    layout_json,
    print_json,
    progress,
    size_text,
)
from wendelin.cli.transfer import STEP, Target, fill
from wendelin.lib.calc import mul

__all__ = ["import_file"]


class DtypeType(click.ParamType):
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
            return dtype
        except (TypeError, ValueError, SyntaxError) as e:
            self.fail(
                f"{value!r} is no dtype of numbers: it must be like f8, >i4, S10, or "
                f"[('x','f4'),('n','i2')] ({e})",
                param,
                ctx,
            )


class ShapeType(click.ParamType):
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
        self.fail(f"{value!r} is no shape: it must be like 1000, or 100,200", param, ctx)


class BlksizeType(SizeType):
    """A size of blocks."""

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number of bytes."""
        from wendelin.bigfile.virtmem import BigFile

        size = super().convert(value, param, ctx)
        try:
            return BigFile(size).blksize
        except (ValueError, OverflowError) as e:
            self.fail(str(e), param, ctx)


step_option = click.option(
    "--step",
    type=SizeType(),
    default=STEP,
    help="How much is done at a time: in a transaction.  [default: 32M]",
)
replace_option = click.option(
    "--replace", is_flag=True, help="Put it in the place of what is there already."
)
blksize_option = click.option(
    "--blksize", type=BlksizeType(), default=2 << 20, help="Size of blocks.  [default: 2M]"
)
format_option = click.option(
    "--format",
    "zblk_fmt",
    type=click.Choice(["ZBlk0", "ZBlk1", "auto"]),
    help="Format of blocks, as ZBigArray(zblk_fmt=) has it.",
)


@click.command(
    "import",
    short_help="Make an array out of a file.",
    epilog="""\b
Examples:
  wendelin import x.npy data.fs#x
  wendelin import all.npz:velocity data.fs#run/velocity
  wendelin import scan.h5:raw/frames zeo://host:9991#frames
  wendelin import climate.zarr:t2m data.fs#t2m
  wendelin import --columns time,price ticks.csv data.fs#ticks
  wendelin import --dtype '>f4' --shape 512,512 image.raw data.fs#image""",
)
@click.argument("file", metavar="FILE[:NAME]")
@click.argument("address", metavar="URL#path", type=AddressType())
@click.option("--dtype", type=DtypeType(), help="Of raw bytes; or of a CSV file.  [default: f8]")
@click.option("--shape", type=ShapeType(), help="Of raw bytes; else they are 1-d.")
@click.option("--order", type=click.Choice(["C", "F"]), help="Of raw bytes.  [default: C]")
@click.option("--offset", type=click.IntRange(0), help="Where raw bytes begin in the file.")
@click.option("--columns", help="Of a CSV file: names or numbers, as in time,price or 0,3.")
@click.option("--delimiter", help="Of a CSV file: one character.")
@blksize_option
@format_option
@replace_option
@step_option
@json_option
def import_file(
    file: str,
    address: Address,
    dtype: np.dtype[Any] | None,
    shape: tuple[int, ...] | None,
    order: str | None,
    offset: int | None,
    columns: str | None,
    delimiter: str | None,
    blksize: int,
    zblk_fmt: str | None,
    replace: bool,
    step: int,
    as_json: bool,
) -> None:
    """Make an array out of a file: .npy, .npz, .h5, .zarr, .csv, or raw bytes.

    What a file is, its suffix says; bytes are taken as they are, in their dtype and order. It is
    done in transactions of some blocks each. If it was interrupted, the same command goes on from
    where it was; until all is there, NAME~import is beside the array.
    """
    if delimiter is not None and len(delimiter) != 1:
        raise click.UsageError(f"--delimiter is {delimiter!r}: it must be one character")
    names = [name.strip() for name in columns.split(",")] if columns else []
    options = Options(dtype, shape, order, offset, names, delimiter)
    what = parse_file(file, raw=dtype is not None)
    with closing(open_source(what, options)) as source, opened(address.url, write=True) as root:
        target = Target(root, address, source, replace, blksize, zblk_fmt)
        itemsize = source.layout.dtype.itemsize
        before, total = target.done * itemsize, source.layout.size * itemsize
        with progress(
            f"import {os.path.basename(what.path)}", total, in_bytes=True, done=before
        ) as tell:
            fill(target, source, step, tell)
        if as_json:
            print_json(
                {
                    "path": str(address).partition("#")[2],
                    **layout_json(source.layout),
                    "bytes": total,
                    "resumed_at": before if target.resumed else None,
                }
            )
        else:
            again = f", from {size_text(before)} on" if target.resumed else ""
            print(f"{address}: {size_text(mul(source.layout.shape) * itemsize)}{again}")
