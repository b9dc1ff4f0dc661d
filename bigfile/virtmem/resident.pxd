"""See resident.pyx."""

from wendelin.bigfile.virtmem.mapping cimport Area

# [bytes] of files and shared memory in page tables, above which areas lose theirs
cdef size_t resident_limit

cdef size_t resident_shared() noexcept nogil
cdef void area_drop_tables(Area *area) noexcept nogil
