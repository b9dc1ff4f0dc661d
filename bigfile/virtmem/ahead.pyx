"""Ahead of a touch: which pages are shown, or loaded, together with the one that is touched.

Each area remembers where a sequential reader would touch next (`expected`), and how often it did
(`streak`). Pages that cost no memory are shown right away (show_ahead), LOCATED ones are given to
the threads of readahead to load (load_ahead), which call page_ahead().

This module also sets how far to read ahead, for all that do so: the pager, the threads that load
blocks from servers (window), and the look-up of places of blocks (Looks).

It only chooses pages: it changes no state itself, and reports no failure, as the thread that
touches the page gets it. It runs no Python.

Locking: show_ahead() and load_ahead() need the pager lock; readahead_post() of their result does
not.
"""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.loading cimport page_load
from wendelin.bigfile.virtmem.mapping cimport (FILE, NONE, NOWHERE, ZERO, Area, area_bytes,
                                               area_kind, area_show)
from wendelin.bigfile.virtmem.opened cimport fileh_release
from wendelin.bigfile.virtmem.page cimport (AHEAD, LOCATED, LOADED, MEMFD, ZEROS, FileH, Page,
                                            page_get, page_map, page_peek, pager_generation)
from wendelin.bigfile.virtmem.ram cimport pager_lock, pager_unlock, ram_limit
from wendelin.bigfile.virtmem.readahead cimport AHEAD_PAGES, Ahead, readahead_set_op

cdef enum:
    AHEAD_BYTES = 16 << 20          # that a sequential reader is ahead of itself, at most
    REMOTE_AHEAD_BYTES = 32 << 20   # where blocks are asked for over a network
    AROUND_PAGES = 1024     # that are shown to others, if they are known: aligned groups of these
    ALONE = 1               # Looks.window after a look in vain
    MIN_LOOK = 4            # blocks that are looked up at once, at first
    MAX_LOOK = 1024         # at most


