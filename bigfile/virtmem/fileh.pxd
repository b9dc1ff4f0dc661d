"""See fileh.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.mapping cimport Area
from wendelin.bigfile.virtmem.page cimport FileH, Located

cdef Area *fileh_map(FileH *fileh, uint64_t pgoffset, uint64_t pglen, size_t nbytes) noexcept nogil
cdef void fileh_unmap(Area *area) noexcept nogil
cdef void fileh_freeze(FileH *fileh) noexcept nogil
cdef void fileh_thaw(FileH *fileh) noexcept nogil
cdef size_t fileh_dirty_blocks(FileH *fileh, uint64_t *blks, bint stored) noexcept nogil
cdef void fileh_set_stored(FileH *fileh, uint64_t blk) noexcept nogil
cdef void fileh_mark_stored(FileH *fileh) noexcept nogil
cdef int fileh_discard(FileH *fileh) noexcept nogil
cdef int fileh_invalidate(FileH *fileh, uint64_t blk) noexcept nogil
cdef void fileh_invalidate_loading(FileH *fileh) noexcept nogil
cdef uint64_t fileh_epoch(FileH *fileh) noexcept nogil
cdef int fileh_set_located(FileH *fileh, Located *located, size_t n, uint64_t epoch) \
    noexcept nogil
cdef void fileh_first_change_told(FileH *fileh, uint64_t transactions) noexcept nogil
cdef void fileh_transaction_ended(FileH *fileh) noexcept nogil
cdef int fileh_truncate(FileH *fileh, uint64_t blk) noexcept nogil
cdef void fileh_untruncate(FileH *fileh) noexcept nogil
