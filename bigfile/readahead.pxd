"""See readahead.pyx."""

cdef enum:
    AHEAD_PAGES = 64        # most that readahead_post() takes at once

cdef struct Ahead:
    void *addr              # where it is mapped; NULL: it is not yet
    size_t size             # [bytes]
    int fd
    long offset             # in the file [bytes]

cdef void readahead_post(const Ahead *items, size_t n) noexcept nogil
