"""A handle from its opening to the end of its last reference, and the area that it keeps.

Its BigFileH, its areas, the loads in progress and the buffers of its pages hold references. With
the last one everything is freed, even changes.

This module knows handles as they begin and end. It does not know what happens to their pages.

Locking: see page.pyx. fileh_new() and fileh_unref() take the pager lock; the others need it.
"""

from libc.stdint cimport UINT64_MAX, uint64_t
from libc.stdlib cimport calloc, free

from wendelin.bigfile.virtmem.kernel cimport set_errno
from wendelin.bigfile.virtmem.known cimport is_known, known_free
from wendelin.bigfile.virtmem.mapping cimport Area, area_unmap
from wendelin.bigfile.virtmem.memory cimport memory_close, memory_open
from wendelin.bigfile.virtmem.page cimport (DIRTY, MEMFD, NOTHING, FileH, Page, page_free,
                                            page_set_backing, pager_generation)
from wendelin.bigfile.virtmem.pagemap cimport pagemap_free, pagemap_next
from wendelin.bigfile.virtmem.places cimport page_give_memory
from wendelin.bigfile.virtmem.ram cimport pager_lock, pager_unlock, ram_forget_dirty, ram_remove
from wendelin.bigfile.virtmem.resident cimport area_drop_tables, resident_limit, resident_shared
from wendelin.bigfile.virtmem.spool cimport Spool, spool_clean


cdef FileH *fileh_new(size_t blksize) noexcept nogil:
    """Return a new handle with one reference; NULL with errno."""
    cdef FileH *fileh = <FileH *>calloc(1, sizeof(FileH))
    cdef int err
    if fileh == NULL:
        return NULL
    pager_lock()
    err = memory_open(&fileh.memory, blksize)
    pager_unlock()
    if err != 0:
        free(fileh)
        set_errno(err)
        return NULL
    fileh.blksize = blksize
    fileh.zero_from = UINT64_MAX
    fileh.refs = 1
    fileh.generation = pager_generation
    return fileh


cdef void fileh_unref(FileH *fileh) noexcept nogil:
    """Drop one reference; with the last one everything is freed, even changes."""
    cdef Spool *spool = fileh.spool
    pager_lock()
    fileh_release(fileh)
    pager_unlock()
    spool_clean(spool)


# ---- kept areas ----
# An area that no view shows any more is kept, for the next view of the same pages: to map and show
# all of them again would take long, as in a loop over columns. It takes address space, and page
# tables as long as they are few (see resident). A handle keeps one area, and the process KEPT. It
# goes when another is kept in its place, when address space is short, and with the handle.

cdef enum:
    KEPT = 16

cdef FileH *keepers[KEPT]       # handles that keep an area; protected by: the pager lock
cdef size_t next_keeper


cdef void fileh_keep(FileH *fileh, Area *area) noexcept nogil:
    """Keep an area that no view shows any more; NULL: it is in use again."""
    global next_keeper
    cdef size_t i
    if fileh.kept != NULL:
        fileh.kept.idle = False
    fileh.kept = area
    if area == NULL:
        for i in range(<size_t>KEPT):
            if keepers[i] == fileh:
                keepers[i] = NULL
    else:
        area.idle = True
        if resident_shared() > resident_limit:
            area_drop_tables(area)
        if keepers[next_keeper] != NULL:
            fileh_drop_kept(keepers[next_keeper])
        keepers[next_keeper] = fileh
        next_keeper = (next_keeper + 1) % <size_t>KEPT


cdef void fileh_drop_kept(FileH *fileh) noexcept nogil:
    """Unmap the kept area of a handle, if there is one."""
    cdef Area *area = fileh.kept
    if area != NULL:
        fileh_keep(fileh, NULL)
        fileh_take_area(fileh, area)
        area_unmap(area)


cdef bint fileh_drop_all_kept() noexcept nogil:
    """Unmap the kept areas of all handles; False: there is none."""
    cdef size_t i
    cdef bint any = False
    for i in range(<size_t>KEPT):
        if keepers[i] != NULL:
            fileh_drop_kept(keepers[i])
            any = True
    return any


cdef void fileh_take_area(FileH *fileh, Area *area) noexcept nogil:
    """Take an area out of the handle's list."""
    if area.prev != NULL:
        area.prev.next = area.next
    else:
        fileh.areas = area.next
    if area.next != NULL:
        area.next.prev = area.prev


cdef void fileh_release(FileH *fileh) noexcept nogil:
    cdef size_t cursor = 0
    cdef uint64_t blk = 0
    cdef Page *page
    cdef bint inherited = fileh.generation != pager_generation, used = False
    fileh.refs -= 1
    if fileh.refs != 0:
        return
    fileh_drop_kept(fileh)
    while True:
        page = <Page *>pagemap_next(&fileh.pages, &cursor, &blk)
        if page == NULL:
            break
        if is_known(page):
            continue
        if not inherited:
            used |= page.backing == MEMFD and page.frame == NULL
            if page.state == DIRTY:
                ram_forget_dirty(&page.res)
            elif page.backing == MEMFD:
                ram_remove(&page.res)
            if page.slot >= 0 or page.frame != NULL:
                page_set_backing(page, NOTHING)
                page_give_memory(page)
        page_free(page)
    pagemap_free(&fileh.pages)
    known_free(&fileh.known)
    memory_close(&fileh.memory, used, inherited)
    free(fileh)
