"""See deadlock.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.kernel cimport pthread_t

cdef int wait_for_gil(const char *file, uint64_t blk) noexcept nogil
cdef int wait_for_load(const void *fileh, uint64_t blk, pthread_t loader) noexcept nogil
cdef void wait_over(int waiter) noexcept nogil
cdef void waits_loaded(const void *fileh, uint64_t blk) noexcept nogil
cdef bint waits_circular(pthread_t loader) noexcept nogil
