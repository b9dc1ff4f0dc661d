"""Memory files: where the pages of handles have their page memory.

It is in a few sparse memfds, FILES at most, which the handles of a process share. Each of these is
cut into windows of 128 TiB, as much as a process can map. A handle has a window, and page p lies at
base + p*blksize: so all mappings of a handle alias by construction, and a page is freed, wherever
it is mapped, by punching a hole. The window of a handle that is released is used again, after its
memory was given back. Pages beyond the window, and all pages of a handle for which there was none,
are in a memfd of the handle's own. (There are a few files because the kernel lets one thread at a
time write to a file.) Pages that get a whole block at once, and changes that are larger than
memory, have theirs elsewhere: places.

A child of a fork makes files of its own: its parent's pages stay the parent's.

This module knows windows, and maps them. It does not know pages, nor how much memory is in use.

Locking: all functions need the pager lock.
"""

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport realloc

from wendelin.bigfile.virtmem.kernel cimport (MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE,
                                              MAP_PRIVATE, MAP_SHARED, PROT_NONE, close, mmap,
                                              munmap)
from wendelin.bigfile.virtmem.ram cimport Place, ram_free, ram_open

cdef enum:
    FILES = 8               # of windows
    WINDOWS = 1 << 16       # in all of them
    WINDOW_SHIFT = 47       # a window has 1 << WINDOW_SHIFT bytes
    HUGE = 1 << 21          # [bytes] of the kernel's huge page

cdef int[FILES] files       # of windows; -1: not open
cdef uint32_t windows       # that were given out, whether they are free now or not
cdef uint32_t *free_windows
cdef size_t n_free, most_free


cdef int memory_open(Memory *memory, size_t blksize) noexcept nogil:
    """Give a handle a window, or, if there is none left, a memfd of its own. 0 or errno."""
    global windows, n_free
    cdef uint32_t window
    memory.blksize = blksize
    memory.pages = 0
    memory.fd = memory.own = -1
    if n_free == 0 and windows == <uint32_t>WINDOWS:
        return memory_reach(memory, 0)
    window = free_windows[n_free - 1] if n_free != 0 else windows
    memory.fd = files[window % <uint32_t>FILES]
    if memory.fd < 0:
        memory.fd = files[window % <uint32_t>FILES] = ram_open()
        if memory.fd < 0:
            return errno
    if n_free != 0:
        n_free -= 1
    else:
        windows += 1
    memory.base = <long>(window // <uint32_t>FILES) << <int>WINDOW_SHIFT
    memory.pages = (<uint64_t>1 << <int>WINDOW_SHIFT) // blksize
    return 0


cdef int memory_reach(Memory *memory, uint64_t page) noexcept nogil:
    """Make sure that there is a file for the memory of a page. 0 or errno."""
    if page < memory.pages or memory.own >= 0:
        return 0
    memory.own = ram_open()
    return errno if memory.own < 0 else 0


cdef void memory_close(Memory *memory, bint used, bint inherited) noexcept nogil:
    """Give back all memory of a handle, of which there is some if it is used, and its window.

    inherited: it is the parent's, and stays.
    """
    global free_windows, n_free, most_free
    cdef void *more
    cdef size_t size = <size_t>1 << <int>WINDOW_SHIFT
    cdef int i
    if memory.own >= 0:
        close(memory.own)
    if memory.fd < 0 or inherited:
        return
    if used and ram_free(memory_at(memory, 0), size) != 0:
        return                      # it is lost, but no other handle sees its bytes
    if n_free == most_free:
        more = realloc(free_windows, max(2 * most_free, <size_t>64) * sizeof(uint32_t))
        if more == NULL:
            return
        free_windows = <uint32_t *>more
        most_free = max(2 * most_free, <size_t>64)
    for i in range(FILES):
        if files[i] == memory.fd:
            free_windows[n_free] = (<uint32_t>(memory.base >> <int>WINDOW_SHIFT) * FILES
                                    + <uint32_t>i)
            n_free += 1


cdef void memory_after_fork() noexcept nogil:
    """In the child of a fork: the files are the parent's, whose memory the child would keep."""
    global windows, n_free
    cdef int i
    for i in range(FILES):
        if files[i] >= 0:
            close(files[i])
    files_init()
    windows = 0
    n_free = 0


# ---- mappings ----

cdef void *memory_map(size_t size, const Memory *memory, uint64_t page) noexcept nogil:
    """Map the memory of pages from `page` on, so that the kernel can use huge pages for holes.

    For that, address and file offset must be equal modulo HUGE, if the range is not too small.
    """
    cdef int flags = MAP_SHARED | MAP_NORESERVE
    cdef size_t slack = HUGE if size >= <size_t>HUGE else 0
    cdef size_t skip
    cdef Place place = memory_at(memory, page)
    cdef char *addr
    if slack == 0:
        addr = <char *>mmap(NULL, size, PROT_NONE, flags, place.fd, place.offset)
        # it may end in another file; and a small range that does not has one mapping, at once
        if addr != <char *>MAP_FAILED and is_split(memory, page, size):
            return put_or_unmap(addr, size, PROT_NONE, memory, page)
        return addr
    # The range without its memory, at first: that of the whole window may end past 2**63.
    addr = <char *>mmap(NULL, size + slack, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if addr == <char *>MAP_FAILED:
        return addr
    skip = <size_t>(place.offset - <long>addr) % <size_t>HUGE
    munmap(addr + skip + size, slack - skip)
    if skip != 0:
        munmap(addr, skip)
    return put_or_unmap(addr + skip, size, PROT_NONE, memory, page)


cdef bint is_split(const Memory *memory, uint64_t page, size_t size) noexcept nogil:
    return page < memory.pages and size > (memory.pages - page) * memory.blksize


cdef void *put_or_unmap(char *addr, size_t size, int prot, const Memory *memory, uint64_t page) \
        noexcept nogil:
    """Put the memory of pages from `page` on over a range; if that fails, unmap it."""
    if memory_put(addr, size, prot, memory, page) != 0:
        munmap(addr, size)
        return MAP_FAILED
    return addr


cdef int memory_put(char *addr, size_t size, int prot, const Memory *memory, uint64_t page) \
        noexcept nogil:
    """Put the memory of pages from `page` on over a range. 0 or errno."""
    cdef Place place = memory_at(memory, page)
    cdef size_t n = size
    if is_split(memory, page, size):
        n = (memory.pages - page) * memory.blksize
    if mmap(addr, n, prot, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, place.fd,
            place.offset) == MAP_FAILED:
        return errno
    return 0 if n == size else memory_put(addr + n, size - n, prot, memory, memory.pages)


cdef void files_init() noexcept nogil:
    cdef int i
    for i in range(FILES):
        files[i] = -1


files_init()
