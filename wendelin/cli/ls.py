"""wendelin ls: the arrays of a database."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import click

from wendelin.bigfile.zodb.inspect import inspect_blocks
from wendelin.cli.address import Address, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.arrays import layout_of
from wendelin.cli.database import opened
from wendelin.cli.errors import explain
from wendelin.cli.files.base import Layout
from wendelin.cli.matrices import StoredMatrix
from wendelin.cli.output import (
    Advance,
    console,
    layout_json,
    layout_texts,
    print_json,
    progress,
    shown_tid,
    shown_time,
    size_text,
    table,
    warn,
)
from wendelin.cli.stored import StoredArray, StoredFile
from wendelin.cli.tree import (
    FoundMatrix,
    Unknown,
    Unreadable,
    find,
    is_of_object,
    walk_with_matrices,
)

__all__ = ["ls"]

COLUMNS = ("path", "shape", "dtype", "order", "blocks", "stored", "formats", "changed")


@dataclass
class Row:
    """An array, in short."""

    path: str
    layout: Layout | None  # None: it is a file, not an array
    blocks: int = 0
    size: int = 0  # [bytes]
    formats: Counter[str] = field(default_factory=Counter)
    tid: bytes = b""
    matrix: StoredMatrix | None = None

    def text(self) -> tuple[str, ...]:
        """Return the texts of the columns."""
        mix = ", ".join(
            name if len(self.formats) == 1 else f"{name} {n * 100 / self.blocks:.3g}%"
            for name, n in self.formats.most_common()
        )
        return (
            self.path,
            *self._layout(),
            str(self.blocks),
            size_text(self.size),
            mix or "-",
            shown_time(self.tid),
        )

    def _layout(self) -> tuple[str, str, str]:
        if self.matrix is None:
            return layout_texts(self.layout)
        shape = Layout(self.matrix.shape, self.matrix.data.dtype, "C")
        return (*layout_texts(shape)[:2], "csr")

    def json(self) -> dict[str, Any]:
        """Return the same for programs."""
        matrix = self.matrix
        return {
            "path": self.path,
            **(layout_json(self.layout) if matrix is None else matrix.as_dict()),
            "blocks": self.blocks,
            "bytes": self.size,
            "formats": dict(self.formats),
            "changed": shown_tid(self.tid),
        }


def row_of(path: str, obj: StoredArray | StoredFile, tell: Advance) -> Row:
    """Look at an array; report how many blocks were seen."""
    zfile, layout = (obj, None) if isinstance(obj, StoredFile) else (obj.zfile, layout_of(obj))
    row = Row(path, layout, tid=max(obj._p_serial, zfile._p_serial))
    for blocks in inspect_blocks(zfile):
        row.blocks += len(blocks)
        row.size += sum(block.size for block in blocks)
        row.formats.update(block.format for block in blocks)
        row.tid = max(row.tid, *(block.tid for block in blocks))
        tell(len(blocks))
    return row


def row_of_matrix(path: str, matrix: StoredMatrix, tell: Advance) -> Row:
    """Look at the arrays of a matrix."""
    row = Row(path, None, tid=matrix.tid, matrix=matrix)
    for array in matrix.arrays.values():
        part = row_of(path, array, tell)
        row.blocks += part.blocks
        row.size += part.size
        row.formats += part.formats
        row.tid = max(row.tid, part.tid)
    return row


@click.command(
    epilog="""\b
Examples:
  wendelin ls data.fs
  wendelin ls zeo://host:9991
  wendelin ls data.fs#runs/2024
  wendelin ls --json data.fs | jq '.[] | select(.bytes > 1e9) | .path'"""
)
@click.argument("address", metavar="URL[#path]", type=AddressType("possible"))
@json_option
def ls(address: Address, as_json: bool) -> int:
    """List the arrays of a database, or under a path.

    Goes through all objects that can be reached from the root. Shows of each array: path, shape,
    dtype, order, number of stored blocks (others are holes), their bytes in the database, their
    formats, and the time of the last change. A sparse matrix is one line. No block is loaded, and
    no code runs that the database names. Objects that cannot be read without their class are named
    on stderr.
    """
    rows: list[Row] = []
    failed = 0
    shown: set[bytes] = set()  # arrays, as parts of a matrix
    with (
        opened(address.url, once=True) as database,
        progress("objects and blocks") as tell,
    ):
        start = find(database, address)
        for found in walk_with_matrices(database, start, address.path, tell):
            path = join(found.path)
            if isinstance(found, Unknown):
                warn("ls", f"{address.url}#{path}: {found}")
                continue
            try:
                if isinstance(found, Unreadable):
                    raise found.error
                if isinstance(found, FoundMatrix):
                    shown.update(array._p_oid for array in found.obj.arrays.values())
                    rows.append(row_of_matrix(path, found.obj, tell))
                elif found.obj._p_oid not in shown:
                    rows.append(row_of(path, found.obj, tell))
            except Exception as e:
                if not is_of_object(e):
                    raise
                failed += 1
                warn("ls", f"{address.url}#{path}: {explain(e)}")
        rows.sort(key=lambda row: row.path)
        if as_json:
            print_json([row.json() for row in rows])
        elif rows:
            console().print(table(COLUMNS, (row.text() for row in rows), "blocks stored"))
    return 1 if failed else 0
