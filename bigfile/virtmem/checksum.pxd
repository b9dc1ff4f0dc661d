"""See checksum.pyx."""

from libc.stdint cimport uint64_t

cdef int checksum_compare(int fd, long offset, size_t size, uint64_t digest) noexcept nogil
