"""See pagemap.pyx."""

from libc.stdint cimport uint64_t

cdef struct Slot:
    uint64_t blk
    void *page              # NULL: the slot is free

cdef struct PageMap:
    Slot *slots             # size of them; NULL while the map never held a page
    size_t size             # a power of two, or 0
    size_t used             # pages in the map

cdef void *pagemap_get(PageMap *pm, uint64_t blk) noexcept nogil
cdef int pagemap_set(PageMap *pm, uint64_t blk, void *page) noexcept nogil
cdef void pagemap_del(PageMap *pm, uint64_t blk) noexcept nogil
cdef void *pagemap_next(PageMap *pm, size_t *cursor) noexcept nogil
cdef void pagemap_free(PageMap *pm) noexcept nogil