cdef uint64_t blocks_ahead(size_t blksize, bint remote) noexcept nogil:
    """Return how many blocks a sequential reader may be ahead of itself, by memory."""
    cdef size_t most = REMOTE_AHEAD_BYTES if remote else AHEAD_BYTES
    return max(min(most, ram_limit // 16) // blksize, <size_t>1)


def window(size_t blksize, bint remote):
    """Return how many blocks of blksize bytes are to be loaded ahead of a sequential reader."""
    return blocks_ahead(blksize, remote)


cdef void look_begin(Looks *looks, uint64_t blk, uint64_t *start, uint64_t *stop) noexcept nogil:
    """Say which blocks are to be looked up together with blk, which was not known.

    From blk on, if that is where the last look ended, else around it. After a look in vain it is
    blk alone, until blocks are asked for in sequence: to look at a block reads the head of its
    record, and a thread that reads one block in many needs none of these.
    """
    cdef uint64_t window = max(looks.window, <uint64_t>MIN_LOOK)
    if looks.window == ALONE and blk != looks.stop:
        window = 1
    start[0] = blk if blk == looks.stop else blk - blk % window
    stop[0] = start[0] + window
    looks.stop = stop[0]


cdef void look_end(Looks *looks, bint found) noexcept nogil:
    """Each successful look doubles the next one: a reader of one block pays for a few only."""
    cdef uint64_t window = max(looks.window, <uint64_t>MIN_LOOK)
    looks.window = min(2 * window, <uint64_t>MAX_LOOK) if found else <uint64_t>ALONE


cdef bint can_show(Area *area, uint64_t i, Page **page, Page *copy) noexcept nogil:
    """Say whether page i of an area is not shown, and could be shown without loading or memory."""
    cdef FileH *fileh = <FileH *>area.fileh
    if area_kind(area, i) != NONE:
        return False
    page[0] = page_peek(fileh, area.pgoffset + i, copy)
    return page[0] != NULL and page[0].state == LOADED and page[0].backing != MEMFD


cdef uint64_t most_ahead(Area *area) noexcept nogil:
    """Return how many pages a sequential reader may be ahead of itself."""
    return min(blocks_ahead(area.blksize, False), <uint64_t>AHEAD_PAGES // 3)


cdef size_t show_ahead(Area *area, uint64_t i, Ahead *ahead) noexcept nogil:
    """Show known pages around page i, which is about to be read and shown.

    When a thread reads page after page, these are holes, and AHEAD_BYTES of mapped pages, from i
    on; they are put into `ahead`, for readahead_post(). Otherwise they are all known pages around
    i. Return the number of entries in `ahead`.
    """
    cdef Page *page
    cdef Page copy
    cdef uint64_t j, k, lo, hi, files
    cdef uint64_t most = most_ahead(area)
    cdef size_t n = 0
    cdef bint sequential = i == area.expected
    area.streak = area.streak + 1 if sequential else 0
    lo = i if sequential else i // AROUND_PAGES * AROUND_PAGES
    hi = min(lo + AROUND_PAGES, area.pglen)
    # If more pages are touched than can be mapped, mapping more than the touched ones is useless.
    files = most if sequential else 0 if area.crowded else AROUND_PAGES
    j = lo
    while j < hi and files != 0:
        k = j + 1
        if j == i or not can_show(area, j, &page, &copy):
            if sequential and j != i and area_kind(area, j) == NONE:
                break               # the next touch is here, and asks
        elif page.backing == ZEROS:
            while k < hi and can_show(area, k, &page, &copy) and page.backing == ZEROS:
                k += 1
            if area_show(area, j, k - j, ZERO, NOWHERE) != 0:
                break
        else:
            if page_map(page, area, j, FILE) != 0:
                break
            files -= 1
        j = k
    area.expected = j if sequential else i + 1
    while area.expected < hi and (area.expected == i or area_kind(area, area.expected) != NONE):
        area.expected += 1
    if area.streak < 2:
        return 0
    for j in range(i + 1, area.expected):
        if n < AHEAD_PAGES and area_kind(area, j) == FILE:
            ahead[n].fileh = NULL
            ahead[n].addr = area.start + j * area.blksize
            ahead[n].size = area_bytes(area, j, 1)
            n += 1
    return n


cdef size_t load_ahead(Area *area, uint64_t i, Ahead *ahead) noexcept nogil:
    """Let LOCATED pages after i be loaded, which was read, if that is what comes next.

    Puts them into `ahead`, for readahead_post(), and returns how many.
    """
    cdef FileH *fileh = <FileH *>area.fileh
    cdef Page *page
    cdef Page copy
    cdef uint64_t j, most = most_ahead(area)
    cdef size_t n = 0
    area.streak = area.streak + 1 if i == area.expected else 0
    area.expected = i + 1
    if area.streak < 2:
        return 0
    for j in range(i + 1, min(i + 1 + most, area.pglen)):
        page = page_peek(fileh, area.pgoffset + j, &copy)
        if page != NULL and page.state == LOCATED and not page.ahead:
            page = page_get(fileh, area.pgoffset + j)
            if page == NULL:
                break
            page.ahead = True
            fileh.refs += 1
            ahead[n].fileh = fileh
            ahead[n].blk = page.blk
            n += 1
    return n


cdef bint written_ahead(Area *area, uint64_t i) noexcept nogil:
    """Page i is written: say whether the previous pages were written in sequence."""
    area.streak = area.streak + 1 if i == area.expected else 0
    area.expected = i + 1
    return area.streak >= 2


cdef void page_ahead(void *handle, uint64_t blk, bint load) noexcept nogil:
    """Load a page that load_ahead() has chosen; or, if not load, drop it."""
    cdef FileH *fileh = <FileH *>handle
    cdef Page *page
    cdef Page copy
    pager_lock()
    page = page_peek(fileh, blk, &copy)
    if page != NULL:
        page.ahead = False
        if load and page.state == LOCATED and fileh.generation == pager_generation:
            page_load(fileh, blk, AHEAD)
    fileh_release(fileh)
    pager_unlock()


readahead_set_op(page_ahead)
