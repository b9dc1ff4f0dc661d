"""Block number -> page: a sparse map in about 10 bytes a page, if there are many, O(1).

Neighbouring blocks are in one leaf, and the leaves in an open-addressing hash table with linear
probing and backward-shift deletion (Knuth, TAOCP vol. 3, 6.4, algorithm R), so that it has no
tombstones and shrinks with what it holds. A table of pages, as hardware uses it, would pay for far
keys; arrays of 64 TiB with both ends touched are common here. A page far from others takes a leaf,
which is less than the page itself.

It does not know pages: values are pointers that are not NULL.

Locking: the caller's. A zeroed struct is an empty map.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

cdef enum:
    MIN_SIZE = 4


cdef inline size_t hash_id(uint64_t id) noexcept nogil:
    # Fibonacci hashing: neighbouring leaves are the usual keys, and so are strided ones.
    return <size_t>((id * <uint64_t>0x9E3779B97F4A7C15) >> 20)


cdef size_t find(PageMap *pm, uint64_t id) noexcept nogil:
    """Return the slot that holds a leaf, or the free one where it belongs."""
    cdef size_t mask = pm.size - 1
    cdef size_t i = hash_id(id) & mask
    while pm.leaves[i] != NULL and pm.leaves[i].id != id:
        i = (i + 1) & mask
    return i


cdef int resize(PageMap *pm, size_t size) noexcept nogil:
    """Move all leaves to a table of another size; -1: no memory, nothing changed."""
    cdef PageMap new = pm[0]
    cdef size_t i
    new.leaves = <Leaf **>calloc(size, sizeof(Leaf *))
    if new.leaves == NULL:
        return -1
    new.size = size
    for i in range(pm.size):
        if pm.leaves[i] != NULL:
            new.leaves[find(&new, pm.leaves[i].id)] = pm.leaves[i]
    free(pm.leaves)
    pm[0] = new
    return 0


cdef void *pagemap_get(PageMap *pm, uint64_t blk) noexcept nogil:
    """Return the page of blk, or NULL."""
    cdef Leaf *leaf
    if pm.size == 0:
        return NULL
    leaf = pm.leaves[find(pm, blk // <uint64_t>LEAF)]
    return NULL if leaf == NULL else leaf.pages[blk % <uint64_t>LEAF]


cdef int pagemap_set(PageMap *pm, uint64_t blk, void *page) noexcept nogil:
    """Put a page under blk. 0, or -1: no memory, nothing changed."""
    cdef size_t i
    cdef Leaf *leaf
    # at most 3/4 full, so that probing stays short and always ends
    if 4 * (pm.n_leaves + 1) > 3 * pm.size:
        if resize(pm, 2 * pm.size if pm.size else MIN_SIZE) != 0:
            return -1
    i = find(pm, blk // <uint64_t>LEAF)
    leaf = pm.leaves[i]
    if leaf == NULL:
        leaf = <Leaf *>calloc(1, sizeof(Leaf))
        if leaf == NULL:
            return -1
        leaf.id = blk // <uint64_t>LEAF
        pm.leaves[i] = leaf
        pm.n_leaves += 1
    if leaf.pages[blk % <uint64_t>LEAF] == NULL:
        leaf.used += 1
        pm.used += 1
    leaf.pages[blk % <uint64_t>LEAF] = page
    return 0


cdef void pagemap_del(PageMap *pm, uint64_t blk) noexcept nogil:
    """Take blk out, if it is there."""
    cdef size_t i
    cdef Leaf *leaf
    if pm.size == 0:
        return
    i = find(pm, blk // <uint64_t>LEAF)
    leaf = pm.leaves[i]
    if leaf == NULL or leaf.pages[blk % <uint64_t>LEAF] == NULL:
        return
    leaf.pages[blk % <uint64_t>LEAF] = NULL
    leaf.used -= 1
    pm.used -= 1
    if leaf.used == 0:
        free(leaf)
        take_out(pm, i)


cdef void take_out(PageMap *pm, size_t hole) noexcept nogil:
    """Free a slot."""
    cdef size_t mask = pm.size - 1
    cdef size_t i = hole, home
    pm.n_leaves -= 1
    while True:
        i = (i + 1) & mask
        if pm.leaves[i] == NULL:
            break
        # an entry may move into the hole if the hole lies between its home and itself
        home = hash_id(pm.leaves[i].id) & mask
        if ((i - home) & mask) >= ((i - hole) & mask):
            pm.leaves[hole] = pm.leaves[i]
            hole = i
    pm.leaves[hole] = NULL
    if pm.size > MIN_SIZE and 8 * pm.n_leaves < pm.size:
        resize(pm, pm.size // 2)    # on failure it just stays large


cdef void *pagemap_next(PageMap *pm, size_t *cursor, uint64_t *blk) noexcept nogil:
    """Walk over all pages, and say which block each is: start with cursor 0, ends with NULL.

    If the map is changed meanwhile, pages may be missed, or come twice.
    """
    cdef Leaf *leaf
    cdef size_t i
    while cursor[0] < pm.size * LEAF:
        leaf = pm.leaves[cursor[0] // <size_t>LEAF]
        i = cursor[0] % <size_t>LEAF
        if leaf == NULL:
            cursor[0] += LEAF - i
            continue
        cursor[0] += 1
        if leaf.pages[i] != NULL:
            blk[0] = leaf.id * LEAF + i
            return leaf.pages[i]
    return NULL


cdef void pagemap_free(PageMap *pm) noexcept nogil:
    """Free the table (not the pages) and leave an empty map."""
    cdef size_t i
    for i in range(pm.size):
        free(pm.leaves[i])
    free(pm.leaves)
    pm.leaves = NULL
    pm.size = pm.n_leaves = pm.used = 0


def selftest(operations):
    """Run ("set"|"del"|"get", blk) operations against a dict; return how many were checked.

    Values are blk + 1. For t/virtmem/test_pagemap.py: the map has no other Python face.
    """
    cdef PageMap pm
    cdef size_t cursor
    cdef size_t value
    cdef uint64_t blk
    model = {}
    pm.leaves = NULL
    pm.size = pm.n_leaves = pm.used = 0
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
            value = <size_t>pagemap_next(&pm, &cursor, &blk)
            if value == 0:
                break
            assert value == blk + 1
            seen.add(value)
        assert seen == set(model.values()), (seen, model)
        leaves = {blk // LEAF for blk in model}
        assert pm.n_leaves == <size_t>len(leaves), (pm.n_leaves, leaves)
        assert pm.size <= <size_t>MIN_SIZE or pm.size <= 8 * pm.n_leaves, (pm.size, pm.n_leaves)
        return len(operations)
    finally:
        pagemap_free(&pm)
