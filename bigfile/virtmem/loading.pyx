"""Loading: how a page gets its bytes, and its state after a failure.

    EMPTY, LOCATED ── page_load ──► LOADING ──► LOADED        first touch, fileh_load, ahead
    LOADED of ZEROS, FILERANGE ── page_make_room ──► LOADING ──► LOADED of MEMFD    first write
    LOADED of MEMFD ── page_make_room ──► LOADING ──► LOADED in the spool       first write, no room

The file is asked by op_load, unless the page is LOCATED. page_fill() and page_copy() bring bytes
into page memory; it stays reserved until the page is LOADED, or page_unfill() was called.

This module knows one page at a time. It does not know areas, nor the thread that touched. It runs
Python only by page_set_ops().

Locking: see page.pyx. A function that "enters and leaves with the pager lock held" releases it
meanwhile: look up everything again after it.
"""

from libc.errno cimport EAGAIN, EDQUOT, EFAULT, EFBIG, ENOENT, ENOMEM, ENOSPC
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from wendelin.bigfile.virtmem.checksum cimport checksum_compare
from wendelin.bigfile.virtmem.frames cimport Frame, frame_give, frame_take
from wendelin.bigfile.virtmem.kernel cimport (EOPNOTSUPP, _SC_PAGESIZE, close,
                                              pthread_cond_broadcast, pthread_self, sysconf,
                                              volatile_char)

from wendelin.bigfile.virtmem.mapping cimport Piece
from wendelin.bigfile.virtmem.memory cimport memory_reach
from wendelin.bigfile.virtmem.opened cimport fileh_release
from wendelin.bigfile.virtmem.page cimport (AHEAD, BROKEN_FILE, CIRCULAR_LOAD, DIRTY_LIMIT,
                                            FILERANGE, FOR_CALL, FOR_TOUCH, LOADED, LOADING,
                                            LOAD_FAILED, LOCATED, MEMFD, NOTHING, NO_FAILURE,
                                            NO_MEMORY, SPOOL_FAILED, TOUCH_IN_LOAD, ZEROS, Backing,
                                            Failed, Failure, FileH, Page, Purpose, Source, op_fail,
                                            op_load, op_wait, page_become, page_drop, page_forget,
                                            page_get, page_needs, page_new, page_own, page_peek,
                                            page_set_source, page_show, source_open)
from wendelin.bigfile.virtmem.places cimport (page_give_memory, page_memory, page_set_frame,
                                              page_set_slot)
from wendelin.bigfile.virtmem.ram cimport (Place, os_page, pager_cond, pager_lock, pager_unlock,
                                           ram_alloc, ram_copy, ram_counted, ram_free, ram_hold,
                                           ram_largest, ram_may_dirty, ram_reserve, ram_unreserve,
                                           ram_write)
from wendelin.bigfile.virtmem.spool cimport spool_give, spool_take
from wendelin.bigfile.virtmem.deadlock cimport (wait_for_load, wait_over, waits_circular,
                                                waits_loaded)

cdef char[4096] zeros       # never written


cdef int page_fill(FileH *fileh, uint64_t blk, const char *data, size_t size,
                   bint to_store) noexcept nogil:
    """Copy a block of size <= blksize bytes into page memory; the rest is zeros. 0 or errno.

    to_store: not a block of the file, but one that it is about to get.

    op_load calls it, without the pager lock and the GIL, for the page that it loads: the memory
    stays reserved until that page is LOADED. The data may be in another array.
    """
    cdef Place memory
    cdef Frame *frame = NULL
    cdef size_t needs = 0
    cdef int err, _attempt
    size = without_zeros(fileh, blk, data, size)
    err = reserve(fileh, blk, size, to_store, &memory, &needs, &frame)
    if err != 0:
        return err
    if frame != NULL and frame.mapped and frame.whole:
        memcpy(frame.addr, data, size)
        memset(frame.addr + size, 0, needs - size)
        return 0
    # The kernel does not call us for pages that are not shown: it returns EFAULT. A touch shows
    # them, and most likely they still are at the second try.
    for _attempt in range(8):
        err = ram_write(memory, data, size)
        if err != EFAULT:
            break
        touch_bytes(data, size)
    return filled(fileh, blk, err, size, memory, needs, frame)


