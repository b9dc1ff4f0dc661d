"""See frames.pyx."""

from wendelin.bigfile.virtmem.ram cimport Place

cdef struct Frame:
    Place place             # where its bytes are
    size_t size             # [bytes]
    char *addr              # where the mapping of its file shows them; NULL: nowhere
    # protected by: the pager lock; and of the page that has it, as page memory is
    bint used               # a page has it
    bint whole              # all of it is allocated
    bint mapped             # that mapping may have page tables for it
    unsigned int buffers    # that show it: see buffer
    Frame *next             # in a list of those that no page has

cdef Frame *frame_take(size_t size, bint to_store) noexcept nogil
cdef void frame_give(Frame *frame) noexcept nogil
cdef char *frame_show(Frame *frame) noexcept nogil
cdef void frame_hide(Frame *frame) noexcept nogil
cdef void frames_drop_tables() noexcept nogil
cdef void frames_before_fork() noexcept nogil
cdef void frames_after_fork() noexcept nogil
