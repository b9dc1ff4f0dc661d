"""Pages of a handle: their states, and every transition.

Organization
------------
A FileH is one opened file: where its page memory is, a map of the pages that are not EMPTY, and
the areas that show them. A Page is one block of the file. Python's classes over it are in
handle; trampoline loads a block: page_set_ops(). This module runs no Python.

The modules above move pages: loading, ahead, touch, and fileh (write-out, discard, invalidate,
truncate). This module does not know how a page is loaded, nor the threads that touch or store it.

States
------
                    touch (read)             touch (write)
   EMPTY ───────────► LOADING ─► LOADED ─────────► DIRTY
     ▲                   │          │                 │
     │◄── load failed ───┘          │◄── mark_stored ─┘
     │◄── reclaim, invalidate ──────┘                 │
     │◄── discard, invalidate, truncate ──────────────┘

   EMPTY ── set_located ──► LOCATED, or LOADED if it costs no memory
   LOCATED ── touch, or read ahead ──► LOADING          LOCATED ◄── reclaim, load failed

   EMPTY     no Page; shown as NONE
   LOCATED   not in memory and shown as NONE, but `source` says where it is: it is loaded
             without Python
   LOADING   one thread fills it, others wait for pager_cond. A page that is invalidated
             meanwhile is marked `reload`, and loaded again. Before the file is asked, handlers of
             signals run in that thread. If one touches the page, that is another load, and the
             first one sees that the page is not its own any more (load_begins)
   LOADED    clean. Its backing is ZEROS (a hole), FILERANGE (mapped from a file) or MEMFD
             (copied into page memory, and in a queue of ram)
   DIRTY     changed; backing MEMFD, never given back. `stored` while nothing changed since
             it was stored

A page that is LOCATED, or LOADED of ZEROS or FILERANGE, may have a record instead of a Page: see
known. page_peek() shows it as a Page for a look, and page_get() makes one of it, before its state
changes. A page that is given back becomes a record again.

When the file is asked where a block is, it may also say where others are: fileh_set_located() makes
them LOADED or LOCATED, if nothing has changed meanwhile (`epoch`). From then on a touch of them
needs no Python, and a touch of one shows others with it (show_ahead), or loads them (load_ahead).

After a commit, pages in memory also lie in the file: fileh_set_located() takes their memory back,
LOADED of MEMFD -> LOADED of FILERANGE.

The first write to a page of ZEROS or FILERANGE goes LOADED -> LOADING (its bytes are brought
into page memory) -> LOADED -> DIRTY. If changes would pass the limit of memory, a page of any
backing goes this way, into the spool. It leaves that as soon as it is stored. page_become() is the
one place where a state is assigned.

A page has memory for those bytes of its block that its file has, or an area shows (page_needs),
in whole OS pages. It gets more before an area shows more (page_reach).

An area may always show less of a page than it could (NONE instead of RO or RW, RO instead of RW):
the next touch corrects it. It never shows more.

Locking
-------
    GIL > pager lock        (and nothing below the pager lock but the kernel's own)

The pager lock is a leaf. Its holder never waits for the GIL, for a load or for a store, calls
no Python, and touches no memory of an area. So a thread that holds the GIL may wait for it, even
the collector, which frees areas and handles in any thread at any moment. A wait for a condition is
different: op_wait releases the GIL first, if this thread holds it.

After any wait or load everything is looked up again: the area may be gone, the page dropped.
A FileH in use without the lock is held by `refs`.

    T1 (load)                           T2 (invalidation)
    LOADING, unlock
      load old bytes                    lock, page.reload = True, unlock
    lock, reload set: load again

Errors
------
Functions return 0 or an errno. A touch cannot fail: if it cannot be served, the area shows
scrap (zeros for a read, a SINK for a write), which is never stored, and op_fail or op_load have
sent an exception.

Before any scrap is shown, the handle is doomed, in C and without memory: fileh_doom(). Code that
stores changes checks that. So these zeros are never stored, even if Python fails to report the
failure, for lack of memory or stack.

    sound ── fileh_doom: a touch failed ──► doomed ── fileh_undoom: discard, forget ──► sound
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport abort, calloc, free
from libc.string cimport memset, strlen

from wendelin.bigfile.virtmem.kernel cimport (O_CLOEXEC, O_NOFOLLOW, O_RDONLY, close, openat,
                                              pthread_self, write as write_fd)
from wendelin.bigfile.virtmem.mapping cimport (FILE, NONE, NOWHERE, RO, RW, ZERO, Area, Kind,
                                               Origin, area_bytes, area_kind, area_reset,
                                               area_set_stays, area_show, area_was_shown)
from wendelin.bigfile.virtmem.pagemap cimport pagemap_del, pagemap_get, pagemap_set
from wendelin.bigfile.virtmem.known cimport (Known, is_known, is_known_hole, known_add, known_at,
                                             known_del, known_hole)
from wendelin.bigfile.virtmem.places cimport page_give_memory, page_memory
from wendelin.bigfile.virtmem.ram cimport (OFF, Resident, ram_add, ram_counted, ram_grow,
                                           ram_make_clean, ram_make_dirty, ram_pin, ram_remove,
                                           ram_set_ops, ram_unreserve, whole_os_pages)
from wendelin.bigfile.virtmem.spool cimport spool_count
from wendelin.bigfile.virtmem.trace cimport trace_page

cdef void page_set_ops(void (*load)(FileH *, uint64_t, Source *, Purpose, Failed *) noexcept nogil,
                       void (*fail)(FileH *, uint64_t, Failure, int) noexcept nogil,
                       int (*first_change)(FileH *, uint64_t) noexcept nogil,
                       void (*wait)() noexcept nogil) noexcept nogil:
    """Set the functions that load, report failures, tell of a change, and wait.

    load(fileh, blk, source, purpose, failed): find the block. If it must be copied, do so with
        page_fill, and set MEMFD, even if it fails after that. *failed has the failure, and its
        exception; FOR_TOUCH, that is on its way to the thread. If load_begins() says that the load
        was taken over, do nothing, and set source.load to 0. Called without the lock.
    fail(fileh, blk, why, errno): raise in the thread that touched. Called without the lock.
    first_change(fileh, blk): a handle that `wants_first_change` is about to be changed. 0; -1: it
        refused, and the exception is on its way. Called without the lock.
    wait(): wait for pager_cond, with the pager lock held, the GIL given up meanwhile.
    """
    global op_load, op_fail, op_first_change, op_wait
    op_load = load
    op_fail = fail
    op_first_change = first_change
    op_wait = wait


cdef void page_set_exiting() noexcept nogil:
    """The interpreter is going away: from now on, EMPTY pages are shown as scrap."""
    global pager_exiting
    pager_exiting = True


cdef void page_after_fork() noexcept nogil:
    """In the child: older handles are the parent's."""
    global pager_generation
    pager_generation += 1