cdef size_t without_zeros(FileH *fileh, uint64_t blk, const char *data, size_t size) noexcept nogil:
    """Return how much of the data a page needs: not the zeros at its end that no area shows."""
    cdef size_t least
    pager_lock()
    least = page_needs(page_own(fileh, blk), 0)
    pager_unlock()
    while size > least and data[size - 1] == 0:
        size -= 1
        while size > least + sizeof(uint64_t) and (<size_t>data + size) % sizeof(uint64_t) == 0 \
                and (<const uint64_t *>(data + size))[-1] == 0:
            size -= sizeof(uint64_t)
    return size


cdef int page_copy(FileH *fileh, uint64_t blk, const Source *source) noexcept nogil:
    """As page_fill, with the bytes of a file; EBADMSG: they do not match their digest.

    ENOENT: the file of a named source is gone.
    """
    cdef Place memory
    cdef Frame *frame = NULL
    cdef size_t needs = 0
    cdef size_t size
    cdef int fd, err = reserve(fileh, blk, source.size, False, &memory, &needs,
                               &frame if source.pieces == NULL else NULL)
    if err != 0:
        return err
    if source.pieces != NULL:
        err = copy_pieces(source, memory, needs)
    else:
        if source.named:
            fd = source_open(source)
            err = ENOENT
            if fd >= 0:
                err = ram_copy(memory, source.size, fd, 0)
                close(fd)
        else:
            err = ram_copy(memory, source.size, source.fd, source.offset)
        if err == 0 and source.checked:
            err = checksum_compare(memory.fd, memory.offset, source.size, source.digest)
    size = needs if source.pieces != NULL else source.size
    return filled(fileh, blk, err, size, memory, needs, frame)


cdef int filled(FileH *fileh, uint64_t blk, int err, size_t size, Place memory, size_t needs,
                Frame *frame) noexcept nogil:
    """Let zeros follow the first bytes of a page; or, with an errno, undo it. 0 or errno."""
    cdef Place rest
    cdef size_t n
    if err == 0 and frame != NULL:
        rest.fd = memory.fd
        rest.offset = memory.offset + <long>size
        while size < needs and err == 0:        # less than an OS page, see reserve()
            n = min(needs - size, sizeof(zeros))
            err = ram_write(rest, zeros, n)
            rest.offset += <long>n
            size += n
        frame.whole = err == 0
    elif err == 0 and size < needs:
        err = ram_alloc(memory, size, needs)
    if err != 0:
        page_unfill(fileh, blk)
    return err


cdef int copy_pieces(const Source *source, Place memory, size_t needs) noexcept nogil:
    """Copy the pieces of a block into page memory, and allocate the rest. 0 or errno."""
    cdef const Piece *piece
    cdef Place at
    cdef size_t done = 0
    cdef int i, err = 0
    at.fd = memory.fd
    for i in range(source.pieces.n):
        piece = &source.pieces.piece[i]
        at.offset = memory.offset + piece.start
        if done < piece.start:
            err = ram_alloc(memory, done, piece.start)
        if err == 0:
            err = ram_copy(at, piece.size, source.fd, piece.offset)
        if err == 0 and piece.checked:
            err = checksum_compare(at.fd, at.offset, piece.size, piece.digest)
        if err != 0:
            return err
        done = piece.start + piece.size
    return ram_alloc(memory, done, needs) if done < needs else 0


cdef int reserve(FileH *fileh, uint64_t blk, size_t size, bint to_store, Place *memory,
                 size_t *needs, Frame **frame) noexcept nogil:
    """Reserve memory for a LOADING page, which is about to get size bytes. 0 or errno.

    It gets a frame if these are its whole block, but for a part of the last OS page, as a frame has
    bytes of another block. frame: NULL: not all of them are written.
    """
    cdef Page *page
    cdef int err = 0
    pager_lock()
    page = page_own(fileh, blk)
    needs[0] = page.res.size = page_needs(page, size)
    if page.slot < 0:
        err = memory_reach(&fileh.memory, blk)
        if err == 0:
            err = ram_reserve(page.res.size)
        if err == 0 and frame != NULL and needs[0] == fileh.blksize and needs[0] - size < os_page:
            frame[0] = frame_take(needs[0], to_store)
            page_set_frame(page, frame[0])
    memory[0] = page_memory(page)
    pager_unlock()
    if page.slot >= 0:
        # before any byte: what is only written may find no room on the disk later
        err = ram_alloc(memory[0], 0, needs[0])
    return err


