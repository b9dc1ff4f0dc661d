"""Ready: pages that are shown before a thread touches them, and pinned ones, which stay so.

The pager cannot help a system call, or a thread that blocks SIGSEGV: their pages must be shown
before. area_ready() shows pages for which it is cheap: mapped ones, holes, and pages in memory. It
copies a short block of a local file, as the last one of most arrays is: the zeros at its end are
not in the file. fileh_pin() shows loaded pages, until fileh_unpin():

    LOADED of ZEROS, FILERANGE    shown in all areas, which keep it whatever their budgets are
    LOADED of MEMFD               the same, and it is not given back (PINNED in ram)
    DIRTY                         the same: it is never given back

A page that is dropped (discarded, invalidated) is not pinned any more. So pins belong to a
transaction, and end with it.

This module shows pages. It runs Python only by page_set_ops().

Locking: see page.pyx. All here take the pager lock, and are called without it.
"""

from libc.errno cimport EAGAIN, ENOBUFS, ENOMEM
from libc.stdint cimport INT64_MAX, int64_t, uint64_t

from wendelin.bigfile.virtmem.kernel cimport (CLOCK_MONOTONIC, EDEADLK, clock_gettime, pthread_self,
                                              timespec)
from wendelin.bigfile.virtmem.loading cimport page_load, page_make_room
from wendelin.bigfile.virtmem.mapping cimport (NONE, NOWHERE, ZERO, Area, area_kind, area_set_stays,
                                               area_show, area_was_shown, areas_have_room,
                                               areas_may_stay)
from wendelin.bigfile.virtmem.opened cimport fileh_drop_all_kept
from wendelin.bigfile.virtmem.page cimport (AHEAD, DIRTY, GONE, LOADED, LOADING, LOCATED,
                                            MEMFD, NO_FAILURE, ZEROS, Failure, FileH, Page, op_wait,
                                            page_become, page_get, page_kind, page_map, page_own,
                                            page_peek, page_reach, page_set_stored, page_show)
from wendelin.bigfile.virtmem.ram cimport (COLD, pager_lock, pager_unlock, ram_counted, ram_may_pin,
                                           ram_pin, ram_unpin)

cdef enum:
    TOGETHER = 64           # pages that are shown before the pager lock is released


