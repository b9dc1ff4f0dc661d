"""Operations on a handle as a whole: its areas, write-out, discard, invalidate, truncate.

Write-out
---------
From fileh_freeze() to fileh_thaw() dirty pages are read-only: a thread that writes waits until
the end, so that no torn page is stored. The thread that writes out must not write itself
(Failure WRITE_IN_WRITEOUT): it would wait for itself.

This module knows states of pages, and changes them only by functions of page.pyx. It does not know
how a page is loaded or touched, and runs no Python.

Locking: see page.pyx. All here take the pager lock, and are called without it.
"""

from libc.errno cimport EAGAIN, ENOMEM, errno
from libc.stdint cimport UINT64_MAX, uint64_t

from wendelin.bigfile.virtmem.kernel cimport (EDEADLK, pthread_cond_broadcast, pthread_self,
                                              set_errno)
from wendelin.bigfile.virtmem.mapping cimport RO, Area, area_bytes, area_map, area_unmap
from wendelin.bigfile.virtmem.opened cimport (fileh_drop_all_kept, fileh_drop_kept, fileh_keep,
                                              fileh_release, fileh_take_area)
from wendelin.bigfile.virtmem.page cimport (DIRTY, LOCATED, LOADED, LOADING, MEMFD, NOTHING, ZEROS,
                                            FileH, Located, Page, fileh_know, fileh_unknow,
                                            op_wait, pager_generation, page_become, page_drop,
                                            page_forget, page_free_memory, page_get, page_new,
                                            page_own, page_peek, page_protect, page_set_source,
                                            page_set_stored)
from wendelin.bigfile.virtmem.known cimport is_known
from wendelin.bigfile.virtmem.pagemap cimport pagemap_get, pagemap_next
from wendelin.bigfile.virtmem.memory cimport memory_reach
from wendelin.bigfile.virtmem.ram cimport pager_cond, pager_lock, pager_unlock, whole_os_pages
from wendelin.bigfile.virtmem.spool cimport spool_clean

# ---- areas ----

cdef Area *fileh_map(FileH *fileh, uint64_t pgoffset, uint64_t pglen, size_t nbytes) noexcept nogil:
    """Return a new area over the first nbytes of pages [pgoffset, pgoffset + pglen).

    It ends in the last of these pages. NULL with errno.
    """
    cdef Area *area
    cdef int err
    pager_lock()
    area = fileh.kept
    if area != NULL and area.pgoffset == pgoffset and area.pglen == pglen \
            and area_bytes(area, 0, pglen) == whole_os_pages(nbytes):
        fileh_keep(fileh, NULL)
        fileh.views += 1
        fileh.refs += 1
        pager_unlock()
        return area
    fileh_drop_kept(fileh)
    area = NULL
    err = memory_reach(&fileh.memory, pgoffset + pglen - 1)
    if err == 0:
        area = area_map(&fileh.memory, pgoffset, pglen, nbytes)
        err = errno
        if area == NULL and fileh_drop_all_kept():
            area = area_map(&fileh.memory, pgoffset, pglen, nbytes)
            err = errno
    if area != NULL:
        fileh.views += 1
        area.fileh = fileh
        area.next = fileh.areas
        if area.next != NULL:
            area.next.prev = area
        fileh.areas = area
        fileh.refs += 1
    pager_unlock()
    set_errno(err)
    return area


cdef void fileh_unmap(Area *area) noexcept nogil:
    """No view shows an area any more: unmap or keep it, and give up its reference to the handle."""
    cdef FileH *fileh = <FileH *>area.fileh
    pager_lock()
    fileh.views -= 1
    if area.keeps and fileh.views == 0 and fileh.refs > 1 and fileh.generation == pager_generation:
        fileh_drop_kept(fileh)
        fileh_keep(fileh, area)
    else:
        fileh_take_area(fileh, area)
        area_unmap(area)
    fileh_release(fileh)
    pager_unlock()


# ---- write-out, discard, invalidate ----

cdef int wait_thawed(FileH *fileh) noexcept nogil:
    """Wait until no other thread writes out. EDEADLK: this thread does."""
    while fileh.frozen != 0:
        if fileh.writer == pthread_self():
            return EDEADLK
        op_wait()
    return 0