cdef void page_unfill(FileH *fileh, uint64_t blk) noexcept nogil:
    """Undo page_fill."""
    cdef Page *page
    pager_lock()
    page = page_own(fileh, blk)
    ram_unreserve(ram_counted(&page.res))
    page_give_memory(page)
    pager_unlock()


cdef void touch_bytes(const char *data, size_t size) noexcept nogil:
    cdef size_t i, step = sysconf(_SC_PAGESIZE)
    cdef char seen = 0
    if size == 0:
        return
    i = 0
    while i < size:
        seen ^= (<volatile_char *>data)[i]
        i += step
    seen ^= (<volatile_char *>data)[size - 1]


cdef uint64_t loads         # protected by: the pager lock


cdef bint may_load(const Page *page) noexcept nogil:
    """Say whether this thread may load a page: none does, or this one, which has not begun."""
    if page == NULL or page.state == LOCATED:
        return True
    return page.state == LOADING and not page.begun and page.loader == pthread_self()


cdef bint load_begins(FileH *fileh, uint64_t blk, uint64_t load) noexcept nogil:
    """The file is about to be asked. False: do not, as another load was done meanwhile."""
    cdef Page *page
    cdef bint begins
    pager_lock()
    page = page_own(fileh, blk)
    begins = page != NULL and page.state == LOADING and page.load == load
    if begins:
        page.begun = True
    pager_unlock()
    return begins


cdef Failed page_load(FileH *fileh, uint64_t blk, Purpose purpose) noexcept nogil:
    """EMPTY or LOCATED -> LOADING -> LOADED; or back to where it was, if the load failed.

    Or from LOADING, if may_load() says so. With AHEAD, only LOCATED pages are loaded. Enters and
    leaves with the pager lock held, and releases it while the block is loaded.

    1. begin: the page belongs to this thread
    2. get the block, without the lock
    3. if it is not true any more: drop the bytes, and again from 2
    4. end: other threads may use the page; a failure is reported
    """
    cdef Failed failed
    cdef Source source
    cdef bint stale
    cdef Page *page = load_begin(fileh, blk)
    failed.why = NO_FAILURE
    failed.err = 0
    failed.exc = NULL
    if page == NULL:
        failed.why = NO_MEMORY
        fail(fileh, blk, NO_MEMORY, ENOMEM)
        return failed
    fileh.refs += 1
    while True:
        get_block(fileh, page, purpose, &source, &failed)
        if source.load == 0:            # the page is another load's, by this thread
            fileh_release(fileh)
            return failed
        if source.backing == MEMFD and (page.reload or failed.why != NO_FAILURE):
            pager_unlock()
            page_unfill(fileh, blk)
            pager_lock()
        stale = page.reload and failed.why != LOAD_FAILED
        if (stale or failed.why != NO_FAILURE) and source.pieces != page.source.pieces:
            free(source.pieces)
        if not stale:
            break
        page.source.fd = -1             # that place is not true any more: ask
        if purpose == AHEAD:
            failed.why = LOAD_FAILED
            break
    load_end(page, &source, &failed, purpose)
    fileh_release(fileh)
    return failed


cdef Page *load_begin(FileH *fileh, uint64_t blk) noexcept nogil:
    """-> LOADING, by this thread. NULL: no memory."""
    global loads
    cdef Page *page = page_get(fileh, blk)
    if page == NULL:
        page = page_new(fileh, blk)
        if page == NULL:
            return NULL
    elif page.state == LOCATED:
        page_become(page, LOADING, NOTHING)
        page.loader = pthread_self()
    loads += 1
    page.load = loads
    return page


