"""ZSparse: a sparse matrix in compressed rows (CSR), as three arrays of a database.

    data      the numbers that are stored, row after row
    indices   their columns; they ascend within a row, and none is there twice
    indptr    [0, ...]: row i is data[indptr[i] : indptr[i + 1]]; it is written last

As rows are sorted, SciPy has no reason to sort them in place, which would change the database. The
last number of indptr says how many numbers there are: if an append fails in the middle, the matrix
is as it was, and `data` and `indices` have some room behind it.

It knows arrays and SciPy; where rows come from is in `sources`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray
from ZODB.POSException import ConnectionStateError
from ZODB.utils import oid_repr, z64

from wendelin.bigarray import BigArray, workers
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigarray.holders import ArrayHolder
from wendelin.lib.references import object_at, reference_to
from wendelin.lib.zodb import (
    zconn_is_open,
    zobj_is_committed,
)
from wendelin.sparse.files import save
from wendelin.sparse.sources import Rows, rows_of, scipy_sparse

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

__all__ = ["ZSparse", "check_dtypes", "sparse_at"]

_CHECKED = 1 << 20  # elements at a time

_STEP = 16 << 20  # appended at a time [bytes]


def sparse_at(url: str, oid: bytes, tid: bytes) -> ZSparse:
    """Return a ZSparse as it was at a tid: of a database that a process opens once.

    Raises
    ------
    TypeError, ZODB.POSException.POSKeyError, ValueError, OSError
        See object_at().
    """
    workers.arrived()
    with object_at((url, oid, tid), ZSparse) as S:
        S.keep_alive()
        return S


def check_dtypes(dtype: DTypeLike, index_dtype: DTypeLike) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return the dtypes of numbers and of indices, if SciPy takes them without a copy.

    Raises
    ------
    TypeError
        It does not.
    """
    data, index = np.dtype(dtype), np.dtype(index_dtype)
    if data.kind not in "biufc" or data == np.float16 or not data.isnative:
        raise TypeError(
            f"dtype {data} is not one of SciPy's sparse matrices: they have bool, int, float32, "
            f"float64 or complex numbers, in the byte order of the machine"
        )
    if index not in (np.int32, np.int64):
        raise TypeError(
            f"index_dtype {index} is not int32 or int64: SciPy would copy all indices each time"
        )
    return data, index


