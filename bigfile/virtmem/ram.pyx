"""Page memory: where it comes from, how much of it is in use, and which pages are given back first.

Page memory is in sparse memfds; memory says at which offsets. It is allocated by fallocate or
pwrite, never by touching a mapping: so exhaustion is an errno here, not a SIGBUS somewhere else. A
page may have less memory than its block has bytes: then it has what an area shows of it, and gets
more before another area shows more (ram_grow).

The limit `ram_limit` holds for clean and dirty pages together. A page that is loaded or changed
pushes out clean pages, until all are below 7/8 of the limit. So the whole process stays near the
limit, too. Dirty pages are never given back, and alone they may not pass the limit. Loads in
progress may pass it by their own pages when few clean pages are left (FEW), so that a transaction
can still read after it filled the limit with dirty pages. One page may be larger than the limit,
but not if it is also larger than half of the memory (ram_largest): the kernel would give it all
memory of the machine, and kill processes for more.

A second-chance queue decides which page goes first (Babaoglu and Joy, "Converting a swap-based
system to do paging in an architecture lacking page-referenced bits", SOSP 1981):

    loaded ─► HOT ──── memory is short: protect, see whether it is touched ───► COLD ─► freed
               ▲                                                                 │
               └────────────────────────── touched ──────────────────────────────┘

COLD has a quarter of the clean pages while memory is short, and is empty otherwise. PINNED pages,
which a program needs in memory, are in a third queue, from which no page is freed.

Dirty pages that would pass the limit are in a spool, if there is one (spool). They count nowhere
here. Memory that no page has, and the next ones get, is ram_spare (frames). It gives way when it
would pass the limit together with pages.

This module knows sizes and queues. It does not know pages: ram_set_ops() gets the functions that
protect or drop one, and ram_set_trim() the one that gives spare memory back.

Locking: all functions except ram_open, ram_alloc, ram_write, ram_copy and ram_free need the pager
lock.
"""

from libc.errno cimport EDQUOT, EINTR, EIO, ENOMEM, errno
from libc.stdint cimport INT64_MAX

from wendelin.bigfile.virtmem.kernel cimport (FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE,
                                              F_DUPFD_CLOEXEC, F_SETPIPE_SZ, MFD_CLOEXEC, O_CLOEXEC,
                                              POSIX_FADV_NOREUSE, _SC_PAGESIZE, close, fallocate,
                                              fcntl, ftruncate, memfd_create, pipe2, posix_fadvise,
                                              pthread_cond_init, pthread_mutex_init, pwrite, splice,
                                              sysconf)

from wendelin.lib.memlimit import memory_limit
from wendelin.lib.memlimit import ram_limit as configured_ram_limit

cdef enum:
    # Descriptors go above this, as programs that use select() need their first 1024. But for a few:
    # when a process that has threads gets its first descriptor up there, the kernel waits, for
    # 10 ms and more, until all CPUs have seen its larger table.
    FD_FLOOR = 1024
    FD_FEW = 64
    PIPE = 1 << 20          # [bytes]: as much as a pipe may have without privileges
    # Clean pages that stay, besides the one that is loaded, whatever the limit is: an instruction
    # may need two, at a boundary of blocks, and would fault for ever if each pushed out the other.
    FEW = 2

cdef struct Ring:
    Resident head           # next: the oldest; prev: the newest
    size_t bytes            # [bytes] of its pages
    size_t pages

cdef Ring hot, cold, pinned
cdef void (*op_cool)(Resident *) noexcept nogil
cdef void (*op_evict)(Resident *) noexcept nogil
cdef void (*op_trim)(size_t) noexcept nogil


cdef void ram_set_ops(void (*cool)(Resident *) noexcept nogil,
                      void (*evict)(Resident *) noexcept nogil) noexcept nogil:
    """Set the functions that make a page inaccessible (cool), and that drop it (evict).

    Both are called with the pager lock held. evict must end in ram_remove().
    """
    global op_cool, op_evict
    op_cool = cool
    op_evict = evict


