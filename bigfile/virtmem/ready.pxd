"""See ready.pyx."""

from libc.stdint cimport int64_t, uint64_t

from wendelin.bigfile.virtmem.mapping cimport Area
from wendelin.bigfile.virtmem.page cimport Failure, FileH

cdef int64_t ready_clock() noexcept nogil
cdef uint64_t area_ready(Area *area, uint64_t i, uint64_t end, bint skip, int64_t until) \
    noexcept nogil
cdef bint fileh_has(FileH *fileh, uint64_t blk) noexcept nogil
cdef bint fileh_hides(FileH *fileh, uint64_t blk) noexcept nogil
cdef void fileh_show(FileH *fileh, const uint64_t *blks, size_t n, int64_t until) noexcept nogil
cdef int fileh_pin(FileH *fileh, uint64_t blk, bint write, Failure *why) noexcept nogil
cdef void fileh_unpin(FileH *fileh, uint64_t blk, uint64_t n) noexcept nogil
