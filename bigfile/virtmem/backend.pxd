"""See backend.pyx."""

from wendelin.bigfile.virtmem.page cimport Source


cdef class BigFile:
    cdef object __weakref__
    cdef readonly Py_ssize_t blksize


cdef int source_from(found, size_t blksize, Source *source) except -1
