"""wendelin cat, wendelin head: elements of an array, printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from wendelin.cli.address import Address, Index
from wendelin.cli.arguments import AddressType, at_option, json_option
from wendelin.cli.database import opened
from wendelin.cli.errors import Failure
from wendelin.cli.files.base import slabs
from wendelin.cli.files.datasets import library
from wendelin.cli.files.text import words
from wendelin.cli.slices import expanded
from wendelin.cli.stored import Database, StoredArray, name_of
from wendelin.cli.storedragged import StoredPiece, StoredRagged
from wendelin.cli.storedzarr import StoredZarr
from wendelin.cli.tree import find, find_array
from wendelin.lib.shown import shown

__all__ = ["cat", "head"]

_AT_ONCE = 4 << 20  # of what is printed [bytes]

_address = click.argument("address", metavar="URL#path[slice]", type=AddressType(index=True))


def _selected(database: Database, address: Address, rows: int | None = None) -> Any:
    """Return a view of what is to be printed, maybe of its first rows only. Nothing is loaded.

    The array may be larger than the address space: only this part is mapped.
    """
    array: Any = find(database, address)
    if isinstance(array, StoredPiece):
        array = array.view()
    elif isinstance(array, StoredZarr):
        library("zarr", "zarr")
        from wendelin.cli.zarrread import array_of  # it needs zarr

        array = array_of(array, str(address))
    elif not isinstance(array, StoredArray):
        array = find_array(database, address)  # its error says what it is
    index: Index = (...,) if address.index is None else address.index
    if rows is not None:
        index = _first(index, array.shape, rows)
    try:
        return np.asarray(array[index])
    except (IndexError, ValueError) as e:
        raise Failure(f"{address} of shape {array.shape} has no such part: {e}") from e


def _print(database: Database, address: Address, as_json: bool, rows: int | None = None) -> None:
    ragged = find(database, address)
    if not isinstance(ragged, StoredRagged):
        view = _selected(database, address, rows)
        (print_as_json if as_json else print_text)(view)
        return
    if address.index is not None:
        raise Failure(f"{address} is a ZRagged: a slice is of one piece, as in {address}/KEY[:10]")
    for i, (key, piece) in enumerate(islice(ragged.pieces().items(), rows)):
        if as_json:
            sys.stdout.write("{" if not i else ", ")
            sys.stdout.write(f"{json.dumps(name_of(key))}: ")
            print_as_json(piece.view())
        else:
            sys.stdout.write("\n" * bool(i) + f"# {shown(name_of(key))}\n")
            print_text(piece.view())
    if as_json:
        sys.stdout.write("}\n" if ragged.pieces() and rows != 0 else "{}\n")


def _first(index: Index, shape: tuple[int, ...], rows: int) -> Index:
    """Return an index for the first rows of what another index selects."""
    try:
        whole = [*expanded(index, shape)]
    except (IndexError, ValueError):
        return index  # which is refused
    for axis, item in enumerate(whole):
        if isinstance(item, slice) and item.step != 0:
            some = range(shape[axis])[item][:rows]
            stop = some.stop if some.stop >= 0 else None
            whole[axis] = slice(some.start, stop, some.step) if some else slice(0, 0)
            break
    return tuple(whole)


def _elements(view: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the elements of a view, in C order, some at a time, as 1-d copies."""
    step = max(1, _AT_ONCE // view.itemsize)
    for start in range(0, view.size, step):
        for slab in slabs(view.shape, start, min(start + step, view.size)):
            yield view[slab.where].copy().reshape(-1)


def _write_shown(text: str) -> None:
    """Write elements to a terminal, with control characters escaped."""
    sys.stdout.write(shown(text, keep="\t\n"))


def print_text(view: NDArray[Any]) -> None:
    """Print a row a line, its elements separated by tabs; an empty line after each matrix."""
    texts = (text for values in _elements(view) for text in words(values))
    width = view.shape[-1] if view.ndim > 1 else 1
    height = view.shape[-2] if view.ndim > 2 else 0
    if not view.size:
        return
    write = _write_shown if sys.stdout.isatty() else sys.stdout.write
    for row in range(view.size // width):
        if height and row and row % height == 0:
            write("\n")
        write("\t".join(islice(texts, width)) + "\n")


def print_as_json(view: NDArray[Any]) -> None:
    """Print lists in lists."""
    write = sys.stdout.write
    if not view.ndim:
        write(json.dumps(_json(view)) + "\n")
        return
    if not view.size:
        write(json.dumps(np.empty(view.shape).tolist()) + "\n")
        return
    sizes = [int(np.prod(view.shape[axis:], dtype=object)) for axis in range(view.ndim)]
    at = 0
    for values in _elements(view):
        for value in values:
            opened_here = sum(at % size == 0 for size in sizes)
            if at:
                write(",\n" if opened_here else ", ")
            write("[" * opened_here)
            write(json.dumps(_json(value)))
            at += 1
            write("]" * sum(at % size == 0 for size in sizes))
    write("\n")


def _json(value: Any) -> Any:
    """Return an element as JSON can have it."""
    if value.dtype.names:
        return {name: _json(np.asarray(value[name])) for name in value.dtype.names}
    if value.ndim:
        return [_json(v) for v in value]
    kind = value.dtype.kind
    if kind in "biu":
        return value.item()
    if kind == "f" and value.itemsize <= 8 and np.isfinite(value):
        return float(value) if value.itemsize == 8 else json.loads(str(value))
    return next(words(np.atleast_1d(value)))


@click.command(
    epilog="""\b
Examples:
  wendelin cat data.fs#x
  wendelin cat 'data.fs#image[10:20, ::4]'
  wendelin cat 'data.fs#pieces/first[:5]'
  wendelin cat --json 'zeo://host:9991#frames[-1]'"""
)
@_address
@at_option
@json_option
def cat(address: Address, at: bytes | str | None, as_json: bool) -> None:
    """Print an array, or a part of it.

    Each row is a line, with tabs between elements. The slice is as in Python; in the shell, it
    needs quotes. An array in a ZarrGroup is read by zarr, which must be installed. A piece of a
    ZRagged is an array; of the whole, each piece comes after a line with its key.
    """
    with opened(address.url, at=at) as database:
        _print(database, address, as_json)


@click.command(
    short_help="Print the first rows of an array.",
    epilog="""\b
Examples:
  wendelin head data.fs#x
  wendelin head -n 3 'data.fs#image[:, :8]'""",
)
@_address
@click.option("-n", "rows", type=click.IntRange(0), default=10, show_default=True, help="Rows.")
@at_option
@json_option
def head(address: Address, rows: int, at: bytes | str | None, as_json: bool) -> None:
    """Print the first rows of an array, or of a part of it; of a ZRagged, pieces; see cat."""
    with opened(address.url, at=at) as database:
        _print(database, address, as_json, rows)
