"""Sparse matrices, written as files of SciPy and of AnnData.

An .h5ad has the matrix as X, with numbers for the names of rows and columns. What is written is
NAME.PROCESS-THREAD.part~ until it is complete.

It knows formats of others; of a matrix, that it has rows, and three arrays.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from wendelin.sparse.sources import scipy_sparse

__all__ = ["Matrix", "save"]

_STEP = 1 << 20  # elements written at a time


class Matrix(Protocol):
    """A matrix in compressed rows: a ZSparse, or one that is read as data."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def nnz(self) -> int:
        """How many numbers there are."""

    @property
    def data(self) -> Any:
        """The numbers."""

    @property
    def indices(self) -> Any:
        """Their columns."""

    @property
    def indptr(self) -> Any:
        """Where rows end."""


def save(matrix: Matrix, path: str) -> None:
    """Write a matrix into a file: see ZSparse.save()."""
    writers: dict[str, Callable[[Matrix, str], None]] = {".npz": _npz, ".h5ad": _h5ad}
    writer = writers.get(os.path.splitext(path)[1].lower())
    if writer is None:
        raise ValueError(f"{path!r} has none of the suffixes of sparse matrices: .npz, .h5ad")
    # of this call alone: another one may save to the same path meanwhile
    unfinished = f"{path}.{os.getpid()}-{threading.get_ident()}.part~"
    try:
        writer(matrix, unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise


def _npz(matrix: Matrix, path: str) -> None:
    with open(path, "wb") as file:
        sparse, nnz = scipy_sparse(), matrix.nnz
        arrays = (matrix.data[:nnz], matrix.indices[:nnz], matrix.indptr[:])
        found = sparse.csr_array(arrays, shape=matrix.shape, copy=False)
        sparse.save_npz(file, found, compressed=False)


def _h5ad(matrix: Matrix, path: str) -> None:
    try:
        import h5py
    except ImportError as e:
        raise ImportError(
            "h5py is needed to write .h5ad, but not installed: pip install 'wendelin.core[hdf5]'"
        ) from e
    nnz = matrix.nnz
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        X = file.create_group("X")
        X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        X.attrs["shape"] = np.array(matrix.shape, np.int64)
        for name, size in ("data", nnz), ("indices", nnz), ("indptr", matrix.shape[0] + 1):
            array = getattr(matrix, name)
            _written(X, name, size, array.dtype, lambda i, j, array=array: array[i:j])
        text = h5py.string_dtype()
        for name, size in zip(("obs", "var"), matrix.shape, strict=True):
            frame = file.create_group(name)
            frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
            frame.attrs["_index"] = "_index"
            frame.attrs.create("column-order", np.array([], text), dtype=text)
            index = _written(frame, "_index", size, text, lambda i, j: [*map(str, range(i, j))])
            index.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


def _written(group: Any, name: str, size: int, dtype: Any, batch: Callable[..., Any]) -> Any:
    """Return a new 1-d dataset, written batch by batch."""
    dataset = group.create_dataset(name, (size,), dtype)
    for start in range(0, size, _STEP):
        stop = min(size, start + _STEP)
        dataset[start:stop] = np.array(batch(start, stop), None if dtype.kind == "O" else dtype)
    return dataset
