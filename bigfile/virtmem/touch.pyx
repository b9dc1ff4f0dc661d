"""The touch: how a fault is served, and what its thread is shown; also after a fork.

page_touch() brings a page to the state that the fault needs: it waits, loads it, reports a first
change, makes it DIRTY. Then it shows the page. If that fails, the thread is shown scrap, and
op_fail has sent an exception: see "Errors" in page.pyx.

A thread that would wait for itself gets an exception instead: the thread that writes out and writes
(WRITE_IN_WRITEOUT); a loader, or a finalizer in it, that touches the page it loads (TOUCH_IN_LOAD);
the second of two loaders, in two threads, that touch each other's pages (CIRCULAR_LOAD: see
deadlock).

This module knows pages and areas. It does not know signals, nor how pages are stored. It runs
Python only by page_set_ops().

Locking: see page.pyx. page_touch() and page_broken() are called without the pager lock.
"""

from libc.errno cimport EAGAIN, EDQUOT, EIO, ENOMEM
from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.ahead cimport load_ahead, show_ahead, written_ahead
from wendelin.bigfile.virtmem.frames cimport frames_after_fork, frames_before_fork
from wendelin.bigfile.virtmem.kernel cimport (MADV_POPULATE_READ, MADV_POPULATE_WRITE, madvise,
                                              pthread_atfork, pthread_cond_init, pthread_self)
from wendelin.bigfile.virtmem.loading cimport (fail, may_load, own_load, page_load, page_make_room,
                                               wait_loaded)
from wendelin.bigfile.virtmem.mapping cimport (FILE, NOWHERE, RO, RW, SINK, ZERO, Area, Kind,
                                               area_bytes, area_inherited, area_is_elsewhere,
                                               area_kind, area_lookup, area_set_stays, area_show,
                                               area_show_inherited, areas_after_fork,
                                               areas_before_fork)
from wendelin.bigfile.virtmem.memory cimport memory_after_fork
from wendelin.bigfile.virtmem.opened cimport fileh_release
from wendelin.bigfile.virtmem.page cimport (BROKEN_FILE, CHANGE_REFUSED, DIRTY, DIRTY_LIMIT,
                                            EXITING, FORKED, FOR_TOUCH, GONE, LOADED, LOADING,
                                            LOAD_FAILED, MEMFD, NO_FAILURE, NO_MAPPING, NO_MEMORY,
                                            SPOOL_FAILED, WRITE_IN_WRITEOUT, Failure, FileH, Page,
                                            fatal, fileh_doom, op_fail, op_first_change, op_wait,
                                            page_after_fork, page_become, page_drop, page_get,
                                            page_kind, page_map, page_peek, page_reach,
                                            page_set_stored, pager_exiting)
from wendelin.bigfile.virtmem.ram cimport (OFF, pager_cond, pager_lock, pager_unlock,
                                           ram_after_fork, ram_touch)
from wendelin.bigfile.virtmem.spool cimport spool_after_fork
from wendelin.bigfile.virtmem.readahead cimport AHEAD_PAGES, Ahead, readahead_post

cdef extern from *:
    """
    static __thread unsigned long wc_scraps;    /* shown to this thread */
    """
    unsigned long scraps "wc_scraps"


cdef unsigned long scraps_shown() noexcept nogil:
    """Return how often this thread was shown scrap. If it grows, the thread's results are void."""
    return scraps


cdef void show_scrap(const char *addr, bint write, Failure why) noexcept nogil:
    """Let the thread go on over memory that is never stored; the handle is doomed."""
    global scraps
    cdef Area *area = area_lookup(addr)
    cdef uint64_t i
    if area == NULL:
        return
    i = (addr - area.start) // area.blksize
    fileh_doom(<FileH *>area.fileh, area.pgoffset + i, why)
    scraps += 1
    area.scrap = True
    if area_show(area, i, 1, SINK if write else ZERO, NOWHERE) != 0:
        fatal(b"wendelin.core: no memory left to report a failure with\n")
    area_set_stays(area, i, False)


# ---- the steps of a touch ----
# All begin and end with the pager lock held.

cdef enum Step:
    GO_ON                   # to the next step
    AGAIN                   # the lock was released meanwhile: look up everything again
    SHOWN                   # the thread can go on, over the page or over scrap

