"""Rows of sparse matrices, in batches that fit into memory: of SciPy, .npz, .h5ad and HDF5 groups.

A batch is a csr_array whose rows are sorted and have no column twice. What is not in memory is read
batch by batch, and is not trusted: columns and row ends are checked before they are used.

It knows formats of others, and no database. SciPy and h5py are imported where they are needed.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wendelin.bigarray.meaning import elements_of

__all__ = ["Rows", "compressed", "is_matrix", "rows_of", "scipy_sparse"]


def scipy_sparse() -> Any:
    """Return scipy.sparse.

    Raises
    ------
    ImportError
        SciPy is not installed; the message says how to install it.
    """
    try:
        from scipy import sparse
    except ImportError as e:
        raise ImportError(
            "SciPy is needed for sparse matrices, but not installed: "
            "pip install 'wendelin.core[sparse]'"
        ) from e
    return sparse


def is_matrix(value: Any) -> bool:
    """Say whether a value is a sparse matrix of SciPy, which is not imported for that."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(value)) and value.ndim == 2


class Rows(NamedTuple):
    """Rows to be read."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    nnz: int
    batches: Callable[[int], Iterator[Any]]  # [bytes] at a time -> csr_array, row after row


@contextmanager
def rows_of(source: Any) -> Iterator[Rows]:
    """Open what ZSparse.append_rows() takes.

    Raises
    ------
    ValueError
        It is damaged.
    TypeError
        It is not a matrix.
    ImportError
        A package is not installed.
    """
    with ExitStack() as stack:
        if isinstance(source, str | os.PathLike):
            path = os.fspath(source)
            source = _npz(path, stack) if path.endswith(".npz") else _h5ad(path, stack)
        # AnnData's backed matrix has its group, of h5py or zarr
        source = getattr(source, "group", source)
        if isinstance(source, Rows):
            yield source
        elif hasattr(source, "keys") and hasattr(source, "attrs"):
            yield _group(source)
        elif all(hasattr(source, name) for name in ("index_dtype", "indptr", "rows")):
            yield compressed(source.shape, source.data, source.indices, source.indptr, repr(source))
        else:
            yield _in_memory(source)


def _in_memory(source: Any) -> Rows:
    sparse = scipy_sparse()
    if not sparse.issparse(source):
        source = np.asarray(elements_of(source))
    if getattr(source, "ndim", 0) != 2 or source.dtype.kind not in "biufc":
        raise TypeError(
            f"rows are a matrix of two axes, and this is {type(source).__name__} of shape "
            f"{getattr(source, 'shape', ())} and dtype {getattr(source, 'dtype', '?')}"
        )
    matrix = sparse.csr_array(source)
    return compressed(matrix.shape, matrix.data, matrix.indices, matrix.indptr, "the matrix")


def compressed(shape: Any, data: Any, indices: Any, indptr: Any, name: str) -> Rows:
    """Return the rows of three arrays, which may be any that are sliced.

    Raises
    ------
    ValueError
        Their shapes are not those of a matrix.
    """
    rows, columns = (int(n) for n in shape)
    if indptr.shape != (rows + 1,):
        raise ValueError(f"{name}: indptr has shape {indptr.shape}, and there are {rows} rows")
    nnz = int(indptr[-1])
    if int(indptr[0]) != 0 or not 0 <= nnz <= min(data.shape[0], indices.shape[0]):
        raise ValueError(
            f"{name}: indptr goes from {indptr[0]} to {nnz}, and there are {data.shape[0]} numbers "
            f"and {indices.shape[0]} columns"
        )

    def batches(step: int) -> Iterator[Any]:
        each = max(1, step // (data.dtype.itemsize + indices.dtype.itemsize))
        for start in range(0, rows, each):
            ends = np.asarray(indptr[start : min(rows, start + each) + 1]).astype(np.int64)
            if np.any(np.diff(ends) < 0) or ends[0] < 0 or ends[-1] > nnz:
                raise ValueError(f"{name}: indptr does not ascend in rows from {start} on")
            at = 0
            while at < len(ends) - 1:
                stop = int(np.searchsorted(ends, ends[at] + each, "right")) - 1
                stop = min(max(stop, at + 1), len(ends) - 1)
                low, high = int(ends[at]), int(ends[stop])
                found = np.asarray(indices[low:high]).astype(np.int64)
                if len(found) and not (found.min() >= 0 and found.max() < columns):
                    raise ValueError(
                        f"{name}: rows {start + at} to {start + stop} have columns from "
                        f"{found.min()} to {found.max()}, and there are {columns}"
                    )
                yield _batch(np.array(data[low:high]), found, ends[at : stop + 1] - low, columns)
                at = stop

    return Rows((rows, columns), np.dtype(data.dtype), nnz, batches)


def _batch(data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], columns: int) -> Any:
    """Return a csr_array, sorted and without duplicates."""
    if not data.dtype.isnative:
        data = data.astype(data.dtype.newbyteorder("="))
    shape = (len(indptr) - 1, columns)
    batch = scipy_sparse().csr_array((data, indices, indptr), shape=shape)
    batch.sum_duplicates()
    return batch


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _group(group: Any) -> Rows:
    """Return the rows of a group that AnnData wrote."""
    name = f"group {getattr(group, 'name', '')} of {getattr(group, 'file', group)!r:.200}"
    kind = _text(group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", "nothing")))
    if kind not in ("csr_matrix", "csr"):
        raise ValueError(
            f"{name} is {kind}: rows are taken from a csr_matrix; of others, AnnData reads them"
        )
    shape = group.attrs["shape" if "shape" in group.attrs else "h5sparse_shape"]
    return compressed(shape, group["data"], group["indices"], group["indptr"], name)


def _h5ad(path: str, stack: ExitStack) -> Any:
    try:
        import h5py
    except ImportError as e:
        raise ImportError(
            f"h5py is needed to read {path}, but not installed: pip install 'wendelin.core[hdf5]'"
        ) from e
    file = stack.enter_context(h5py.File(path, "r"))
    if not isinstance(file.get("X"), h5py.Group):
        raise ValueError(
            f"{path} has no sparse matrix X: give a group of it, h5py.File({path!r})[...]"
        )
    return file["X"]


class _Member:
    """A 1-d array in an .npz, read from its beginning to its end.

    It is a compressed stream: of what was passed, only the last element is there again.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str, stack: ExitStack) -> None:
        self._name = f"{name} of {archive.filename}"
        try:
            self._file = stack.enter_context(archive.open(f"{name}.npy"))
            version = np.lib.format.read_magic(self._file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            self.shape, _, self.dtype = read(self._file)
        except (KeyError, ValueError, zipfile.BadZipFile) as e:
            raise ValueError(
                f"{archive.filename} is not a matrix of scipy.sparse.save_npz(): {e}"
            ) from e
        if len(self.shape) != 1 or self.dtype.hasobject:
            raise ValueError(f"{self._name}: an array of shape {self.shape}, {self.dtype}")
        self._at = 0
        self._last: NDArray[Any] = np.empty(0, self.dtype)

    def __getitem__(self, idx: slice) -> NDArray[Any]:
        start, stop, _ = idx.indices(self.shape[0])
        again = self._last if start == self._at - 1 else self._last[:0]
        assert start + len(again) == self._at, (start, self._at)
        size = max(0, stop - self._at) * self.dtype.itemsize
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError(f"{self._name} ends too early")
        found = np.concatenate([again, np.frombuffer(data, self.dtype)])
        self._at = max(self._at, stop)
        if len(found):
            self._last = found[-1:].copy()
        return found


def _npz(path: str, stack: ExitStack) -> Rows:
    """Return the rows of an .npz that scipy.sparse.save_npz() wrote."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except zipfile.BadZipFile as e:
        raise ValueError(f"{path} is not an .npz: {e}") from e
    with np.load(path) as members:
        missing = {"shape", "format", "data"} - set(members)
        if missing:
            raise ValueError(
                f"{path} is not a matrix of scipy.sparse.save_npz(): it has no {min(missing)}"
            )
        kind, shape = _text(members["format"].item()), members["shape"].tolist()
    if kind != "csr":
        return _in_memory(scipy_sparse().load_npz(path))
    if len(shape) != 2:
        raise ValueError(f"{path} has shape {tuple(shape)}: a matrix has two axes")
    with ExitStack() as ends:
        indptr = _Member(archive, "indptr", ends)[:]  # a number for each row
    data, indices = (_Member(archive, name, stack) for name in ("data", "indices"))
    return compressed(shape, data, indices, indptr, path)
