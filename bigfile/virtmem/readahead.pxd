"""See readahead.pyx."""

from libc.stdint cimport uint64_t

cdef enum:
    AHEAD_PAGES = 64        # most that readahead_post() takes at once

cdef struct Ahead:
    void *fileh             # load a block of this handle; NULL: none
    uint64_t blk
    void *addr              # fileh is NULL: read ahead, and map, these addresses
    size_t size             # [bytes]

cdef void readahead_set_op(void (*load)(void *, uint64_t, bint) noexcept nogil) noexcept nogil
cdef void readahead_post(Ahead *items, size_t n) noexcept nogil
