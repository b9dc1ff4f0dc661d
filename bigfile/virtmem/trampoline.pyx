"""From a fault into Python: functions for page_set_ops() to load, fail, report a change, and wait.

load_block(), report() and first_change() are the only ways from a fault into Python. Any thread may
call them, with the GIL or without, in the middle of anything. So they save and restore the
exception that is being raised, and the one that is being handled; pagefault keeps errno.

An exception of the loader becomes a BlockLoadError, which raise_later() sends to the thread: see
failure.pyx. All Python code here can fail, at the recursion limit or without memory, and so can the
report of that. So the decisions are in C, in a Call and in these three functions: did it fail, is
the handle doomed, has the thread got an exception? The Python functions that they call are wrapped,
and return nothing.
A KeyboardInterrupt, or any other exception that is not an Exception, is not the loader's: it is
sent to the thread, and the block is loaded again. Signal handlers wait until the block is loaded
(see signals.pyx). If one had to end a load that hangs, its exception is raised as it is; the
exception that the loader made of it says why the commit is refused.

This module knows handles and files, and the methods that they define. It does not know signals, and
changes no state of a page. Only the package imports it, so it is there with wendelin.bigfile.

Locking: see page.pyx. All but wait_without_gil() are called without the pager lock.
"""

import atexit

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport INT64_MAX, uint64_t

from wendelin.bigfile.virtmem.ahead cimport look_begin, look_end
from wendelin.bigfile.virtmem.backend cimport source_from
from wendelin.bigfile.virtmem.buffer cimport scratch_buffer
from wendelin.bigfile.virtmem.failure cimport (addressee, check_nested, describe, failing_class,
                                               failure, interrupt, load_error, no_memory, raise_in,
                                               raise_unsaid, take_interrupt)
from wendelin.bigfile.virtmem.fileh cimport fileh_epoch
from wendelin.bigfile.virtmem.interpreter cimport (PyEval_RestoreThread, PyEval_SaveThread,
                                                   PyGILState_Check, PyGILState_GetThisThreadState,
                                                   PyThread_get_thread_ident, PyThreadState, Raised,
                                                   put_aside, put_back)
from wendelin.bigfile.virtmem.kernel cimport pthread_cond_wait
from wendelin.bigfile.virtmem.loading cimport load_begins, page_fill
from wendelin.bigfile.virtmem.page cimport (CHANGE_REFUSED, FOR_CALL, LOAD_FAILED, MEMFD,
                                            NO_FAILURE, ZEROS, Failed, Failure, Purpose,
                                            FileH, Source, fileh_doom, page_set_exiting,
                                            page_set_ops, pager_exiting)
from wendelin.bigfile.virtmem.ram cimport pager_cond, pager_lock, pager_mutex, pager_unlock
from wendelin.bigfile.virtmem.signals cimport signals_hold, signals_raised, signals_release
from wendelin.bigfile.virtmem.touch cimport scraps_shown
from wendelin.bigfile.virtmem.handle cimport BigFileH
from wendelin.bigfile.virtmem.located cimport set_located
from wendelin.bigfile.virtmem.deadlock cimport wait_for_gil, wait_over

from wendelin.bigfile.virtmem.abilities import NamedFile
from wendelin.bigfile.virtmem.errors import DoomedError, PageMemoryError

cdef extern from "Python.h":
    void Py_XDECREF(PyObject *obj) noexcept

cdef enum:
    MAX_INTERRUPTS = 8      # after so many, the loader itself is assumed to raise them
    MAX_FAILURES = 64       # kept by a handle: a reader may never abort


cdef struct Call:           # of Python, by a fault
    FileH *fileh
    uint64_t blk
    int result              # 0: done; -1: failed. In C, as the exception of a failure may get lost
    PyObject *exc           # why it failed; NULL: no exception could be made
    PyObject *interrupt     # to raise instead of it, or even after success; NULL: none
    unsigned long ident     # failed: the thread that gets an exception without a reason
    unsigned long scraps    # scraps_shown() before
    int waiter
    bint holds              # signals
    Raised aside


cdef void call_begin(Call *call, FileH *fileh, uint64_t blk) noexcept nogil:
    """Before the GIL is taken."""
    call.fileh = fileh
    call.blk = blk
    call.result = -1
    call.exc = call.interrupt = NULL
    call.scraps = scraps_shown()
    call.ident = PyThread_get_thread_ident() if PyGILState_GetThisThreadState() != NULL else 0
    # let the watchdog know
    call.waiter = -1 if PyGILState_Check() else wait_for_gil(fileh.name, blk)


cdef void call_begin_with_gil(Call *call) noexcept:
    """After the GIL is taken. Handlers of earlier signals run here."""
    wait_over(call.waiter)
    put_aside(&call.aside)
    if call.ident == 0 and call.fileh.pyfileh != NULL:
        call.ident = (<BigFileH>call.fileh.pyfileh).fallback_thread
    take_back(call)
    call.holds = signals_hold()


