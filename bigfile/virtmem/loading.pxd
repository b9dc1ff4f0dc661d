"""See loading.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.page cimport Failed, Failure, FileH, Page, Purpose

cdef int page_fill(FileH *fileh, uint64_t blk, const char *data, size_t size,
                   bint to_store) noexcept nogil
cdef void page_unfill(FileH *fileh, uint64_t blk) noexcept nogil
cdef bint may_load(const Page *page) noexcept nogil
cdef bint load_begins(FileH *fileh, uint64_t blk, uint64_t load) noexcept nogil
cdef Failed page_load(FileH *fileh, uint64_t blk, Purpose purpose) noexcept nogil
cdef int page_make_room(Page *page, Failure *why) noexcept nogil
cdef void load_over(FileH *fileh, uint64_t blk) noexcept nogil
cdef Failure own_load(const Page *page) noexcept nogil
cdef void wait_loaded(FileH *fileh, const Page *page) noexcept nogil
cdef void fail(FileH *fileh, uint64_t blk, Failure why, int err) noexcept nogil
cdef Failed fileh_load(FileH *fileh, uint64_t blk) noexcept nogil
