"""wendelin info: one array in detail, and a picture of its blocks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import click
from rich.text import Text

from wendelin.bigfile.zodb.inspect import Place, Stored, inspect_blocks
from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.arrays import layout_of
from wendelin.cli.database import opened, tid_time
from wendelin.cli.errors import Failure
from wendelin.cli.ls import rows_of
from wendelin.cli.matrices import StoredMatrix, is_matrix, matrix_of
from wendelin.cli.output import (
    console,
    layout_json,
    layout_texts,
    print_json,
    progress,
    shown_tid,
    size_text,
    table,
)
from wendelin.cli.stored import StoredArray, class_of
from wendelin.cli.storedragged import StoredPiece, StoredRagged, StoredSegment
from wendelin.cli.storedzarr import StoredZarr, ZarrArray
from wendelin.cli.tree import Found, Progress, find, find_array, progress_of
from wendelin.lib.shown import shown

__all__ = ["info"]

_WIDTH, _HEIGHT = 64, 16  # of the picture, at most [cells]

HOLE = "hole"
MAPPED = "ZBlk0, mapped"
COPIED = "ZBlk0, copied"
UNALIGNED = "ZBlk0, unaligned"
CHUNKS = "ZBlk1"
OTHER = "no block"

#: kind of block -> (picture, colour, what it means)
KINDS = {
    HOLE: ("·", "bright_black", "zeros, not stored"),
    MAPPED: ("█", "green", "aligned in the file: mapped into memory, not copied"),
    COPIED: ("▓", "cyan", "copied into memory"),
    UNALIGNED: ("░", "yellow", "copied; a pack would align it, to be mapped"),
    CHUNKS: ("▒", "magenta", "in chunks: a small change takes little room"),
    OTHER: ("X", "red", "something else: see `wendelin verify`"),
}


def kind_of(block: Stored) -> str:
    """Return which of KINDS a block is."""
    if block.format == "ZBlk1":
        return CHUNKS
    if block.format != "ZBlk0":
        return OTHER
    return {Place.MAPPED: MAPPED, Place.UNALIGNED: UNALIGNED, Place.COPIED: COPIED}[block.place]


@dataclass
class Blocks:
    """The blocks of an array: counted, and as cells of a picture, of a few blocks each."""

    total: int  # stored or not
    blksize: int  # [bytes]
    kinds: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)  # [bytes]
    past_end: int = 0
    tid: bytes = b""

    def __post_init__(self) -> None:
        self.per_cell = max(1, -(-self.total // (_WIDTH * _HEIGHT)))
        self.cells = [Counter[str]() for _ in range(-(-self.total // self.per_cell))]

    def add(self, block: Stored) -> None:
        """Count a block."""
        kind = kind_of(block)
        self.kinds[kind] += 1
        self.sizes[kind] += block.size
        self.tid = max(self.tid, block.tid)
        if block.blk >= self.total:
            self.past_end += 1
        else:
            self.cells[block.blk // self.per_cell][kind] += 1

    def finish(self) -> None:
        """Count holes: all blocks that were not counted."""
        for i, cell in enumerate(self.cells):
            room = min(self.per_cell, self.total - i * self.per_cell)
            cell[HOLE] = room - cell.total()
        self.kinds[HOLE] = self.total - (self.kinds.total() - self.past_end)

    @property
    def stored(self) -> int:
        """Number of blocks that are stored."""
        return self.kinds.total() - self.kinds[HOLE]

    def picture(self) -> Text:
        """Return the cells: each is the most frequent kind of its blocks, stored ones first."""
        text = Text()
        for i, cell in enumerate(self.cells):
            kind = max(cell, key=lambda k: (cell[k], k != HOLE))
            symbol, colour, _ = KINDS[kind]
            text.append(symbol, colour)
            if (i + 1) % _WIDTH == 0:
                text.append("\n")
        text.rstrip()
        return text


def examine(array: StoredArray) -> Blocks:
    """Look at all blocks of an array; none is loaded."""
    zfile = array.zfile
    blocks = Blocks(-(-array.nbytes // zfile.blksize), zfile.blksize)
    blocks.tid = max(array._p_serial, zfile._p_serial)
    with progress("blocks") as tell:
        for some in inspect_blocks(zfile):
            for block in some:
                blocks.add(block)
            tell(len(some))
    blocks.finish()
    return blocks


def advice(address: Address, blocks: Blocks) -> str | None:
    """Return what unaligned blocks cost, and how to align them; None if there are none."""
    n = blocks.kinds[UNALIGNED]
    if not n:
        return None
    return (
        f"{n} blocks ({size_text(n * blocks.blksize)}) are not aligned in the file: a server, or "
        f"another program, wrote them. Each process that reads them copies them into its own "
        f"memory, at about a third of the speed. A pack aligns them; it writes a new file, and "
        f"drops old revisions:\n"
        f"    from wendelin.lib.zodb import dbopen\n"
        f"    dbopen({address.url!r})._p_jar.db().pack()\n"
        f"A copy aligns them, too, and keeps all revisions: wendelin copy {address.url} NEW.fs"
    )


@click.command(
    short_help="Show one array in detail; or a ZarrGroup, a ZRagged.",
    epilog="""\b
