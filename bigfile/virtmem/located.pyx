"""Where blocks are, said by a file before any thread touches them.

The file is asked ahead: by trampoline, beside a block that is loaded; by pins, for a view; and a
file in a database tells by itself where a commit has put blocks. What it says may be outdated when
it is said, so the caller takes epoch() first.

This module knows handles, and what files answer. It does not know why they are asked.

Locking: see page.pyx. Called with the GIL.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from wendelin.bigfile.virtmem.backend cimport source_from
from wendelin.bigfile.virtmem.fileh cimport (fileh_epoch, fileh_invalidate_loading,
                                             fileh_set_located)
from wendelin.bigfile.virtmem.handle cimport BigFileH
from wendelin.bigfile.virtmem.page cimport Located


def epoch(BigFileH fileh not None):
    """Return the epoch for set_located(); call it before asking where blocks are."""
    return fileh_epoch(fileh.fileh)


cpdef set_located(BigFileH fileh, found, uint64_t epoch):
    """Learn where blocks are, without loading any: their first touch needs no Python.

    Clean blocks in memory give their memory back; changed ones stay. The call is ignored if a
    page was invalidated since epoch() was called.

    Parameters
    ----------
    fileh : BigFileH
    found : dict
        Block number -> result of mapblk; not None.
    epoch : int
    """
    cdef size_t n = len(found), i = 0, k
    cdef int err
    cdef Located *located
    fileh.check()
    located = <Located *>malloc(n * sizeof(Located) + 1)
    if located == NULL:
        raise MemoryError
    try:
        for blk, where in found.items():
            located[i].blk = blk
            source_from(where, fileh.fileh.blksize, &located[i].source)
            i += 1
        with nogil:
            err = fileh_set_located(fileh.fileh, located, i, epoch)
    finally:
        for k in range(i):
            free(located[k].source.pieces)      # of those that were not taken
        free(located)
    if err != 0:
        raise MemoryError


def invalidate_loading(BigFileH fileh not None):
    """Load again what is being loaded in other threads: it may be of an older state."""
    with nogil:
        fileh_invalidate_loading(fileh.fileh)
