"""wendelin ls: the arrays of a database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import click

from wendelin.bigfile.zodb.inspect import Stored, inspect_blocks
from wendelin.cli.address import Address, Path, join
from wendelin.cli.arguments import AddressType, json_option
from wendelin.cli.arrays import layout_of
from wendelin.cli.database import opened
from wendelin.cli.errors import explain
from wendelin.cli.files.base import Layout
from wendelin.cli.globs import walk_all
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
from wendelin.cli.stored import StoredFile
from wendelin.cli.storedragged import StoredPiece, StoredRagged
from wendelin.cli.storedzarr import StoredZarr, ZarrArray
from wendelin.cli.tree import (
    Found,
    FoundMatrix,
    Unknown,
    Unreadable,
    is_of_object,
    walk_with_matrices,
)

__all__ = ["ls"]

COLUMNS = ("path", "kind", "shape", "dtype", "order", "blocks", "stored", "formats", "changed")
LESS = "order formats kind blocks changed dtype"


@dataclass
class Row:
    """An array, or an object with several, in short."""

    path: str
    kind: str
    layout: Layout | None = None  # None: it is a file, or of Zarr
    blocks: int = 0  # of Zarr: values
    size: int = 0  # [bytes]
    formats: Counter[str] = field(default_factory=Counter)
    tid: bytes = b""
    matrix: StoredMatrix | None = None
    zarr: ZarrArray | None = None
    more: dict[str, Any] = field(default_factory=dict)  # for programs

    def text(self) -> tuple[str, ...]:
        """Return the texts of the columns."""
        mix = ", ".join(
            name if len(self.formats) == 1 else f"{name} {n * 100 / self.blocks:.3g}%"
            for name, n in self.formats.most_common()
        )
        texts = self._layout()
        if self.zarr is not None:
            shape = "?" if self.zarr.shape is None else str(self.zarr.shape).replace(" ", "")
            texts, mix = (shape, self.zarr.dtype, "-"), ", ".join(self.zarr.codecs)
        return (
            self.path,
            self.kind,
            *texts,
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
        found = {
            "path": self.path,
            "kind": self.kind,
            **(layout_json(self.layout) if matrix is None else matrix.as_dict()),
            "blocks": self.blocks,
            "bytes": self.size,
            "formats": dict(self.formats),
            "changed": shown_tid(self.tid),
            **self.more,
        }
        if self.zarr is not None:
            found |= array_json(self.zarr)
        return found

    def add(self, found: Iterable[list[Stored]], tell: Advance) -> Row:
        """Count blocks; report how many were seen."""
        for blocks in found:
            self.blocks += len(blocks)
            self.size += sum(block.size for block in blocks)
            self.formats.update(block.format for block in blocks)
            self.tid = max(self.tid, *(block.tid for block in blocks))
            tell(len(blocks))
        return self


def array_json(array: ZarrArray) -> dict[str, Any]:
    """Return what the metadata says of an array in a ZarrGroup."""
    return {
        "shape": None if array.shape is None else list(array.shape),
        "dtype": array.dtype,
        "chunks": None if array.chunks is None else list(array.chunks),
        "codecs": list(array.codecs),
    }


def rows_of(found: Found, tell: Advance) -> list[Row]:
    """Look at an array, or several; report how many blocks, or values, were seen.

    The first row is of the whole; others are of parts of it, which it counts, too.
    """
    obj, path = found.obj, join(found.path)
    if isinstance(obj, StoredZarr):
        return _zarr_rows(found.path, obj, tell)
    if isinstance(obj, StoredRagged):
        return [_ragged_row(path, obj, tell)]
    if isinstance(obj, StoredPiece):
        start, stop = obj.piece.start, obj.piece.stop
        data = obj.segment.data
        shape = (stop - start, *data.shape[1:])
        return [Row(path, "piece", Layout(shape, data.dtype, "C"), tid=obj.segment.stored.tid)]
    if isinstance(obj, StoredFile):
        row = Row(path, "file", tid=obj._p_serial)
        return [row.add(inspect_blocks(obj), tell)]
    row = Row(path, "array", layout_of(obj), tid=max(obj._p_serial, obj.zfile._p_serial))
    return [row.add(inspect_blocks(obj.zfile), tell)]


def _zarr_rows(path: Path, group: StoredZarr, tell: Advance) -> list[Row]:
    arrays, rest = group.arrays()
    whole = Row(join(path), "zarr group", tid=group.stored.tid, more={"arrays": len(arrays)})
    rows = [whole]
    for array in arrays:
        names = array.path.removeprefix(group.prefix.rstrip("/")).strip("/")
        at = (*path, *filter(None, names.split("/")))
        rows.append(Row(join(at), "zarr array", zarr=array))
    for row, array in zip(rows, [rest, *arrays], strict=True):
        row.blocks, row.size, row.tid = array.values, array.size, max(row.tid, array.tid)
        tell(array.values)
    if len(rows) == 2 and rows[1].path == whole.path:  # it is an array, and not a group
        return rows[1:]
    for row in rows[1:]:
        whole.blocks += row.blocks
        whole.size += row.size
        whole.tid = max(whole.tid, row.tid)
    return rows


def _ragged_row(path: str, ragged: StoredRagged, tell: Advance) -> Row:
    pieces, segments = ragged.pieces(), list(ragged.segments())
    rows = sum(one.piece.stop - one.piece.start for one in pieces.values())
    row = Row(
        path,
        "ragged",
        Layout((rows, *ragged.row), ragged.dtype, "C"),
        tid=max(s.stored.tid for s in segments) if segments else ragged.stored.tid,
        more={"pieces": len(pieces), "writers": [s.name for s in segments]},
    )
    return row.add(ragged.blocks(), tell)


def row_of_matrix(path: str, matrix: StoredMatrix, tell: Advance) -> Row:
    """Look at the arrays of a matrix."""
    row = Row(path, "sparse", tid=matrix.tid, matrix=matrix)
    for array in matrix.arrays.values():
        row.tid = max(row.tid, array._p_serial, array.zfile._p_serial)
        row.add(inspect_blocks(array.zfile), tell)
    return row


@click.command(
    epilog="""\b