# ---- states of one page ----

cdef const char *state_name(State state) noexcept nogil:
    return (b"DIRTY" if state == DIRTY else b"LOADED" if state == LOADED
            else b"LOADING" if state == LOADING else b"LOCATED")


cdef const char *backing_name(Backing backing) noexcept nogil:
    return (b"MEMFD" if backing == MEMFD else b"FILERANGE" if backing == FILERANGE
            else b"ZEROS" if backing == ZEROS else b"")


cdef void page_become(Page *page, State state, Backing backing) noexcept nogil:
    """Go to another state, and update queues, lists and counts."""
    cdef FileH *fileh = page.fileh
    trace_page(fileh.name, page.blk, state_name(page.state), backing_name(page.backing),
               state_name(state), backing_name(backing))
    if page.state == LOADING:
        list_take(&fileh.loading, page)
    elif state == LOADING:
        list_put(&fileh.loading, page)
    if page.state == DIRTY:
        list_take(&fileh.dirty, page)
        fileh.ndirty -= 1
        fileh.counts.dirty -= ram_counted(&page.res)
        page_set_stored(page, False)
        ram_make_clean(&page.res)
        if page.pins != 0:
            ram_pin(&page.res)
    elif state == DIRTY:
        page.source.fd = -1         # its bytes differ from the file now
        ram_make_dirty(&page.res)
        list_put(&fileh.dirty, page)
        fileh.ndirty += 1
        fileh.counts.dirty += ram_counted(&page.res)
    elif state == LOADED and backing == MEMFD:
        ram_unreserve(ram_counted(&page.res))
        ram_add(&page.res)
        if page.pins != 0:
            ram_pin(&page.res)
    page.state = state
    page_set_backing(page, backing)
    page.reload = False


