"""Sparse matrices of a database, read as data: a ZSparse is three arrays, shown as one thing.

This module knows the state of a ZSparse, but not SciPy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from wendelin.cli.stored import Stored, StoredArray, attributes
from wendelin.lib.storage.record import RecordError, Ref

__all__ = ["StoredMatrix", "is_matrix", "matrix_of"]

_CLASS = "wendelin.sparse.sparse.ZSparse"
_ARRAYS = ("data", "indices", "indptr")


class StoredMatrix(NamedTuple):
    """A ZSparse, to be read."""

    oid: bytes
    tid: bytes
    cls: str
    columns: int
    data: StoredArray
    indices: StoredArray
    indptr: StoredArray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.indptr.shape[0] - 1, self.columns

    @property
    def nnz(self) -> int:
        """How many numbers there are."""
        return self.data.shape[0]

    @property
    def arrays(self) -> dict[str, StoredArray]:
        """The arrays, by their names."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @property
    def nbytes(self) -> int:
        """Size of the arrays [bytes]."""
        return sum(array.nbytes for array in self.arrays.values())

    def as_dict(self) -> dict[str, Any]:
        """Return what it is, of plain values."""
        return {
            "shape": list(self.shape),
            "dtype": self.data.dtype.str,
            "index_dtype": self.indices.dtype.str,
            "order": "csr",
            "nnz": self.nnz,
        }


def is_matrix(obj: Any) -> bool:
    """Say whether an object is a ZSparse."""
    return isinstance(obj, Stored) and obj.cls == _CLASS


def matrix_of(obj: Any) -> StoredMatrix:
    """Return the matrix that an object is: see is_matrix().

    Raises
    ------
    RecordError
        It is damaged.
    """
    found = dict(attributes(obj))
    refs = [found.get(name) for name in _ARRAYS]
    arrays = [obj.database.get(ref) for ref in refs if isinstance(ref, Ref)]
    columns = found.get("_columns")
    ok = (
        isinstance(columns, int)
        and len(arrays) == 3
        and all(isinstance(array, StoredArray) and array.ndim == 1 for array in arrays)
        and arrays[0].shape == arrays[1].shape
        and arrays[1].dtype == arrays[2].dtype
        and arrays[1].dtype in (np.int32, np.int64)
        and arrays[2].shape[0] > 0
    )
    if not ok:
        raise RecordError(f"object 0x{obj.oid.hex()} is a damaged ZSparse")
    return StoredMatrix(obj.oid, obj.tid, obj.cls, int(str(columns)), *arrays)
