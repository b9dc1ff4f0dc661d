"""Python exceptions of failures, and how a thread gets one in the middle of C code.

An exception on its way
-----------------------
raise_in() sets it as asynchronous exception of the thread, which gets it when it is back in
Python code. `failing` has the threads with an exception on its way. Such a thread does not wait for
more loads: it gets scrap until it sees the exception.
Scrap is shown by an area, not by a thread. Another thread that reads the same VMA at that time
reads zeros without an exception; only the commit is refused. Threads with views of their own each
get an exception.

    nothing ── raise_in ──► failing ── the thread sees it ──► nothing       (_class_of)
                  ▲            ├────── a loader of its own sees it ──► nothing      (check_nested)
                  │            └────── the thread discards its changes ──► nothing  (forget_failing)
                  └── a finalizer sees it, and Python only prints it        (send_again)

Failures of failures
--------------------
All of this is Python, and can fail itself, at the recursion limit or without memory. Then
raise_unsaid() raises a prepared class, in C: the thread gets an exception in any case, but maybe
without the reason. It may be one of Python's own, as making an exception can fail, too. Then
`failing` still has the first one on its way, and the next touch that needs a load sends it again,
unless the thread aborted before.
So a counter in C shows which loaders went on over scrap (check_nested).

This module knows reasons of failures. It does not know handles, nor the way from a fault into
Python.

Locking: the GIL; the pager lock only to reset scrap.
"""

import logging
import shutil
import sys
import threading

from cpython.object cimport PyObject
from libc.errno cimport EFBIG, EMFILE, ENFILE, ENOMEM, ENOSPC
from libc.stdint cimport uint64_t
from libc.string cimport strerror

from wendelin.bigfile.virtmem.interpreter cimport (PyErr_SetObject, PyErr_WriteUnraisable,
                                                   PyThread_get_thread_ident, PyThreadState_Get,
                                                   PyThreadState_GetID, PyThreadState_SetAsyncExc)
from wendelin.bigfile.virtmem.kernel cimport EBADMSG
from wendelin.bigfile.virtmem.mapping cimport areas_reset_scrap
from wendelin.bigfile.virtmem.page cimport (BROKEN_FILE, CIRCULAR_LOAD, DIRTY_LIMIT, FORKED,
                                            NO_MAPPING, NO_MEMORY, SPOOL_FAILED, TOUCH_IN_LOAD,
                                            WRITE_IN_WRITEOUT, Failure)
from wendelin.bigfile.virtmem.ram cimport (pager_lock, pager_unlock, ram_dirty, ram_largest,
                                           ram_limit)
from wendelin.bigfile.virtmem.touch cimport scraps_shown

from wendelin.bigfile.virtmem.abilities import ExplainsMismatch, SeesTransactions, able
from wendelin.bigfile.virtmem.errors import (BigFileError, BlockLoadError, DoomedError, ForkError,
                                             PageMemoryError)
from wendelin.lib.adapters import cpython as python

cdef extern from *:
    """
    static __thread unsigned long wc_seen;      /* scraps_shown() when it saw an exception, last */
    """
    unsigned long seen "wc_seen"

# thread ident -> (the class that is on its way to it, which thread of that ident it was if that is
# known, else 0); protected by: the GIL
cdef dict failing = {}
# thread ident -> (the exception that is on its way to it and is nobody's failure, which thread);
# protected by: the GIL
cdef dict interrupting = {}

cdef str WHY_UNSAID = ("cannot be loaded; the reason was lost, as there was no memory left for "
                       "it, or the recursion limit was reached")

cdef object current_frame = python.current_frame
cdef object running_frames = python.running_frames

log = logging.getLogger("wendelin.bigfile")


# ---- the exception of a failure ----

cdef object load_error(file, uint64_t blk, e):
    """Return the BlockLoadError of an exception of a loader."""
    try:
        why = f"{type(e).__name__}: {e}"
    except Exception:
        why = type(e).__name__
    exc = block_load_error(file, blk, f"cannot be loaded: {why}")
    exc.__cause__ = e
    return exc


cdef object block_load_error(file, blk, str why):
    tid = file.tid if able(file, SeesTransactions) else None
    at = f" at tid 0x{tid.hex()}" if tid is not None else ""
    return BlockLoadError(f"block {blk} of {describe(file)}{at} {why}", file, blk, tid)


cdef str no_memory(size_t blksize, int err):
    """Return why there is no page memory for a block."""
    if blksize > ram_largest:
        return (f"it has {blksize} bytes, and may have {ram_largest}: half of the memory, or "
                f"WENDELIN_CORE_RAM. Use smaller blocks (blksize)")
    return strerror(err).decode()