cdef void list_put(Page **first, Page *page) noexcept nogil:
    page.list_prev = NULL
    page.list_next = first[0]
    if first[0] != NULL:
        first[0].list_prev = page
    first[0] = page


cdef void list_take(Page **first, Page *page) noexcept nogil:
    if page.list_prev != NULL:
        page.list_prev.list_next = page.list_next
    else:
        first[0] = page.list_next
    if page.list_next != NULL:
        page.list_next.list_prev = page.list_prev


cdef void page_set_backing(Page *page, Backing backing) noexcept nogil:
    cdef Counts *counts = &page.fileh.counts
    page_count(page, ((backing == MEMFD) - <int>(page.backing == MEMFD)) * <long>page.res.size)
    counts.mapped += (backing == FILERANGE) - <int>(page.backing == FILERANGE)
    page.backing = backing


cdef void page_count(Page *page, long change) noexcept nogil:
    """The page memory of a page has changed by so many bytes."""
    if page.res.spooled:
        page.fileh.counts.spooled += change
        spool_count(change)
    else:
        page.fileh.counts.resident += change


cdef void page_set_stored(Page *page, bint stored) noexcept nogil:
    """A DIRTY page was stored, or changed after that."""
    page.fileh.nstored += stored - page.stored
    page.stored = stored


# ---- pages as records ----

cdef enum:
    OFFSET_BITS = 48        # of Known.where; flags are above
    SIZE_BITS = 41          # of Known.size; the descriptor is above

cdef uint64_t MAPPED = <uint64_t>1 << 48
cdef uint64_t CHECKED = <uint64_t>1 << 49


cdef bint pack(const Source *source, Known *known) noexcept nogil:
    """Put a Source, not of a hole, into a record. False: its numbers are too large."""
    if source.named:
        return False
    if source.pieces != NULL or source.offset >> OFFSET_BITS != 0 or source.size >> SIZE_BITS != 0 \
            or source.fd < 0 or source.fd >> (64 - SIZE_BITS) != 0:
        return False
    known.where = source.offset
    if source.backing == FILERANGE:
        known.where |= MAPPED
    if source.checked:
        known.where |= CHECKED
    known.size = source.size | <uint64_t>source.fd << SIZE_BITS
    known.digest = source.digest
    return True


cdef void unpack(FileH *fileh, uint64_t blk, void *value, Page *page) noexcept nogil:
    """Fill a page of zero bytes with what a value of the page map says."""
    cdef Known *known
    page.res.queue = OFF
    page.slot = -1
    page.fileh = fileh
    page.blk = blk
    page.state = LOADED
    page.source.fd = -1
    page.source.backing = page.backing = ZEROS
    if is_known_hole(value):
        return
    known = known_at(&fileh.known, value)
    page.backing = FILERANGE if known.where & MAPPED else NOTHING
    page.state = LOADED if page.backing == FILERANGE else LOCATED
    page.source.backing = page.backing
    page.source.offset = known.where & ((<uint64_t>1 << OFFSET_BITS) - 1)
    page.source.checked = known.where & CHECKED != 0
    page.source.size = known.size & ((<uint64_t>1 << SIZE_BITS) - 1)
    page.source.fd = <int>(known.size >> SIZE_BITS)
    page.source.digest = known.digest


