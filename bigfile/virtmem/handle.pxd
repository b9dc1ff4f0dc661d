"""See handle.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.ahead cimport Looks
from wendelin.bigfile.virtmem.mapping cimport Area
from wendelin.bigfile.virtmem.page cimport FileH

cdef class BigFileH:
    cdef object __weakref__
    cdef FileH *fileh           # owned: one reference; NULL only when half built
    cdef readonly object file   # the BigFile; lives at least as long as this
    cdef readonly object spool  # folder of its spool; None: it has none
    cdef list failures          # exceptions since the last discard; protected by: the GIL
    cdef list pins              # (pgoffset, pglen) of each pin(); protected by: the GIL
    cdef public bint read_only  # no change is possible, so a failure concerns its thread only
    cdef unsigned long fallback_thread  # that gets failures of threads unknown to Python
    cdef Looks looks            # up where blocks are; protected by: the GIL
    cdef readonly double ready_seconds   # limit of the time for a view
    cdef bint maps              # file is a MapsBlocks
    cdef bint maps_ahead        # file is a MapsAhead
    cdef bint shares_known      # fileh.shares says whether its file shares bytes with the spool
    cdef bint truncated         # the file has yet to be told of `fileh.zero_from`

    cdef int check(self) except -1
    cdef list list_dirty(self, bint stored)
    cdef int check_failures(self) except -1
    cdef int check_deadlock(self, int err, str what) except -1
    cdef bint is_doomed(self) noexcept
    cdef int undoom(self) except -1
    cdef int unpin(self, uint64_t first, uint64_t n) except -1
    cdef int unpin_all(self) except -1


cpdef tuple check_range(BigFileH fileh, pgoffset, pglen)


cdef class VMA:
    cdef object __weakref__
    cdef Area *area             # owned; NULL only when half built
    cdef readonly BigFileH fileh
    cdef public object pyuser


cdef void virtmem_set_on_map(void (*hook)() noexcept nogil) noexcept