cdef void get_block(FileH *fileh, Page *page, Purpose purpose, Source *source, Failed *failed) \
        noexcept nogil:
    """Get the block of a LOADING page as `source` says. Releases the pager lock.

    If source.load is 0, the load was taken over, and `page` may be gone.
    """
    cdef uint64_t blk = page.blk
    failed.why = NO_FAILURE
    page.reload = False
    source[0] = page.source
    source.backing = NOTHING
    source.load = page.load
    page.begun = source.fd >= 0
    if blk >= fileh.zero_from:
        source.backing = ZEROS
        return
    pager_unlock()
    if source.fd < 0:
        op_load(fileh, blk, source, purpose, failed)
    if source.load != 0 and failed.why == NO_FAILURE and source.backing == NOTHING:
        failed.err = page_copy(fileh, blk, source)
        if failed.err == 0:
            source.backing = MEMFD
        else:
            failed.why = BROKEN_FILE
    pager_lock()


cdef void load_end(Page *page, const Source *source, const Failed *failed, Purpose purpose) \
        noexcept nogil:
    """LOADING -> LOADED; or, if it failed, back to the previous state, and report it."""
    cdef FileH *fileh = page.fileh
    cdef uint64_t blk = page.blk
    if failed.why == NO_FAILURE:
        page_set_source(page, source)
        page_become(page, LOADED, source.backing)
        fileh.counts.loads += 1
    elif page.source.fd >= 0:
        page_become(page, LOCATED, NOTHING)
    else:
        page_forget(page)
    load_over(fileh, blk)
    if failed.why == NO_FAILURE or purpose == AHEAD:
        return
    if failed.why == BROKEN_FILE and purpose == FOR_TOUCH:
        fail(fileh, blk, BROKEN_FILE, failed.err)
    else:
        fileh.counts.failures += 1      # op_load, or the caller, reports it


cdef int page_make_room(Page *page, Failure *why) noexcept nogil:
    """Let a LOADED page be where it may become DIRTY: in memory, or in the spool.

    0: it is. EAGAIN: the pager lock was released meanwhile: look up everything again. Else errno,
    and why.
    """
    cdef FileH *fileh = page.fileh
    cdef bint spool = False
    cdef long slot = -1
    cdef size_t size
    cdef int err
    if page.slot >= 0:
        return 0
    size = page.res.size
    if page.backing != MEMFD:
        size = page_needs(page, page.source.size if page.backing == FILERANGE else 0)
    if not ram_may_dirty(size, fileh.spool != NULL):
        spool = fileh.spool != NULL and size <= ram_largest
        why[0] = SPOOL_FAILED if spool else DIRTY_LIMIT
        err = spool_take(fileh.spool, fileh.blksize, &slot) if spool else ENOMEM
        if err != 0:
            return err
    elif page.backing == MEMFD:
        return 0
    err = page_move(page, slot) if page.backing == MEMFD else page_bring_in(page, slot)
    if err == 0:
        return EAGAIN
    if not spool:
        why[0] = NO_MEMORY if err in (ENOMEM, ENOSPC) else BROKEN_FILE
    elif err not in (ENOSPC, EDQUOT, EFBIG, EOPNOTSUPP):
        why[0] = BROKEN_FILE
    return err


cdef int page_bring_in(Page *page, long slot) noexcept nogil:
    """LOADED of ZEROS or FILERANGE -> LOADING -> LOADED of MEMFD. 0 or errno.

    slot: of the spool, for the page; -1: into memory. Releases the pager lock: the page may be
    gone after it.
    """
    cdef FileH *fileh = page.fileh
    cdef uint64_t blk = page.blk
    cdef Backing backing = page.backing
    cdef bint reload
    cdef int err
    fileh.refs += 1
    page_become(page, LOADING, backing)
    page.loader = pthread_self()
    page.begun = True
    page_set_slot(page, slot, 0)
    pager_unlock()
    if backing == ZEROS:
        err = page_fill(fileh, blk, NULL, 0, False)
    else:
        err = page_copy(fileh, blk, &page.source)
    pager_lock()
    reload = page.reload
    if reload or err != 0:
        if page.slot >= 0:          # a copy that failed has given it
            spool_give(fileh.spool, fileh.blksize, slot)
            page_set_slot(page, -1, 0)
        elif err == 0:
            pager_unlock()
            page_unfill(fileh, blk)
            pager_lock()
        page_become(page, LOADED, backing)
        if reload or (err == ENOENT and page.source.named):
            page_drop(page)
            err = 0                 # EMPTY now: the touch starts again
    else:
        # The bytes are the same, and are always shown: a system call may be reading them.
        page_become(page, LOADED, MEMFD)
        page_show(page, False)
    load_over(fileh, blk)
    fileh_release(fileh)
    return err


