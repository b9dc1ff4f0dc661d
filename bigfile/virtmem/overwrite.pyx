"""Overwriting: whole pages get new bytes without being loaded, and without a touch.

A touch of a page clears its memory, or copies the block into it, and maps it. All of this is in
vain if a program then overwrites every byte. Here the kernel writes the new bytes into page memory,
which no area needs to show:

    EMPTY past the end, LOADED of ZEROS or FILERANGE ──► LOADING ──► LOADED of MEMFD ──► DIRTY

Where the database lies on a file system that lets files share bytes (reflinks), as XFS does, they
are written to the spool. The disk begins with them at once, and a commit lets the database share
them, instead of a copy. They take no page memory.

Any other page is left to the caller, which copies the bytes through a mapping: a touch then loads
what has to be looked up, tells the handle of its first change, waits for a write-out, uses the
spool, or fails. So there is no error here, and nothing that a touch decides is decided again.

This module changes pages as loading and touch do. It runs no Python.

Locking: see page.pyx. Called without the pager lock.
"""

import os

from libc.stdint cimport INT64_MAX, uint64_t

from wendelin.bigfile.virtmem.handle cimport BigFileH
from wendelin.bigfile.virtmem.loading cimport load_over, page_fill, page_unfill
from wendelin.bigfile.virtmem.page cimport (DIRTY, FILERANGE, LOADED, LOADING, MEMFD, ZEROS,
                                            Backing, FileH, Page, page_become, page_drop,
                                            page_forget, page_get, page_new,
                                            page_set_stored, page_show)
from wendelin.bigfile.virtmem.places cimport page_set_slot
from wendelin.bigfile.virtmem.opened cimport fileh_release
from wendelin.bigfile.virtmem.kernel cimport (SYNC_FILE_RANGE_WRITE, pthread_self,
                                              sync_file_range)
from wendelin.bigfile.virtmem.spool cimport spool_clean, spool_give, spool_shares, spool_take
from wendelin.bigfile.virtmem.ram cimport pager_lock, pager_unlock, ram_may_dirty

from wendelin.bigfile.virtmem.abilities import HasFolder

cdef enum:
    TOGETHER = 64           # pages in one call: signal handlers of Python run between calls
    SHARED = 1 << 16        # smaller blocks are not shared: databases do not align them [bytes]


def overwrite(BigFileH fileh not None, uint64_t blk, const unsigned char[::1] data not None):
    """Give pages from blk on new bytes, as many as data has whole ones; return how many got them.

    It stops at a page that needs a touch, and after some pages. The bytes may be in another array,
    but not in the same one.
    """
    cdef uint64_t n = data.shape[0] // fileh.fileh.blksize, done = 0
    cdef const char *at = <const char *>&data[0] if data.shape[0] != 0 else NULL
    fileh.check()
    if (blk + n) * fileh.fileh.blksize > <uint64_t>INT64_MAX:
        raise OverflowError(f"blocks [{blk}, {blk + n}) end past the last byte of a file")
    if not fileh.shares_known:
        fileh.fileh.shares = can_share(fileh)
        fileh.shares_known = True
    with nogil:
        n = min(n, <uint64_t>TOGETHER)
        while done < n and page_overwrite(fileh.fileh, blk + done, at):
            at += fileh.fileh.blksize
            done += 1
    return done


cdef bint can_share(BigFileH fileh) except -1:
    """Say whether the file of a handle stores blocks where its spool is, and shares their bytes."""
    folder = fileh.file.folder if HasFolder in type(fileh.file).__mro__ else None
    if folder is None or fileh.spool is None or not fileh.file.shares:
        return False
    try:
        return os.stat(folder).st_dev == os.stat(fileh.spool).st_dev
    except OSError:                 # one was moved, or removed
        return False


cdef bint may_change(const FileH *fileh) noexcept nogil:
    """Say whether a page may become DIRTY without a step that a touch takes before."""
    return fileh.frozen == 0 and (fileh.first_change_told or not fileh.wants_first_change)


cdef bint page_overwrite(FileH *fileh, uint64_t blk, const char *data) noexcept nogil:
    """Make a page DIRTY, with these bytes. False: it needs a touch."""
    cdef Page *page
    cdef Backing backing
    cdef uint64_t transactions
    cdef bint is_new, shares, filled, reload
    cdef long slot = -1
    pager_lock()
    page = page_get(fileh, blk)
    is_new = page == NULL and blk >= fileh.zero_from
    shares = fileh.shares and fileh.blksize >= <size_t>SHARED and spool_shares(fileh.spool)
    if not may_change(fileh) or not (is_new or is_plain(page)) \
            or not (shares or ram_may_dirty(fileh.blksize, fileh.spool != NULL)):
        pager_unlock()
        return False
    if shares and spool_take(fileh.spool, fileh.blksize, &slot) != 0:
        pager_unlock()
        return False
    if is_new:
        page = page_new(fileh, blk)
        if page == NULL:
            if slot >= 0:
                spool_give(fileh.spool, fileh.blksize, slot)
            pager_unlock()
            return False
    backing = page.backing
    transactions = fileh.transactions
    fileh.refs += 1
    if not is_new:
        page_become(page, LOADING, backing)
        page.loader = pthread_self()
    page_set_slot(page, slot, 0)
    page.begun = True
    pager_unlock()
    filled = page_fill(fileh, blk, data, fileh.blksize, True) == 0
    if filled and slot >= 0:        # what the commit waits for begins now
        sync_file_range(fileh.spool.fd, slot, fileh.blksize, SYNC_FILE_RANGE_WRITE)
    pager_lock()
    # A commit, an abort, a truncation or an invalidation came meanwhile: to which of the
    # transactions the bytes belong, the touch says.
    if not filled or page.reload or not may_change(fileh) or transactions != fileh.transactions:
        if page.slot >= 0:          # a copy that failed has given it
            spool_give(fileh.spool, fileh.blksize, slot)
            page_set_slot(page, -1, 0)
        elif filled:
            pager_unlock()
            page_unfill(fileh, blk)
            pager_lock()
        filled = False
        reload = page.reload
        if is_new:
            page_forget(page)
        else:
            page_become(page, LOADED, backing)
            if reload:
                page_drop(page)
    else:
        page_become(page, LOADED, MEMFD)
        page_become(page, DIRTY, MEMFD)
        page_set_stored(page, False)
        page_show(page, False)
    load_over(fileh, blk)
    pager_unlock()
    if slot >= 0 and not filled:
        spool_clean(fileh.spool)    # it may be that disk which is full
    pager_lock()
    fileh_release(fileh)
    pager_unlock()
    return filled


cdef bint is_plain(const Page *page) noexcept nogil:
    """Say whether a page has no memory, but is known to the file's reader."""
    return (page != NULL and page.state == LOADED and page.pins == 0 and
            (page.backing == ZEROS or page.backing == FILERANGE))
