"""wendelin import: an array out of a file, or all that is in it.

This module knows sources, contents and targets. It knows no kind of file: see files.
"""

from __future__ import annotations

import dataclasses
import os
from contextlib import closing
from typing import Any

import click
import numpy as np

from wendelin.bigarray.array import Order
from wendelin.cli.address import Address
from wendelin.cli.arguments import (
    AddressType,
    DtypeType,
    ShapeType,
    blksize_option,
    csv_options,
    format_option,
    json_option,
    replace_option,
    step_option,
)
from wendelin.cli.building import build
from wendelin.cli.committing import all_or_nothing
from wendelin.cli.database import opened_to_write
from wendelin.cli.errors import Failure
from wendelin.cli.files import (
    WITH_MEMBERS,
    File,
    Options,
    check_options,
    open_contents,
    open_source,
    parse_file,
)
from wendelin.cli.files.base import Source
from wendelin.cli.files.bigarrays import PointerFile
from wendelin.cli.files.contents import Contents, Member
from wendelin.cli.listing import left_out_json, list_members, shown_counts, warn_left_out
from wendelin.cli.output import (
    layout_json,
    print_json,
    progress,
    say,
    size_text,
    warn,
)
from wendelin.cli.plainfiles import has_matrix, import_matrix
from wendelin.cli.raggeds import PointerContents
from wendelin.cli.transfer import Target, fill
from wendelin.cli.whole import Whole, leave_out_names
from wendelin.cli.zarrgroups import Folder, FolderContents

__all__ = ["import_file"]

_SHOWN = 8  # columns of text, in a message
_MOST = 1 << 47  # the largest array that a process can map [bytes]


def _opened_source(file: File, options: Options) -> Source:
    """Open a file, before anything is done. Refuse an array that is too large.

    Raises
    ------
    Failure
        It has more bytes than a process can map: a file of a few KiB may claim so.
    """
    source = open_source(file, options)
    size = source.layout.size * source.layout.dtype.itemsize
    if size <= _MOST:
        return source
    source.close()
    name = f"{file.path}:{file.member}" if file.member else file.path
    raise Failure(
        f"{name} is too large: its shape is {source.layout.shape}, so it has {size_text(size)}; an "
        f"import takes {size_text(_MOST)} at most, which is what a process can map. A program can "
        f"make such an array, and fill parts of it"
    )


