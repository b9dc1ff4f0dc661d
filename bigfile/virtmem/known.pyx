"""Known blocks: records of where a block is, much smaller than a page.

A file tells the places of many blocks of which few are touched. Such a block has no Page, but a
record of 24 bytes, or, if it is a hole, none. The page map has a value for it that cannot be the
address of a page, as its lowest bit is set: the number of the record in the pool of its handle.

A pool is a list of slabs, and never moves a record. The first slabs are small, as most handles know
few blocks.

This module knows records. It does not know pages: page packs and unpacks them.

Locking: all functions need the pager lock.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc

cdef enum:
    SMALLEST = 16           # records of the first slab; each of the next ones has twice as many
    DOUBLED = 6             # until this one; the others have as many as this one
    LARGEST = SMALLEST << DOUBLED
    SMALL = LARGEST - SMALLEST      # records in the slabs before it


cdef size_t slab_of(uint64_t number, size_t *at) noexcept nogil:
    """Return the slab that has a record, and the place of this in it."""
    cdef size_t slab = 0, size = SMALLEST
    if number >= <uint64_t>SMALL:
        number -= SMALL
        at[0] = number % <uint64_t>LARGEST
        return <size_t>DOUBLED + number // <uint64_t>LARGEST
    while number >= size:
        number -= size
        size *= 2
        slab += 1
    at[0] = number
    return slab


cdef Known *record(const Pool *pool, uint64_t number) noexcept nogil:
    cdef size_t at = 0
    cdef size_t slab = slab_of(number, &at)
    return pool.slabs[slab] + at


cdef void *known_add(Pool *pool, const Known *known) noexcept nogil:
    """Keep a record; return the value for the page map. NULL: no memory."""
    cdef uint64_t number = pool.used
    cdef size_t at = 0, slab
    cdef void *more
    if pool.free != 0:
        number = pool.free - 1
        pool.free = record(pool, number).where
    else:
        slab = slab_of(number, &at)
        if slab == pool.n_slabs:
            # in steps of 64: one in 64 slabs needs it
            if slab % 64 == 0:
                more = realloc(pool.slabs, (slab + 64) * sizeof(Known *))
                if more == NULL:
                    return NULL
                pool.slabs = <Known **>more
            more = malloc(sizeof(Known) * (<size_t>SMALLEST << min(slab, <size_t>DOUBLED)))
            if more == NULL:
                return NULL
            pool.slabs[slab] = <Known *>more
            pool.n_slabs += 1
        pool.used += 1
    record(pool, number)[0] = known[0]
    return <void *><size_t>(number << 2 | 1)


cdef Known *known_at(const Pool *pool, const void *value) noexcept nogil:
    """Return the record of a value that is not a hole."""
    return record(pool, <uint64_t><size_t>value >> 2)


cdef void known_del(Pool *pool, void *value) noexcept nogil:
    """Forget the record of a value; nothing for a hole."""
    cdef uint64_t number = <uint64_t><size_t>value >> 2
    if not is_known_hole(value):
        record(pool, number).where = pool.free
        pool.free = number + 1


cdef void known_free(Pool *pool) noexcept nogil:
    """Free all records."""
    cdef size_t i
    for i in range(pool.n_slabs):
        free(pool.slabs[i])
    free(pool.slabs)
    pool.slabs = NULL
    pool.n_slabs = 0
    pool.used = pool.free = 0
