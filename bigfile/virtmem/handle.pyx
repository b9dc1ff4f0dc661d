"""BigFileH and VMA: files mapped in memory, as Python sees the pager; BigFile is in backend.

Organization
------------
    VMA ───► BigFileH ───► BigFile            Python objects, strong references
     │           │            ▲
    Area ───► FileH ──────────┘ (borrowed, through BigFileH)      see mapping, page

A VMA is held by the ndarrays over it; it holds the handle, which holds the file. In the other
direction there are only borrowed pointers, cleared by __dealloc__ under the GIL. Neither class has
a tp_clear (no_gc_clear): the collector must not take the file away from a handle whose pages may
still be touched. Cycles through subclasses or `pyuser` are broken at their other objects.

Python calls this module, and it calls down. The way up, from a fault into Python, is in
trampoline. A BigFileH has the methods of a file that is open. What a transaction asks of one is in
writeout, where its blocks are in located, and what is kept accessible in pins.

Locking: see page.pyx. Work that may take long is done without the GIL.
"""

import os
import threading
from operator import index

cimport cython
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EFBIG, EMFILE, ENFILE, errno
from libc.stdint cimport INT64_MAX, uint64_t
from libc.stdlib cimport free, getenv, malloc
from libc.string cimport strcpy, strerror

from wendelin.bigfile.virtmem.backend cimport BigFile
from wendelin.bigfile.virtmem.buffer cimport page_buffer
from wendelin.bigfile.virtmem.failure cimport (check_nested, describe, failure, forget_failing,
                                               unsaid)
from wendelin.bigfile.virtmem.fileh cimport (fileh_dirty_blocks, fileh_discard,
                                             fileh_first_change_told, fileh_freeze,
                                             fileh_invalidate, fileh_map, fileh_mark_stored,
                                             fileh_set_stored, fileh_thaw, fileh_truncate,
                                             fileh_unmap, fileh_untruncate)
from wendelin.bigfile.virtmem.kernel cimport EDEADLK
from wendelin.bigfile.virtmem.loading cimport fileh_load
from wendelin.bigfile.virtmem.mapping cimport Area, areas_reset_scrap
from wendelin.bigfile.virtmem.opened cimport fileh_drop_kept, fileh_new, fileh_unref
from wendelin.bigfile.virtmem.page cimport (BROKEN_FILE, FORKED, NO_FAILURE, Counts, Failed, FileH,
                                            fileh_undoom, pager_generation)
from wendelin.bigfile.virtmem.ram cimport (pager_lock, pager_unlock, ram_clean, ram_dirty,
                                           ram_limit, ram_reclaim_all)
from wendelin.bigfile.virtmem.ready cimport fileh_unpin
from wendelin.bigfile.virtmem.spool cimport spool_of
from wendelin.bigfile.virtmem.touch cimport scraps_shown

from wendelin.bigfile.virtmem.abilities import (FirstChange, HasFolder, MapsAhead, MapsBlocks,
                                                Truncates, able)
from wendelin.bigfile.virtmem.errors import DoomedError
from wendelin.bigfile.virtmem.spool import spool_folder
from wendelin.lib.utils import WeakRefs, seconds_of

cdef extern from "Python.h":
    void Py_XDECREF(PyObject *obj) noexcept
    int PyBuffer_FillInfo(Py_buffer *view, object exporter, void *buf, Py_ssize_t len,
                          bint readonly, int flags) except -1

cdef double READY = 0.1     # [s] WENDELIN_CORE_READY

WRITEOUT_STORE = 1          # dirty_writeout: give dirty pages to storeblk
WRITEOUT_MARKSTORED = 2     # dirty_writeout: what was stored is clean

#: All handles of this process: see stats.py.
handles = WeakRefs()