@click.command(
    "import",
    short_help="Make an array from a file, or all of them.",
    epilog="""\b
Examples:
  wendelin import x.npy data.fs#x
  wendelin import all.npz:velocity data.fs#run/velocity
  wendelin import scan.h5:raw/frames zeo://host:9991#frames
  wendelin import climate.zarr:t2m data.fs#t2m
  wendelin import --dry-run climate.nc data.fs
  wendelin import climate.nc data.fs#climate
  wendelin import --atomic large.npy data.fs#large
  wendelin import --as zarr climate.zarr data.fs#climate
  wendelin import --as sparse counts.npz data.fs#counts
  wendelin import --as ragged pieces data.fs#pieces
  wendelin import --columns time,price ticks.csv data.fs#ticks
  wendelin import --decimal , --comment '#' measured.csv data.fs#measured
  wendelin import --dtype '>f4' --shape 512,512 image.raw data.fs#image""",
)
@click.argument("file", metavar="FILE[:NAME]")
@click.argument("address", metavar="URL[#path]", type=AddressType("possible"))
@click.option(
    "--as",
    "as_what",
    type=click.Choice(["array", "group", "zarr", "sparse", "ragged"]),
    help="One array, or all of the file; zarr: a Zarr folder with its chunks and codecs; sparse: a "
    "matrix of an .npz; ragged: all pieces of a file of bigarray.  [default: an array, if there is "
    "one only, and a #path]",
)
@click.option("--dry-run", is_flag=True, help="List what would be imported, and do nothing.")
@click.option(
    "--dtype",
    type=DtypeType(),
    help="For raw bytes or a CSV file.  [CSV: of each column, by its cells]",
)
@click.option("--shape", type=ShapeType(), help="For raw bytes.  [default: 1-d]")
@click.option("--order", type=click.Choice(["C", "F"]), help="For raw bytes.  [default: C]")
@click.option("--offset", type=click.IntRange(0), help="Where raw bytes begin in the file.")
@csv_options
@click.option(
    "--external",
    is_flag=True,
    help="Follow references of an HDF5 file or a Zarr folder to other files, of any path.",
)
@blksize_option
@format_option
@replace_option
@step_option
@click.option(
    "--atomic",
    is_flag=True,
    help="All in one transaction, however large: an interrupted import leaves nothing.",
)
@json_option
def import_file(
    file: str,
    address: Address,
    as_what: str | None,
    dry_run: bool,
    dtype: np.dtype[Any] | None,
    shape: tuple[int, ...] | None,
    order: Order | None,
    offset: int | None,
    csv: dict[str, Any],
    external: bool,
    blksize: int,
    zblk_fmt: str | None,
    replace: bool,
    step: int,
    atomic: bool,
    as_json: bool,
) -> None:
    """Make an array from a file: .npy, .npz, .h5, .nc, .mat, .zarr, .csv, or raw bytes.

    The bytes of a file say its kind, or its suffix. The array has its dtype, order and bytes. The
    import works in transactions of a few blocks each. If it was interrupted, the same command goes
    on. Until it is complete, the array is in NAME~import, and NAME does not exist. With --atomic,
    all is one transaction: what does not fit into memory is in a file until its end.

    A file with several arrays becomes a group with all arrays, groups and attributes; without
    #path, it goes into the root. FILE:NAME is one array or group of the file.

    NAME.yaml describes plain files, as `wendelin export` writes them. A sparse matrix in these, in
    an .h5ad, or with --as sparse in an .npz of SciPy, becomes a ZSparse.

    With --as zarr, a Zarr folder becomes a ZarrGroup: each file is a value of it, byte for byte.
    A program opens it as zarr.open_group(root[...].store()). With --as ragged, the file that a
    PointerArrayWriter of bigarray has written becomes a ZRagged, with its keys.
    """
    options = Options(dtype, shape, order, offset, external=external, **csv)
    what = parse_file(file, raw=dtype is not None or as_what == "ragged")
    if as_what == "ragged":
        if dry_run or not address.path:
            raise click.UsageError("--as ragged needs a URL#path, and has no --dry-run")
        _import_pieces(file, options, address, blksize, replace, step, atomic, as_json)
        return
    if as_what == "zarr":
        if dry_run or not address.path:
            raise click.UsageError("--as zarr needs a URL#path, and has no --dry-run")
        _import_group(what, address, options, replace, step, atomic, as_json)
        return
    if as_what == "sparse" or (as_what is None and address.path and has_matrix(what)):
        if dry_run or not address.path:
            raise click.UsageError("a sparse matrix needs a URL#path, and has no --dry-run")
        check_options(what, options)
        _import_matrix(what, address, replace, step, atomic, as_json)
        return
    if what.kind == "h5ad":
        what = dataclasses.replace(what, kind="hdf5")
    contents = _contents(what, address, options, as_what)
    if contents is not None:
        with closing(contents):
            leave_out_names(contents)
            if dry_run:
                list_members(contents, address, as_json)
            else:
                _import_whole(contents, address, replace, blksize, zblk_fmt, step, atomic, as_json)
        return
    if dry_run:
        with closing(_opened_source(what, options)) as source:
            member = Member((), source.layout, dict(source.attrs), source.left_out)
            list_members(Contents(what.path, [member], {}), address, as_json)
            if not as_json and source.guessed:
                say(f"guessed: {', '.join(source.guessed)}")
        return
    with (
        closing(_opened_source(what, options)) as source,
        opened_to_write(address.url) as root,
    ):
        if source.guessed and not as_json:  # before the work, which may be long
            more = len(source.guessed) - _SHOWN
            told = ", ".join(source.guessed[:_SHOWN])
            warn("import", f"guessed: {told}{f', and {more} more' if more > 0 else ''}")
        itemsize = source.layout.dtype.itemsize
        with all_or_nothing(atomic, address):
            target = Target(root, address, source, replace, blksize, zblk_fmt)
            before, total = target.done * itemsize, source.layout.size * itemsize
            if source.left_out and not target.resumed:
                warn("import", f"left out, attributes of {what.path}: {', '.join(source.left_out)}")
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
                    "header": source.header,
                    **({"guessed": list(source.guessed)} if source.guessed else {}),
                    "resumed_at": before if target.resumed else None,
                }
            )
        else:
            again = f", from {size_text(before)} on" if target.resumed else ""
            names = source.header or []
            shown = ", ".join(names[:_SHOWN]) + (", ..." if names[_SHOWN:] else "")
            after = f", after a header: {shown}" if names else ""
            say(f"{address}: {size_text(total)}{after}{again}")


def _import_matrix(
    what: File, address: Address, replace: bool, step: int, atomic: bool, as_json: bool
) -> None:
    """Make a ZSparse of a file."""
    with (
        opened_to_write(address.url) as root,
        progress(f"import {os.path.basename(what.path)}", None, in_bytes=True) as tell,
    ):
        with all_or_nothing(atomic, address):
            S = import_matrix(root, address, what, replace, step, tell)
        shape, nnz, size = S.shape, S.nnz, S.nbytes
        dtypes = {"dtype": S.dtype.str, "index_dtype": S.index_dtype.str}
    if as_json:
        path = str(address).partition("#")[2]
        print_json({"path": path, "shape": list(shape), **dtypes, "nnz": nnz, "bytes": size})
    else:
        say(f"{address}: {shape[0]} × {shape[1]}, {nnz} numbers, {size_text(size)}")


