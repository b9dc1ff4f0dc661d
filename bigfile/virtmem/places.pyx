"""Where the memory of a page is: at its own place, in a frame, or in a slot of the spool.

    its own place   as long as the handle lives: memory. Of a page that is shown before it has all
                    bytes of its block, or has less
    a frame         until its memory is given back: frames. Of a page that gets its whole block
    a slot          until its change is stored, or discarded: spool

This module knows the places. It does not know when a page has memory.

Locking: all need the pager lock; but see page_memory().
"""

from wendelin.bigfile.virtmem.frames cimport Frame, frame_give
from wendelin.bigfile.virtmem.memory cimport memory_at
from wendelin.bigfile.virtmem.page cimport Page
from wendelin.bigfile.virtmem.ram cimport Place, ram_free
from wendelin.bigfile.virtmem.spool cimport spool_give


cdef Place page_memory(const Page *page) noexcept nogil:
    """Return where the bytes of a page are, or will be, in page memory.

    Only here it is known. It is so from the time that the page's memory is reserved until it is
    given back. The thread that loads the page, and one that has frozen the handle for a DIRTY page,
    may use it without the pager lock.
    """
    cdef Place place
    if page.frame != NULL:
        return page.frame.place
    if page.slot < 0:
        return memory_at(&page.fileh.memory, page.blk)
    place.fd = page.fileh.spool.fd
    place.offset = page.slot
    return place


cdef void page_set_slot(Page *page, long slot, size_t size) noexcept nogil:
    """Let a page without memory get size bytes of it, in the spool; -1: in memory."""
    page.slot = slot
    page.res.spooled = slot >= 0
    page.res.size = size


cdef Frame *page_set_frame(Page *page, Frame *frame) noexcept nogil:
    """Let a page have a frame; NULL: none. Return the one that it had."""
    cdef Frame *had = page.frame
    page.frame = frame
    return had


cdef void page_give_memory(Page *page) noexcept nogil:
    """Give back the memory of a page, which counts nowhere any more, and which no area shows."""
    if page.frame != NULL:
        frame_give(page_set_frame(page, NULL))
    elif page.slot >= 0:
        spool_give(page.fileh.spool, page.fileh.blksize, page.slot)
        page_set_slot(page, -1, 0)
    else:
        ram_free(page_memory(page), page.res.size)
