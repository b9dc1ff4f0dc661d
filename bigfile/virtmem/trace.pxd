"""See trace.pyx."""

from libc.stdint cimport uint64_t

cdef void trace_page(const char *file, uint64_t blk, const char *before, const char *before_backing,
                     const char *after, const char *after_backing) noexcept nogil
