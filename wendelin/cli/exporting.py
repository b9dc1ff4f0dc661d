"""wendelin export: an array into a file, a slice of one, or a group.

A group, a ZarrGroup, a ZRagged and a sparse matrix are objects of many arrays: each kind has a
module that writes it, and this one finds out which it is. It knows no kind of file: see files.
"""

from __future__ import annotations

import errno
import os
from typing import Any, TypeGuard

import click

from wendelin.bigarray.array import Order
from wendelin.cli.address import Address
from wendelin.cli.arguments import (
    AddressType,
    at_option,
    delimiter_option,
    json_option,
    step_option,
)
from wendelin.cli.arrays import ArraySource, PieceSource
from wendelin.cli.attributes import attrs_of
from wendelin.cli.database import opened
from wendelin.cli.errors import Failure
from wendelin.cli.exporttargets import is_several, targets
from wendelin.cli.files import (
    WITH_MEMBERS,
    File,
    Options,
    check_options,
    named,
    open_sink,
    parse_file,
)
from wendelin.cli.files.base import Layout, Sink, Source
from wendelin.cli.files.datasets import library
from wendelin.cli.files.flat import FlatSink
from wendelin.cli.matrices import is_matrix, matrix_of
from wendelin.cli.output import (
    Advance,
    layout_json,
    print_json,
    progress,
    say,
    shown_tid,
    shown_time,
    size_text,
    warn,
)
from wendelin.cli.plainfiles import export_matrix, export_plain
from wendelin.cli.raggeds import export_pieces
from wendelin.cli.slices import Selection, dataset_slice, slice_of
from wendelin.cli.stored import Database, Stored, StoredArray, class_of, is_mapping
from wendelin.cli.storedragged import StoredPiece, StoredRagged
from wendelin.cli.storedzarr import StoredZarr
from wendelin.cli.tables import TableSource
from wendelin.cli.transfer import element_ranges
from wendelin.cli.tree import find, find_array
from wendelin.cli.unfinished import UnfinishedFile
from wendelin.cli.wholeexport import WholeExport, export_whole
from wendelin.cli.zarrgroups import export_folder
from wendelin.lib.zodb import zconn_at

__all__ = ["export"]

_MOST = (1 << 63) - 1  # of a file [bytes]
_OF_ROWS = ("csv", "parquet", "arrow")  # kinds that have rows, one after another