@cython.no_gc_clear
cdef class BigFileH:
    """A file that is open to be mapped in memory: its pages, and changes that are not stored yet.

    All VMAs of a handle show one memory. Offsets and lengths are in pages; one page is one
    block of the file.

    A subclass may define first_change(). It is called, in any thread, before the first change of a
    page after the handle was opened, or dirty_discard() or writeout.transaction_ended() was called.
    It is also called when a touch failed. Its exception refuses the change.

    Parameters
    ----------
    file : BigFile

    Attributes
    ----------
    read_only : bool
        first_change() refuses all changes. So a failed touch dooms no transaction.
    ready_seconds : float
        About the limit of the time in which a view is made ready (pins.ready), and of half of it
        at each boundary: WENDELIN_CORE_READY, or 0.1. With 0, a block is shown when it is touched.

    spool : str or None
        Folder of the file that has the memory of changes that would pass the limit of page memory:
        WENDELIN_CORE_SPOOL, or that of the database, or of temporary files. None: there is none.

    Raises
    ------
    ValueError
        WENDELIN_CORE_READY is not a number of seconds, or WENDELIN_CORE_SPOOL not a folder.
    """

    def __cinit__(self, file, *args, **kw):
        if not isinstance(file, BigFile):
            raise TypeError(f"file must be a BigFile, not {type(file).__name__}")
        if (<BigFile>file).blksize == 0:
            raise ValueError(f"{type(file).__name__}.__init__ did not call BigFile.__init__")
        self.file = file
        self.failures = []
        self.pins = []
        self.fallback_thread = threading.get_ident()
        # only of a class that names it: a program's own file may have another kind of `folder`
        self.spool = spool_folder(file.folder if HasFolder in type(file).__mro__ else None)
        self.fileh = fileh_new((<BigFile>file).blksize)
        if self.fileh == NULL:
            hint = " (page memory is a file to the kernel: see ulimit -f)" if errno == EFBIG else ""
            raise OSError(errno, f"no page memory for {describe(file)}: "
                                 f"{strerror(errno).decode()}{hint}")
        name = describe(self.file).encode(errors="replace")[:sizeof(self.fileh.name) - 1]
        strcpy(self.fileh.name, name)
        self.fileh.pyfileh = <void *>self
        if self.spool is not None:
            self.fileh.spool = spool_of(os.fsencode(self.spool))
        self.fileh.wants_first_change = able(self, FirstChange)
        self.ready_seconds = READY
        if getenv("WENDELIN_CORE_READY") != NULL:   # os.environ takes long to say no
            self.ready_seconds = seconds_of("WENDELIN_CORE_READY", READY)
        self.maps = able(file, MapsBlocks)
        self.maps_ahead = able(file, MapsAhead)
        handles.add(self)

    def __dealloc__(self):
        cdef FileH *fileh = self.fileh
        if fileh != NULL:
            fileh.pyfileh = NULL
            with nogil:
                fileh_unref(fileh)

    cdef int check(self) except -1:
        if self.fileh.generation != pager_generation:
            raise failure(self.file, None, FORKED, 0)
        return 0

    @property
    def blksize(self):
        """Block size [bytes]."""
        return self.fileh.blksize

    def mmap(self, pgoffset, pglen, nbytes=None):
        """Map pages [pgoffset, pgoffset + pglen) and return a VMA. Loads nothing.

        nbytes: map only the first so many bytes of these, which end in the last page. Then a page
        takes memory for what is mapped.

        Raises
        ------
        ValueError
            An offset is negative, or a length not positive; nbytes do not end in the last page.
        OverflowError
            The range ends past the last byte a file can have, 2**63.
        MemoryError
            The address space has no room for it.
        """
        self.check()
        self.fallback_thread = threading.get_ident()
        return VMA(self, pgoffset, pglen, nbytes)

    def load(self, pgoffset, pglen):
        """Load pages [pgoffset, pgoffset + pglen) that are not in memory yet.

        Raises
        ------
        BlockLoadError
            A block cannot be loaded. It is raised here, not later as for a touch, so the
            transaction is not doomed.
        ValueError, OverflowError
            As mmap().
        """
        cdef uint64_t blk
        cdef Failed failed
        cdef unsigned long scraps = scraps_shown()
        self.check()
        pgoffset, pglen = check_range(self, pgoffset, pglen)
        for i in range(pgoffset, pgoffset + pglen):
            blk = i
            with nogil:
                failed = fileh_load(self.fileh, blk)
            if failed.exc != NULL:
                exc = <object><PyObject *>failed.exc
                Py_XDECREF(<PyObject *>failed.exc)
                raise exc
            if failed.why == BROKEN_FILE:
                raise failure(self.file, i, BROKEN_FILE, failed.err)
            if failed.why != NO_FAILURE:
                check_nested(scraps)
                raise unsaid(self.file, i)

    def isdirty(self):
        """Say whether there are changes since the last write-out."""
        return self.fileh.ndirty != self.fileh.nstored or self.truncated

    def dirty_blocks(self):
        """Return the numbers of the changed blocks, ascending."""
        return self.list_dirty(True)

    cdef list list_dirty(self, bint stored):
        cdef uint64_t *blks
        cdef size_t i, n
        cdef list result = []
        self.check()
        with nogil:
            fileh_freeze(self.fileh)
        try:
            blks = <uint64_t *>malloc(self.fileh.ndirty * sizeof(uint64_t) + 1)
            if blks == NULL:
                raise MemoryError
            try:
                n = fileh_dirty_blocks(self.fileh, blks, stored)
                for i in range(n):
                    result.append(blks[i])
            finally:
                free(blks)
            result.sort()
            return result
        finally:
            with nogil:
                fileh_thaw(self.fileh)

    def dirty_writeout(self, flags):
        """Store changed blocks, mark them as stored, or both.

        Parameters
        ----------
        flags : int
            WRITEOUT_STORE: give every changed block to file.storeblk, in ascending order.
            WRITEOUT_MARKSTORED: stored blocks that did not change since become clean.

        Raises
        ------
        DoomedError
            A touch of this handle failed since the last dirty_discard().
        Exception
            The exception of storeblk. That page and all that follow stay dirty.
        """
        cdef uint64_t blk
        if flags not in (WRITEOUT_STORE, WRITEOUT_MARKSTORED, WRITEOUT_STORE | WRITEOUT_MARKSTORED):
            raise ValueError(f"flags are {flags!r}: they must be WRITEOUT_STORE, "
                             f"WRITEOUT_MARKSTORED or both")
        self.check()
        with nogil:
            fileh_freeze(self.fileh)
        try:
            if flags & WRITEOUT_STORE:
                self.check_failures()
                if self.truncated:
                    self.file.truncate(self.fileh.zero_from)
                    self.truncated = False
                for blk in self.dirty_blocks():
                    self.file.storeblk(blk, memoryview(page_buffer(self.fileh, blk)))
                    fileh_set_stored(self.fileh, blk)
                # storeblk may have touched a block that cannot be loaded
                self.check_failures()
            if flags & WRITEOUT_MARKSTORED:
                with nogil:
                    fileh_mark_stored(self.fileh)
                if not self.truncated:
                    fileh_untruncate(self.fileh)
        finally:
            with nogil:
                fileh_thaw(self.fileh)

    cdef int check_failures(self) except -1:
        """Raise DoomedError if a touch failed since the last dirty_discard()."""
        if self.is_doomed():
            first = self.failed[0]
            raise DoomedError(f"changes of {describe(self.file)} cannot be stored, because a "
                              f"touch of its memory failed: {first}. Abort, then "
                              f"try again") from first
        return 0

    cdef bint is_doomed(self) noexcept:
        return self.fileh.doom != NO_FAILURE and not self.read_only

    @property
    def failed(self):
        """The failures of touches since the last dirty_discard()."""
        if self.is_doomed() and not self.failures:
            return (unsaid(self.file, self.fileh.doom_blk),)
        return tuple(self.failures)

    def dirty_discard(self):
        """Forget all changes, and failures of touches.

        Raises
        ------
        RuntimeError
            Called by the thread that writes out.
        """
        cdef int err
        self.check()
        with nogil:
            err = fileh_discard(self.fileh)
        self.check_deadlock(err, "dirty_discard")
        self.unpin_all()
        self.truncated = False
        self.undoom()

    cdef int undoom(self) except -1:
        """Forget failures of touches."""
        with nogil:
            pager_lock()
            areas_reset_scrap()
            fileh_undoom(self.fileh)
            pager_unlock()
        self.failures.clear()
        forget_failing()
        return 0

    cdef int unpin(self, uint64_t first, uint64_t n) except -1:
        """Undo one pin() of pages, if it was not undone before."""
        if (first, n) in self.pins:
            self.pins.remove((first, n))
            if self.fileh.generation == pager_generation:   # else they are the parent's
                with nogil:
                    fileh_unpin(self.fileh, first, n)
        return 0

    cdef int unpin_all(self) except -1:
        while self.pins:
            first, n = self.pins[-1]
            self.unpin(first, n)
        return 0

    def invalidate_page(self, pgoffset):
        """Drop a page from memory, changes included: the next touch loads it again."""
        cdef int err
        cdef uint64_t blk
        self.check()
        pgoffset, _ = check_range(self, pgoffset, 1)
        blk = pgoffset
        with nogil:
            err = fileh_invalidate(self.fileh, blk)
        self.check_deadlock(err, "invalidate_page")

    def truncate(self, pgoffset):
        """From now on all pages from pgoffset on are zeros, in all views, until written.

        This is a change like others: dirty_writeout() stores it, dirty_discard() undoes it.

        Raises
        ------
        NotImplementedError
            The file does not define truncate(blk).
        """
        cdef int err = EAGAIN
        cdef uint64_t blk, transactions
        self.check()
        if not able(self.file, Truncates):
            raise NotImplementedError(f"{type(self.file).__name__} does not define "
                                      f"truncate(blk), so it cannot shrink")
        pgoffset, _ = check_range(self, pgoffset, 1)
        blk = pgoffset
        while err == EAGAIN:
            transactions = self.fileh.transactions
            if self.fileh.wants_first_change and not self.fileh.first_change_told:
                self.first_change()
                fileh_first_change_told(self.fileh, transactions)
            with nogil:
                err = fileh_truncate(self.fileh, blk)
        self.check_deadlock(err, "truncate")
        self.truncated = True

    cdef int check_deadlock(self, int err, str what) except -1:
        """Raise if err means that this thread would wait for itself."""
        if err == EDEADLK:
            raise RuntimeError(f"{what}() by the thread that writes out {describe(self.file)}")
        return 0


