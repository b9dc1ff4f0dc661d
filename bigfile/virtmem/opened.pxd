"""See opened.pyx."""

from wendelin.bigfile.virtmem.mapping cimport Area
from wendelin.bigfile.virtmem.page cimport FileH

cdef FileH *fileh_new(size_t blksize) noexcept nogil
cdef void fileh_unref(FileH *fileh) noexcept nogil
cdef void fileh_release(FileH *fileh) noexcept nogil
cdef void fileh_keep(FileH *fileh, Area *area) noexcept nogil
cdef void fileh_take_area(FileH *fileh, Area *area) noexcept nogil
cdef void fileh_drop_kept(FileH *fileh) noexcept nogil
cdef bint fileh_drop_all_kept() noexcept nogil
