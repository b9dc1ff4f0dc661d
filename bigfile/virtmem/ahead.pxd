"""See ahead.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.mapping cimport Area
from wendelin.bigfile.virtmem.readahead cimport Ahead

cdef size_t show_ahead(Area *area, uint64_t i, Ahead *ahead) noexcept nogil
cdef size_t load_ahead(Area *area, uint64_t i, Ahead *ahead) noexcept nogil