cdef Page *page_own(FileH *fileh, uint64_t blk) noexcept nogil:
    """Return the Page of a block; NULL: it is EMPTY, or has a record only."""
    cdef void *value = pagemap_get(&fileh.pages, blk)
    return NULL if is_known(value) else <Page *>value


cdef Page *page_peek(FileH *fileh, uint64_t blk, Page *copy) noexcept nogil:
    """Return the Page of a block, or `copy`, filled from its record; NULL: it is EMPTY.

    What is written to the copy is lost: see page_get().
    """
    cdef void *value = pagemap_get(&fileh.pages, blk)
    if not is_known(value):
        return <Page *>value
    memset(copy, 0, sizeof(Page))
    unpack(fileh, blk, value, copy)
    return copy


cdef Page *page_get(FileH *fileh, uint64_t blk) noexcept nogil:
    """Return the Page of a block, made of its record; NULL: it is EMPTY, or there is no memory."""
    cdef void *value = pagemap_get(&fileh.pages, blk)
    cdef Page *page
    if not is_known(value):
        return <Page *>value
    page = <Page *>calloc(1, sizeof(Page))
    if page != NULL:
        unpack(fileh, blk, value, page)
        known_del(&fileh.known, value)
        pagemap_set(&fileh.pages, blk, page)    # in place: it needs no memory
    return page


cdef bint fileh_know(FileH *fileh, uint64_t blk, const Source *source) noexcept nogil:
    """EMPTY, or LOCATED with a record -> LOCATED or LOADED, with a record. False: it has none."""
    cdef Known known
    cdef void *value = known_hole()
    cdef void *before = pagemap_get(&fileh.pages, blk)
    if source.backing != ZEROS:
        value = known_add(&fileh.known, &known) if pack(source, &known) else NULL
    if value == NULL:
        return False
    if pagemap_set(&fileh.pages, blk, value) != 0:
        known_del(&fileh.known, value)
        return False
    if before != NULL:
        known_del(&fileh.known, before)
    fileh.counts.mapped += source.backing == FILERANGE
    fileh.end = max(fileh.end, blk + 1)
    trace_page(fileh.name, blk, b"EMPTY" if before == NULL else b"LOCATED", b"",
               b"LOCATED" if source.backing == NOTHING else b"LOADED", backing_name(source.backing))
    return True


cdef void fileh_unknow(FileH *fileh, uint64_t blk) noexcept nogil:
    """-> EMPTY, for a page with a record."""
    cdef Page copy
    cdef void *value = pagemap_get(&fileh.pages, blk)
    page_peek(fileh, blk, &copy)
    page_protect(&copy, NONE)
    fileh.counts.mapped -= copy.backing == FILERANGE
    trace_page(fileh.name, blk, state_name(copy.state), backing_name(copy.backing), b"EMPTY", b"")
    known_del(&fileh.known, value)
    pagemap_del(&fileh.pages, blk)


cdef Page *page_new(FileH *fileh, uint64_t blk) noexcept nogil:
    """EMPTY -> LOADING. NULL: no memory."""
    cdef Page *page = <Page *>calloc(1, sizeof(Page))
    if page == NULL:
        return NULL
    page.res.queue = OFF
    page.fileh = fileh
    page.blk = blk
    page.source.fd = -1
    page.slot = -1
    page.state = LOADING
    page.loader = pthread_self()
    if pagemap_set(&fileh.pages, blk, page) != 0:
        free(page)
        return NULL
    list_put(&fileh.loading, page)
    fileh.end = max(fileh.end, blk + 1)
    trace_page(fileh.name, blk, b"EMPTY", b"", b"LOADING", b"")
    return page


cdef void page_set_source(Page *page, const Source *source) noexcept nogil:
    """Set where the block is. The pieces of the source are the page's from now on."""
    if page.source.pieces != source.pieces:
        free(page.source.pieces)
    page.source = source[0]


