"""Files with arrays in them: FILE, or FILE:NAME; their bytes or suffix say of which kind they are.

This module knows which kinds there are. Most others know one kind: how its arrays are read and
written, or what a file of several arrays has. No module of this package knows a database.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import click
import numpy as np

from wendelin.bigarray.array import Order
from wendelin.cli.errors import Failure
from wendelin.cli.files.base import Layout, Sink, Source
from wendelin.cli.files.columns import column_contents
from wendelin.cli.files.columnsink import ColumnSink
from wendelin.cli.files.contents import Contents, member_named
from wendelin.cli.files.daf import daf_source
from wendelin.cli.files.derived import Viewed
from wendelin.cli.files.flat import FlatSink, NpzSink, npy_source, npz_source, raw_source
from wendelin.cli.files.hdf5 import hdf5_sink, hdf5_source
from wendelin.cli.files.hdf5tree import hdf5_contents
from wendelin.cli.files.mat import mat_contents
from wendelin.cli.files.names import check_name, name_in_group, name_of_key
from wendelin.cli.files.netcdf import netcdf_contents
from wendelin.cli.files.npztree import npz_contents
from wendelin.cli.files.recognize import KINDS, kind_of, kind_of_name
from wendelin.cli.files.text import CsvSink, CsvSource
from wendelin.cli.files.zarrs import zarr_sink, zarr_source
from wendelin.cli.files.zarrtree import zarr_contents

__all__ = [
    "WITH_MEMBERS",
    "File",
    "Options",
    "check_options",
    "named",
    "open_contents",
    "open_sink",
    "open_source",
    "parse_file",
]

#: kinds of files that may have more than one array
WITH_MEMBERS = ("npz", "hdf5", "netcdf", "mat", "zarr", "parquet", "arrow")
_OF_CSV = ("dtype", "columns", "delimiter", "header", "missing", "comment", "decimal")


@dataclass(frozen=True)
class File:
    """A file with an array."""

    path: str
    kind: str  # one of KINDS
    member: str = ""


@dataclass(frozen=True)
class Options:
    """What a file does not say about its array."""

    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] | None = None
    order: Order | None = None
    offset: int | None = None
    columns: list[str] = field(default_factory=list)
    delimiter: str | None = None
    header: bool | None = None
    missing: str | None = None  # what is read for a missing value
    external: bool = False  # follow references of the file to other files
    comment: str | None = None  # with which comments begin
    decimal: str | None = None  # between the digits of a number


def parse_file(text: str, raw: bool = False, new: bool = False) -> File:
    """Return the meaning of FILE, or FILE:NAME.

    Parameters
    ----------
    text : str
    raw : bool
        The user says the dtype: a file of no other kind is raw bytes.
    new : bool
        The file is to be written: only its suffix says its kind.

    Raises
    ------
    click.UsageError
        The kind is unknown.
    """

    def kind_of_path(path: str) -> str | None:
        return kind_of_name(path) if new else kind_of(path, raw=raw)

    colons = [i for i, character in enumerate(text) if character == ":" and i]
    if not os.path.lexists(text):
        # names may have colons: the longest path that exists, else the shortest with a known suffix
        exist = [i for i in reversed(colons) if os.path.lexists(text[:i])]
        for i in exist or colons:
            kind = kind_of_path(text[:i])
            kind = "hdf5" if kind == "h5ad" else kind
            if kind in WITH_MEMBERS:
                return File(text[:i], str(kind), text[i + 1 :])
    kind = kind_of_path(text) or ("raw" if raw else None)
    if kind is None:
        known = ", ".join(suffix for suffixes in KINDS.values() for suffix in suffixes)
        raise click.UsageError(
            f"{text!r} has none of the known suffixes of files: {known}"
            + ("" if new else "; and its bytes do not say what it is")
        )
    return File(text, kind)


def _delimiter(file: File, options: Options) -> str:
    usual = ";" if options.decimal == "," else ","
    return options.delimiter or ("\t" if file.path.lower().endswith(".tsv") else usual)


def open_source(file: File, options: Options) -> Source:
    """Open a file, to read its array.

    Raises
    ------
    click.UsageError
        An option is not for such files, or one is missing.
    Failure, OSError
        It cannot be read.
    """
    check_options(file, options)
    if file.kind == "raw" and options.dtype is None:
        raise click.UsageError(f"{file.path!r} has raw bytes: they need --dtype, maybe --shape")
    identity = _identity(file)
    if file.kind in ("netcdf", "mat", "parquet", "arrow"):
        return _member_source(file, options, identity)
    if file.kind == "npy":
        return npy_source(file.path, identity)
    if file.kind == "h5ad":
        raise Failure(f"{file.path} is imported as a sparse matrix: its X")
    if file.kind == "daf":
        return daf_source(file.path, identity)
    if file.kind == "npz":
        return npz_source(file.path, file.member, identity)
    if file.kind == "hdf5":
        return hdf5_source(file.path, file.member, options.external, identity)
    if file.kind == "zarr":
        return zarr_source(file.path, file.member, options.external, identity)
    if file.kind == "csv":
        delimiter = _delimiter(file, options)
        decimal = options.decimal or "."
        if len({delimiter, decimal, options.comment}) < 3:
            raise click.UsageError(
                f"--delimiter {delimiter!r}, --decimal {decimal!r} and --comment must be different"
            )
        return CsvSource(
            file.path,
            delimiter,
            options.columns,
            options.dtype,
            options.header,
            identity,
            options.missing,
            options.comment,
            decimal,
            options.delimiter is not None,
        )
    assert options.dtype is not None
    return raw_source(
        file.path,
        options.dtype,
        options.shape,
        options.order or "C",
        options.offset or 0,
        identity,
    )


def _identity(file: File) -> dict[str, Any]:
    """Return what identifies an existing file.

    Raises
    ------
    Failure, OSError
        It cannot be read.
    """
    state = os.stat(file.path)
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        raise Failure(f"{file.path} is not a regular file: write its data into one first")
    identity: dict[str, Any] = {"file": file.path, "kind": file.kind}
    if file.kind != "zarr":  # what is a folder
        identity.update(size=state.st_size, changed=state.st_mtime_ns)
    return identity


def open_contents(file: File, options: Options) -> Contents:
    """Open a file, to read all of it, or a group in it.

    Raises
    ------
    click.UsageError
        An option is not for such files.
    Failure, OSError
        It cannot be read; it has one array only.
    """
    check_options(file, options)
    identity = _identity(file)
    if file.kind == "hdf5":
        return hdf5_contents(file.path, file.member, options.external, identity)
    if file.kind == "zarr":
        return zarr_contents(file.path, file.member, options.external, identity)
    if file.member or file.kind not in WITH_MEMBERS:
        what = f"{file.path}:{file.member}" if file.member else file.path
        raise click.UsageError(
            f"the URL does not name an array, and {what} is one: add #name, as in data.fs#name"
        )
    if file.kind == "npz":
        return npz_contents(file.path, identity)
    return _contents(file, options, identity)


def _contents(file: File, options: Options, identity: dict[str, Any]) -> Contents:
    """Return the contents of a file that is read by them only."""
    if file.kind == "netcdf":
        return netcdf_contents(file.path, identity)
    if file.kind == "mat":
        return mat_contents(file.path, identity)
    return column_contents(file.path, file.kind, options.missing, identity)


def _member_source(file: File, options: Options, identity: dict[str, Any]) -> Source:
    """Return an array of a file that is known by its contents only."""
    contents = _contents(file, options, identity)
    try:
        member = member_named(contents, file.member)
        assert member.open is not None
        source = member.open()
        if contents.arrays == [member] and file.kind in ("parquet", "arrow"):
            # an array that was exported as one column: its attributes are those of the file
            source.attrs = {**contents.members[0].attrs, **source.attrs}
        return Viewed(source, source.layout, contents.close)
    except BaseException:
        contents.close()
        raise


def check_options(file: File, options: Options, new: bool = False) -> None:
    """Check that the given options are for such files.

    Parameters
    ----------
    file : File
    options : Options
    new : bool
        The file is to be written.

    Raises
    ------
    click.UsageError
        One of them is not.
    """
    allowed = {
        "raw": ("dtype", "shape", "order", "offset"),
        "csv": ("delimiter",) if new else _OF_CSV,
        "parquet": ("columns",) if new else ("missing",),
        "arrow": ("columns",) if new else ("missing",),
        "hdf5": ("external",),
        "zarr": ("external",),
    }.get(file.kind, ())
    for name, value in vars(options).items():
        # not ==: to NumPy, f8 is equal to None
        given = bool(value) if name in ("columns", "external") else value is not None
        if given and name not in allowed:
            raise click.UsageError(f"--{name} is not for {file.kind} files such as {file.path!r}")


def named(file: File, key: str) -> File:
    """Return a file that is to be written, with the name that the array has in it.

    Parameters
    ----------
    file : File
    key : str
        Of the array in the database, from which a name is made if one is needed.

    Raises
    ------
    click.UsageError
        The user gave a name that is not valid.
    """
    if file.kind in ("parquet", "arrow"):
        if file.member:
            raise click.UsageError(
                f"{file.path}:{file.member}: a column has the name of the array, or of its field"
            )
        return replace(file, member=name_in_group(key))
    if file.member:
        return replace(file, member=check_name(file.kind, file.member))
    # a Zarr folder may be an array
    return replace(file, member=name_of_key(key)) if file.kind in ("npz", "hdf5") else file


def open_sink(
    file: File,
    path: str,
    layout: Layout,
    options: Options,
    resume: bool,
    attrs: Mapping[str, Any] = MappingProxyType({}),
    column_attrs: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Sink:
    """Return a sink that writes an array to a file.

    Parameters
    ----------
    file : File
        See named().
    path : str
        Where it is written until it is complete.
    layout : Layout
    options : Options
        Only the delimiter and the columns matter.
    resume : bool
        A part is there already, to go on with.
    attrs : mapping
        Attributes that the array has; set_attrs() writes them.
    column_attrs : mapping
        Field -> its attributes, for files that have columns.

    Raises
    ------
    Failure
        Such a file cannot have such an array.
    """
    if file.kind in ("npy", "raw"):
        return FlatSink(path, layout, file.kind == "npy")
    if file.kind == "npz":
        return NpzSink(path, layout, file.member)
    if file.kind == "hdf5":
        return hdf5_sink(path, layout, file.member, attrs)
    if file.kind == "zarr":
        return zarr_sink(path, layout, file.member, resume, attrs)
    if file.kind == "h5ad":
        raise Failure(f"{file.path} takes a sparse matrix, and this is an array: see .h5")
    if file.kind in ("parquet", "arrow"):
        return ColumnSink(
            path, file.kind, layout, file.member, options.columns, attrs, column_attrs
        )
    if file.kind != "csv":
        raise Failure(f"{file.path}: {file.kind} files are imported only; see .h5, .nc or .npy")
    return CsvSink(path, layout, _delimiter(file, options))
