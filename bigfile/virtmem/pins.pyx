"""Views that are ready: shown before a touch, shown again after a boundary, and pinned.

    view is taken ── ready() ─────► pages that can be mapped are shown
    boundary ─────── show_again() ► dropped pages that can be mapped are shown again
    A.load() ─────── pin() ───────► loaded, shown, and kept until unpin()

The file is asked where blocks are, as by look_ahead() in trampoline. Then their first touch needs
no Python. A few blocks of a local file that cannot be mapped are loaded: the last block of an
array, which is stored in chunks, and blocks that were changed in small parts.

This module knows handles, VMAs and files. It changes no state of a page itself: see ready.

Locking: see page.pyx.
"""

from libc.errno cimport EAGAIN, ENOBUFS, ENOMEM
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport strerror

from wendelin.bigfile.virtmem.failure cimport describe, failure
from wendelin.bigfile.virtmem.fileh cimport fileh_first_change_told, fileh_epoch
from wendelin.bigfile.virtmem.kernel cimport _SC_PAGESIZE, MADV_WILLNEED, madvise, sysconf
from wendelin.bigfile.virtmem.mapping cimport NONE, Area, area_kind
from wendelin.bigfile.virtmem.page cimport NO_FAILURE, SPOOL_FAILED, Failure
from wendelin.bigfile.virtmem.ram cimport pager_lock, pager_unlock, ram_dirty, ram_limit, ram_pinned
from wendelin.bigfile.virtmem.ready cimport (area_ready, fileh_has, fileh_pin, fileh_show,
                                             fileh_unpin, fileh_hides, ready_clock)
from wendelin.bigfile.virtmem.handle cimport VMA, BigFileH, check_range
from wendelin.bigfile.virtmem.located cimport set_located

from wendelin.bigfile.virtmem.abilities import MayBeRemote, able
from wendelin.bigfile.virtmem.errors import PageMemoryError
from wendelin.bigfile.virtmem.mapping import max_map_count

cdef enum:
    LOOK_PAGES = 1024       # looked up at a time
    READY_PAGES = 1 << 15   # of a view that is made ready: the kernel has no mappings for more
    READY_LOADS = 16        # blocks of a local file that are loaded for it: these take page memory


# ---- ready ----

def ready(VMA vma not None, pgoffset, pglen, bint limited=True):
    """Show pages [pgoffset, pgoffset + pglen) of a VMA that can be shown at little cost.

    These are blocks in a local file, holes, and pages in memory. Of blocks in a local file that
    cannot be mapped, READY_LOADS are loaded. If a block cannot be found or loaded, the error comes
    when it is touched, not here.

    Parameters
    ----------
    vma : VMA
    pgoffset, pglen : int
        Within its filerange().
    limited : bool
        It may take about vma.fileh.ready_seconds, and nothing is done for more than READY_PAGES
        pages, as each known page, even a hole, takes memory.

    Returns
    -------
    bool
        Whether all of them are shown.
    """
    cdef BigFileH fileh = vma.fileh
    cdef Area *area = vma.area
    cdef uint64_t start = pgoffset - area.pgoffset, end = start + <uint64_t>pglen
    cdef int64_t until
    fileh.check()
    if pglen == 1 and area_kind(area, start) != NONE:
        return True
    until = ready_clock() + <int64_t>(fileh.ready_seconds * 1e9) if limited else INT64_MAX
    if limited and end - start > READY_PAGES:
        return False
    try:
        show_ready(fileh, area, start, end, until)
    except Exception:
        pass                    # the thread that touches it gets the error
    return is_shown(area, start, end)


def will_read(VMA vma not None, size_t start, size_t size):
    """Let bytes [start, start + size) of a VMA be read from the disk, those that are mapped.

    It does not wait. A touch finds them, and makes the kernel read nothing around them.
    """
    cdef size_t os_page = sysconf(_SC_PAGESIZE), begin = start // os_page * os_page
    if size != 0 and start + size <= <size_t>(vma.area.stop - vma.area.start):
        with nogil:
            madvise(vma.area.start + begin, start + size - begin, MADV_WILLNEED)


cdef int show_ready(BigFileH fileh, Area *area, uint64_t i, uint64_t end, int64_t until) except -1:
    cdef uint64_t stop, asked
    cdef bint local = is_local(fileh.file), skip = not (fileh.maps_ahead and local)
    cdef int loads = READY_LOADS if local and fileh.maps else 0
    while i < end and ready_clock() < until:
        with nogil:
            i = area_ready(area, i, end, skip, until)
        if i >= end:
            break
        stop = min(i + LOOK_PAGES, end)
        look(fileh, area.pgoffset + i, area.pgoffset + stop)
        with nogil:
            i = area_ready(area, i, stop, False, until)
        while i < stop and ready_clock() < until:
            # this one is not mapped, or its place is not known without waiting for the disk
            look_at(fileh, area.pgoffset + i)
            asked = i
            with nogil:
                i = area_ready(area, i, stop, False, until)
            if i == asked and loads > 0:
                loads -= 1
                fileh.load(area.pgoffset + i, 1)
                with nogil:
                    i = area_ready(area, i, stop, False, until)
            if i == asked:
                i += 1
        i = stop
    return 0


cdef bint is_local(file) except -1:
    return file.is_local if able(file, MayBeRemote) else True


cdef bint is_shown(Area *area, uint64_t i, uint64_t end) noexcept:
    with nogil:
        pager_lock()
        while i < end and area_kind(area, i) != NONE:
            i += 1
        pager_unlock()
    return i == end