cdef struct Touch:
    const char *addr
    bint write
    bint counted
    # valid until the lock is released
    Area *area
    FileH *fileh
    uint64_t i              # page of the area
    uint64_t blk            # block of the file
    Page *page              # NULL: EMPTY
    Page copy               # or this, if it has a record only
    # to do when the lock is released at the end
    Ahead[AHEAD_PAGES] ahead
    size_t n_ahead
    char *fill              # a page that is going to be written to its end; NULL: none
    size_t fill_size        # [bytes]


cdef bint page_touch(const char *addr, bint write) noexcept nogil:
    """Make addr accessible, as the fault at it wanted. False: it is in no area.

    1. find the area and the page
    2. get it into memory. EMPTY, or LOADING by this thread and not begun: load it. LOADING: wait.
       Then from 1
    3. for a write: tell the handle of the change, bring the page into page memory, LOADED ->
       DIRTY. From 1 after a step that releases the lock
    4. show it, and the pages that a reader touches next
    5. without the lock: load or map the pages that come next
    """
    cdef Touch touch
    cdef Step step = AGAIN
    touch.addr = addr
    touch.write = write
    touch.counted = False
    touch.n_ahead = 0
    touch.fill = NULL
    pager_lock()
    while step == AGAIN:
        if not touch_find(&touch):
            pager_unlock()
            return touch_inherited(addr)
        step = touch_load(&touch)
        if step == GO_ON:
            step = touch_change(&touch) if write else touch_read(&touch)
        if step == GO_ON:
            step = touch_show(&touch)
    pager_unlock()
    if touch.n_ahead != 0:
        readahead_post(touch.ahead, touch.n_ahead)
    if touch.fill != NULL:
        # A sequential writer writes the whole block: fill the page table at once, not by faults.
        madvise(touch.fill, touch.fill_size, MADV_POPULATE_WRITE)
    return True


cdef bint touch_find(Touch *touch) noexcept nogil:
    """Find the area and the page. False: it is in no area."""
    cdef Area *area = area_lookup(touch.addr)
    touch.area = area
    if area == NULL:
        return False
    touch.fileh = <FileH *>area.fileh
    touch.fileh.counts.faults += not touch.counted
    touch.counted = True
    touch.i = (touch.addr - area.start) // area.blksize
    touch.blk = area.pgoffset + touch.i
    touch.page = page_peek(touch.fileh, touch.blk, &touch.copy)
    return True


cdef Step touch_load(Touch *touch) noexcept nogil:
    """Make the page LOADED or DIRTY."""
    cdef Page *page = touch.page
    cdef Failure why
    if pager_exiting and (page == NULL or page.state == LOADING):
        return scrap(touch, EXITING)
    if may_load(page):
        if page_load(touch.fileh, touch.blk, FOR_TOUCH).why != NO_FAILURE:
            return scrap(touch, LOAD_FAILED)
        return AGAIN
    if page.state == LOADING:
        why = own_load(page)
        if why != NO_FAILURE:
            return refuse(touch, why, 0)
        wait_loaded(touch.fileh, page)
        return AGAIN
    return GO_ON


cdef Step touch_read(Touch *touch) noexcept nogil:
    """The page was used: it is given back later."""
    if touch.page.res.queue != OFF:
        ram_touch(&touch.page.res)
    return GO_ON


cdef Step touch_change(Touch *touch) noexcept nogil:
    """Make the page DIRTY, to be written."""
    cdef FileH *fileh = touch.fileh
    cdef Page *page = touch.page
    cdef Failure why = NO_FAILURE
    cdef int err
    if fileh.frozen != 0 and fileh.writer == pthread_self():
        return refuse(touch, WRITE_IN_WRITEOUT, 0)
    # before it waits: the handle may know that the end of the wait depends on this thread
    if fileh.wants_first_change and not fileh.first_change_told:
        return AGAIN if tell_first_change(fileh, touch.blk) == 0 else scrap(touch, CHANGE_REFUSED)
    if fileh.frozen != 0:
        fileh.counts.waits += 1
        op_wait()
        return AGAIN
    if page.state == LOADED:
        if page == &touch.copy:
            page = touch.page = page_get(fileh, touch.blk)
            if page == NULL:
                return refuse(touch, NO_MEMORY, ENOMEM)
        err = page_make_room(page, &why)
        if err == EAGAIN:
            return AGAIN
        if err != 0:
            return refuse(touch, why, err)
        page_become(page, DIRTY, MEMFD)
    page_set_stored(page, False)
    return GO_ON