cdef void take_back(Call *call) noexcept:
    """An exception on its way to this thread that is not a failure is raised after this."""
    try:
        keep(call, take_interrupt())
    except BaseException:
        pass


cdef int keep(Call *call, exc) except -1:
    """Raise exc, if it is not None, after all."""
    if exc is not None:
        Py_XDECREF(call.interrupt)
        Py_INCREF(exc)
        call.interrupt = <PyObject *>exc
    return 0


cdef void keep_raised(Call *call) noexcept:
    try:
        keep(call, signals_raised())
    except BaseException:
        pass


cdef int failed(Call *call, exc) except -1:
    Py_INCREF(exc)
    call.exc = <PyObject *>exc
    return 0


cdef void call_end(Call *call, Failure why) noexcept:
    """Raise what is to be raised in this thread, or the fallback. Doom first: the rest can fail."""
    cdef bint told = False
    if call.result != 0:
        with nogil:
            pager_lock()
            fileh_doom(call.fileh, call.blk, why)
            pager_unlock()
    keep_raised(call)
    try:
        if call.result != 0:
            if call.fileh.pyfileh == NULL:
                told = True         # its handle is gone
            elif call.exc != NULL:
                raise_later(<BigFileH>call.fileh.pyfileh, <object>call.exc, why,
                            None if call.interrupt == NULL else <object>call.interrupt)
                told = True
        elif call.interrupt != NULL:
            interrupt(<object>call.interrupt)
    except BaseException:
        pass
    if call.result != 0 and not told:
        raise_unsaid(call.ident)
    Py_XDECREF(call.exc)
    Py_XDECREF(call.interrupt)
    if call.holds:
        signals_release()
    put_back(&call.aside)


cdef void load_block(FileH *fileh, uint64_t blk, Source *source, Purpose purpose, Failed *failed) \
        noexcept nogil:
    """page_set_ops: load. Entered without the pager lock."""
    cdef Call call
    failed.why = LOAD_FAILED
    if pager_exiting:
        return
    call_begin(&call, fileh, blk)
    with gil:
        call_begin_with_gil(&call)
        if load_begins(fileh, blk, source.load):
            load_with_gil(&call, source, purpose == FOR_CALL)
        else:
            source.load = 0
            call.result = 0
        if purpose == FOR_CALL:
            call_end_direct(&call, failed)
        else:
            call_end(&call, LOAD_FAILED)
    if call.result == 0:
        failed.why = NO_FAILURE


cdef void call_end_direct(Call *call, Failed *failed) noexcept:
    """Return the exception to raise, instead of call_end()."""
    cdef PyObject *exc
    keep_raised(call)
    exc = call.exc
    if call.interrupt != NULL:
        Py_XDECREF(exc)
        exc = call.interrupt
    if exc != NULL:
        Py_XDECREF(<PyObject *>failed.exc)  # of an outdated load
        failed.exc = <void *>exc
    if call.holds:
        signals_release()
    put_back(&call.aside)


cdef void load_with_gil(Call *call, Source *source, bint direct) noexcept:
    """Load a block, or set call.exc to the reason of the failure."""
    cdef BigFileH pyfileh
    cdef uint64_t epoch = fileh_epoch(call.fileh)
    cdef int interrupts = 0
    cdef bint mapped = False
    try:
        if call.fileh.pyfileh == NULL:
            return
        pyfileh = <BigFileH>call.fileh.pyfileh
        exc = None if direct else failing_class(pyfileh.fallback_thread)
        while exc is None:
            try:
                load_from_file(pyfileh, call.blk, source, &mapped)
                check_nested(call.scraps)
                call.result = 0
                break
            except Exception as e:
                exc = load_error(pyfileh.file, call.blk, e)
            except BaseException as e:
                interrupts += 1
                handlers = signals_raised()
                keep(call, e if handlers is None else handlers)
                if handlers is not None or interrupts > MAX_INTERRUPTS:
                    exc = load_error(pyfileh.file, call.blk, e)
        if exc is not None:
            failed(call, exc)
        elif mapped or source.backing == ZEROS:
            try:
                look_ahead(pyfileh, call.blk, epoch)
            except Exception:
                pass        # a thread that touches those blocks gets the error
    except BaseException as e:
        # of what looks ahead, if it is done
        if call.result == 0 and not isinstance(e, Exception):
            keep(call, e)


