"""Buffers for loadblk and storeblk: one block of memory, as Python sees it.

This module knows page memory, and mmap. It does not change states of pages: the caller must make
sure that a page is in memory, and stays there.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcmp

from wendelin.bigfile.virtmem.frames cimport Frame, frame_hide, frame_show
from wendelin.bigfile.virtmem.kernel cimport (MADV_DONTFORK, MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED,
                                              MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED,
                                              PROT_READ, PROT_WRITE, madvise, mmap, munmap)
from wendelin.bigfile.virtmem.opened cimport fileh_unref
from wendelin.bigfile.virtmem.page cimport FileH, Page, page_own, pager_generation
from wendelin.bigfile.virtmem.places cimport page_memory
from wendelin.bigfile.virtmem.ram cimport Place, pager_lock, pager_unlock
from wendelin.bigfile.virtmem.spool cimport Spool, spool_hide, spool_shares, spool_show

from wendelin.bigfile.virtmem.errors import PageMemoryError

cdef extern from "Python.h":
    int PyBuffer_FillInfo(Py_buffer *view, object exporter, void *buf, Py_ssize_t len,
                          bint readonly, int flags) except -1


@cython.final
cdef class PageBuffer:
    """One block of memory that loadblk fills, or storeblk reads.

    A traceback or a logger may keep it: then it keeps memory of its own (loading), or shows the
    page (storing), but never one that was given to another block: for this it holds the handle, and
    the frame, or slots of the spool. If the page gives its memory back, it shows zeros.
    """
    cdef void *addr
    cdef bint owned             # a mapping of its own
    cdef Py_ssize_t size
    cdef Py_ssize_t used        # [bytes]; what follows is zeros
    cdef bint readonly
    cdef Place shared           # where it is, in a file that can share it; fd is -1: nowhere
    cdef FileH *fileh           # owned: one reference; NULL: none
    cdef Frame *frame           # that it shows; NULL: none
    cdef Spool *spool           # a slot of which it shows; NULL: none

    def __cinit__(self):
        self.addr = NULL
        self.shared.fd = -1

    def __dealloc__(self):
        # after a fork, the page is the parent's, and other memory may be there
        cdef bint inherited = self.fileh != NULL and self.fileh.generation != pager_generation
        if self.owned and not inherited:
            munmap(self.addr, self.size)
        with nogil:
            if self.frame != NULL and not inherited:
                pager_lock()
                frame_hide(self.frame)
                pager_unlock()
            if self.spool != NULL and not inherited:
                pager_lock()
                spool_hide(self.spool)
                pager_unlock()
            if self.fileh != NULL:
                fileh_unref(self.fileh)

    def shared_at(self, part):
        """Return (descriptor, offset) of the file with this part of it; None: there is none.

        Another file of that file system can share the bytes (FICLONERANGE), instead of a copy.
        """
        cdef Py_buffer view
        cdef ssize_t start, n
        if self.shared.fd < 0:
            return None
        PyObject_GetBuffer(part, &view, PyBUF_SIMPLE)
        start = <char *>view.buf - <char *>self.addr
        n = view.len
        PyBuffer_Release(&view)
        if start < 0 or start + n > self.used:
            return None
        return self.shared.fd, self.shared.offset + start

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.addr, self.size, self.readonly, flags)


cdef object scratch_buffer(size_t size):
    """Return a writable buffer of zeros, which is not a page."""
    cdef PageBuffer buf = PageBuffer.__new__(PageBuffer)
    cdef void *addr = mmap(NULL, size, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if addr == MAP_FAILED:
        raise PageMemoryError(f"no memory for a block of {size} bytes to be loaded into")
    buf.addr = addr
    buf.owned = True
    buf.size = buf.used = size
    return buf


def used_of(memoryview view not None):
    """Return how many bytes of a block, which a file is given, may be other than zeros."""
    buf = view.obj
    return min((<PageBuffer>buf).used if isinstance(buf, PageBuffer) else len(view), len(view))


def end_of(buf):
    """Return where bytes end, without the zeros at their end [bytes]."""
    cdef Py_buffer view
    cdef const unsigned char *at
    cdef Py_ssize_t n
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    at = <const unsigned char *>view.buf
    n = view.len
    # eight bytes at a time, once the address is a multiple of that
    while n > 0 and at[n - 1] == 0:
        n -= 1
        while <size_t>(at + n) % sizeof(uint64_t) == 0 and n >= <Py_ssize_t>sizeof(uint64_t) \
                and (<const uint64_t *>(at + n))[-1] == 0:
            n -= sizeof(uint64_t)
    PyBuffer_Release(&view)
    return n


# Not by NumPy: it copies bytes at odd addresses to buffers of its own, and NumPy 2.4 crashes where
# there is no memory for these. Without the GIL: a page may be in the spool, on a disk.

def filled(buf, Py_ssize_t size):
    """Return a byte for each `size` bytes, the last of which may be fewer: 0 if all are zeros."""
    cdef Py_buffer view
    cdef const unsigned char *at
    cdef unsigned char *out
    cdef Py_ssize_t i, n
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    try:
        n = (view.len + size - 1) // size
        result = PyBytes_FromStringAndSize(NULL, n)
        out = <unsigned char *>PyBytes_AS_STRING(result)
        with nogil:
            for i in range(n):
                at = <const unsigned char *>view.buf + i * size
                out[i] = at[0] != 0 or memcmp(at, at + 1, min(size, view.len - i * size) - 1) != 0
        return result
    finally:
        PyBuffer_Release(&view)


def differing(a, b, Py_ssize_t size):
    """Return a byte for each `size` bytes of two buffers of one length: 1 if they differ."""
    cdef Py_buffer one, other
    cdef unsigned char *out
    cdef Py_ssize_t i, n
    PyObject_GetBuffer(a, &one, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(b, &other, PyBUF_SIMPLE)
        try:
            if one.len != other.len:
                raise ValueError(f"{one.len} and {other.len} bytes are compared")
            n = (one.len + size - 1) // size
            result = PyBytes_FromStringAndSize(NULL, n)
            out = <unsigned char *>PyBytes_AS_STRING(result)
            with nogil:
                for i in range(n):
                    out[i] = memcmp(<char *>one.buf + i * size, <char *>other.buf + i * size,
                                    min(size, one.len - i * size)) != 0
            return result
        finally:
            PyBuffer_Release(&other)
    finally:
        PyBuffer_Release(&one)


cdef object page_buffer(FileH *fileh, uint64_t blk):
    """Return a read-only buffer over a page in page memory."""
    cdef PageBuffer buf = PageBuffer.__new__(PageBuffer)
    cdef void *addr = NULL
    cdef size_t used
    cdef Place memory
    cdef int flags = MAP_SHARED
    cdef bint shares
    cdef Page *page
    pager_lock()
    page = page_own(fileh, blk)
    used = page.res.size
    memory = page_memory(page)
    shares = page.slot >= 0 and fileh.shares and spool_shares(fileh.spool)
    fileh.refs += 1
    if page.frame != NULL:
        buf.frame = page.frame
        buf.addr = frame_show(page.frame)
    elif page.slot >= 0:
        buf.spool = fileh.spool
        spool_show(fileh.spool)
    pager_unlock()
    buf.fileh = fileh
    buf.size = fileh.blksize
    buf.used = used
    buf.readonly = True
    if buf.addr != NULL:
        return buf
    if used != fileh.blksize:       # what has no page memory must not get it by being read
        addr = mmap(NULL, fileh.blksize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0)
        flags |= MAP_FIXED
    # Not populated: storeblk may read only a little of it. And the checksum is computed before
    # write(2), which then does not fault: its faults, of 16 OS pages each, cost half as much.
    if addr != MAP_FAILED:
        buf.addr = addr
        buf.owned = used != fileh.blksize
        addr = mmap(addr, used, PROT_READ, flags, memory.fd, memory.offset)
    if addr == MAP_FAILED:
        raise PageMemoryError(f"no mapping for block {blk} to be stored from")
    madvise(addr, used, MADV_DONTFORK)
    buf.addr = addr
    buf.owned = True
    if shares:
        buf.shared = memory
    return buf