cdef int look(BigFileH fileh, uint64_t start, uint64_t stop) except -1:
    """Learn where blocks [start, stop) are, as far as that is cheap."""
    cdef uint64_t epoch = fileh_epoch(fileh.fileh)
    if fileh.maps_ahead:
        set_located(fileh, fileh.file.mapahead(start, stop), epoch)
    return 0


cdef int look_at(BigFileH fileh, uint64_t blk) except -1:
    """Learn where a block is, if it can be mapped."""
    cdef uint64_t epoch = fileh_epoch(fileh.fileh)
    found = fileh.file.mapblk(blk)
    if found is not None:
        set_located(fileh, {blk: found}, epoch)
    return 0


def show_again(BigFileH fileh not None, blks):
    """Show pages that were shown before they were dropped, if that costs little: see ready().

    It takes about half of fileh.ready_seconds, at most.

    Parameters
    ----------
    fileh : BigFileH
    blks : iterable of int
    """
    cdef int64_t until = ready_clock() + <int64_t>(fileh.ready_seconds * 0.5e9)
    cdef list wanted = []
    cdef uint64_t blk
    cdef uint64_t *some
    cdef size_t n
    cdef int loads = READY_LOADS if fileh.maps and is_local(fileh.file) else 0
    if fileh.fileh.views == 0:
        return
    for blk in sorted(blks):
        if fileh_hides(fileh.fileh, blk):
            wanted.append(blk)
    some = <uint64_t *>malloc(LOOK_PAGES * sizeof(uint64_t))
    if some == NULL:
        raise MemoryError
    try:
        while wanted and ready_clock() < until:
            stop = wanted[0] + LOOK_PAGES
            n = 0
            for blk in wanted[:LOOK_PAGES]:
                if blk < stop:
                    some[n] = blk
                    n += 1
            for blk in wanted[:n]:
                if not fileh_has(fileh.fileh, blk):
                    look(fileh, wanted[0], some[n - 1] + 1)
                    break
            with nogil:
                fileh_show(fileh.fileh, some, n, until)
            for blk in wanted[:n]:
                if loads == 0 or ready_clock() >= until:
                    break
                if not fileh_has(fileh.fileh, blk):
                    loads -= 1
                    fileh.load(blk, 1)
                    with nogil:
                        fileh_show(fileh.fileh, &blk, 1, until)
            del wanted[:n]
    finally:
        free(some)


# ---- kept so ----

def pin(BigFileH fileh not None, pgoffset, pglen, bint write=False):
    """Load pages [pgoffset, pgoffset + pglen), and show them until unpin() or unpin_all().

    Then system calls and threads that block SIGSEGV can read them without our help. They take page
    memory, if they are not mapped, and are not given back.

    Parameters
    ----------
    fileh : BigFileH
    pgoffset, pglen : int
    write : bool
        They can be written, too: this counts as a change of all of them.

    Raises
    ------
    PageMemoryError
        They do not fit into page memory, or into the kernel's mappings. None of them is pinned.
    BlockLoadError, ValueError, OverflowError
        See BigFileH.load().
    Exception
        The exception of first_change().
    """
    cdef uint64_t blk, first, end, transactions
    cdef Failure why = NO_FAILURE
    cdef int err
    fileh.check()
    pgoffset, pglen = check_range(fileh, pgoffset, pglen)
    first = blk = pgoffset
    end = pgoffset + pglen
    try:
        while blk < end:
            if write and fileh.fileh.wants_first_change and not fileh.fileh.first_change_told:
                transactions = fileh.fileh.transactions
                fileh.first_change()
                fileh_first_change_told(fileh.fileh, transactions)
            with nogil:
                err = fileh_pin(fileh.fileh, blk, write, &why)
            if err == EAGAIN:
                fileh.load(blk, 1)
            elif err == 0:
                blk += 1
            else:
                fileh.check_deadlock(err, "pin")
                if why == SPOOL_FAILED:
                    raise failure(fileh.file, blk, why, err, fileh.spool)
                raise no_pin(fileh, err, pgoffset, pglen)
    except BaseException:
        with nogil:
            fileh_unpin(fileh.fileh, first, blk - first)
        raise
    fileh.pins.append((pgoffset, pglen))


def unpin(BigFileH fileh not None, pgoffset, pglen):
    """Undo pin(), unless unpin_all() did."""
    fileh.unpin(pgoffset, pglen)


def unpin_all(BigFileH fileh not None):
    """Undo every pin(): a transaction has ended."""
    fileh.unpin_all()


def pinned(BigFileH fileh not None):
    """Return (pgoffset, pglen) of each pin() that was not undone."""
    return list(fileh.pins)


cdef object no_pin(BigFileH fileh, int err, pgoffset, pglen):
    """Return why pages cannot be pinned."""
    what = f"pages [{pgoffset}, {pgoffset + pglen}) of {describe(fileh.file)}, " \
           f"{pglen * fileh.fileh.blksize} bytes, cannot be kept accessible"
    if err == ENOMEM:
        return PageMemoryError(
            f"{what}: {ram_pinned} bytes of page memory are kept so, {ram_dirty} have changes "
            f"that are not committed, and the limit is {ram_limit}. Do it in smaller parts, or "
            f"raise WENDELIN_CORE_RAM")
    if err == ENOBUFS:
        return PageMemoryError(
            f"{what}: each of them takes a mapping of the kernel, which has {max_map_count()} "
            f"for a process. Do it in smaller parts, or raise vm.max_map_count")
    return PageMemoryError(f"{what}: {strerror(err).decode()}")