Examples:
  wendelin info data.fs#runs/2024/A
  wendelin info data.fs#climate/t2m
  wendelin info --json zeo://host:9991#A | jq .blocks""",
)
@click.argument("address", metavar="URL#path", type=AddressType())
@json_option
def info(address: Address, as_json: bool) -> None:
    """Show one array in detail, with a picture of its blocks.

    The picture shows holes, the format of each stored block, and whether it is mapped from the file
    or copied when it is read. A sparse matrix is shown with its arrays; their paths, URL#path/data,
    have the pictures. Of a ZarrGroup, its arrays with chunks and codecs are shown; of a ZRagged,
    its writers and their pieces. No block is loaded, and no code runs that the database names.
    """
    with opened(address.url, once=True) as database:
        unfinished = progress_of(database, address)
        if address.path and unfinished is None and is_matrix(obj := find(database, address)):
            _show_matrix(address, matrix_of(obj), as_json)
            return
        try:
            found = find(database, address)
            if isinstance(found, StoredZarr | StoredRagged | StoredPiece):
                _print_other(address, found, as_json)
                return
            array = find_array(database, address)
        except Failure:
            if unfinished is None:
                raise
            array = unfinished.array
        blocks = examine(array)
        lost = advice(address, blocks)
        if as_json:
            print_json(_json(address, array, blocks, unfinished))
            return
        screen = console()
        for name, value in _facts(address, array, blocks, unfinished):
            screen.print(Text(f"{name:<10} ").append(shown(value)), soft_wrap=True)
        if blocks.cells:
            each = f", {blocks.per_cell} blocks a cell" if blocks.per_cell > 1 else ""
            screen.print(Text(f"\nblocks{each}:"))
            screen.print(blocks.picture())
            screen.print()
            for kind, (symbol, colour, meaning) in KINDS.items():
                if n := blocks.kinds[kind]:
                    size = f", {size_text(blocks.sizes[kind])}" if kind != HOLE else ""
                    line = Text(symbol, colour).append(f" {n} {kind}{size}: {meaning}", "default")
                    screen.print(line, soft_wrap=True)
        if lost:
            screen.print(Text(shown(f"\n{lost}", keep="\n")), soft_wrap=True)


def _show_matrix(address: Address, matrix: StoredMatrix, as_json: bool) -> None:
    seen = {name: examine(array) for name, array in matrix.arrays.items()}
    if as_json:
        arrays = {
            name: {
                "nbytes": array.nbytes,
                "blocks": seen[name].stored,
                "bytes": seen[name].sizes.total(),
            }
            for name, array in matrix.arrays.items()
        }
        print_json(
            {
                "path": join(address.path),
                "class": matrix.cls,
                "oid": matrix.oid.hex(),
                **matrix.as_dict(),
                "nbytes": matrix.nbytes,
                "arrays": arrays,
                "changed": shown_tid(max(matrix.tid, *(blocks.tid for blocks in seen.values()))),
            }
        )
        return
    rows, columns = matrix.shape
    full = matrix.nnz * 100 / (rows * columns) if rows and columns else 0
    tid = max(matrix.tid, *(blocks.tid for blocks in seen.values()))
    facts = [
        ("path", str(address)),
        ("class", matrix.cls),
        ("oid", f"0x{matrix.oid.hex()}"),
        ("shape", f"({rows},{columns})"),
        ("dtype", str(matrix.data.dtype)),
        ("indices", str(matrix.indices.dtype)),
        ("order", "csr: compressed rows"),
        ("numbers", f"{matrix.nnz}, {full:.3g}% of the elements"),
        ("size", size_text(matrix.nbytes)),
        *(
            (name, f"{blocks.stored} blocks stored, {size_text(blocks.sizes.total())}")
            for name, blocks in seen.items()
        ),
        ("changed", f"{tid_time(tid):%Y-%m-%d %H:%M:%S.%f %z} (tid {tid.hex()})"),
    ]
    for name, value in facts:
        console().print(Text(f"{name:<10} ").append(shown(value)), soft_wrap=True)


def _facts(
    address: Address, array: StoredArray, blocks: Blocks, unfinished: Progress | None
) -> list[tuple[str, str]]:
    shape, dtype, order = layout_texts(layout_of(array))
    size = blocks.sizes.total()
    share = f", {size * 100 / array.nbytes:.3g}% of its size" if array.nbytes else ""
    facts = [
        ("path", str(address)),
        ("class", array.cls),
        ("oid", f"0x{array._p_oid.hex()}"),
        ("shape", shape),
        ("dtype", dtype),
        ("order", order),
        ("size", size_text(array.nbytes)),
        ("blksize", size_text(array.zfile.blksize)),
        ("format", f"{array._zblk_fmt or 'as WENDELIN_CORE_ZBLK_FMT says'}, for what is written"),
        ("blocks", f"{blocks.stored} stored, of {blocks.total}"),
        ("stored", f"{size_text(size)}{share}"),
        ("changed", f"{tid_time(blocks.tid):%Y-%m-%d %H:%M:%S.%f %z} (tid {blocks.tid.hex()})"),
    ]
    if blocks.past_end:
        facts.append(("past end", f"{blocks.past_end} blocks, not visible"))
    if unfinished is not None:
        done = f"{unfinished.done} of {unfinished.array.size} elements"
        facts.append(("import", f"not complete: {done}; the same `wendelin import` goes on"))
    return facts


