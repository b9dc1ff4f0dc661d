"""See located.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.handle cimport BigFileH

cpdef set_located(BigFileH fileh, found, uint64_t epoch)
