"""Python exceptions of failures, and how a thread gets one that is in the middle of C code.

An exception on its way
-----------------------
raise_in() sets it as asynchronous exception of the thread, which gets it when it is back in
Python code. `failing` knows whose is on its way: such a thread is not made to wait for more loads,
it gets scrap until it sees the exception.
Scrap is shown by an area, not by a thread: another thread that reads the same VMA there, before
the exception was seen, reads zeros and is told nothing but by the commit. Threads that have
views of their own are each told.

    nothing ── raise_in ──► failing ── the thread sees it ──► nothing       (_class_of)
                  ▲            └────── a loader of its own sees it ──► nothing      (check_nested)
                  └── a finalizer sees it, of which Python only prints it   (send_again)

This room knows why something failed. It does not know handles, nor the way from a fault into
Python.

Locking: the GIL; the pager lock only to reset scrap.
"""

import logging
import sys
import threading

from cpython.object cimport PyObject
from libc.errno cimport EFBIG, EMFILE, ENFILE, ENOMEM, ENOSPC
from libc.stdint cimport uint64_t
from libc.string cimport strerror

from wendelin.bigfile.mapping cimport areas_reset_scrap
from wendelin.bigfile.page cimport (BROKEN_FILE, CIRCULAR_LOAD, DIRTY_LIMIT, FORKED, NO_MAPPING,
                                    NO_MEMORY, TOUCH_IN_LOAD, WRITE_IN_WRITEOUT,
                                    Failure)
from wendelin.bigfile.ram cimport pager_lock, pager_unlock, ram_dirty, ram_largest, ram_limit

from wendelin.bigfile.errors import BlockLoadError, DoomedError, ForkError, PageMemoryError

cdef extern from "Python.h":
    ctypedef struct PyThreadState:
        pass
    PyThreadState *PyThreadState_Get() noexcept
    uint64_t PyThreadState_GetID(PyThreadState *state) noexcept
    int PyThreadState_SetAsyncExc(unsigned long thread, PyObject *exc) noexcept

# thread ident -> (the class that is on its way to it, which thread of that ident it was if that is
# known, else 0); protected by: the GIL
cdef dict failing = {}

log = logging.getLogger("wendelin.bigfile")


# ---- the exception of a failure ----

cdef object load_error(file, uint64_t blk, e):
    """Return the BlockLoadError of what a loader raised."""
    try:
        why = f"{type(e).__name__}: {e}"
    except Exception:
        why = type(e).__name__
    exc = block_load_error(file, blk, f"cannot be loaded: {why}")
    exc.__cause__ = e
    return exc


cdef object block_load_error(file, blk, str why):
    tid = getattr(file, "tid", None)
    at = f" at tid 0x{tid.hex()}" if tid is not None else ""
    return BlockLoadError(f"block {blk} of {describe(file)}{at} {why}", file, blk, tid)


cdef str no_memory(size_t blksize, int err):
    """Return why there is no page memory for a block."""
    if blksize > ram_largest:
        return (f"it has {blksize} bytes, and may have {ram_largest}: half of the memory, or "
                f"WENDELIN_CORE_RAM. Have smaller blocks (blksize)")
    return strerror(err).decode()


cdef object failure(file, blk, Failure why, int err):
    """Return the exception of a touch that cannot be served. blk is None for a whole handle."""
    if why == TOUCH_IN_LOAD:
        return block_load_error(file, blk, "cannot be loaded: its own loader touched it")
    if why == CIRCULAR_LOAD:
        return block_load_error(file, blk, "cannot be loaded: its loader, in another thread, waits "
                                "for a block that this thread is loading")
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
            f"and the limit is {ram_limit}. Abort, then commit in smaller steps, or raise "
            f"WENDELIN_CORE_RAM")
    if why == FORKED:
        return ForkError(f"{what} was mapped before fork(): arrays are not inherited. Open the "
                         f"database anew in the child process")
    if why == WRITE_IN_WRITEOUT:
        return DoomedError(f"{what} was changed by the thread that is storing it")
    kind = "mapping" if why == NO_MAPPING else "memory"
    return PageMemoryError(f"the system has no {kind} for {what}: {strerror(err).decode()}")