cpdef tuple check_range(BigFileH fileh, pgoffset, pglen):
    """Check a range of pages as mmap() and load() do; return it as Python's integers."""
    # NumPy's integers would wrap around below
    pgoffset, pglen = index(pgoffset), index(pglen)
    if pgoffset < 0:
        raise ValueError(f"pgoffset is {pgoffset}: it must not be negative")
    if pglen <= 0:
        raise ValueError(f"pglen is {pglen}: it must be at least 1")
    if (pgoffset + pglen) * fileh.blksize > INT64_MAX:
        raise OverflowError(f"pages [{pgoffset}, {pgoffset + pglen}) of {fileh.blksize} bytes "
                            f"end past the last byte a file can have, 2**63")
    return pgoffset, pglen


def keep(VMA vma not None):
    """Let the mapping stay a while when the VMA is gone, for the next one of the same pages."""
    vma.area.keeps = True


def drop_kept(BigFileH fileh not None):
    """Unmap what is kept of a VMA that is gone."""
    with nogil:
        pager_lock()
        fileh_drop_kept(fileh.fileh)
        pager_unlock()


def is_shown(BigFileH fileh not None):
    """Say whether there are VMAs."""
    return fileh.fileh.views != 0


def is_used(BigFileH fileh not None):
    """Say whether the handle is in use: there are VMAs, or changes that are not stored."""
    return fileh.fileh.views != 0 or fileh.fileh.ndirty != 0 or fileh.truncated


