"""Changes of a handle for a transaction that stores them in its own way and time.

BigFileH.dirty_writeout() stores changes at once. A transaction write-protects pages while it
commits, takes their bytes when it writes records, and saves them for a rollback.

    writeout_begin() ─► page_buffer() of each changed block ─► writeout_end(), transaction_ended()
    savepoint: save_changes(), truncated_at()
    a touch failed: is_doomed(), check_failures() refuse the commit; forget_failures()

This module knows handles and their changed pages. It does not know what a transaction is.

Locking: see page.pyx. Called with the GIL.
"""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.buffer cimport page_buffer as buffer_of
from wendelin.bigfile.virtmem.fileh cimport (fileh_freeze, fileh_set_stored, fileh_thaw,
                                             fileh_transaction_ended)
from wendelin.bigfile.virtmem.handle cimport BigFileH
from wendelin.bigfile.virtmem.kernel cimport pthread_self
from wendelin.bigfile.virtmem.page cimport DIRTY, Page, page_own
from wendelin.bigfile.virtmem.ram cimport pager_lock, pager_unlock

from wendelin.bigfile.virtmem.buffer import used_of


def writeout_begin(BigFileH fileh not None):
    """Write-protect all pages until writeout_end(): threads that write wait until then.

    dirty_writeout() does this for its own duration, a commit for all of its. Nests.
    """
    fileh.check()
    with nogil:
        fileh_freeze(fileh.fileh)


def writeout_end(BigFileH fileh not None):
    """Let pages be changed again."""
    if fileh.fileh.frozen == 0:
        raise RuntimeError("writeout_end() without writeout_begin()")
    with nogil:
        fileh_thaw(fileh.fileh)


def writeout_over(BigFileH fileh not None, bint of_another=False):
    """End all writeout_begin() of this thread, if there are any.

    Also one after which an exception came, as a Ctrl-C does, before the caller could note it.

    of_another: end one of another thread, too, which has begun the transaction that ends here.
    """
    with nogil:
        while fileh.fileh.frozen != 0 and fileh.fileh.writer == pthread_self():
            fileh_thaw(fileh.fileh)
        if fileh.fileh.frozen != 0 and of_another:
            fileh_thaw(fileh.fileh)


def page_buffer(BigFileH fileh not None, uint64_t blk):
    """Return a read-only memoryview of a changed block.

    Raises
    ------
    KeyError
        The block is not changed.
    """
    cdef Page *page
    cdef bint dirty
    fileh.check()
    pager_lock()
    page = page_own(fileh.fileh, blk)
    dirty = page != NULL and page.state == DIRTY
    pager_unlock()
    if not dirty:
        raise KeyError(f"block {blk} is not changed")
    return memoryview(buffer_of(fileh.fileh, blk))


def transaction_ended(BigFileH fileh not None):
    """Call first_change() for the next change: a transaction ended."""
    fileh_transaction_ended(fileh.fileh)


# ---- savepoints ----

def save_changes(BigFileH fileh not None, save):
    """Call save(blk, buffer) for blocks that changed since they were last stored or saved.

    A buffer may be shorter than the block: zeros follow. They stay changed. An exception of save()
    is raised; that block and those that follow are not saved.
    """
    cdef uint64_t blk
    writeout_begin(fileh)
    try:
        for blk in fileh.list_dirty(False):
            view = memoryview(buffer_of(fileh.fileh, blk))
            save(blk, view[:used_of(view)])
            fileh_set_stored(fileh.fileh, blk)
    finally:
        writeout_end(fileh)


def truncated_at(BigFileH fileh not None):
    """Return the first block of zeros of a truncate() that is not stored; None: there is none."""
    return fileh.fileh.zero_from if fileh.truncated else None


# ---- failures of touches ----

def is_doomed(BigFileH fileh not None):
    """Say whether a touch failed since the last dirty_discard(), so that changes are refused."""
    return fileh.is_doomed()


def is_doom_told(BigFileH fileh not None):
    """Say whether first_change() was called for the doomed handle."""
    return fileh.fileh.doom_told


def check_failures(BigFileH fileh not None):
    """Raise DoomedError if a touch failed since the last dirty_discard()."""
    fileh.check_failures()


def forget_failures(BigFileH fileh not None):
    """Forget failures of touches if there are no changes: the next touch tries again."""
    fileh.undoom()