cdef object failure(file, blk, Failure why, int err, folder=None):
    """Return the exception of a touch that cannot be served.

    blk: None for a whole handle. folder: of its spool; None: it has none.
    """
    if why == TOUCH_IN_LOAD:
        return block_load_error(file, blk, "cannot be loaded: its own loader touched it")
    if why == CIRCULAR_LOAD:
        return block_load_error(file, blk, "cannot be loaded: its loader, in another thread, waits "
                                "for a block that this thread is loading")
    if why == BROKEN_FILE and err == EBADMSG:
        if able(file, ExplainsMismatch):
            return load_error(file, blk, file.mismatch(blk))
        return block_load_error(file, blk, "cannot be loaded: it does not match its digest")
    if why == BROKEN_FILE and err not in (ENOMEM, ENOSPC, EFBIG):   # these are of page memory
        hint = "" if err in (EMFILE, ENFILE) else ". The disk failed, or the file was cut"
        return block_load_error(file, blk, f"cannot be read from its file: "
                                f"{strerror(err).decode()}{hint}")
    what = f"{'a handle' if blk is None else f'block {blk}'} of {describe(file)}"
    if why in (DIRTY_LIMIT, NO_MEMORY, BROKEN_FILE) and file.blksize > ram_largest:
        return PageMemoryError(f"{what} cannot be in memory: {no_memory(file.blksize, err)}")
    if why == DIRTY_LIMIT:
        return PageMemoryError(
            f"{what} cannot be changed: {ram_dirty} bytes of uncommitted changes are in memory, "
            f"and the limit is {ram_limit}. Abort, then commit in smaller steps, raise "
            f"WENDELIN_CORE_RAM, or set WENDELIN_CORE_SPOOL to a folder on a disk")
    if why == SPOOL_FAILED:
        return PageMemoryError(
            f"{what} cannot be changed: uncommitted changes that are larger than {ram_limit} bytes "
            f"of memory are in files in {folder}, and there is no room for more: "
            f"{strerror(err).decode()}; {free_in(folder)}. Abort, then make room there, set "
            f"WENDELIN_CORE_SPOOL to another folder, or commit in smaller steps")
    if why == FORKED:
        return ForkError(f"{what} was mapped before fork(): arrays are not inherited. Open the "
                         f"database again in the child process")
    if why == WRITE_IN_WRITEOUT:
        return DoomedError(f"{what} was changed by the thread that is storing it")
    kind = "mapping" if why == NO_MAPPING else "memory"
    return PageMemoryError(f"the system has no {kind} for {what}: {strerror(err).decode()}")


cdef str free_in(folder):
    """Say how much room a folder has."""
    try:
        return f"{shutil.disk_usage(folder).free} bytes are free"
    except OSError as e:
        return f"how much is free is unknown ({e.strerror})"


cdef str describe(file):
    try:
        return repr(file)
    except Exception:
        return f"<{type(file).__name__}>"


class _Unraisable:
    """The place that Python names for an ignored exception."""

    def __init__(self, what):
        self.what = what

    def __repr__(self):
        return f"wendelin.core, {self.what}"


cdef int unraisable(exc, str what) except -1:
    """Print an exception that no thread can get."""
    where = _Unraisable(what)
    PyErr_SetObject(type(exc), exc)
    PyErr_WriteUnraisable(where)
    return 0


cdef object unsaid(file, blk):
    """Return the exception of a failure whose reason was lost when it happened."""
    return block_load_error(file, blk, WHY_UNSAID)


class _Unsaid(BlockLoadError):
    """Makes the exception of a failure whose reason was lost."""

    def __new__(cls):
        global seen
        seen = scraps_shown()
        return BlockLoadError(f"a block {WHY_UNSAID}")


# Prepared here, as a look-up at the time of need may fail.
cdef object unsaid_class = _Unsaid


cdef void raise_unsaid(unsigned long ident) noexcept:
    """Raise an exception in a thread when it is back in Python code, without memory or Python."""
    PyThreadState_SetAsyncExc(ident, <PyObject *>unsaid_class)


# ---- asynchronous exceptions ----

cdef object on_its_way(unsigned long ident):
    """Return the class of the exception that is on its way to a thread, or None."""
    if not failing:
        return None
    found = failing.get(ident)
    if found is None:
        return None
    cls, thread = found
    if thread != 0 and ident == threading.get_ident() and thread != this_thread():
        # That thread ended before it saw its exception, and the system gave its ident to this one.
        del failing[ident]
        return None
    return cls


cdef uint64_t this_thread() noexcept:
    """Return a name of this thread that no other thread ever has."""
    return PyThreadState_GetID(PyThreadState_Get())