cdef int page_move(Page *page, long slot) noexcept nogil:
    """LOADED of MEMFD -> LOADING -> LOADED of MEMFD, from memory to a slot. 0 or errno.

    Releases the pager lock: the page may be gone after it. Areas show the memory meanwhile.
    """
    cdef FileH *fileh = page.fileh
    cdef uint64_t blk = page.blk
    cdef Place old = page_memory(page)
    cdef Place new
    cdef Frame *frame
    cdef size_t size = page.res.size, needs = page_needs(page, size)
    cdef bint reload
    cdef int err
    fileh.refs += 1
    ram_hold(&page.res)
    page_become(page, LOADING, NOTHING)
    page.loader = pthread_self()
    page.begun = True
    frame = page_set_frame(page, NULL)
    page_set_slot(page, slot, needs)
    new = page_memory(page)
    pager_unlock()
    err = ram_alloc(new, 0, needs)
    if err == 0:
        err = ram_copy(new, size, old.fd, old.offset)
    pager_lock()
    reload = page.reload
    if reload or err != 0:
        spool_give(fileh.spool, fileh.blksize, slot)
        page_set_slot(page, -1, size)
        page_set_frame(page, frame)
        page_become(page, LOADED, MEMFD)
        if reload:
            page_drop(page)
            err = 0
    else:
        page_become(page, LOADED, MEMFD)
        page_show(page, False)
        if frame != NULL:               # no area shows its memory any more
            frame_give(frame)
        else:
            ram_free(old, size)
        ram_unreserve(size)
    load_over(fileh, blk)
    fileh_release(fileh)
    return err


cdef void load_over(FileH *fileh, uint64_t blk) noexcept nogil:
    waits_loaded(fileh, blk)
    pthread_cond_broadcast(&pager_cond)


cdef Failure own_load(const Page *page) noexcept nogil:
    """Return why this thread may not wait for a LOADING page; NO_FAILURE: it may."""
    if page.loader == pthread_self():
        return TOUCH_IN_LOAD
    return CIRCULAR_LOAD if waits_circular(page.loader) else NO_FAILURE


cdef void wait_loaded(FileH *fileh, const Page *page) noexcept nogil:
    """Wait for a LOADING page. Then look up everything again."""
    cdef int waiter = wait_for_load(fileh, page.blk, page.loader)
    fileh.counts.waits += 1
    op_wait()
    wait_over(waiter)


cdef void fail(FileH *fileh, uint64_t blk, Failure why, int err) noexcept nogil:
    """Call op_fail from a caller that holds the pager lock."""
    fileh.refs += 1
    fileh.counts.failures += 1
    pager_unlock()
    op_fail(fileh, blk, why, err)
    pager_lock()
    fileh_release(fileh)


cdef Failed fileh_load(FileH *fileh, uint64_t blk) noexcept nogil:
    """Make sure that a page is in memory, or a hole, or mapped.

    An exception to raise is in the result. If another thread, or none, could load the page, it is
    on its way to this thread.
    """
    cdef Page *page
    cdef Page copy
    cdef Failed failed
    failed.why = NO_FAILURE
    failed.err = 0
    failed.exc = NULL
    pager_lock()
    while True:
        page = page_peek(fileh, blk, &copy)
        if may_load(page):
            failed = page_load(fileh, blk, FOR_CALL)
            break
        if page.state != LOADING:
            break
        failed.why = own_load(page)
        if failed.why != NO_FAILURE:
            fail(fileh, blk, failed.why, 0)
            break
        wait_loaded(fileh, page)
    pager_unlock()
    return failed
