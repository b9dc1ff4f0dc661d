"""See memory.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.ram cimport Place

cdef struct Memory:         # where the pages of a handle have their memory
    size_t blksize          # [bytes]
    uint64_t pages          # those below this one: in the window, at base + page*blksize of fd
    int fd                  # a memory file of the process; -1: no window
    long base               # where the window begins [bytes]
    int own                 # the others: at page*blksize of this file; -1: none needed one yet

cdef inline Place memory_at(const Memory *memory, uint64_t page) noexcept nogil:
    """Return where a page has its memory."""
    cdef Place place
    if page < memory.pages:
        place.fd = memory.fd
        place.offset = memory.base + <long>(page * memory.blksize)
    else:
        place.fd = memory.own
        place.offset = page * memory.blksize
    return place

cdef int memory_open(Memory *memory, size_t blksize) noexcept nogil
cdef int memory_reach(Memory *memory, uint64_t page) noexcept nogil
cdef void memory_close(Memory *memory, bint used, bint inherited) noexcept nogil
cdef void memory_after_fork() noexcept nogil
cdef void *memory_map(size_t size, const Memory *memory, uint64_t page) noexcept nogil
cdef int memory_put(char *addr, size_t size, int prot, const Memory *memory, uint64_t page) \
    noexcept nogil
