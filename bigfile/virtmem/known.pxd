"""See known.pyx."""

from libc.stdint cimport uint64_t

cdef struct Known:          # where a block is, in 24 bytes
    uint64_t where          # in the file [bytes], and flags
    uint64_t size           # of the block that the file has [bytes], and the descriptor of the file
    uint64_t digest

cdef struct Pool:           # of a handle; zeroed: empty
    Known **slabs
    size_t n_slabs
    uint64_t used           # records that were ever in use
    uint64_t free           # number of the first free one + 1; 0: none

cdef void *known_add(Pool *pool, const Known *known) noexcept nogil
cdef Known *known_at(const Pool *pool, const void *value) noexcept nogil
cdef void known_del(Pool *pool, void *value) noexcept nogil
cdef void known_free(Pool *pool) noexcept nogil

cdef inline bint is_known(const void *value) noexcept nogil:
    """Say whether a value of a page map is not a page, but a record, or a hole."""
    return <size_t>value & 1 != 0

cdef inline bint is_known_hole(const void *value) noexcept nogil:
    return <size_t>value == 3

cdef inline void *known_hole() noexcept nogil:
    """Return the value for a hole, which needs no record."""
    return <void *><size_t>3
