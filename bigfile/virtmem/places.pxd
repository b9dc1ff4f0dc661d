"""See places.pyx."""

from wendelin.bigfile.virtmem.frames cimport Frame
from wendelin.bigfile.virtmem.page cimport Page
from wendelin.bigfile.virtmem.ram cimport Place

cdef Place page_memory(const Page *page) noexcept nogil
cdef void page_set_slot(Page *page, long slot, size_t size) noexcept nogil
cdef Frame *page_set_frame(Page *page, Frame *frame) noexcept nogil
cdef void page_give_memory(Page *page) noexcept nogil