cdef int64_t ready_clock() noexcept nogil:
    """Return the time of the clock of `until` [ns]."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1000000000 + now.tv_nsec


cdef bint has_room() noexcept nogil:
    """Say whether more pages can be shown: what no view shows gives way. Pager lock held."""
    return areas_have_room() or (fileh_drop_all_kept() and areas_have_room())


cdef uint64_t area_ready(Area *area, uint64_t i, uint64_t end, bint skip, int64_t until) \
        noexcept nogil:
    """Show pages [i, end) of an area that need no loading; stop at one that is not known, or loads.

    skip: go on behind it. Return where it stopped; `end` also when the time is over, or when more
    pages could only be shown by hiding others.
    """
    cdef FileH *fileh = <FileH *>area.fileh
    cdef Page *page
    cdef Page copy
    cdef uint64_t j
    cdef int n = 0, err
    pager_lock()
    while i < end:
        if area_kind(area, i) != NONE:
            i += 1
            continue
        n += 1
        if n % TOGETHER == 0:
            pager_unlock()
            if until != INT64_MAX and ready_clock() > until:
                return end
            pager_lock()
            if not has_room():
                i = end
                break
        page = page_peek(fileh, area.pgoffset + i, &copy)
        j = i + 1
        if page == NULL or page.state == LOADING:
            if not skip:
                break
        elif page.state == LOADED and page.backing == ZEROS:
            while j < end and area_kind(area, j) == NONE and is_hole(fileh, area.pgoffset + j):
                j += 1
            if area_show(area, i, j - i, ZERO, NOWHERE) != 0:
                j = end
        elif is_short(page):
            if page_load(fileh, area.pgoffset + i, AHEAD).why == NO_FAILURE:
                continue
        elif (page.state == LOADED and page.res.queue != COLD) or page.state == DIRTY:
            err = page_reach(page, area, i)
            if err == 0:
                err = page_map(page, area, i, page_kind(page))
            if err != 0 and err != GONE:
                j = end
        i = j
    pager_unlock()
    return i


cdef bint is_short(const Page *page) noexcept nogil:
    return page.state == LOCATED and page.source.fd >= 0 and page.source.size < page.fileh.blksize


cdef bint is_hole(FileH *fileh, uint64_t blk) noexcept nogil:
    cdef Page copy
    cdef Page *page = page_peek(fileh, blk, &copy)
    return page != NULL and page.state == LOADED and page.backing == ZEROS


cdef bint fileh_has(FileH *fileh, uint64_t blk) noexcept nogil:
    """Say whether a page is in memory, or its place is known."""
    cdef Page copy
    cdef Page *page
    cdef bint has
    pager_lock()
    page = page_peek(fileh, blk, &copy)
    has = page != NULL and page.state != LOADING
    pager_unlock()
    return has


cdef bint fileh_hides(FileH *fileh, uint64_t blk) noexcept nogil:
    """Say whether an area showed a page before it was dropped, and does not now."""
    cdef Area *area
    cdef uint64_t i
    cdef bint hides = False
    pager_lock()
    area = fileh.areas
    while area != NULL and not hides:
        i = blk - area.pgoffset
        hides = i < area.pglen and area_was_shown(area, i) and area_kind(area, i) == NONE
        area = area.next
    pager_unlock()
    return hides


cdef void fileh_show(FileH *fileh, const uint64_t *blks, size_t n, int64_t until) noexcept nogil:
    """Show pages again that areas showed before they were dropped, if they need no loading."""
    cdef Page *page
    cdef Page copy
    cdef size_t k
    pager_lock()
    for k in range(n):
        if k % TOGETHER == TOGETHER - 1:
            pager_unlock()
            if ready_clock() > until:
                return
            pager_lock()
        if not has_room():
            break
        page = page_peek(fileh, blks[k], &copy)
        if page != NULL and is_short(page):
            page_load(fileh, blks[k], AHEAD)
            page = page_peek(fileh, blks[k], &copy)
        if page != NULL and (page.state == DIRTY or
                             (page.state == LOADED and page.res.queue != COLD)):
            page_show(page, False)
    pager_unlock()


cdef int fileh_pin(FileH *fileh, uint64_t blk, bint write, Failure *why) noexcept nogil:
    """Show a page that was loaded in all areas, and let it stay so. 0 or errno.

    write: make it DIRTY. The caller has first_change_told the change.
    EAGAIN: it is not in memory; load it. Or, for a write, another transaction is to be told.
    ENOMEM: pinned and changed pages would pass the limit of page memory.
    ENOBUFS: pinned pages would take too many of the kernel's mappings.
    EDEADLK: this thread writes out. Others: the page has no memory, or its file cannot be read; why
    is SPOOL_FAILED if it is the spool.
    """
    cdef Page *page
    cdef int err = 0
    pager_lock()
    while err == 0:
        page = page_get(fileh, blk)
        if page == NULL or page.state == LOCATED or page.state == LOADING:
            err = EAGAIN
        elif page.pins == 0 and not areas_may_stay():
            err = ENOBUFS
        elif write and fileh.frozen != 0:
            if fileh.writer == pthread_self():
                err = EDEADLK
            else:
                op_wait()
        elif write and fileh.wants_first_change and not fileh.first_change_told:
            err = EAGAIN
        elif write and page.state == LOADED:
            err = page_make_room(page, why)
            if err == 0:
                page_become(page, DIRTY, MEMFD)
            elif err == EAGAIN:
                err = 0
        elif page.state == LOADED and page.backing == MEMFD and page.pins == 0 \
                and not ram_may_pin(ram_counted(&page.res)):
            err = ENOMEM
        else:
            if write:
                page_set_stored(page, False)
            page.pins += 1
            if page.state == LOADED and page.backing == MEMFD:
                ram_pin(&page.res)
            page_show(page, True)
            break
    pager_unlock()
    return err


cdef void fileh_unpin(FileH *fileh, uint64_t blk, uint64_t n) noexcept nogil:
    """Undo fileh_pin() of n pages; nothing for those that were dropped meanwhile."""
    cdef Page *page
    cdef Area *area
    cdef uint64_t i
    pager_lock()
    for blk in range(blk, blk + n):
        page = page_own(fileh, blk)
        if page == NULL or page.pins == 0:
            continue
        page.pins -= 1
        if page.pins != 0:
            continue
        if page.state == LOADED and page.backing == MEMFD:
            ram_unpin(&page.res)
        area = fileh.areas
        while area != NULL:
            i = blk - area.pgoffset
            if i < area.pglen:
                area_set_stays(area, i, False)
            area = area.next
    pager_unlock()