cdef void page_free(Page *page) noexcept nogil:
    free(page.source.pieces)
    free(page)


cdef Origin page_shown_from(const Page *page) noexcept nogil:
    """Return what an area maps to show a LOADED or DIRTY page; see page_kind()."""
    cdef Origin origin
    origin.pieces = NULL
    origin.framed = page.backing == MEMFD and page.frame != NULL
    if page.backing == MEMFD:
        origin.place = page_memory(page)
    else:
        origin.place.fd = page.source.fd
        origin.place.offset = page.source.offset
        origin.pieces = page.source.pieces
    return origin


cdef Kind page_kind(const Page *page) noexcept nogil:
    """Return the most that an area may show of a LOADED or DIRTY page."""
    if page.state == DIRTY:
        return RW if page.fileh.frozen == 0 and not page.stored else RO
    return ZERO if page.backing == ZEROS else FILE if page.backing == FILERANGE else RO


cdef void page_protect(Page *page, Kind most) noexcept nogil:
    """Let no area show more of the page than `most`: NONE or RO."""
    cdef Area *area = page.fileh.areas
    cdef uint64_t i
    cdef Kind kind
    while area != NULL:
        i = page.blk - area.pgoffset        # wraps to a large number when blk is below
        if i < area.pglen:
            kind = area_kind(area, i)
            if kind == RW or most == NONE and kind != NONE:
                if area_show(area, i, 1, most, page_shown_from(page)) != 0 \
                        and area_reset(area) != 0:
                    fatal(b"wendelin.core: the kernel refuses to unmap a page\n")
        area = area.next


cdef size_t page_needs(const Page *page, size_t size) noexcept nogil:
    """Return how much memory a page gets, of which the file has size bytes [bytes]."""
    cdef Area *area = page.fileh.areas
    cdef uint64_t i
    while area != NULL:
        i = page.blk - area.pgoffset        # wraps to a large number when blk is below
        if i < area.pglen and area != page.fileh.kept:
            size = max(size, area_bytes(area, i, 1))
        area = area.next
    return whole_os_pages(max(size, <size_t>1))


cdef int page_reach(Page *page, Area *area, uint64_t i) noexcept nogil:
    """Give a page that is in page memory all that an area is going to show of it. 0 or errno.

    EDQUOT: dirty pages would pass the limit.
    """
    cdef size_t before = page.res.size, size = area_bytes(area, i, 1)
    cdef int err
    if page.backing != MEMFD or size <= before:
        return 0
    err = ram_grow(&page.res, page_memory(page), size)
    page_count(page, page.res.size - before)
    if page.state == DIRTY and not page.res.spooled:
        page.fileh.counts.dirty += page.res.size - before
    return err


