"""Sparse matrices in a database: a scipy.sparse.csr_array over views.

sparse   ZSparse: a persistent matrix, as three arrays
sources  what rows are taken from: matrices, files, groups of HDF5
files    .npz and .h5ad files, written

SciPy is needed for what returns its matrices, and is imported there:
`pip install wendelin.core[sparse]`.
"""

from wendelin.sparse.sources import is_matrix
from wendelin.sparse.sparse import ZSparse

__all__ = ["ZSparse", "is_matrix"]
