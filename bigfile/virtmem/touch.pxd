"""See touch.pyx."""

cdef unsigned long scraps_shown() noexcept nogil
cdef bint page_touch(const char *addr, bint write) noexcept nogil
cdef bint page_broken(const char *addr, bint write) noexcept nogil
