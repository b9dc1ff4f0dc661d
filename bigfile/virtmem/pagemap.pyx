"""Block number -> page: a sparse map in 16 to 32 bytes a page, O(1).

An open-addressing hash table with linear probing and backward-shift deletion (Knuth, TAOCP
vol. 3, 6.4, algorithm R), so that it has no tombstones and shrinks with what it holds. A table
of pages, as hardware uses it, would pay for far keys; arrays of 64 TiB with both ends touched
are common here.

It does not know pages: values are pointers that are not NULL.

Locking: the caller's. A zeroed struct is an empty map.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

cdef enum:
    MIN_SIZE = 16


cdef inline size_t hash_blk(uint64_t blk) noexcept nogil:
    # Fibonacci hashing: neighbouring blocks are the usual keys, and so are strided ones.
    return <size_t>((blk * <uint64_t>0x9E3779B97F4A7C15) >> 20)


cdef Slot *find(PageMap *pm, uint64_t blk) noexcept nogil:
    """Return the slot that holds blk, or the free one where it belongs."""
    cdef size_t mask = pm.size - 1
    cdef size_t i = hash_blk(blk) & mask
    while pm.slots[i].page != NULL and pm.slots[i].blk != blk:
        i = (i + 1) & mask
    return &pm.slots[i]


cdef int resize(PageMap *pm, size_t size) noexcept nogil:
    """Move everything to a table of another size; -1: no memory, nothing changed."""
    cdef PageMap new
    cdef size_t i
    new.slots = <Slot *>calloc(size, sizeof(Slot))
    if new.slots == NULL:
        return -1
    new.size = size
    new.used = pm.used
    for i in range(pm.size):
        if pm.slots[i].page != NULL:
            find(&new, pm.slots[i].blk)[0] = pm.slots[i]
    free(pm.slots)
    pm[0] = new
    return 0


cdef void *pagemap_get(PageMap *pm, uint64_t blk) noexcept nogil:
    """Return the page of blk, or NULL."""
    if pm.size == 0:
        return NULL
    return find(pm, blk).page


cdef int pagemap_set(PageMap *pm, uint64_t blk, void *page) noexcept nogil:
    """Put a page under blk. 0, or -1: no memory, nothing changed."""
    cdef Slot *slot
    # at most 3/4 full, so that probing stays short and always ends
    if 4 * (pm.used + 1) > 3 * pm.size:
        if resize(pm, 2 * pm.size if pm.size else MIN_SIZE) != 0:
            return -1
    slot = find(pm, blk)
    if slot.page == NULL:
        pm.used += 1
    slot.blk = blk
    slot.page = page
    return 0


cdef void pagemap_del(PageMap *pm, uint64_t blk) noexcept nogil:
    """Take blk out, if it is there."""
    cdef size_t mask = pm.size - 1
    cdef size_t hole, i, home
    cdef Slot *slot
    if pm.size == 0:
        return
    slot = find(pm, blk)
    if slot.page == NULL:
        return
    pm.used -= 1
    hole = slot - pm.slots
    i = hole
    while True:
        i = (i + 1) & mask
        if pm.slots[i].page == NULL:
            break
        # an entry may move into the hole if the hole lies between its home and itself
        home = hash_blk(pm.slots[i].blk) & mask
        if ((i - home) & mask) >= ((i - hole) & mask):
            pm.slots[hole] = pm.slots[i]
            hole = i
    pm.slots[hole].page = NULL
    if pm.size > MIN_SIZE and 8 * pm.used < pm.size:
        resize(pm, pm.size // 2)    # on failure it just stays large


cdef void *pagemap_next(PageMap *pm, size_t *cursor) noexcept nogil:
    """Walk over all pages: start with cursor 0, ends with NULL.

    The map must not be changed meanwhile.
    """
    cdef void *page
    while cursor[0] < pm.size:
        page = pm.slots[cursor[0]].page
        cursor[0] += 1
        if page != NULL:
            return page
    return NULL


cdef void pagemap_free(PageMap *pm) noexcept nogil:
    """Free the table (not the pages) and leave an empty map."""
    free(pm.slots)
    pm.slots = NULL
    pm.size = pm.used = 0


def selftest(operations):
    """Run ("set"|"del"|"get", blk) operations against a dict; return how many were checked.

    Values are blk + 1. For t/virtmem/test_pagemap.py: the map has no other Python face.
    """
    cdef PageMap pm
    cdef size_t cursor
    cdef size_t value
    cdef uint64_t blk
    model = {}
    pm.slots = NULL
    pm.size = pm.used = 0
    try:
        for what, key in operations:
            blk = key
            if what == "set":
                if pagemap_set(&pm, blk, <void *><size_t>(blk + 1)) != 0:
                    raise MemoryError
                model[blk] = blk + 1
            elif what == "del":
                pagemap_del(&pm, blk)
                model.pop(blk, None)
            value = <size_t>pagemap_get(&pm, blk)
            assert value == model.get(blk, 0), (what, blk, value)
            assert pm.used == <size_t>len(model)
        cursor = 0
        seen = set()
        while True:
            value = <size_t>pagemap_next(&pm, &cursor)
            if value == 0:
                break
            seen.add(value)
        assert seen == set(model.values()), (seen, model)
        assert pm.size <= <size_t>MIN_SIZE or pm.size <= 8 * pm.used, (pm.size, pm.used)
        return len(operations)
    finally:
        pagemap_free(&pm)