cdef void fileh_freeze(FileH *fileh) noexcept nogil:
    """Begin a write-out: dirty pages are read-only until fileh_thaw(). Nests."""
    cdef Page *page
    pager_lock()
    if wait_thawed(fileh) == 0:
        fileh.writer = pthread_self()
        page = fileh.dirty
        while page != NULL:
            page_protect(page, RO)
            page = page.list_next
    fileh.frozen += 1
    pager_unlock()


cdef void fileh_thaw(FileH *fileh) noexcept nogil:
    """End a write-out: threads that wait to write go on."""
    pager_lock()
    fileh.frozen -= 1
    if fileh.frozen == 0:
        pthread_cond_broadcast(&pager_cond)
    pager_unlock()


cdef size_t fileh_dirty_blocks(FileH *fileh, uint64_t *blks, bint stored) noexcept nogil:
    """Write block numbers of dirty pages into blks, at most ndirty. The handle must be frozen.

    stored: include pages that did not change since they were stored. Return the number of blocks.
    """
    cdef Page *page
    cdef size_t n = 0
    pager_lock()
    page = fileh.dirty
    while page != NULL:
        if stored or not page.stored:
            blks[n] = page.blk
            n += 1
        page = page.list_next
    pager_unlock()
    return n


cdef void fileh_set_stored(FileH *fileh, uint64_t blk) noexcept nogil:
    """A dirty page was stored. The handle must be frozen."""
    cdef Page *page
    pager_lock()
    page = page_own(fileh, blk)
    if page != NULL and page.state == DIRTY:
        page_set_stored(page, True)
    pager_unlock()


cdef void fileh_mark_stored(FileH *fileh) noexcept nogil:
    """DIRTY -> LOADED for all pages that did not change since they were stored."""
    cdef Page *page
    cdef Page *next
    pager_lock()
    fileh.epoch += 1            # earlier results of a look-up are not true any more
    page = fileh.dirty
    while page != NULL:
        next = page.list_next
        if page.stored:
            page_protect(page, RO)
            page_become(page, LOADED, MEMFD)
            if page.slot >= 0 and page.pins == 0:
                page_drop(page)     # room on the disk is for changes
        page = next
    pager_unlock()
    spool_clean(fileh.spool)


cdef int fileh_discard(FileH *fileh) noexcept nogil:
    """Forget all changes, also by fileh_truncate. 0 or EDEADLK."""
    cdef int err
    pager_lock()
    fileh.epoch += 1
    err = wait_thawed(fileh)
    if err == 0:
        while fileh.dirty != NULL:
            page_drop(fileh.dirty)
        drop_from(fileh, fileh.zero_from, False)
        fileh.zero_from = UINT64_MAX
        # with the lock held: changes from now on belong to another transaction
        transaction_ended_locked(fileh)
    pager_unlock()
    spool_clean(fileh.spool)
    return err


cdef int fileh_invalidate(FileH *fileh, uint64_t blk) noexcept nogil:
    """Drop a page, clean or dirty: the next touch loads it. 0 or EDEADLK."""
    cdef Page *page
    cdef int err = 0
    pager_lock()
    fileh.epoch += 1
    while True:
        page = <Page *>pagemap_get(&fileh.pages, blk)
        if page == NULL:
            break
        if is_known(page):
            fileh_unknow(fileh, blk)
            break
        if page.state != DIRTY or fileh.frozen == 0:
            page_drop(page)
            break
        err = wait_thawed(fileh)
        if err != 0:
            break
    pager_unlock()
    spool_clean(fileh.spool)
    return err


cdef void fileh_invalidate_loading(FileH *fileh) noexcept nogil:
    """Load again what is being loaded now: it may be of an older state."""
    cdef Page *page
    pager_lock()
    fileh.epoch += 1
    page = fileh.loading
    while page != NULL:
        page.reload = True
        page = page.list_next
    pager_unlock()


cdef uint64_t fileh_epoch(FileH *fileh) noexcept nogil:
    """Return the epoch for fileh_set_located(); take it before the file is asked."""
    cdef uint64_t epoch
    pager_lock()
    epoch = fileh.epoch
    pager_unlock()
    return epoch