def counts(BigFileH fileh not None):
    """Return the fields of HandleStats in stats.py after blksize."""
    cdef Counts *c = &fileh.fileh.counts
    cdef size_t size = fileh.fileh.blksize
    return (c.faults, c.loads, c.mapped * size, c.resident, c.dirty, c.reclaims, c.failures,
            c.waits, c.spooled)


@cython.no_gc_clear
cdef class VMA:
    """A mapping of pages of a file: a writable buffer of bytes.

    Made by BigFileH.mmap(). It is unmapped when the last object over it, such as an ndarray or a
    memoryview, is gone.

    Attributes
    ----------
    fileh : BigFileH
    pyuser : object
        Free for the program.
    """

    def __cinit__(self, BigFileH fileh not None, pgoffset, pglen, nbytes=None):
        cdef uint64_t c_pgoffset, c_pglen
        cdef size_t size
        pgoffset, pglen = check_range(fileh, pgoffset, pglen)
        c_pgoffset = pgoffset
        c_pglen = pglen
        size = pglen * fileh.blksize
        if nbytes is not None:
            if not 0 <= size - nbytes < fileh.blksize:
                raise ValueError(f"nbytes is {nbytes}, which do not end in the last of {pglen} "
                                 f"pages of {fileh.blksize} bytes")
            size = nbytes
        self.fileh = fileh
        with nogil:
            self.area = fileh_map(fileh.fileh, c_pgoffset, c_pglen, size)
        if self.area == NULL:
            if errno in (EMFILE, ENFILE):
                raise OSError(errno, f"no page memory for {describe(fileh.file)}: "
                                     f"{strerror(errno).decode()}")
            raise MemoryError(
                f"{pglen * fileh.blksize} bytes of {describe(fileh.file)} do not fit into the "
                f"address space ({strerror(errno).decode()}): work in smaller parts, A[i:j]")
        if on_map_hook != NULL:
            on_map_hook()

    def __dealloc__(self):
        cdef Area *area = self.area
        if area != NULL:
            self.area = NULL
            with nogil:
                fileh_unmap(area)

    def filerange(self):
        """Return (pgoffset, pglen) [pages]."""
        return self.area.pgoffset, self.area.pglen

    def pagesize(self):
        """Return the page size [bytes]."""
        return self.area.blksize

    @property
    def addr_start(self):
        """Address of the first byte."""
        return <size_t>self.area.start

    @property
    def addr_stop(self):
        """Address after the last byte."""
        return <size_t>self.area.stop

    def __len__(self):
        return self.area.stop - self.area.start

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.area.start, self.area.stop - self.area.start, False,
                          flags)


cdef void (*on_map_hook)() noexcept nogil


cdef void virtmem_set_on_map(void (*hook)() noexcept nogil) noexcept:
    global on_map_hook
    on_map_hook = hook


def ram_reclaim():
    """Give back the memory of all clean pages, of all files; return how many pages."""
    cdef size_t n
    with nogil:
        pager_lock()
        n = ram_reclaim_all()
        pager_unlock()
    return n


def ram_stat():
    """Return (limit, clean, dirty): page memory of this process [bytes]."""
    return ram_limit, ram_clean, ram_dirty