cdef void ram_set_trim(void (*trim)(size_t) noexcept nogil) noexcept nogil:
    """Set the function that gives back spare memory, so many bytes at least: see frames.

    It is called with the pager lock held.
    """
    global op_trim
    op_trim = trim


# ---- memory ----

cdef int ram_open() noexcept nogil:
    """Return a new sparse memfd of the largest size, or -1 with errno."""
    cdef int fd = memfd_create(b"wendelin.core", MFD_CLOEXEC)
    if fd < 0:
        return -1
    if ftruncate(fd, INT64_MAX) != 0:
        close(fd)
        return -1
    return fd_high(fd)


cdef int fd_high(int fd) noexcept nogil:
    """Move a descriptor to where it is in the way of no program; -1: there is none."""
    cdef int high
    if fd < FD_FEW:
        return fd
    high = fcntl(fd, F_DUPFD_CLOEXEC, <int>FD_FLOOR)
    if high < 0:            # the descriptor limit is lower than the floor
        return fd
    close(fd)
    return high


cdef int ram_alloc(Place memory, size_t start, size_t stop) noexcept nogil:
    """Allocate bytes [start, stop) of a page; they stay, or read as zeros. 0 or errno."""
    while fallocate(memory.fd, FALLOC_FL_KEEP_SIZE, memory.offset + <long>start,
                    stop - start) != 0:
        if errno != EINTR:
            return errno
    return 0


cdef int ram_write(Place memory, const char *data, size_t size) noexcept nogil:
    """Write the first bytes of a page. 0 or errno."""
    cdef ssize_t n
    cdef long offset = memory.offset
    while size != 0:
        n = pwrite(memory.fd, data, size, offset)
        if n < 0:
            if errno == EINTR:
                continue
            return errno
        data += n
        offset += n
        size -= n
    return 0


cdef int ram_copy(Place memory, size_t size, int fd, long start) noexcept nogil:
    """Copy bytes [start, start + size) of a file to the first ones of a page. 0 or errno.

    It uses a pipe, through which the kernel passes pages of its cache. So there is one copy, and,
    unlike with a mapping of the file, other processors have no page tables to flush.
    """
    cdef int[2] ends
    cdef long offset = memory.offset
    cdef ssize_t n = 0, done
    cdef int err = 0
    if pipe2(ends, O_CLOEXEC) != 0:
        return errno
    fcntl(ends[1], F_SETPIPE_SZ, <int>PIPE)
    while size != 0 and err == 0:
        n = splice(fd, &start, ends[1], NULL, min(size, <size_t>PIPE), 0)
        if n == 0:
            err = EIO               # the file ends inside of the block
        elif n < 0 and errno != EINTR:
            err = errno
        while n > 0 and err == 0:
            done = splice(ends[0], NULL, memory.fd, &offset, n, 0)
            if done > 0:
                n -= done
                size -= done
            elif errno != EINTR:
                err = errno
    close(ends[0])
    close(ends[1])
    return err


cdef int ram_free(Place memory, size_t size) noexcept nogil:
    """Give the memory of a page back; it reads as zeros from now on. 0 or errno."""
    while fallocate(memory.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, memory.offset,
                    size) != 0:
        if errno != EINTR:
            return errno
    return 0


# ---- resident pages ----

cdef Ring *ring_of(Queue queue) noexcept nogil:
    return &hot if queue == HOT else &cold if queue == COLD else &pinned


cdef void push(Queue queue, Resident *res) noexcept nogil:
    cdef Ring *ring = ring_of(queue)
    res.queue = queue
    res.next = &ring.head
    res.prev = ring.head.prev
    res.prev.next = res
    res.next.prev = res
    ring.bytes += ram_counted(res)
    ring.pages += 1