Examples:
  wendelin ls data.fs
  wendelin ls zeo://host:9991
  wendelin ls data.fs#runs/2024
  wendelin ls 'data.fs#runs/*/raw'
  wendelin ls --json data.fs | jq '.[] | select(.bytes > 1e9) | .path'"""
)
@click.argument("address", metavar="URL[#path]", type=AddressType("possible"))
@json_option
def ls(address: Address, as_json: bool) -> int:
    """List the arrays of a database, or under a path, whose names may have * and ?.

    Goes through all objects that can be reached from the root. Shows of each array: path, kind,
    shape, dtype, order, number of stored blocks (others are holes), their bytes in the database,
    their formats, and the time of the last change. A ZarrGroup has a row for the whole, and one for
    each array in it, with its values in place of blocks, and its codecs. A ZRagged has a row: the
    rows of all pieces; so has a sparse matrix. No block is loaded, and no code runs that
    the database names. Objects that cannot be read without their class are named on stderr.
    """
    rows: list[Row] = []
    failed = 0
    shown: set[bytes] = set()  # arrays, as parts of a matrix
    with (
        opened(address.url, once=True) as database,
        progress("objects and blocks") as tell,
    ):
        for found in walk_all(database, address, tell, by=walk_with_matrices):
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
                elif getattr(found.obj, "_p_oid", None) not in shown:
                    rows += rows_of(found, tell)
            except Exception as e:
                if not is_of_object(e):
                    raise
                failed += 1
                warn("ls", f"{address.url}#{path}: {explain(e)}")
        rows.sort(key=lambda row: row.path)
        if as_json:
            print_json([row.json() for row in rows])
        elif rows:
            console().print(table(COLUMNS, (row.text() for row in rows), "blocks stored", LESS))
    return 1 if failed else 0