cdef int look_ahead(BigFileH fileh, uint64_t blk, uint64_t epoch) except -1:
    """Learn where more blocks are, besides blk, which was not known."""
    cdef uint64_t start, stop
    if not fileh.maps_ahead:
        return 0
    look_begin(&fileh.looks, blk, &start, &stop)
    found = fileh.file.mapahead(start, min(stop, <uint64_t>(INT64_MAX // fileh.fileh.blksize)))
    look_end(&fileh.looks, len(found) > 1)
    set_located(fileh, found, epoch)
    return 0


cdef int load_from_file(BigFileH pyfileh, uint64_t blk, Source *source, bint *mapped) except -1:
    """Ask the file for a block, and set `source` to where it is; `mapped`: mapblk() said it."""
    cdef FileH *fileh = pyfileh.fileh
    cdef Py_buffer view
    cdef int err
    if pyfileh.maps:
        found = pyfileh.file.mapblk(blk)
        mapped[0] = found is not None
        if mapped[0]:
            return source_from(found, fileh.blksize, source)
    buf = scratch_buffer(fileh.blksize)
    data = pyfileh.file.loadblk(blk, memoryview(buf))
    if data is None:
        data = buf
    elif isinstance(data, NamedFile):
        return source_from(data, fileh.blksize, source)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if <size_t>view.len > fileh.blksize:
            raise ValueError(f"loadblk returned {view.len} bytes, more than the block size "
                             f"{fileh.blksize}")
        if view.len == 0:
            source.backing = ZEROS
            return 0
        with nogil:
            err = page_fill(fileh, blk, <const char *>view.buf, view.len, False)
        if err != 0:
            raise PageMemoryError(f"no page memory for it: {no_memory(fileh.blksize, err)}")
        source.backing = MEMFD
    finally:
        PyBuffer_Release(&view)
    return 0


cdef void report(FileH *fileh, uint64_t blk, Failure why, int err) noexcept nogil:
    """page_set_ops: fail. Entered without the pager lock."""
    cdef Call call
    pager_lock()
    fileh_doom(fileh, blk, why)
    pager_unlock()
    if pager_exiting:
        return
    call_begin(&call, fileh, blk)
    with gil:
        call_begin_with_gil(&call)
        report_with_gil(&call, why, err)
        call_end(&call, why)


cdef void report_with_gil(Call *call, Failure why, int err) noexcept:
    """Set call.exc to the exception to raise."""
    try:
        if call.fileh.pyfileh != NULL:
            pyfileh = <BigFileH>call.fileh.pyfileh
            exc = failing_class(pyfileh.fallback_thread)
            if exc is None:
                exc = failure(pyfileh.file, call.blk, why, err, pyfileh.spool)
            failed(call, exc)
    except BaseException:
        pass


cdef int first_change(FileH *fileh, uint64_t blk) noexcept nogil:
    """page_set_ops: first_change. Entered without the pager lock."""
    cdef Call call
    if pager_exiting:
        return 0
    call_begin(&call, fileh, blk)
    with gil:
        call_begin_with_gil(&call)
        first_change_with_gil(&call)
        call_end(&call, CHANGE_REFUSED)
    return call.result


cdef void first_change_with_gil(Call *call) noexcept:
    """Announce the first change to the handle; or set call.exc to why it was refused."""
    try:
        if call.fileh.pyfileh != NULL:
            pyfileh = <BigFileH>call.fileh.pyfileh
            try:
                pyfileh.first_change()
                call.result = 0
            except BaseException as e:
                if not isinstance(e, Exception):
                    keep(call, e)
                exc = DoomedError(f"block {call.blk} of {describe(pyfileh.file)} cannot be "
                                  f"changed: {type(e).__name__}: {e}")
                exc.__cause__ = e
                failed(call, exc)
    except BaseException:
        pass


cdef int raise_later(BigFileH fileh, exc, Failure why, interrupt) except -1:
    """Raise exc in this thread when it is back in Python code, and refuse changes until then.

    interrupt: the exception to raise instead of exc, or None.
    """
    ident = addressee(fileh.fallback_thread)
    if exc not in fileh.failures and not fileh.read_only:
        if len(fileh.failures) < MAX_FAILURES:
            fileh.failures.append(exc)
        untold = exc.__cause__ if why == CHANGE_REFUSED else None
        if fileh.fileh.wants_first_change and why != CHANGE_REFUSED:
            try:
                fileh.first_change()
            except Exception as e:
                exc.add_note(f"(its transaction could not be informed: {type(e).__name__}: {e})")
                untold = e
        # These are of Python. What is the transaction's is final: there is none that could be told.
        if not isinstance(untold, (MemoryError, RecursionError)):
            fileh.fileh.doom_told = True
    return raise_in(ident, exc if interrupt is None else interrupt)


cdef void wait_without_gil() noexcept nogil:
    """page_set_ops: wait. With the pager lock held, and the GIL or not."""
    cdef PyThreadState *state
    if PyGILState_Check():
        state = PyEval_SaveThread()
        pthread_cond_wait(&pager_cond, &pager_mutex)
        pager_unlock()
        PyEval_RestoreThread(state)
        pager_lock()
    else:
        pthread_cond_wait(&pager_cond, &pager_mutex)


def _at_exit():
    """From now on, a fault runs no Python: pages that are not in memory read as zeros."""
    page_set_exiting()


page_set_ops(load_block, report, first_change, wait_without_gil)
atexit.register(_at_exit)