cdef void pull(Resident *res) noexcept nogil:
    ring_of(res.queue).bytes -= ram_counted(res)
    ring_of(res.queue).pages -= 1
    res.prev.next = res.next
    res.next.prev = res.prev
    res.prev = res.next = NULL
    res.queue = OFF


cdef void ram_add(Resident *res) noexcept nogil:
    """A page was loaded: it is clean, hot, and counts."""
    global ram_clean
    ram_clean += ram_counted(res)
    push(HOT, res)


cdef void ram_touch(Resident *res) noexcept nogil:
    """A clean page faulted: now it is the last one to go."""
    if res.queue != PINNED:
        pull(res)
        push(HOT, res)


cdef void ram_remove(Resident *res) noexcept nogil:
    """A clean page leaves memory."""
    global ram_clean, ram_pinned
    if res.queue == PINNED:
        ram_pinned -= ram_counted(res)
    pull(res)
    ram_clean -= ram_counted(res)


cdef bint ram_may_pin(size_t size) noexcept nogil:
    """Say whether one more clean page may be pinned: the limit is that of dirty pages."""
    return ram_pinned + ram_dirty + size <= ram_limit - ram_limit // 8


cdef void ram_pin(Resident *res) noexcept nogil:
    """A clean page is not given back until ram_unpin()."""
    global ram_pinned
    if res.queue != PINNED:
        pull(res)
        push(PINNED, res)
        ram_pinned += ram_counted(res)


cdef void ram_unpin(Resident *res) noexcept nogil:
    """A page may be given back again; it counts as just touched."""
    global ram_pinned
    if res.queue == PINNED:
        pull(res)
        push(HOT, res)
        ram_pinned -= ram_counted(res)


cdef bint ram_may_dirty(size_t size, bint spool) noexcept nogil:
    """Say whether one more page may be dirty. The first one may, if it may be in memory at all.

    spool: it may go there instead. Then a quarter of the limit is left to clean pages.
    """
    cdef size_t most = ram_limit - ram_limit // 4 if spool else ram_limit
    return ram_dirty + size <= most or (ram_dirty == 0 and size <= ram_largest)


cdef void ram_make_dirty(Resident *res) noexcept nogil:
    """A clean page is about to be written."""
    global ram_dirty
    ram_remove(res)
    ram_dirty += ram_counted(res)


cdef void ram_make_clean(Resident *res) noexcept nogil:
    """A dirty page was stored."""
    global ram_dirty
    ram_dirty -= ram_counted(res)
    ram_add(res)


cdef void ram_forget_dirty(Resident *res) noexcept nogil:
    """A dirty page leaves memory: its changes were discarded."""
    global ram_dirty
    ram_dirty -= ram_counted(res)


cdef int ram_grow(Resident *res, Place memory, size_t size) noexcept nogil:
    """Give a clean or dirty page more memory, up to size bytes; its bytes stay. 0 or errno.

    EDQUOT: dirty pages would pass the limit.
    """
    global ram_dirty
    cdef Queue queue = res.queue
    cdef size_t more = size - res.size
    cdef int err
    if res.spooled:
        err = ram_alloc(memory, res.size, size)
        if err == 0:
            res.size = size
        return err
    if queue == OFF and not ram_may_dirty(more, False):
        return EDQUOT
    if queue != OFF:
        ram_remove(res)             # it does not give way to itself
    err = ram_reserve(size if queue != OFF else more)
    if err == 0:
        err = ram_alloc(memory, res.size, size)
        ram_unreserve(size if queue != OFF else more)
    if err == 0:
        res.size = size
        if queue == OFF:
            ram_dirty += more
    if queue != OFF:
        ram_add(res)
        if queue == PINNED:
            ram_pin(res)
    return err


# ---- the limit ----

