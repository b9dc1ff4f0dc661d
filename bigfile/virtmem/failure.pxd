"""See failure.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.page cimport Failure

cdef object load_error(file, uint64_t blk, e)
cdef object failure(file, blk, Failure why, int err, folder=*)
cdef str no_memory(size_t blksize, int err)
cdef str describe(file)
cdef int unraisable(exc, str what) except -1
cdef object unsaid(file, blk)
cdef void raise_unsaid(unsigned long ident) noexcept
cdef int check_nested(unsigned long scraps) except -1
cdef int forget_failing() except -1
cdef int interrupt(exc) except -1
cdef object take_interrupt()
cdef object failing_class(unsigned long fallback)
cdef unsigned long addressee(unsigned long fallback)
cdef int raise_in(unsigned long ident, exc) except -1