cdef int check_nested(unsigned long scraps) except -1:
    """Raise now the exception that is on its way to this thread: a touch by the loader failed.

    The loader has gone on over scrap, so its result must not become a page.
    scraps: scraps_shown() when the loader was called.
    """
    cdef unsigned long ident = PyThread_get_thread_ident()
    cls = on_its_way(ident)
    if cls is not None:
        PyThreadState_SetAsyncExc(ident, NULL)
        raise cls()
    if scraps_shown() > max(scraps, seen):
        PyThreadState_SetAsyncExc(ident, NULL)
        raise BlockLoadError(f"a block that its loader touched {WHY_UNSAID}")
    return 0


cdef int forget_failing() except -1:
    """This thread discards its changes, so it does not need the exception on its way any more."""
    if failing:
        failing.pop(PyThread_get_thread_ident(), None)
    return 0


def _class_of(exc, ident, frame):
    """Return a class that returns exc when it is called. frame: where the memory was touched.

    An asynchronous exception is set as a class, and made when it is raised. So this call also shows
    that the thread has seen it.
    """
    def __new__(cls, *args):
        global seen
        seen = scraps_shown()
        interrupting.pop(ident, None)
        if failing.pop(ident, None) is not None:
            with nogil:
                pager_lock()
                areas_reset_scrap()
                pager_unlock()
            exc.touched_in = frame
            try:
                # Here, and not in the fault: a handler of logging may want any lock. And not exc:
                # a handler that keeps the record would keep frames, and views in them.
                if isinstance(exc, BigFileError):
                    log.error("%s", str(exc))
            except Exception as e:
                unraisable(e, "logging a failure")
        return exc
    return type(type(exc).__name__, (type(exc),), {"__new__": __new__, "failure": exc})


cdef object failing_class(unsigned long fallback):
    """Return the exception that is already on its way to this thread, or None."""
    if not failing:
        return None
    cls = on_its_way(addressee(fallback))
    return None if cls is None else cls.failure


cdef unsigned long addressee(unsigned long fallback):
    """Return the thread to raise in: this one; the fallback, if Python does not know it."""
    ident = threading.get_ident()
    # A thread that Python does not know has a state only now, and runs no frame.
    return ident if ident in running_frames() else fallback


cdef int raise_in(unsigned long ident, exc) except -1:
    """Raise exc, or the one on its way already, in a thread when it is back in Python code."""
    cls = on_its_way(ident)
    if cls is None:
        send_again()
        mine = ident == threading.get_ident()
        cls = _class_of(exc, ident, current_frame() if mine else None)
        failing[ident] = cls, this_thread() if mine else 0
    # Again, if it was on its way already: another asynchronous exception may have replaced it.
    set_async(ident, cls)
    return 0


cdef int interrupt(exc) except -1:
    """Raise exc, which is not a failure, in this thread when it is back in Python code."""
    cdef unsigned long ident = PyThread_get_thread_ident()
    try:
        cls = _class_of(exc, ident, None)
        interrupting[ident] = exc, this_thread()
    except Exception:
        cls = type(exc)         # no memory, say
    return set_async(ident, cls)


cdef object take_interrupt():
    """Take back an exception of interrupt(): a loader is about to run, and would get it."""
    cdef unsigned long ident
    if not interrupting:
        return None
    ident = PyThread_get_thread_ident()
    exc, thread = interrupting.pop(ident, (None, 0))
    if exc is None or thread != this_thread():
        return None
    PyThreadState_SetAsyncExc(ident, NULL)
    return exc


cdef int set_async(unsigned long ident, cls) except -1:
    if PyThreadState_SetAsyncExc(ident, <PyObject *>cls) == 0:
        # The thread has no Python state to raise in: at least print it.
        failing.pop(ident, None)
        unraisable(cls(), "raising in a thread that is gone")
    return 0


# ---- finalizers ----

cdef int send_again() except -1:
    """Send an exception again if a finalizer, or a callback of the collector, has got it.

    Python raises an asynchronous exception in the code of the thread that runs next, and only
    prints exceptions of finalizers: the code that touched the memory would go on with scrap. Called
    for each exception that is sent, as other programs, such as pytest, set hooks of their own.
    """
    if not hasattr(sys.unraisablehook, "sends_again"):
        hook = _hook_before(sys.unraisablehook)
        hook.sends_again = True
        sys.unraisablehook = hook
    return 0


def _hook_before(hook):
    def before(args):
        exc = args.exc_value
        known = getattr(exc, "__dict__", {})
        if "touched_in" not in known or isinstance(args.object, _Unraisable):
            hook(args)
            return
        if _is_running(known.pop("touched_in")):
            raise_in(threading.get_ident(), exc)
        else:
            hook(args)                      # most likely a finalizer has touched the memory
    return before


def _is_running(frame):
    """Say whether a frame is one of this thread, and has not ended."""
    running = current_frame()
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None
