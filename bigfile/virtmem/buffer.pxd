"""See buffer.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.page cimport FileH

cdef object scratch_buffer(size_t size)
cdef object page_buffer(FileH *fileh, uint64_t blk)