def _json(
    address: Address, array: StoredArray, blocks: Blocks, unfinished: Progress | None
) -> dict[str, Any]:
    def counted(kinds: Counter[str]) -> dict[str, int]:
        return {kind: kinds[kind] for kind in KINDS if kinds[kind]}

    return {
        "path": join(address.path),
        "class": array.cls,
        "oid": array._p_oid.hex(),
        **layout_json(layout_of(array)),
        "nbytes": array.nbytes,
        "blksize": blocks.blksize,
        "zblk_fmt": array._zblk_fmt,
        "blocks": counted(blocks.kinds),
        "bytes": counted(blocks.sizes),
        "past_end": blocks.past_end,
        "changed": shown_tid(blocks.tid),
        "import": None if unfinished is None else {"done": unfinished.done},
        "map": {"blocks_a_cell": blocks.per_cell, "cells": [counted(c) for c in blocks.cells]},
    }


# ---- other objects ----


def _print_other(
    address: Address, obj: StoredZarr | StoredRagged | StoredPiece, as_json: bool
) -> None:
    with progress("blocks and values") as tell:
        rows = rows_of(Found(address.path, obj), tell)
    whole = rows[0]
    if as_json:
        found = whole.json() | {"class": class_of(obj)}
        if isinstance(obj, StoredZarr) and whole.zarr is None:
            found["arrays"] = [row.json() for row in rows[1:]]
        elif isinstance(obj, StoredRagged):
            found["writers"] = [_segment(one) for one in obj.segments()]
        print_json(found)
        return
    facts = [("path", str(address)), ("kind", whole.kind), ("class", class_of(obj))]
    lines: Any = None
    if isinstance(obj, StoredZarr):
        if whole.zarr is not None:
            facts += _zarr_facts(whole.zarr)
        else:
            facts.append(("arrays", str(len(rows) - 1)))
            columns = ("array", "shape", "dtype", "chunks", "codecs", "values", "stored")
            texts = [(row.path, *(v for _, v in _zarr_facts(row.zarr))) for row in rows[1:]]
            ends = [(str(row.blocks), size_text(row.size)) for row in rows[1:]]
            cells = [(*a, *b) for a, b in zip(texts, ends, strict=True)]
            lines = table(columns, cells, "values stored") if cells else None
        facts.append(("values", str(whole.blocks)))
    else:
        assert whole.layout is not None
        shape, dtype, _ = layout_texts(whole.layout)
        facts += [("shape", shape), ("dtype", dtype)]
    if isinstance(obj, StoredPiece):
        piece, name = obj.piece, obj.segment.name
        facts += [("writer", repr(name)), ("rows", f"[{piece.start}, {piece.stop}) of the writer")]
    if isinstance(obj, StoredRagged):
        facts += [("pieces", str(whole.more["pieces"])), ("blocks", str(whole.blocks))]
        writers = [[str(v) for v in _segment(one).values()] for one in obj.segments()]
        lines = table(
            ("writer", "pieces", "rows", "free", "room"), writers, "pieces rows free room"
        )
    if not isinstance(obj, StoredPiece):
        facts.append(("stored", size_text(whole.size)))
    facts.append(
        ("changed", f"{tid_time(whole.tid):%Y-%m-%d %H:%M:%S.%f %z} (tid {whole.tid.hex()})")
    )
    screen = console()
    for name, value in facts:
        screen.print(Text(f"{name:<10} ").append(shown(value)), soft_wrap=True)
    if lines is not None:
        screen.print()
        screen.print(lines)


def _zarr_facts(array: ZarrArray | None) -> list[tuple[str, str]]:
    assert array is not None
    shape, chunks = (
        "?" if numbers is None else str(numbers).replace(" ", "")
        for numbers in (array.shape, array.chunks)
    )
    return [
        ("shape", shape),
        ("dtype", array.dtype),
        ("chunks", chunks),
        ("codecs", ", ".join(array.codecs) or "-"),
    ]


def _segment(segment: StoredSegment) -> dict[str, Any]:
    """Return what a writer has: rows that are free are of pieces that are gone."""
    pieces = sum(1 for _ in segment.pieces())
    return {
        "name": segment.name,
        "pieces": pieces,
        "rows": segment.live,
        "free": segment.used - segment.live,
        "room": segment.data.shape[0] - segment.used,
    }
