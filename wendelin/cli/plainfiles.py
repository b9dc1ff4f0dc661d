"""Sparse matrices from and to files, and plain files of arrays and matrices: see files.daf.

Such an export, or import, does not go on where it was interrupted: it begins again. A matrix is
complete, or not there.

This module knows matrices and such files. How an array is read, it does not know.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import transaction
from persistent.mapping import PersistentMapping

from wendelin.cli.address import Address
from wendelin.cli.arrays import ArraySource
from wendelin.cli.committing import in_steps, step_done
from wendelin.cli.errors import Failure, explain
from wendelin.cli.files import File
from wendelin.cli.files.base import Layout, Source
from wendelin.cli.files.daf import check_dtype, daf_files, daf_matrix, read_yaml, unfinished_path
from wendelin.cli.files.flat import FlatSink
from wendelin.cli.matrices import StoredMatrix
from wendelin.cli.output import Advance
from wendelin.cli.stored import class_of
from wendelin.cli.transfer import Place, element_ranges
from wendelin.sparse import ZSparse
from wendelin.sparse.files import save
from wendelin.sparse.sources import Rows, compressed, rows_of

__all__ = ["export_matrix", "export_plain", "has_matrix", "import_matrix"]

_OF_MATRICES = {"npz", "h5ad", "daf"}


def has_matrix(file: File) -> bool:
    """Say whether a file can only be a sparse matrix.

    Raises
    ------
    Failure, OSError
        It is a .yaml that cannot be read.
    """
    return file.kind == "h5ad" or (file.kind == "daf" and read_yaml(file.path).nnz is not None)


def export_matrix(
    matrix: StoredMatrix, file: File, address: Address, force: bool, step: int, tell: Advance
) -> None:
    """Write a matrix into .npz, .h5ad or plain files.

    Raises
    ------
    Failure, OSError
        Such a file cannot have it, or cannot be written.
    """
    if file.kind not in _OF_MATRICES:
        raise Failure(
            f"{address} is a sparse matrix: it is written into .npz, .h5ad, or the files of a .yaml"
        )
    for array in matrix.arrays.values():
        array._fileh().file.verify = True  # what is copied is as it was stored
    if file.kind != "daf":
        try:
            save(matrix, file.path)
        except (ImportError, ValueError) as e:
            raise Failure(str(e)) from e
        tell(matrix.nbytes)
        return
    with daf_files(file.path, force) as facts:
        for name, array in matrix.arrays.items():
            source = ArraySource(array, {})
            facts[f"{name}_dtype"] = _write_plain(
                source, unfinished_path(file.path, name), step, tell
            )
        facts["shape"] = str(list(matrix.shape))
        facts["nnz"] = str(matrix.nnz)


def export_plain(source: Source, file: File, force: bool, step: int, tell: Advance) -> None:
    """Write an array, in C order, into NAME.array and NAME.yaml.

    Raises
    ------
    Failure, OSError
        Such files cannot have it, or cannot be written.
    """
    shape = source.layout.shape
    if not 1 <= len(shape) <= 2:
        raise Failure(
            f"the array has {len(shape)} axes: such files have one or two; .npy has any number"
        )
    with daf_files(file.path, force) as facts:
        facts["dtype"] = _write_plain(source, unfinished_path(file.path, "array"), step, tell)
        facts["shape"] = str(list(shape))


def _write_plain(source: Source, path: str, step: int, tell: Advance) -> str:
    """Write the elements of an array in their order; return the name of their dtype."""
    dtype = check_dtype(source.layout.dtype, path)
    sink = FlatSink(path, Layout(source.layout.shape, dtype, "C"), npy=False)
    itemsize = dtype.itemsize
    try:
        done = 0
        for start, stop in element_ranges(source, 0, step):
            if start >= stop:
                pass
            elif isinstance(source, ArraySource) and sink.has_bytes_of(source.layout):
                source.copy_to(sink, start, stop)
            else:
                sink.write(start, source.read(start, stop))
            tell((stop - done) * itemsize)
            done = stop
        sink.finish()
    finally:
        sink.close()
    return dtype.name


def import_matrix(
    root: Any, address: Address, file: File, replace: bool, step: int, tell: Advance
) -> ZSparse:
    """Make a ZSparse of an .npz, .h5ad, or the files of a .yaml, in transactions of some rows.

    Raises
    ------
    Failure, OSError
        It cannot be read; another object is there.
    """
    if file.kind not in _OF_MATRICES:
        raise Failure(
            f"{file.path} is not a sparse matrix: they are in .npz, .h5ad, and files of a .yaml"
        )
    place = Place(root, address)
    there = place.obj
    if there is not None and not (replace and isinstance(there, ZSparse)):
        also = "" if not isinstance(there, ZSparse) else ": --replace replaces it with the new one"
        raise Failure(f"{address} exists already: it is a {class_of(there)}{also}")
    with ExitStack() as stack:
        try:
            source, index = _opened(file, stack)
            S = ZSparse.csr((0, source.shape[1]), source.dtype.newbyteorder("="), index)
            place.progress = PersistentMapping(source={"kind": "matrix"}, done=0, array=S)
            step_done(repr(address.path[-1]), "begun", make=True)

            def after(rows: int, size: int) -> None:
                step_done(repr(address.path[-1]), f"{rows} rows")
                tell(size)

            S.append_in_steps(source, step, after)
            place.obj = S
            place.progress = None
            step_done(repr(address.path[-1]), "complete")
        except (Exception, KeyboardInterrupt) as e:
            with suppress(Exception):
                transaction.abort()
                if in_steps():
                    place.progress = None
                    step_done(repr(address.path[-1]), "given up")
            if isinstance(e, Failure | OSError):
                raise
            then = "the same command begins again" if in_steps() else "nothing was imported"
            raise Failure(f"{explain(e)}: {then}") from e
    return S


def _opened(file: File, stack: ExitStack) -> tuple[Rows, Any]:
    """Return the rows of a file, and the dtype of indices for them."""
    os.stat(file.path)
    if file.kind != "daf":
        return stack.enter_context(rows_of(file.path)), np.dtype(np.int64)
    shape, arrays = daf_matrix(file.path)
    rows = compressed(shape, arrays["data"], arrays["indices"], arrays["indptr"], file.path)
    small = all(arrays[name].dtype.itemsize <= 4 for name in ("indices", "indptr"))
    return rows, np.dtype(np.int32 if small and max(shape) < 1 << 31 else np.int64)
