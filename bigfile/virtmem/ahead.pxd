"""See ahead.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.mapping cimport Area
from wendelin.bigfile.virtmem.readahead cimport Ahead

cdef struct Looks:          # of a handle: up where its blocks are
    uint64_t stop           # block after those that were looked up last
    uint64_t window         # number of blocks of the next look; 0: as few as at first

cdef void look_begin(Looks *looks, uint64_t blk, uint64_t *start, uint64_t *stop) noexcept nogil
cdef void look_end(Looks *looks, bint found) noexcept nogil
cdef size_t show_ahead(Area *area, uint64_t i, Ahead *ahead) noexcept nogil
cdef bint written_ahead(Area *area, uint64_t i) noexcept nogil
cdef size_t load_ahead(Area *area, uint64_t i, Ahead *ahead) noexcept nogil