cdef bint evict_one() noexcept nogil:
    """Drop the coldest clean page; False: there is none."""
    cdef Resident *res
    # "<=" so that with few pages, and with none cold, there is always a step
    while 3 * cold.bytes <= hot.bytes and hot.head.next != &hot.head:
        res = hot.head.next
        pull(res)
        push(COLD, res)
        op_cool(res)
    if cold.head.next == &cold.head:
        return False
    op_evict(cold.head.next)
    return True


cdef int ram_reserve(size_t size) noexcept nogil:
    """Free memory for a page that is to be loaded, and count it as loading. 0 or errno."""
    global ram_loading
    if size > ram_largest:
        return ENOMEM
    while ram_clean + ram_dirty + ram_loading + size > ram_limit - ram_limit // 8:
        if hot.pages + cold.pages <= FEW or not evict_one():
            break
    ram_loading += size
    trim_spare()
    return 0


cdef void trim_spare() noexcept nogil:
    """Give back spare memory that would pass the limit, together with pages."""
    cdef size_t total = ram_clean + ram_dirty + ram_loading + ram_spare
    if ram_spare != 0 and total > ram_limit:
        op_trim(total - ram_limit)


cdef void ram_hold(Resident *res) noexcept nogil:
    """A clean page is about to be copied elsewhere: it counts as loading."""
    global ram_loading
    ram_remove(res)
    ram_loading += ram_counted(res)


cdef void ram_unreserve(size_t size) noexcept nogil:
    """The load ended, with or without success."""
    global ram_loading
    ram_loading -= size


def ram_set_limit(nbytes):
    """Set the limit of the page memory of this process, which WENDELIN_CORE_RAM sets at the start.

    Clean pages that do not fit are given back. Changes that do not fit stay; then no other page can
    be changed until they are stored.

    Parameters
    ----------
    nbytes : int
        [bytes]

    Raises
    ------
    ValueError
        It is not positive.
    """
    global ram_limit, ram_largest
    cdef size_t size, half = memory_limit() // 2
    if nbytes <= 0:
        raise ValueError(f"the limit of page memory is {nbytes}: it must be positive")
    size = nbytes
    with nogil:
        pager_lock()
        ram_limit = size
        ram_largest = max(size, half)
        ram_reserve(0)      # clean pages give way
        pager_unlock()


cdef void ram_read_once(int fd, size_t shown) noexcept nogil:
    """Let the kernel not ask which pages of a file were used, if a view has more than the memory.

    It asks for each page that page tables have, before it takes its memory for the next one. That
    costs more than to read it: a pass takes twice the time. It is so for all that is mapped by this
    descriptor, until it is closed: then pages that are used again go as early as others.
    """
    if shown > ram_memory // 4 * 3:
        posix_fadvise(fd, 0, 0, POSIX_FADV_NOREUSE)     # since Linux 6.3


cdef size_t ram_reclaim_all() noexcept nogil:
    """Drop every clean page; return how many."""
    cdef size_t n = 0
    while evict_one():
        n += 1
    op_trim(ram_spare)
    return n


cdef void ram_after_fork() noexcept nogil:
    """In the child of a fork nothing is resident: page memory is the parent's."""
    global ram_clean, ram_dirty, ram_loading, ram_pinned, ram_spare
    ram_clean = ram_dirty = ram_loading = ram_pinned = ram_spare = 0
    ring_init(&hot)
    ring_init(&cold)
    ring_init(&pinned)


cdef void ring_init(Ring *ring) noexcept nogil:
    ring.head.prev = ring.head.next = &ring.head
    ring.bytes = 0
    ring.pages = 0


ring_init(&hot)
ring_init(&cold)
ring_init(&pinned)
os_page = sysconf(_SC_PAGESIZE)
pthread_mutex_init(&pager_mutex, NULL)
pthread_cond_init(&pager_cond, NULL)
ram_limit = configured_ram_limit()
ram_memory = memory_limit()
ram_largest = max(ram_limit, ram_memory // 2)