cdef str describe(file):
    try:
        return repr(file)
    except Exception:
        return f"<{type(file).__name__}>"


class _UnraisableArgs:
    """What sys.unraisablehook wants, for an error in the reporting of errors."""

    def __init__(self, exc, what):
        self.exc_type = type(exc)
        self.exc_value = exc
        self.exc_traceback = exc.__traceback__
        self.err_msg = f"wendelin.core: error while {what}"
        self.object = None


cdef int unraisable(exc, str what) except -1:
    """Say an exception that nobody can be given."""
    sys.unraisablehook(_UnraisableArgs(exc, what))
    return 0


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
        # It ended before it saw its exception, and the system gave its ident to this one.
        del failing[ident]
        return None
    return cls


cdef uint64_t this_thread() noexcept:
    """Return what no other thread is ever called."""
    return PyThreadState_GetID(PyThreadState_Get())


cdef int check_nested() except -1:
    """Raise now what is on its way to this thread: a touch by the loader failed.

    The loader has gone on over scrap; what it made of it must not become a page.
    """
    cdef unsigned long ident = threading.get_ident()
    cls = on_its_way(ident)
    if cls is not None:
        PyThreadState_SetAsyncExc(ident, NULL)
        raise cls()
    return 0


def _class_of(exc, ident, frame):
    """Return a class that gives exc when it is called. frame: where the memory was touched.

    An asynchronous exception is set as a class, and made when it is raised. So this is also
    where we learn that the thread has seen it.
    """
    def __new__(cls, *args):
        if failing.pop(ident, None) is not None:
            with nogil:
                pager_lock()
                areas_reset_scrap()
                pager_unlock()
            # Here, and not in the fault: a handler of logging may want any lock. And not exc: who
            # keeps the record would keep frames, and views in them.
            log.error("%s", str(exc))
            exc.touched_in = frame
        return exc
    return type(type(exc).__name__, (type(exc),), {"__new__": __new__, "failure": exc})


cdef object failing_class(unsigned long owner):
    """Return the exception that is already on its way to this thread, or None."""
    cls = on_its_way(addressee(owner))
    return None if cls is None else cls.failure


cdef unsigned long addressee(unsigned long owner):
    """Return the thread to raise in: this one, or the handle's owner if Python does not know it."""
    ident = threading.get_ident()
    # A thread that Python does not know has a state only now, and runs no frame.
    return ident if ident in sys._current_frames() else owner


cdef int raise_in(unsigned long ident, exc) except -1:
    """Raise exc in a thread when it is back in Python code, or what is on its way to it already."""
    cls = on_its_way(ident)
    if cls is None:
        mine = ident == threading.get_ident()
        cls = _class_of(exc, ident, sys._getframe() if mine else None)
        failing[ident] = cls, this_thread() if mine else 0
        send_again()
    # Again, if it was on its way already: another asynchronous exception may have replaced it.
    set_async(ident, cls)
    return 0


cdef int interrupt(exc) except -1:
    """Raise exc, which is nobody's failure, in this thread when it is back in Python code."""
    set_async(threading.get_ident(), _class_of(exc, None, None))
    return 0


cdef int set_async(unsigned long ident, cls) except -1:
    if PyThreadState_SetAsyncExc(ident, <PyObject *>cls) == 0:
        # The thread has no Python state to raise in: say it at least.
        failing.pop(ident, None)
        exc = cls()
        sys.unraisablehook(_UnraisableArgs(exc, "raising in a thread that is gone"))
    return 0


# ---- finalizers ----

cdef int send_again() except -1:
    """Have exceptions sent again that are seen by a finalizer, or a callback of the collector.

    Python raises an asynchronous exception in whatever of the thread runs next, and prints what
    comes out of these: who touched the memory would go on with scrap. Called whenever one is sent,
    as others, pytest for one, put hooks of their own there.
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
        if "touched_in" not in known or isinstance(args, _UnraisableArgs):
            hook(args)
            return
        if _is_running(known.pop("touched_in")):
            raise_in(threading.get_ident(), exc)
        else:
            hook(args)                      # most likely a finalizer has touched the memory
    return before


def _is_running(frame):
    """Say whether a frame is one of this thread, and has not ended."""
    running = sys._getframe()
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None