def check_target(file: File, force: bool) -> None:
    """Check, before anything is done, that the file can be written.

    Raises
    ------
    Failure, OSError
        It cannot be written.
    """
    folder = os.path.dirname(os.path.abspath(file.path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
    if not os.path.lexists(file.path):
        return
    if not force:
        others = f", with everything in {file.path}" if file.kind in WITH_MEMBERS else ""
        raise Failure(f"{file.path} exists already: --force replaces it{others}")
    if os.path.isdir(file.path) != (file.kind == "zarr"):
        is_, makes = ("folder", "file") if os.path.isdir(file.path) else ("file", "folder")
        raise Failure(
            f"{file.path} is a {is_}, and the export makes a {makes}: --force does not replace "
            f"one with the other, so remove it"
        )


def check_size(source: Source, file: File) -> None:
    """Check that an array is not larger than a file can be; in Zarr, each chunk is a file.

    Raises
    ------
    Failure
        It is larger.
    """
    size = source.layout.size * source.layout.dtype.itemsize
    if size > _MOST and file.kind != "zarr":
        raise Failure(f"the array has {size} bytes: a file cannot have more than {_MOST}")


def _is_alike(sink: Sink, layout: Layout) -> TypeGuard[FlatSink]:
    """Say whether a file has the bytes of an array as they are."""
    return isinstance(sink, FlatSink) and sink.has_bytes_of(layout)


def write(source: Source, sink: Sink, unfinished: UnfinishedFile, step: int, tell: Advance) -> None:
    """Write an array, from where it is on, to its end."""
    itemsize, done = source.layout.dtype.itemsize, unfinished.done
    together = sink.together * itemsize
    step = max(together, step // together * together)
    for start, stop in element_ranges(source, done, step, sink.sparse):
        start = start // sink.together * sink.together
        if start >= stop:
            pass
        elif isinstance(source, ArraySource) and _is_alike(sink, source.layout):
            source.copy_to(sink, start, stop)
        else:
            sink.write(start, source.read(start, stop))
        if sink.resumable and sink.worth_saving:
            unfinished.save(stop, sink.sync())
        tell((stop - done) * itemsize)
        done = stop
    sink.finish()


@click.command(
    short_help="Write an array or a group into a file.",
    epilog="""\b
Examples:
  wendelin export data.fs#x x.npy
  wendelin export data.fs#run/velocity all.npz
  wendelin export zeo://host:9991#frames scan.h5:raw/frames
  wendelin export --at 2026-01-31T18:30 data.fs#ticks ticks.csv
  wendelin export --at 0x03f1a2b3c4d5e6f7 data.fs#t2m climate.zarr
  wendelin export data.fs#ticks ticks.parquet
  wendelin export data.fs#run run.h5
  wendelin export 'data.fs#run/*' folder
  wendelin export 'data.fs#run/*/signal' 'folder/*.csv'
  wendelin export data.fs#climate climate.zarr
  wendelin export data.fs#climate/t2m t2m.npy
  wendelin export 'data.fs#frames[10:20, ::4]' some.npy
  wendelin export data.fs#pieces pieces.npz
  wendelin export data.fs#counts counts.yaml""",
)
@click.argument("address", metavar="URL[#path[slice]]", type=AddressType("possible", index=True))
@click.argument("file", metavar="FILE[:NAME]")
@at_option
@delimiter_option
@click.option("--columns", help="For Parquet and Arrow: names of fields, as in time,price.")
@click.option(
    "--check",
    is_flag=True,
    help="Compare each block with its checksum; without it, not those that a .npy or raw file "
    "shares with the database, on a file system with reflinks.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace an existing file: all of FILE, also other arrays in it.",
)
@step_option
@json_option
def export(
    address: Address,
    file: str,
    at: bytes | str | None,
    delimiter: str | None,
    columns: str | None,
    check: bool,
    force: bool,
    step: int,
    as_json: bool,
) -> None:
    """Write an array into a file: .npy, .npz, .h5, .zarr, .csv, .parquet, .arrow, or raw bytes.

    NAME.yaml describes plain files that any language maps: NAME.array; of a sparse matrix,
    NAME.data, NAME.indices and NAME.indptr. A matrix is also written into .npz and .h5ad.

    Raw bytes are .raw, .bin or .dat. In Parquet and Arrow, each field of a structure is a column.

    The suffix of FILE sets its format; the file has only this array. It is FILE.part until it is
    complete. If the export was interrupted, the same command goes on, with the same state of the
    array; .npz, .h5, .parquet and .arrow begin again. A slice is as in Python; in the shell, it
    needs quotes.

    A group is written with all groups, arrays and attributes in it, as .h5, .nc or .zarr; without
    #path, it is all of the database. If its arrays have one length, they are columns of .csv,
    .parquet and .arrow, too. A ZarrGroup, or a part of one by its path, is written as a
    Zarr folder, byte for byte; one of its arrays into any other file, by zarr, which must be
    installed. A ZRagged is written as .npz, with an array for each piece; one piece as an array.

    With the wildcards * and ? in #path, each array becomes a .npy in a folder that exists; or, with
    one * in FILE in the place of the names, a file of another kind. JSON is an object for each.
    """
    names = [name.strip() for name in columns.split(",")] if columns else []
    options = Options(columns=names, delimiter=delimiter)
    if not is_several(address, file):
        _export_one(address, file, at, None, options, check, force, step, as_json)
        return
    with opened(address.url, at=at) as database:
        state = zconn_at(database.conn)  # all files have the same
        found = targets(database, address, file)
    for each, to in found:
        _export_one(each, to, at, state, options, check, force, step, as_json)


def _export_one(
    address: Address,
    file: str,
    at: bytes | str | None,
    state: bytes | None,
    options: Options,
    check: bool,
    force: bool,
    step: int,
    as_json: bool,
) -> None:
    """Write an object into a file; with a state of the database, unless `at` is another one."""
    name = address.path[-1] if address.path else "array"
    given = parse_file(file, new=True)
    what = named(given, name)
    check_options(what, options, new=True)
    check_target(what, force)
    unfinished = UnfinishedFile(what.path)
    before = unfinished.done
    with opened(address.url, at=unfinished.tid or at or state) as database:
        found = find(database, address)
        _check_slice(found, address)
        of_array = isinstance(found, StoredArray | StoredPiece)
        if not before and (is_matrix(found) or (what.kind == "daf" and of_array)):
            tid = zconn_at(database.conn)
            plain = None if is_matrix(found) else _source(database, address, found, "C")[0]
            if isinstance(plain, ArraySource):
                plain.check = check
            _export_plainly(plain or found, address, what, force, step, tid if as_json else None)
            return
        if what.kind == "daf" and not of_array:
            raise Failure(
                f"{address} is a {class_of(found)}: only arrays and sparse matrices are exported "
                f"as plain files with a .yaml"
            )
        if isinstance(found, StoredZarr) and what.kind == "zarr" and address.index is None:
            _export_group(found, address, what, at, unfinished, step, as_json)
            return
        if isinstance(found, StoredRagged):
            _export_ragged(found, address, what, unfinished, as_json)
            return
        if isinstance(found, Stored) and is_mapping(found) and what.kind not in _OF_ROWS:
            _export_whole(database, found, address, given, at, unfinished, step, as_json)
            return
        source, oid = _source(database, address, found, "C" if what.kind in _OF_ROWS else None)
        check_size(source, what)
        if isinstance(source, ArraySource):
            source.check = check
        tid = zconn_at(database.conn)
        unfinished.begin(
            {
                "url": address.url,
                "path": list(address.path),
                "at": at.hex() if isinstance(at, bytes) else at,
                "oid": oid.hex(),
                "kind": what.kind,
                "member": what.member,
                "delimiter": options.delimiter,
                "index": address.index and repr(address.index),
                **source.layout.as_dict(),
            },
            tid,
        )
        _export(source, what, unfinished, options, step, name)
    unfinished.finish()
    layout = source.layout
    itemsize = layout.dtype.itemsize
    if as_json:
        facts = {"at": shown_tid(tid), "resumed_at": before * itemsize or None}
        where = {"file": what.path, "member": what.member or None}
        print_json({**where, **layout_json(layout), **facts})
    else:
        again = f", resumed, as it was at {shown_time(tid)}" if before else ""
        other = f":{what.member}" if what.member not in (name, "") else ""
        say(f"{what.path}{other}: {size_text(layout.size * itemsize)}{again}")


def _check_slice(found: Any, address: Address) -> None:
    """Check that a slice is of an array.

    Raises
    ------
    Failure
        It is not.
    """
    if address.index is None or isinstance(found, StoredArray | StoredPiece | StoredZarr):
        return
    if isinstance(found, StoredRagged):
        raise Failure(f"{address} is a ZRagged: a slice is of one piece, as in {address}/KEY[:10]")
    raise Failure(f"{address} is a {class_of(found)}: a slice is of an array")


def _source(
    database: Database, address: Address, found: Any, order: Order | None = None
) -> tuple[Source, bytes]:
    """Return an array, or what is read as one, in an order, and the oid of its object."""
    source: Source
    index = address.index
    if isinstance(found, Stored) and is_mapping(found):
        return TableSource(database, address, found), found.oid
    if isinstance(found, StoredZarr):
        library("zarr", "zarr")
        from wendelin.cli.zarrread import array_of, source_of  # it needs zarr

        source = source_of(found, str(address))
        if index is None:
            return source, found.oid
        selection = _selection(address, source.layout.shape)
        selected = dataset_slice(array_of(found, str(address)), selection, source)
        return selection.with_attrs(selected, source), found.oid
    if isinstance(found, StoredPiece):
        array, first = found.segment.data, found.piece.start
        source = PieceSource(found, {})
        oid = found.segment.stored.oid
    else:
        array, first = find_array(database, address), 0
        source = ArraySource(array, {})
        source.attrs, source.left_out = attrs_of(database, array)
        oid = array._p_oid
    if index is None and (order is None or source.layout.order == order):
        return source, oid
    selection = _selection(address, source.layout.shape)
    selected = slice_of(array, selection.moved(first) if first else selection, order)
    return selection.with_attrs(selected, source), oid


def _selection(address: Address, shape: tuple[int, ...]) -> Selection:
    """Return what is selected of an array; all of it, if there is no slice.

    Raises
    ------
    Failure
        It has no such part.
    """
    try:
        return Selection((...,) if address.index is None else address.index, shape)
    except (IndexError, ValueError) as e:
        raise Failure(f"{address} of shape {shape} has no such part: {e}") from e


def _export(
    source: Source, what: File, unfinished: UnfinishedFile, options: Options, step: int, name: str
) -> None:
    itemsize, before = source.layout.dtype.itemsize, unfinished.done
    with unfinished.kept(source.layout.size, "elements", "array") as failed:
        sink = open_sink(
            what,
            unfinished.path,
            source.layout,
            options,
            resume=bool(before),
            attrs=source.attrs,
            column_attrs=source.column_attrs,
        )
        failed.callback(sink.close)
        if before:
            sink.resume(unfinished.position)
        elif left := [
            *source.left_out,
            *sink.set_attrs(source.attrs),
            *(f"{c}: {n}" for c, a in source.column_attrs.items() for n in a if what.kind == "csv"),
        ]:
            warn("export", f"left out, attributes that {what.path} cannot have: {', '.join(left)}")
        total = source.layout.size * itemsize
        with progress(f"export {name}", total, in_bytes=True, done=before * itemsize) as tell:
            write(source, sink, unfinished, step, tell)


def _export_plainly(
    found: Any, address: Address, what: File, force: bool, step: int, tid: bytes | None
) -> None:
    """Write a sparse matrix; or a Source, into plain files. JSON is printed with a tid."""
    matrix = None if isinstance(found, Source) else matrix_of(found)
    size = found.layout.size * found.layout.dtype.itemsize if matrix is None else matrix.nbytes
    with progress(f"export {address.path[-1]}", size, in_bytes=True) as tell:
        if matrix is None:
            export_plain(found, what, force, step, tell)
        else:
            export_matrix(matrix, what, address, force, step, tell)
    if tid is not None:
        facts = layout_json(found.layout) if matrix is None else matrix.as_dict()
        print_json({"file": what.path, **facts, "at": shown_tid(tid)})
    else:
        numbers = "" if matrix is None else f"{matrix.nnz} numbers, "
        say(f"{what.path}: {numbers}{size_text(size)}")


def _export_whole(
    database: Database,
    found: Stored,
    address: Address,
    file: File,
    at: bytes | str | None,
    unfinished: UnfinishedFile,
    step: int,
    as_json: bool,
) -> None:
    """Write a group with all that is in it."""
    if file.kind not in ("hdf5", "zarr"):
        raise Failure(
            f"{address} is a group: it is exported as .h5, .nc or .zarr; its arrays as "
            f"columns of .parquet, .arrow or .csv"
        )
    whole = WholeExport(database, address, found, file)
    before = unfinished.done
    tid = zconn_at(database.conn)
    unfinished.begin(
        {
            "url": address.url,
            "path": list(address.path),
            "at": at.hex() if isinstance(at, bytes) else at,
            "oid": found.oid.hex(),
            "kind": f"group in {file.kind}",
            "member": file.member,
        },
        tid,
    )
    name = address.path[-1] if address.path else address.url
    export_whole(whole, file, unfinished, step, name)
    unfinished.finish()
    count = len(whole.layouts)
    if as_json:
        print_json(
            {
                "file": file.path,
                "member": file.member or None,
                "arrays": count,
                "bytes": whole.nbytes,
                "left_out": [{"name": name, "why": why} for name, why in whole.left_out],
                "at": shown_tid(tid),
                "resumed_at": before or None,
            }
        )
    else:
        again = f", resumed, as it was at {shown_time(tid)}" if before else ""
        say(f"{file.path}: {count} array{'s' * (count != 1)}, {size_text(whole.nbytes)}{again}")


def _export_ragged(
    ragged: StoredRagged, address: Address, what: File, unfinished: UnfinishedFile, as_json: bool
) -> None:
    """Write the pieces of a ZRagged into a .npz file, an array each, with their keys as names."""
    if what.kind != "npz" or what.member not in (
        "",
        named(File(what.path, "npz"), address.path[-1]).member,
    ):
        raise Failure(
            f"{address} is a ZRagged: all of it is exported as .npz, with an array for each piece; "
            f"one piece in any form, as {address}/KEY"
        )
    tid = zconn_at(ragged.database.conn)
    unfinished.begin({"url": address.url, "path": list(address.path), "kind": "ragged"}, tid)
    try:
        pieces, size = export_pieces(ragged, unfinished.path)
    except (Exception, KeyboardInterrupt):
        unfinished.remove()
        raise
    unfinished.finish()
    if as_json:
        print_json({"file": what.path, "pieces": pieces, "bytes": size, "at": shown_tid(tid)})
    else:
        say(f"{what.path}: {pieces} pieces, {size_text(size)}")


def _export_group(
    group: StoredZarr,
    address: Address,
    what: File,
    at: bytes | str | None,
    unfinished: UnfinishedFile,
    step: int,
    as_json: bool,
) -> None:
    """Write a ZarrGroup as a Zarr folder."""
    reader = group
    if what.member:
        raise Failure(f"{address} is in a ZarrGroup: it is exported as a Zarr folder, as in x.zarr")
    if not reader.values:
        raise Failure(f"{address} has nothing in it")
    before = unfinished.done
    tid = zconn_at(group.stored.database.conn)
    unfinished.begin(
        {
            "url": address.url,
            "path": list(address.path),
            "at": at.hex() if isinstance(at, bytes) else at,
            "oid": group.oid.hex(),
            "kind": "zarr group",
        },
        tid,
    )
    total = sum(reader.sizes().values())
    with (
        unfinished.kept(len(reader.values), "values", "group"),
        progress(f"export {address.path[-1]}", total, in_bytes=True) as tell,
    ):
        export_folder(reader, unfinished, step, tell)
    unfinished.finish()
    if as_json:
        print_json(
            {
                "file": what.path,
                "keys": len(reader.values),
                "bytes": total,
                "at": shown_tid(tid),
                "resumed_at": before or None,
            }
        )
    else:
        again = f", gone on with, as it was at {shown_time(tid)}" if before else ""
        say(f"{what.path}: {len(reader.values)} values, {size_text(total)}{again}")