class ZSparse(ArrayHolder):
    """A sparse matrix of compressed rows, persistent: commit saves, abort discards.

    It is made, filled and used so::

        root["S"] = S = ZSparse.csr((0, 30_000), "f4")
        transaction.commit()
        S.append_rows(matrix)           # of scipy.sparse, or a file: see append_rows()
        S[:] @ v                        # S[:] is a csr_array over views, without a copy

    A change of numbers, `S[:].data *= 2`, is a change of the database. Which elements are stored
    does not change through S[:]: SciPy makes new arrays for that. Pickled for another process, it
    is a reference to the committed state.

    Attributes
    ----------
    data, indices, indptr : ZBigArray
        As SciPy has them. `data` and `indices` may be longer than `nnz`.
    """

    _came = "rows were appended to a ZSparse"

    data: ZBigArray
    indices: ZBigArray
    indptr: ZBigArray
    _columns: int

    @classmethod
    def csr(
        cls,
        shape: Iterable[SupportsIndex],
        dtype: DTypeLike,
        index_dtype: DTypeLike = np.int64,
        blksize: int = 2 * 1024 * 1024,
    ) -> ZSparse:
        """Return a new matrix, of zeros.

        Parameters
        ----------
        shape : (int, int)
            Rows, which append_rows() adds to, and columns.
        dtype : data-type
            Of the numbers.
        index_dtype : {int64, int32}
            Of `indices` and `indptr`: one for both, as SciPy copies them otherwise. With int32
            there are fewer than 2**31 rows, columns and numbers.
        blksize : int
            See ZBigArray.

        Raises
        ------
        TypeError, ValueError
            The shape is not one of a matrix; SciPy has no matrices of these dtypes.
        """
        self = cls()
        dtype, index = check_dtypes(dtype, index_dtype)
        found = BigArray._check_shape(tuple(shape))
        if len(found) != 2:
            raise ValueError(f"shape is {found}: a matrix has two axes")
        if max(found) > np.iinfo(index).max:
            raise ValueError(
                f"shape is {found}: with index_dtype {index}, rows and columns are at most "
                f"{np.iinfo(index).max}; int64 has room for more"
            )
        self._columns = found[1]
        self.data = ZBigArray((0,), dtype, blksize=blksize)
        self.indices = ZBigArray((0,), index, blksize=blksize)
        self.indptr = ZBigArray((found[0] + 1,), index, blksize=blksize)
        return self

    @classmethod
    def of_arrays(
        cls, shape: tuple[int, int], data: ZBigArray, indices: ZBigArray, indptr: ZBigArray
    ) -> ZSparse:
        """Return the matrix that has these arrays, which are not copied.

        Raises
        ------
        TypeError, ValueError
            They are not those of a matrix of this shape.
        """
        self = cls.csr(shape, data.dtype, indices.dtype)
        rows, columns, n = *shape, data.size
        if (
            indptr.dtype != indices.dtype
            or data.dtype != self.data.dtype
            or indices.dtype != self.indices.dtype
            or (data.shape, indices.shape, indptr.shape) != ((n,), (n,), (rows + 1,))
        ):
            raise ValueError(f"{data!r}, {indices!r}, {indptr!r} are not a matrix of {shape}")
        last = 0
        for start in range(0, rows + 1, _CHECKED):
            ends = indptr.read(slice(start, start + _CHECKED)).astype(np.int64)
            if np.any(np.diff(ends, prepend=last) < 0) or (start == 0 and ends[0] != 0):
                raise ValueError(f"{indptr!r} does not ascend from 0")
            last = int(ends[-1])
        if last != n:
            raise ValueError(f"{indptr!r} ends with {last}, and there are {n} numbers")
        for start in range(0, n, _CHECKED):
            found = indices.read(slice(start, start + _CHECKED))
            if found.min() < 0 or found.max() >= columns:
                raise ValueError(f"{indices!r} has numbers outside of {columns} columns")
        self.data, self.indices, self.indptr = data, indices, indptr
        return self

    # ---- what it is ----

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.indptr.shape[0]) - 1, self._columns

    @property
    def ndim(self) -> int:
        """Number of axes: 2."""
        return 2

    @property
    def format(self) -> str:
        """'csr': rows are compressed."""
        return "csr"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a number."""
        return self.data.dtype

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """Type of indices."""
        return self.indices.dtype

    @property
    def nnz(self) -> int:
        """How many numbers are stored."""
        self._check_live()
        return int(self.indptr[-1])

    @property
    def nbytes(self) -> int:
        """Size of numbers and indices [bytes]."""
        each = self.dtype.itemsize + self.index_dtype.itemsize
        return self.nnz * each + int(self.indptr.nbytes)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __bool__(self) -> bool:
        raise TypeError("a matrix has no truth value: S.nnz, or S.shape, may be meant")

    def __iter__(self) -> Any:
        raise TypeError(f"{self!r} is not iterated over: S.rows(i, j) has many rows at a time")

    # ---- reading ----

    def __getitem__(self, idx: Any) -> Any:
        """Return rows `S[i:j]` as a csr_array without a copy; `S[:]` is all of them.

        For any other index, it returns what `S[:]` of SciPy gives for it.

        Raises
        ------
        ImportError
            SciPy is not installed.
        """
        if isinstance(idx, slice) and idx.step in (None, 1):
            start, stop, _ = idx.indices(len(self))
            return self.rows(start, max(start, stop))
        return self[:][idx]

    def rows(self, start: int, stop: int) -> csr_array:
        """Return rows [start, stop): numbers and columns are views.

        Where they begin is copied, a number for each row, unless start is 0.

        Raises
        ------
        IndexError
            There are no such rows.
        ImportError
            SciPy is not installed.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows [{start}, {stop}) are not in a matrix of {len(self)} rows")
        data, indices, indptr = self._csr(start, stop)
        return self._of(scipy_sparse().csr_array, data, indices, indptr, len(indptr) - 1)

    @property
    def T(self) -> csc_array:
        """The transposed matrix, a csc_array over the same views."""
        data, indices, indptr = self._csr(0, len(self))
        return self._of(scipy_sparse().csc_array, data, indices, indptr, len(indptr) - 1)

    def _csr(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return data, indices and indptr of rows, as views where they can be."""
        self._check_live()
        indptr = self.indptr[start : stop + 1]
        first, end = int(indptr[0]), int(indptr[-1])
        if start:
            indptr = indptr - indptr[:1]
        return self.data[first:end], self.indices[first:end], indptr

    def _of(self, cls: Any, data: Any, indices: Any, indptr: Any, rows: int) -> Any:
        columns = self._columns
        shape = (rows, columns) if cls.__name__.startswith("csr") else (columns, rows)
        made = cls((data, indices, indptr), shape=shape, copy=False)
        made.has_canonical_format = True  # else SciPy reads all indices to find out
        return made

    # ---- writing ----

    def append_rows(self, rows: Any) -> None:
        """Append rows: elements are copied, in steps, and sorted within rows.

        Parameters
        ----------
        rows : matrix of scipy.sparse, ZSparse, ndarray, group of h5py, or path of .npz or .h5ad
            Of as many columns. A group, or the group X of an .h5ad file, is one that AnnData wrote
            in compressed rows. An .npz is one of scipy.sparse.save_npz().

        Raises
        ------
        ValueError
            It has another number of columns; index_dtype has no room for its rows or numbers; it
            is damaged.
        TypeError
            It is not a matrix, or its numbers do not fit into the dtype.
        ImportError
            SciPy or h5py is needed, and not installed.
        ConnectionStateError
            The matrix does not belong to a Connection yet.
        """
        self._check_live()
        with rows_of(rows) as source:
            self.append_in_steps(source, _STEP)

    def append_in_steps(
        self, source: Rows, step: int, after: Callable[[int, int], None] = lambda rows, size: None
    ) -> None:
        """Append rows; call `after` with (rows so far, bytes of this step), to commit, say.

        Before the end, the matrix has rows of zeros behind those.
        """
        self._check_live()
        if source.shape[1] != self._columns:
            raise ValueError(
                f"rows of {source.shape[1]} columns cannot be appended to {self!r}, which has "
                f"{self._columns}"
            )
        if not np.can_cast(source.dtype, self.dtype, "same_kind"):
            raise TypeError(f"numbers of {source.dtype} cannot be appended to {self!r}")
        row, at = len(self), self.nnz
        most = np.iinfo(self.index_dtype).max
        if row + source.shape[0] > most or at + source.nnz > most:
            raise ValueError(
                f"{self!r} has no room for {source.shape[0]} rows with {source.nnz} numbers more: "
                f"with index_dtype {self.index_dtype}, there are at most {most}"
            )
        rows, used = row, at
        try:
            self.indptr.resize((row + source.shape[0] + 1,))
            for array in self.data, self.indices:
                array.resize((at + source.nnz,))
            for batch in source.batches(step):
                n, end = batch.shape[0], at + len(batch.data)
                self.data[at:end] = batch.data
                self.indices[at:end] = batch.indices
                self.indptr[row + 1 : row + n + 1] = batch.indptr[1:] + at
                row, at = row + n, end
                if self._p_serial == z64:
                    self._v_first_oid = self._p_oid
                after(row - rows, batch.data.nbytes + batch.indices.nbytes)
        except BaseException:
            row, at = rows, used
            raise
        finally:
            self.indptr.resize((row + 1,))
            for array in self.data, self.indices:
                array.resize((at,))  # duplicates were added up

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz as scipy.sparse.save_npz() does, or an .h5ad of AnnData; by the suffix.

        Raises
        ------
        ValueError
            The suffix is another one.
        ImportError
            SciPy or h5py is needed, and not installed.
        """
        save(self, os.fspath(path))

    # ---- persistence ----

    def _check_live(self) -> None:
        """Have the arrays belong to the Connection, as before the first commit they do not.

        Raises
        ------
        ConnectionStateError
            There is none.
        """
        if self._p_jar is None:
            raise ConnectionStateError(
                f"{self!r} can be used once it belongs to a Connection: add it to the database and "
                f"commit (root['S'] = S; transaction.commit()), or conn.add(S)"
            )
        for array in self.data, self.indices, self.indptr:
            if array._p_jar is None:
                self._p_jar.add(array)

    def keep_alive(self) -> None:
        """Load the arrays, and stay loaded: for threads that may not load objects."""
        self._v_live = True
        for array in self.data, self.indices, self.indptr:
            array._fileh()

    def __reduce__(self) -> tuple[Any, tuple[str, bytes, bytes]]:
        """Be pickled as a reference. A database asks __getstate__() instead.

        Raises
        ------
        pickle.PicklingError
            There are changes that are not committed.
        NotImplementedError
            No URL names the database: see zstor_2zurl().
        """
        arrays = (self.data, self.indices, self.indptr)
        committed = all(map(zobj_is_committed, (self, *arrays)))
        committed = committed and all(array.zfile.is_of_database() for array in arrays)
        return sparse_at, reference_to(self, committed=committed)

    def __repr__(self) -> str:
        conn = self._p_jar
        if conn is not None and not zconn_is_open(conn):
            return f"<closed ZSparse {oid_repr(self._p_oid)}>"
        rows, columns = self.shape
        return f"<ZSparse {rows} × {columns} {self.dtype}, csr>"