cdef int source_open(const Source *source) noexcept nogil:
    """Open the file of a named source, <offset>-<second>, each in 16 hexadecimal digits. -1: errno.

    The caller closes it.
    """
    cdef char[34] name
    cdef const char *digits = b"0123456789abcdef"
    cdef uint64_t first = <uint64_t>source.offset, second = source.second
    cdef int i, fd
    for i in range(16):
        name[15 - i] = digits[(first >> (4 * i)) & 15]
        name[32 - i] = digits[(second >> (4 * i)) & 15]
    name[16] = c'-'
    name[33] = 0
    while True:
        fd = openat(source.fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
        if fd >= 0 or errno != EINTR:
            return fd


cdef int page_map(const Page *page, Area *area, uint64_t i, Kind kind) noexcept nogil:
    """Show a LOADED or DIRTY page as page i of an area, as `kind`. 0, errno, or GONE."""
    cdef Origin origin = page_shown_from(page)
    cdef int err
    if kind != FILE or not page.source.named:
        return area_show(area, i, 1, kind, origin)
    origin.place.fd = source_open(&page.source)
    origin.place.offset = 0
    if origin.place.fd < 0:
        return GONE
    err = area_show(area, i, 1, kind, origin)
    close(origin.place.fd)      # the mapping keeps the file, even if its name is removed
    return err


cdef void page_show(Page *page, bint stays) noexcept nogil:
    """Let all areas that show something of a LOADED or DIRTY page, or showed it before it was
    dropped, show it as it is now. Where the kernel gives no mapping, the next touch does it.

    stays: and go on showing it. An area that never showed it is left alone, but then.
    """
    cdef Area *area = page.fileh.areas
    cdef uint64_t i
    cdef Kind kind = page_kind(page)
    while area != NULL:
        i = page.blk - area.pgoffset        # wraps to a large number when blk is below
        if area == page.fileh.kept:
            # it would take memory for what no view shows
            if i < area.pglen and area_kind(area, i) != NONE \
                    and area_show(area, i, 1, NONE, NOWHERE) != 0 and area_reset(area) != 0:
                fatal(b"wendelin.core: the kernel refuses to unmap a page\n")
        elif i < area.pglen and (stays or area_was_shown(area, i)):
            if page_reach(page, area, i) != 0 \
                    or page_map(page, area, i, kind) != 0:
                if area_show(area, i, 1, NONE, NOWHERE) != 0 and area_reset(area) != 0:
                    fatal(b"wendelin.core: the kernel refuses to unmap a page\n")
            elif stays:
                area_set_stays(area, i, True)
        area = area.next


cdef void fatal(const char *msg) noexcept nogil:
    # To go on would show outdated bytes.
    write_fd(2, msg, strlen(msg))
    abort()


cdef void page_drop(Page *page) noexcept nogil:
    """LOCATED, LOADED or DIRTY -> EMPTY. A LOADING page is loaded again instead."""
    if page.state == LOADING:
        page.reload = True
        return
    page_free_memory(page)
    page_forget(page)


cdef void page_free_memory(Page *page) noexcept nogil:
    """LOADED or DIRTY: free its memory. The caller changes its state right after."""
    page_protect(page, NONE)
    if page.state == DIRTY:
        page_become(page, LOADED, MEMFD)
    if page.backing == MEMFD:
        ram_remove(&page.res)
        page_set_backing(page, NOTHING)
        page_give_memory(page)


cdef void page_forget(Page *page) noexcept nogil:
    """-> EMPTY, for a page without memory."""
    trace_page(page.fileh.name, page.blk, state_name(page.state), backing_name(page.backing),
               b"EMPTY", b"")
    page_set_backing(page, NOTHING)
    if page.state == LOADING:
        list_take(&page.fileh.loading, page)
    pagemap_del(&page.fileh.pages, page.blk)
    page_free(page)


cdef void page_cool(Resident *res) noexcept nogil:
    page_protect(<Page *>res, NONE)


cdef void page_evict(Resident *res) noexcept nogil:
    cdef Page *page = <Page *>res
    cdef FileH *fileh = page.fileh
    cdef uint64_t blk = page.blk
    cdef Source source = page.source
    fileh.counts.reclaims += 1
    page_free_memory(page)
    if source.pieces != NULL:
        page_become(page, LOCATED, NOTHING)
        return
    page_forget(page)
    source.backing = NOTHING
    if source.fd >= 0:
        fileh_know(fileh, blk, &source)     # else it is EMPTY, and the file is asked


# ---- handles ----

cdef void fileh_doom(FileH *fileh, uint64_t blk, Failure why) noexcept nogil:
    """A touch failed. With the pager lock held."""
    if fileh.doom == NO_FAILURE:
        fileh.doom = why
        fileh.doom_blk = blk
        fileh.doom_told = False


cdef void fileh_undoom(FileH *fileh) noexcept nogil:
    """The changes are gone, and no scrap is shown. With the pager lock held."""
    fileh.doom = NO_FAILURE


ram_set_ops(page_cool, page_evict)