def _contents(
    what: File, address: Address, options: Options, as_what: str | None
) -> Contents | None:
    """Return the contents of a file that is imported as a whole; None for one array."""
    if as_what == "group" or not address.path:
        return open_contents(what, options)
    if as_what == "array" or what.kind not in WITH_MEMBERS:
        return None
    check_options(what, options)
    try:
        contents = open_contents(what, options)
    except (Failure, click.UsageError):
        return None  # it may be an array; if not, its error is reported
    arrays = [m for m in contents.members if m.layout is not None or (m.why and not m.quiet)]
    if what.member or len(arrays) > 1:
        return contents
    contents.close()
    return None


def _import_whole(
    contents: Contents,
    address: Address,
    replace: bool,
    blksize: int,
    zblk_fmt: str | None,
    step: int,
    atomic: bool,
    as_json: bool,
) -> None:
    """Import all of a file."""
    for member in contents.arrays:
        if member.nbytes > _MOST:
            member.why = f"{size_text(member.nbytes)}, more than a process can map"
    if not contents.arrays and any(m.why and not m.quiet for m in contents.members):
        warn_left_out(contents)
        raise Failure(f"{contents.path} has no array that can be imported")
    with opened_to_write(address.url) as root, all_or_nothing(atomic, address):
        whole = Whole(root, address, contents, replace, blksize, zblk_fmt)
        before = whole.done_bytes
        if not whole.resumed:
            warn_left_out(contents)
        label = f"import {os.path.basename(contents.path.rstrip('/'))}"
        with progress(label, contents.nbytes, in_bytes=True, done=before) as tell:
            whole.run(step, tell)
        for name, why in whole.damaged.items():
            for member in contents.members:
                if member.name == name:
                    member.why, member.damaged = why, True
    if as_json:
        print_json(
            {
                "path": str(address).partition("#")[2],
                "arrays": [
                    {"name": m.name, **layout_json(m.layout), "bytes": m.nbytes}
                    for m in contents.arrays
                ],
                "bytes": contents.nbytes,
                "left_out": left_out_json(contents),
                "resumed_at": before if whole.resumed else None,
            }
        )
    else:
        again = f", from {size_text(before)} on" if whole.resumed else ""
        say(f"{address}: {shown_counts(contents)}{again}")
    bad = [m for m in contents.members if m.damaged]
    if bad:
        raise Failure(
            f"{len(bad)} of {len(contents.members)} arrays, groups and links of {contents.path} "
            f"could not be read, and {'is' if len(bad) == 1 else 'are'} left out"
        )


def _import_pieces(
    path: str,
    options: Options,
    address: Address,
    blksize: int,
    replace: bool,
    step: int,
    atomic: bool,
    as_json: bool,
) -> None:
    """Make a ZRagged of a file of bigarray."""
    check_options(File(path, "ragged"), options)
    if os.path.isdir(path):
        raise Failure(f"{path} is a folder: an array of bigarray is a file")
    with closing(PointerFile(path)) as file:
        total, pieces = sum(file.sizes()), len(file.pieces)
        with (
            opened_to_write(address.url) as root,
            progress(f"import {os.path.basename(path)}", total, in_bytes=True) as tell,
            all_or_nothing(atomic, address),
        ):
            before = build(root, address, PointerContents(file, blksize), replace, step, tell)
    if as_json:
        where = {"path": str(address).partition("#")[2]}
        print_json({**where, "pieces": pieces, "bytes": total, "resumed_at": before or None})
    else:
        again = f", from {size_text(before)} on" if before else ""
        say(f"{address}: {pieces} pieces, {size_text(total)}{again}")


def _import_group(
    what: File,
    address: Address,
    options: Options,
    replace: bool,
    step: int,
    atomic: bool,
    as_json: bool,
) -> None:
    """Make a ZarrGroup of a Zarr folder."""
    if what.kind != "zarr":
        raise click.UsageError(f"--as zarr is of Zarr folders, and {what.path!r} is none")
    check_options(what, options)
    names = [name for name in what.member.split("/") if name]
    if ".." in names:
        raise click.UsageError(f"{what.member!r} is not in {what.path}")
    folder = Folder(os.path.join(what.path, *names), options.external)
    total = folder.size
    with (
        opened_to_write(address.url) as root,
        progress(f"import {os.path.basename(what.path)}", total, in_bytes=True) as tell,
        all_or_nothing(atomic, address),
    ):
        before = build(root, address, FolderContents(folder), replace, step, tell)
    if as_json:
        print_json(
            {
                "path": str(address).partition("#")[2],
                "keys": len(folder.sizes),
                "bytes": total,
                "resumed_at": before or None,
            }
        )
    else:
        again = f", from {size_text(before)} on" if before else ""
        say(f"{address}: {len(folder.sizes)} values, {size_text(total)}{again}")