cdef int fileh_set_located(FileH *fileh, Located *located, size_t n, uint64_t epoch) \
        noexcept nogil:
    """Learn where blocks are that were not touched yet, or are in memory, clean. 0 or errno.

    Ignored if a page was invalidated since `epoch`, as the places may not be true any more. It
    takes the pieces of those that it takes.
    """
    cdef Page *page
    cdef Page copy
    cdef size_t i
    cdef uint64_t blk
    cdef int err = 0
    pager_lock()
    for i in range(n):
        if fileh.epoch != epoch:
            break
        blk = located[i].blk
        if blk >= fileh.zero_from:
            continue
        page = page_peek(fileh, blk, &copy)
        if page == NULL or (page == &copy and page.state == LOCATED):
            if fileh_know(fileh, blk, &located[i].source):
                continue
            page = page_get(fileh, blk) if page == &copy else page_new(fileh, blk)
            if page == NULL:
                err = ENOMEM
                break
        elif page.state == LOADED and page.backing == MEMFD:
            if located[i].source.backing == NOTHING or page.pins != 0:
                if not located[i].source.named:     # which may be gone when it is needed
                    page_set_source(page, &located[i].source)
                    located[i].source.pieces = NULL
                continue
            page_free_memory(page)
            if located[i].source.pieces == NULL and not located[i].source.named:
                page_forget(page)
                fileh_know(fileh, blk, &located[i].source)  # else the file is asked
                continue
        elif page.state != LOCATED:
            continue
        page_set_source(page, &located[i].source)
        located[i].source.pieces = NULL
        page_become(page, LOCATED if page.source.backing == NOTHING else LOADED,
                    page.source.backing)
    pager_unlock()
    spool_clean(fileh.spool)
    return err


cdef void fileh_first_change_told(FileH *fileh, uint64_t transactions) noexcept nogil:
    """Say that op_first_change was told; transactions: what they were before that."""
    pager_lock()
    if fileh.transactions == transactions:
        fileh.first_change_told = True
    pager_unlock()


cdef void fileh_transaction_ended(FileH *fileh) noexcept nogil:
    """Let op_first_change be told of the next change."""
    pager_lock()
    transaction_ended_locked(fileh)
    pager_unlock()


cdef void transaction_ended_locked(FileH *fileh) noexcept nogil:
    fileh.first_change_told = False
    fileh.transactions += 1


cdef void drop_from(FileH *fileh, uint64_t blk, bint zeros) noexcept nogil:
    """Drop all pages from a block on; or, if `zeros`, those that are only zeros."""
    cdef size_t cursor
    cdef Page *page
    cdef Page copy
    cdef uint64_t end = blk, at = 0
    cdef bint again = blk < fileh.end      # an append calls this, and mostly there is no page
    # Dropping changes the map, so a walk may miss pages: repeat it until one drops none.
    while again:
        again = False
        cursor = 0
        while True:
            page = <Page *>pagemap_next(&fileh.pages, &cursor, &at)
            if page == NULL:
                break
            if at < blk:
                continue
            page = page_peek(fileh, at, &copy)
            if page.state == LOADING or zeros and page.backing != ZEROS:
                end = max(end, at + 1)
            else:
                again = True
            if page == &copy:
                if not zeros or page.backing == ZEROS:
                    fileh_unknow(fileh, at)
            elif page.state == LOADING or not zeros or page.backing == ZEROS:
                page_drop(page)
    fileh.end = min(fileh.end, end)


cdef int fileh_truncate(FileH *fileh, uint64_t blk) noexcept nogil:
    """From now on pages from blk on are zeros, until they are written. 0 or EDEADLK.

    EAGAIN: the first change is to be told, perhaps again, as a transaction ended meanwhile.
    """
    cdef int err
    pager_lock()
    fileh.epoch += 1
    err = wait_thawed(fileh)
    if err == 0 and fileh.wants_first_change and not fileh.first_change_told:
        err = EAGAIN
    if err == 0:
        fileh.zero_from = min(fileh.zero_from, blk)
        drop_from(fileh, blk, False)
    pager_unlock()
    spool_clean(fileh.spool)
    return err


cdef void fileh_untruncate(FileH *fileh) noexcept nogil:
    """The file itself was truncated: ask it again, also about pages that were set to zeros."""
    pager_lock()
    fileh.epoch += 1
    drop_from(fileh, fileh.zero_from, True)
    fileh.zero_from = UINT64_MAX
    pager_unlock()
    spool_clean(fileh.spool)
