"""See pagemap.pyx."""

from libc.stdint cimport uint64_t

cdef enum:
    LEAF = 16               # blocks

cdef struct Leaf:
    uint64_t id             # of the blocks [id*LEAF, (id+1)*LEAF)
    uint64_t used           # of them, those that have a page
    void *pages[LEAF]       # NULL: none

cdef struct PageMap:
    Leaf **leaves           # size of them, NULL: the slot is free; NULL while it never held a page
    size_t size             # a power of two, or 0
    size_t n_leaves
    size_t used             # pages in the map

cdef void *pagemap_get(PageMap *pm, uint64_t blk) noexcept nogil
cdef int pagemap_set(PageMap *pm, uint64_t blk, void *page) noexcept nogil
cdef void pagemap_del(PageMap *pm, uint64_t blk) noexcept nogil
cdef void *pagemap_next(PageMap *pm, size_t *cursor, uint64_t *blk) noexcept nogil
cdef void pagemap_free(PageMap *pm) noexcept nogil