cdef int tell_first_change(FileH *fileh, uint64_t blk) noexcept nogil:
    """Let the handle know of its first change. 0; -1: it refused, and an exception is on its way.

    A transaction may end between what op_first_change did and our lock: then it was of that one.

        T1 (change)                         T2 (commit)
        op_first_change: joins
                                            all of the commit; first_change_told = False
        lock; not first_change_told: again
    """
    cdef int err
    cdef uint64_t transactions = fileh.transactions
    fileh.refs += 1
    pager_unlock()
    err = op_first_change(fileh, blk)
    pager_lock()
    if err == 0 and transactions == fileh.transactions:
        fileh.first_change_told = True
    fileh_release(fileh)
    return err


cdef Step touch_show(Touch *touch) noexcept nogil:
    """Show the page, and choose pages to show or load ahead of the thread."""
    cdef Area *area = touch.area
    cdef Page *page = touch.page
    cdef Kind kind = page_kind(page)
    cdef int err = page_reach(page, area, touch.i)
    if err != 0:
        return refuse(touch, SPOOL_FAILED if page.slot >= 0 else
                      DIRTY_LIMIT if err == EDQUOT else NO_MEMORY, err)
    if page.state == DIRTY:
        if written_ahead(area, touch.i) and kind == RW:
            touch.fill = area.start + touch.i * area.blksize
            touch.fill_size = area_bytes(area, touch.i, 1)
    elif kind == RO:
        touch.n_ahead = load_ahead(area, touch.i, touch.ahead)
    else:
        touch.n_ahead = show_ahead(area, touch.i, touch.ahead)
    err = page_map(page, area, touch.i, kind)
    if err == GONE:
        page_drop(page)             # the file is asked again
        return AGAIN
    return SHOWN if err == 0 else refuse(touch, NO_MAPPING, err)


cdef Step refuse(Touch *touch, Failure why, int err) noexcept nogil:
    """Send the thread the exception of the failure, and let it go on over scrap."""
    fail(touch.fileh, touch.blk, why, err)
    return scrap(touch, why)


cdef Step scrap(Touch *touch, Failure why) noexcept nogil:
    """The exception was sent: let the thread go on over scrap."""
    show_scrap(touch.addr, touch.write, why)
    return SHOWN


cdef bint page_broken(const char *addr, bint write) noexcept nogil:
    """The kernel cannot read the mapped file at addr (SIGBUS). False: it is not ours."""
    cdef Area *area
    cdef FileH *fileh
    cdef uint64_t i
    cdef bint ours = True
    pager_lock()
    area = area_lookup(addr)
    if area == NULL:
        ours = False
    else:
        i = (addr - area.start) // area.blksize
        if area_kind(area, i) != FILE:
            # It was, and is not any more: go on. But not round and round, if this has no memory,
            # or if the disk of the spool has failed.
            ours = madvise(area.start + i * area.blksize, area_bytes(area, i, 1),
                           MADV_POPULATE_WRITE if write else MADV_POPULATE_READ) == 0
        if area_kind(area, i) == FILE or not ours and area_is_elsewhere(area, i):
            fileh = <FileH *>area.fileh
            fail(fileh, area.pgoffset + i, BROKEN_FILE, EIO)
            show_scrap(addr, write, BROKEN_FILE)
            ours = True
    pager_unlock()
    return ours


# ---- fork ----
# The lock is held across a fork, so that the child finds consistent data. Page memory stays
# the parent's: see mapping.pyx.

cdef void before_fork() noexcept nogil:
    frames_before_fork()
    pager_lock()
    areas_before_fork()


cdef void after_fork_in_parent() noexcept nogil:
    pager_unlock()


cdef bint touch_inherited(const char *addr) noexcept nogil:
    """Let a child of a fork go on that touched an area of its parent. False: it did not."""
    global scraps
    cdef Area *area
    cdef bint shown
    pager_lock()
    area = area_inherited(addr)
    # The range was not inherited. If other memory of the child is there, the fault is its own.
    shown = area != NULL and area_show_inherited(area, addr)
    scraps += shown
    pager_unlock()
    if not shown:
        return False
    op_fail(<FileH *>area.fileh, area.pgoffset + (addr - area.start) // area.blksize, FORKED, 0)
    return True


cdef void after_fork_in_child() noexcept nogil:
    page_after_fork()
    areas_after_fork()
    ram_after_fork()
    memory_after_fork()
    frames_after_fork()
    spool_after_fork()
    pthread_cond_init(&pager_cond, NULL)    # its waiters stayed in the parent
    pager_unlock()


pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child)
