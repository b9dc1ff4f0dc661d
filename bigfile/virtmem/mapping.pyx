"""Areas: ranges of address space that show pages of a file, and what each page shows now.

An Area is one mapping of a handle's page memory, cut by the kernel into as many mappings as
neighbouring pages differ. Page by page it shows one Kind:

    NONE, RO, RW    page memory, at the page's own place: changed by mprotect. RO and RW can be
                    ELSEWHERE, where the caller says: changed by mmap
    ZERO            a hole, or a page whose load failed: it takes no memory
    FILE            the block's bytes where they lie in a file: the kernel's page cache
    SINK            one block of memory for writes of a doomed transaction

`areas` is sorted by address, so that a fault finds its area in O(log n).

*Budgets.* The kernel allows vm.max_map_count mappings a process, ours and all others; and page
tables cost 0.2 % of every range that was touched, also of zero and file pages. When one of the
two budgets is reached, the area that uses most of it gives a quarter back: these pages are shown as
NONE again, in one mapping. A hand goes round over its pages, so that pages of a sequential reader
are given back in order of their age. Pages stay in memory: the next touch faults, and shows them. A
page with STAYS is skipped, as a program needs it accessible without a fault.

*Fork.* Areas are not inherited (MADV_DONTFORK: a child that wrote or freed shared page memory
would change its parent's uncommitted data). In the child they are kept as `inherited`, so that a
touch of one can be told from a wild pointer.

This module knows address ranges. It does not know page states or loaders.

Locking: all functions need the pager lock.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove, memset

from wendelin.bigfile.virtmem.kernel cimport (MADV_DONTFORK, MADV_DONTNEED, MADV_HUGEPAGE,
                                              MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED,
                                              MAP_FIXED_NOREPLACE, MAP_NORESERVE, MAP_PRIVATE,
                                              MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, madvise,
                                              mmap, mprotect, munmap)
from wendelin.bigfile.virtmem.memory cimport Memory, memory_at, memory_map, memory_put
from wendelin.bigfile.virtmem.ram cimport Place, ram_limit, ram_open, ram_read_once, whole_os_pages

cdef enum:
    HUGE = 1 << 21          # [bytes] of the kernel's huge page
    SHOWN = 0x80            # flags beside a Kind
    STAYS = 0x40
    ELSEWHERE = 0x20
    PIECED = 0x10
    FRAMED = 0x08
    PLACES = ELSEWHERE | FRAMED
    PIECES = 33             # mappings that a block of pieces takes at most
    INHERITED_SHOWN = 64    # blocks; more than these stay shown
    FEW_KINDS = 4096        # pages of an area
    SPARE = 16              # mappings in reserve, see reset_all()
    SPARE_SIZE = 1 << 16    # of each [bytes]: a multiple of the OS page

cdef struct Range:
    void *addr
    size_t size             # [bytes]

cdef Table inherited        # areas of the parent, in a child made by fork
cdef uint64_t maps_budget   # kernel mappings all areas together may use
cdef uint64_t areas_stay    # pages that have STAYS
cdef int sink_fd = -1       # memory of SINK pages
cdef Range[INHERITED_SHOWN] inherited_shown     # to a child, instead of inherited pages
cdef size_t n_inherited_shown
cdef char *spare            # SPARE mappings


# ---- the table of areas ----

cdef size_t table_find(Table *table, const char *addr) noexcept nogil:
    """Return the index of the first area that ends after addr."""
    cdef size_t lo = 0, hi = table.used, mid
    while lo < hi:
        mid = (lo + hi) // 2
        if table.areas[mid].stop <= addr:
            lo = mid + 1
        else:
            hi = mid
    return lo


cdef int table_add(Table *table, Area *area) noexcept nogil:
    cdef size_t i, size
    cdef Area **areas
    if table.used == table.size:
        size = 2 * table.size if table.size else 16
        areas = <Area **>realloc(table.areas, size * sizeof(Area *))
        if areas == NULL:
            return -1
        table.areas = areas
        table.size = size
    i = table_find(table, area.start)
    memmove(table.areas + i + 1, table.areas + i, (table.used - i) * sizeof(Area *))
    table.areas[i] = area
    table.used += 1
    return 0


cdef bint table_remove(Table *table, Area *area) noexcept nogil:
    cdef size_t i = table_find(table, area.start)
    if i == table.used or table.areas[i] != area:
        return False
    table.used -= 1
    memmove(table.areas + i, table.areas + i + 1, (table.used - i) * sizeof(Area *))
    return True


cdef Area *table_lookup(Table *table, const char *addr) noexcept nogil:
    cdef size_t i = table_find(table, addr)
    if i < table.used and table.areas[i].start <= addr:
        return table.areas[i]
    return NULL


cdef Area *area_lookup(const char *addr) noexcept nogil:
    """Return the area that holds an address, or NULL."""
    return table_lookup(&live, addr)


cdef Area *area_inherited(const char *addr) noexcept nogil:
    """Return the area of the parent process that held an address before the fork, or NULL."""
    return table_lookup(&inherited, addr)


cdef bint area_show_inherited(Area *area, const char *addr) noexcept nogil:
    """Show zeros at the address of an inherited block; False: other memory is there."""
    global n_inherited_shown
    cdef void *at = <void *>(addr - (addr - area.start) % area.blksize)
    cdef size_t size = area_bytes(area, (addr - area.start) // area.blksize, 1)
    if mmap(at, size, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
            -1, 0) == MAP_FAILED:
        return False
    if n_inherited_shown < INHERITED_SHOWN:
        inherited_shown[n_inherited_shown].addr = at
        inherited_shown[n_inherited_shown].size = size
        n_inherited_shown += 1
    return True


# ---- one area ----

cdef uint8_t *kinds_alloc(uint64_t pglen) noexcept nogil:
    """Return the kinds of the pages of an area, all NONE; NULL: no memory."""
    cdef void *kinds
    if pglen <= <uint64_t>FEW_KINDS:
        return <uint8_t *>calloc(pglen, 1)
    # many pages are never touched: their kinds take no memory
    kinds = mmap(NULL, pglen, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if kinds == MAP_FAILED else <uint8_t *>kinds


cdef void kinds_free(uint8_t *kinds, uint64_t pglen) noexcept nogil:
    if pglen <= <uint64_t>FEW_KINDS:
        free(kinds)
    else:
        munmap(kinds, pglen)


cdef Area *area_map(const Memory *memory, uint64_t pgoffset, uint64_t pglen, size_t nbytes) \
        noexcept nogil:
    """Map the first nbytes of pages [pgoffset, pgoffset + pglen), all NONE. NULL with errno.

    The caller has checked that the range fits into a file offset, and ends in the last page, and
    called memory_reach() for this one.
    """
    cdef Area *area = <Area *>calloc(1, sizeof(Area))
    cdef void *addr
    if area == NULL:
        return NULL
    nbytes = whole_os_pages(nbytes)
    area.kinds = kinds_alloc(pglen)
    if area.kinds == NULL:
        free(area)
        return NULL
    addr = memory_map(nbytes, memory, pgoffset)
    if addr == MAP_FAILED:
        kinds_free(area.kinds, pglen)
        free(area)
        return NULL
    area.start = <char *>addr
    area.stop = area.start + nbytes
    area.pgoffset = pgoffset
    area.pglen = pglen
    area.blksize = memory.blksize
    area.memory = memory
    area.maps = 1
    madvise(addr, nbytes, MADV_DONTFORK)
    if table_add(&live, area) != 0:
        munmap(addr, nbytes)
        kinds_free(area.kinds, pglen)
        free(area)
        return NULL
    global areas_maps
    areas_maps += 1
    spare_map()
    return area


cdef void area_unmap(Area *area) noexcept nogil:
    """Unmap and free an area. It must not be in use."""
    global areas_maps, areas_shown_bytes, areas_stay
    if table_remove(&live, area):
        areas_maps -= area.maps
        areas_shown_bytes -= area.shown * page_bytes(area)
        areas_stay -= area.stays
        munmap(area.start, area.stop - area.start)
    else:
        # After a fork: the range was not inherited, and other memory may be mapped there.
        table_remove(&inherited, area)
    kinds_free(area.kinds, area.pglen)
    free(area)


cdef Kind area_kind(Area *area, uint64_t page) noexcept nogil:
    """Return the Kind of a page [0, pglen) of an area."""
    return <Kind>(area.kinds[page] & ~<int>(SHOWN | STAYS | PLACES | PIECED))


cdef bint area_was_shown(Area *area, uint64_t page) noexcept nogil:
    """Say whether a page is shown, or was shown before it was dropped."""
    return area.kinds[page] & SHOWN != 0


cdef bint area_is_elsewhere(Area *area, uint64_t page) noexcept nogil:
    """Say whether a page shows page memory that is not in the memfd."""
    return area.kinds[page] & ELSEWHERE != 0


cdef void area_set_stays(Area *area, uint64_t page, bint stays) noexcept nogil:
    """Set or clear whether a shown page must stay shown, whatever the budgets are."""
    global areas_stay
    cdef int change = stays - (area.kinds[page] & STAYS != 0)
    area.stays += change
    areas_stay += change
    if stays:
        area.kinds[page] |= STAYS
    else:
        area.kinds[page] &= ~<int>STAYS


cdef bint areas_may_stay() noexcept nogil:
    """Say whether one more page may stay shown: half of the budget is for other pages."""
    return 2 * areas_stay < maps_budget // 2


cdef bint areas_have_room() noexcept nogil:
    """Say whether more pages can be shown without hiding others."""
    return areas_maps < maps_budget - maps_budget // 8 and areas_shown_bytes // 16 < ram_limit


cdef inline bint edge(Area *area, uint64_t page) noexcept nogil:
    """Say whether the kernel has a boundary between page - 1 and page (estimated from above)."""
    cdef Kind a = area_kind(area, page - 1), b = area_kind(area, page)
    # neighbouring FILE, SINK and ELSEWHERE pages may, but need not, be one mapping
    return (a != b or a == FILE or a == SINK
            or (area.kinds[page - 1] | area.kinds[page]) & ELSEWHERE != 0)


cdef uint64_t edges(Area *area, uint64_t page, uint64_t n) noexcept nogil:
    """Return how many boundaries there are within pages [page, page + n) and at both ends."""
    cdef uint64_t i, count = 0
    for i in range(max(page, <uint64_t>1), min(page + n + 1, area.pglen)):
        count += edge(area, i)
    for i in range(page, page + n):
        if area.kinds[i] & PIECED:
            count += PIECES - 1
    return count


cdef size_t page_bytes(const Area *area) noexcept nogil:
    """Return how much address space a page of an area takes, that of the last one at most."""
    return area_bytes(area, 0, 1)


cdef bint in_memory(Kind kind) noexcept nogil:
    return kind == RO or kind == RW


cdef bint is_mapped(Area *area, uint64_t page) noexcept nogil:
    """Say whether page memory is mapped, so that a change of protection may be all that is needed.

    A NONE page has its own range of it. One that is ELSEWHERE shows the place where it is now, as
    it is hidden before its memory is freed.
    """
    cdef Kind kind = area_kind(area, page)
    return kind == NONE or in_memory(kind)


cdef int place_of(const Area *area, uint64_t page, Kind kind, Origin at) noexcept nogil:
    """Return the flags of PLACES for a page that is going to be shown."""
    cdef Place own = memory_at(area.memory, area.pgoffset + page)
    if not in_memory(kind) or at.place.fd == own.fd and at.place.offset == own.offset:
        return 0
    return PLACES if at.framed else ELSEWHERE


cdef int prot_of(Kind kind) noexcept nogil:
    if kind == NONE:
        return PROT_NONE
    return PROT_READ | PROT_WRITE if kind == RW or kind == SINK else PROT_READ


cdef int map_fixed(Area *area, void *addr, size_t size, Kind kind, Origin at) noexcept nogil:
    """Put a mapping of a kind over a range of the area. 0 or errno."""
    cdef int flags = MAP_FIXED | MAP_NORESERVE, err
    if kind == NONE:
        err = memory_put(<char *>addr, size, PROT_NONE, area.memory,
                         area.pgoffset + <uint64_t>(<char *>addr - area.start) // area.blksize)
        if err == 0:
            madvise(addr, size, MADV_DONTFORK)      # a fresh mapping has no advice
        return err
    if kind == FILE and at.pieces != NULL:
        return map_pieces(<char *>addr, size, at)
    if kind == FILE:
        flags |= MAP_PRIVATE
    elif kind == ZERO or kind == SINK and sink_fd < 0:  # no descriptor: it takes more memory
        flags |= MAP_PRIVATE | MAP_ANONYMOUS
        at = NOWHERE
    else:
        flags |= MAP_SHARED
        if kind == SINK:
            at.place.fd = sink_fd
            at.place.offset = 0
    if mmap(addr, size, prot_of(kind), flags, at.place.fd, at.place.offset) == MAP_FAILED:
        return errno
    # Private mappings get this at the fork.
    if flags & MAP_SHARED:
        madvise(addr, size, MADV_DONTFORK)
    if kind == ZERO and size >= <size_t>HUGE:
        madvise(addr, size, MADV_HUGEPAGE)      # the huge zero page: one fault instead of 512
    return 0


cdef int map_pieces(char *addr, size_t size, Origin at) noexcept nogil:
    """Map the pieces of a block, and zeros between them. 0 or errno, and then any of them."""
    cdef const Piece *piece = NULL
    cdef size_t done = 0, start, stop
    cdef int i, flags = MAP_FIXED | MAP_NORESERVE | MAP_PRIVATE
    for i in range(at.pieces.n + 1):
        if i == at.pieces.n:
            start = stop = size
        else:
            piece = &at.pieces.piece[i]
            start = min(piece.start, size)
            stop = min(piece.start + piece.size, size)
        if start > done and mmap(addr + done, start - done, PROT_READ, flags | MAP_ANONYMOUS,
                                 -1, 0) == MAP_FAILED:
            return errno
        if stop > start and mmap(addr + start, stop - start, PROT_READ, flags, at.place.fd,
                                 piece.offset) == MAP_FAILED:
            return errno
        done = stop
    return 0


cdef int area_show(Area *area, uint64_t page, uint64_t n, Kind kind, Origin at) noexcept nogil:
    """Show pages [page, page + n) of the area as kind. 0 or errno.

    at: where the bytes are, for FILE, RO and RW, and then n is 1; others ignore it.
    """
    global areas_maps, areas_shown_bytes, sink_fd
    cdef int err
    cdef uint64_t i, before, shown = 0
    cdef int place = place_of(area, page, kind, at)
    cdef bint pieced = kind == FILE and at.pieces != NULL
    if kind != NONE:
        keep_budgets()
        if kind == SINK and sink_fd < 0:
            sink_fd = ram_open()
        elif kind == FILE:
            ram_read_once(at.place.fd, area.stop - area.start)
    if n == 1 and area_kind(area, page) == kind and kind != FILE \
            and place == area.kinds[page] & PLACES:
        return 0
    err = show_fixed(area, page, n, kind, at, place)
    if err == ENOMEM and give_back(False):
        err = show_fixed(area, page, n, kind, at, place)
    if err == ENOMEM:
        reset_all()
        err = show_fixed(area, page, n, kind, at, place)
        spare_map()
    if err != 0 and (not pieced or reset_range(area, page, 1) == 0):
        return err
    # With an error, some pieces may be mapped.
    before = edges(area, page, n)
    for i in range(page, page + n):
        if kind == NONE:
            if area.kinds[i] & STAYS:
                area_set_stays(area, i, False)
            area.kinds[i] = area.kinds[i] & SHOWN
        else:
            shown += not area.kinds[i] & SHOWN
            area.kinds[i] = (kind | SHOWN | (area.kinds[i] & STAYS) | (PIECED if pieced else 0)
                             | place)
    area.maps += edges(area, page, n) - before
    areas_maps += edges(area, page, n) - before
    area.shown += shown
    areas_shown_bytes += shown * page_bytes(area)
    return err


cdef int show_fixed(Area *area, uint64_t page, uint64_t n, Kind kind, Origin at, int place) \
        noexcept nogil:
    cdef void *addr = area.start + page * area.blksize
    cdef size_t size = area_bytes(area, page, n)
    if n == 1 and is_mapped(area, page) and (in_memory(kind) or kind == NONE) \
            and place == area.kinds[page] & PLACES:
        if mprotect(addr, size, prot_of(kind)) != 0:
            return errno
        return 0
    return map_fixed(area, addr, size, kind, at)


cdef int area_reset(Area *area) noexcept nogil:
    """Show all of an area as NONE, in one mapping, even pages with STAYS. 0 or errno."""
    cdef int err = reset_range(area, 0, area.pglen)
    area.scrap = area.scrap and err != 0
    return err


cdef int reset_others(Area *area, uint64_t page, uint64_t n) noexcept nogil:
    """Show pages [page, page + n) as NONE, except those with STAYS. 0 or errno."""
    cdef uint64_t start, stop = page, end = page + n
    cdef int err = 0
    if area.stays == 0:
        return reset_range(area, page, n)
    while stop < end and err == 0:
        start = stop
        while start < end and area.kinds[start] & STAYS:
            start += 1
        stop = start
        while stop < end and not area.kinds[stop] & STAYS:
            stop += 1
        if stop != start:
            err = reset_range(area, start, stop - start)
    return err


cdef int reset_range(Area *area, uint64_t page, uint64_t n) noexcept nogil:
    """Show pages [page, page + n) as NONE, in one mapping without page tables. 0 or errno."""
    global areas_maps, areas_shown_bytes, areas_stay
    cdef uint64_t i, before, shown = 0
    cdef int err = map_fixed(area, area.start + page * area.blksize, area_bytes(area, page, n),
                             NONE, NOWHERE)
    if err != 0:
        return err
    if n == area.pglen:
        shown = area.shown
        before = area.maps - 1
        areas_stay -= area.stays
        area.stays = 0
        if n <= <uint64_t>FEW_KINDS:
            memset(area.kinds, NONE, n)
        else:
            madvise(area.kinds, n, MADV_DONTNEED)       # private memory: zeros, that is NONE
    else:
        before = edges(area, page, n)
        for i in range(page, page + n):
            if area.kinds[i] != 0:      # bytes that were never written cost no memory
                shown += area.kinds[i] & SHOWN != 0
                area.kinds[i] = NONE
        before -= edges(area, page, n)
    area.maps -= before
    areas_maps -= before
    area.shown -= shown
    areas_shown_bytes -= shown * page_bytes(area)
    return 0


# ---- all areas ----

cdef bint give_back(bint by_shown) noexcept nogil:
    """Reset an idle area, or a quarter of the one with most mappings (shown bytes); False: none."""
    cdef Area *area
    cdef Area *worst = NULL
    cdef uint64_t cost, start, stop, n, most = 0
    cdef size_t i
    for i in range(live.used):
        area = live.areas[i]
        if area.idle and area.shown != 0:
            return area_reset(area) == 0
        cost = ((area.shown - area.stays) * page_bytes(area) if by_shown else
                area.maps - min(area.maps, 1 + 2 * area.stays))
        if cost > most:
            worst = area
            most = cost
    if worst == NULL:
        return False
    # a page has at most two boundaries
    n = (worst.shown if by_shown else worst.maps // 2) // 4 + 1
    start = find_shown(worst, worst.hand)
    stop = start
    while n != 0 and stop < worst.pglen:
        n -= worst.kinds[stop] & SHOWN != 0
        stop += 1
    worst.crowded = True
    worst.hand = stop if stop < worst.pglen else 0
    return reset_others(worst, start, stop - start) == 0


cdef void spare_map() noexcept nogil:
    """Make a reserve of mappings, which can be given up when the kernel allows no more."""
    global spare
    cdef int i
    cdef void *addr
    if spare == NULL:
        addr = mmap(NULL, SPARE * SPARE_SIZE, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if addr != MAP_FAILED:
            spare = <char *>addr
            for i in range(0, SPARE, 2):
                mprotect(spare + i * SPARE_SIZE, SPARE_SIZE, PROT_READ)


cdef void reset_all() noexcept nogil:
    """Reset every area: the program itself has used up the kernel's mappings.

    Then give_back() may have failed: to replace many mappings by one, the kernel needs one more,
    and to cut a part out of one, two.
    """
    global spare
    cdef size_t i
    if spare != NULL:
        munmap(spare, SPARE * SPARE_SIZE)
        spare = NULL
    for i in range(live.used):
        if live.areas[i].maps > 1:
            reset_others(live.areas[i], 0, live.areas[i].pglen)


cdef uint64_t find_shown(Area *area, uint64_t page) noexcept nogil:
    """Return the first page from `page` on, round the end, that has SHOWN; there is one."""
    while not area.kinds[page] & SHOWN:
        page = page + 1 if page + 1 < area.pglen else 0
    return page


cdef void keep_budgets() noexcept nogil:
    if areas_maps > maps_budget:
        give_back(False)
    # page tables: 8 bytes for each 4096; they may take 1/32 of the memory limit
    if areas_shown_bytes // 16 > ram_limit:
        give_back(True)


cdef void areas_reset_scrap() noexcept nogil:
    """Take the scrap out of all areas, so that the next touch tries to load again."""
    global n_inherited_shown
    cdef size_t i
    for i in range(n_inherited_shown):
        munmap(inherited_shown[i].addr, inherited_shown[i].size)
    n_inherited_shown = 0
    for i in range(live.used):
        if live.areas[i].scrap and reset_others(live.areas[i], 0, live.areas[i].pglen) == 0:
            live.areas[i].scrap = False


cdef void areas_before_fork() noexcept nogil:
    """Keep children from inheriting areas. Mappings of files get this advice now, not when they are
    made, as it would take a fifth of a fault.
    """
    cdef size_t i
    for i in range(live.used):
        madvise(live.areas[i].start, live.areas[i].stop - live.areas[i].start, MADV_DONTFORK)


cdef void areas_after_fork() noexcept nogil:
    """In the child of a fork: move the parent's areas to `inherited`."""
    global areas_maps, areas_shown_bytes, areas_stay
    cdef size_t i
    for i in range(live.used):
        table_add(&inherited, live.areas[i])    # no memory: a touch is a plain SIGSEGV then
    live.used = 0
    areas_maps = areas_shown_bytes = areas_stay = 0


def mappings() -> int:
    """Return how many of the kernel's mappings areas have (estimated from above)."""
    return areas_maps


def max_map_count() -> int:
    """Return the kernel's limit of mappings a process."""
    try:
        with open("/proc/sys/vm/max_map_count") as f:
            return int(f.read())
    except (OSError, ValueError):
        return 65530


NOWHERE.place.fd = -1
NOWHERE.place.offset = 0
NOWHERE.framed = False
NOWHERE.pieces = NULL
# The other half is for the program: malloc, libraries, thread stacks.
maps_budget = max_map_count() // 2
