"""From a fault into Python: what page_set_ops() gets to load, report, announce and wait.

load_block(), report() and announce() are the only ways from a fault into Python. They are entered
by any thread, with the GIL or without, in the middle of anything. So they save and restore the
exception that is being raised, and the one that is being handled; errno is pagefault's.

What the loader raises becomes a BlockLoadError, which raise_later() sets on its way to the
thread: see failure.pyx.
A KeyboardInterrupt, or any other exception that is not an Exception, is not the loader's: it
goes on its way to the thread, and the block is loaded again.

This room knows handles and files, and what they define. It knows nothing of signals, and changes
no state of a page. Nothing imports it but the package: whoever imports wendelin.bigfile has it.

Locking: see page.pyx. All but wait_without_gil() are entered without the pager lock.
"""

import atexit

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport INT64_MAX, uint64_t

from wendelin.bigfile.buffer cimport scratch_buffer
from wendelin.bigfile.failure cimport (addressee, check_nested, describe, failing_class, failure,
                                       interrupt, load_error, no_memory, raise_in, unraisable)
from wendelin.bigfile.fileh cimport fileh_epoch
from wendelin.bigfile.kernel cimport pthread_cond_wait
from wendelin.bigfile.loading cimport page_fill
from wendelin.bigfile.page cimport (MEMFD, ZEROS, Failure, FileH, Source, page_set_exiting,
                                    page_set_ops, pager_exiting)
from wendelin.bigfile.ram cimport pager_cond, pager_lock, pager_mutex, pager_unlock
from wendelin.bigfile.virtmem cimport MIN_AHEAD, BigFileH, source_from
from wendelin.bigfile.waits cimport wait_for_gil, wait_over

from wendelin.bigfile.errors import DoomedError, PageMemoryError

cdef extern from "Python.h" nogil:
    """
    /* The exception being raised, as one object: PyErr_GetRaisedException is new in 3.12. */
    static PyObject *wc_take_raised(void) {
    #if PY_VERSION_HEX >= 0x030C0000
        return PyErr_GetRaisedException();
    #else
        PyObject *type, *value, *tb;
        PyErr_Fetch(&type, &value, &tb);
        if (type == NULL)
            return NULL;
        PyErr_NormalizeException(&type, &value, &tb);
        if (tb != NULL)
            PyException_SetTraceback(value, tb);
        Py_DECREF(type);
        Py_XDECREF(tb);
        return value;
    #endif
    }
    static void wc_put_raised(PyObject *exc) {
    #if PY_VERSION_HEX >= 0x030C0000
        PyErr_SetRaisedException(exc);
    #else
        if (exc != NULL) {
            PyObject *type = (PyObject *)Py_TYPE(exc);
            Py_INCREF(type);
            PyErr_Restore(type, exc, PyException_GetTraceback(exc));
        }
    #endif
    }
    """
    ctypedef struct PyThreadState:
        pass
    bint PyGILState_Check()
    PyThreadState *PyEval_SaveThread()
    void PyEval_RestoreThread(PyThreadState *state)
cdef extern from "Python.h":
    PyObject *wc_take_raised() noexcept
    void wc_put_raised(PyObject *exc) noexcept
    PyObject *PyErr_GetHandledException() noexcept
    void PyErr_SetHandledException(PyObject *exc) noexcept
    void Py_XDECREF(PyObject *obj) noexcept

cdef enum:
    MAX_INTERRUPTS = 8      # after so many a loader is taken to raise them itself
    MAX_AHEAD = 1024        # blocks that are asked for ahead, at most
    MAX_FAILURES = 64       # that a handle remembers: a reader may never abort


cdef inline int want_gil(FileH *fileh, uint64_t blk) noexcept nogil:
    """Let the watchdog know. Return what wait_over() wants when this thread has the GIL."""
    return -1 if PyGILState_Check() else wait_for_gil(fileh.name, blk)


cdef int load_block(FileH *fileh, uint64_t blk, Source *source, void **error) noexcept nogil:
    """page_set_ops: load. Entered without the pager lock."""
    cdef int waiter
    if pager_exiting:
        return -1
    waiter = want_gil(fileh, blk)
    with gil:
        wait_over(waiter)
        return load_with_gil(fileh, blk, source, error)


cdef int load_with_gil(FileH *fileh, uint64_t blk, Source *source, void **error) noexcept:
    cdef PyObject *raised = wc_take_raised()
    cdef PyObject *handled = PyErr_GetHandledException()
    cdef BigFileH pyfileh
    cdef int result = -1
    cdef uint64_t epoch = fileh_epoch(fileh)
    PyErr_SetHandledException(NULL)
    interrupts = []
    try:
        if fileh.pyfileh != NULL:
            pyfileh = <BigFileH>fileh.pyfileh
            exc = failing_class(pyfileh.owner) if error == NULL else None
            while exc is None:
                try:
                    load_from_file(fileh, pyfileh.file, blk, source)
                    check_nested()
                    result = 0
                    break
                except Exception as e:
                    exc = load_error(pyfileh.file, blk, e)
                except BaseException as e:
                    if len(interrupts) == MAX_INTERRUPTS:
                        exc = load_error(pyfileh.file, blk, e)
                    else:
                        interrupts.append(e)
            if result != 0:
                if error == NULL:
                    raise_later(pyfileh, exc)
                else:
                    Py_INCREF(exc)
                    error[0] = <void *>exc
            elif source.backing != MEMFD:
                try:
                    look_ahead(pyfileh, blk, epoch)
                except Exception:
                    pass        # who touches those blocks is told
                except BaseException as e:
                    interrupts.append(e)
        for e in interrupts:
            interrupt(e)
    except BaseException as e:
        unraisable(e, f"loading block {blk}")
    finally:
        PyErr_SetHandledException(handled)
        Py_XDECREF(handled)
        wc_put_raised(raised)
    return result


cdef int look_ahead(BigFileH fileh, uint64_t blk, uint64_t epoch) except -1:
    """Learn where more blocks are, besides blk, which was not known.

    From blk on, if that is where the last look ended, else around it. Each look that finds
    something doubles the next one: whoever touches one block does not pay for all of them.
    """
    cdef uint64_t start, stop
    mapahead = getattr(fileh.file, "mapahead", None)
    if mapahead is None:
        return 0
    start = blk if blk == fileh.ahead_stop else blk - blk % fileh.ahead_window
    stop = min(start + fileh.ahead_window, <uint64_t>(INT64_MAX // fileh.fileh.blksize))
    fileh.ahead_stop = stop
    found = mapahead(start, stop)
    fileh.ahead_window = (min(2 * fileh.ahead_window, <uint64_t>MAX_AHEAD) if len(found) > 1
                          else <uint64_t>MIN_AHEAD)
    fileh.know(found, epoch)
    return 0


cdef int load_from_file(FileH *fileh, file, uint64_t blk, Source *source) except -1:
    """Ask the file for a block, and put it where `source` says."""
    cdef Py_buffer view
    cdef int err
    mapblk = getattr(file, "mapblk", None)
    if mapblk is not None:
        found = mapblk(blk)
        if found is not None:
            source_from(found, fileh.blksize, source)
            return 0
    buf = scratch_buffer(fileh.blksize)
    data = file.loadblk(blk, memoryview(buf))
    if data is None:
        data = buf
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if <size_t>view.len > fileh.blksize:
            raise ValueError(f"loadblk returned {view.len} bytes, more than the block size "
                             f"{fileh.blksize}")
        if view.len == 0:
            source.backing = ZEROS
            return 0
        with nogil:
            err = page_fill(fileh, blk, <const char *>view.buf, view.len)
        if err != 0:
            raise PageMemoryError(f"no page memory for it: {no_memory(fileh.blksize, err)}")
        source.backing = MEMFD
    finally:
        PyBuffer_Release(&view)
    return 0


cdef void report(FileH *fileh, uint64_t blk, Failure why, int err) noexcept nogil:
    """page_set_ops: fail. Entered without the pager lock."""
    cdef int waiter
    if pager_exiting:
        return
    waiter = want_gil(fileh, blk)
    with gil:
        wait_over(waiter)
        report_with_gil(fileh, blk, why, err)


cdef void report_with_gil(FileH *fileh, uint64_t blk, Failure why, int err) noexcept:
    cdef PyObject *raised = wc_take_raised()
    cdef PyObject *handled = PyErr_GetHandledException()
    PyErr_SetHandledException(NULL)
    try:
        if fileh.pyfileh != NULL:
            pyfileh = <BigFileH>fileh.pyfileh
            exc = failing_class(pyfileh.owner)
            if exc is None:
                exc = failure(pyfileh.file, blk, why, err)
            raise_later(pyfileh, exc)
    except BaseException as e:
        unraisable(e, f"reporting a failure at block {blk}")
    finally:
        PyErr_SetHandledException(handled)
        Py_XDECREF(handled)
        wc_put_raised(raised)


cdef int announce(FileH *fileh, uint64_t blk) noexcept nogil:
    """page_set_ops: announce. Entered without the pager lock."""
    cdef int waiter
    if pager_exiting:
        return 0
    waiter = want_gil(fileh, blk)
    with gil:
        wait_over(waiter)
        return announce_with_gil(fileh, blk)


cdef int announce_with_gil(FileH *fileh, uint64_t blk) noexcept:
    cdef PyObject *raised = wc_take_raised()
    cdef PyObject *handled = PyErr_GetHandledException()
    cdef int result = -1
    PyErr_SetHandledException(NULL)
    try:
        if fileh.pyfileh != NULL:
            pyfileh = <BigFileH>fileh.pyfileh
            try:
                pyfileh.first_change()
                result = 0
            except BaseException as e:
                exc = DoomedError(f"block {blk} of {describe(pyfileh.file)} cannot be changed: "
                                  f"{type(e).__name__}: {e}")
                exc.__cause__ = e
                raise_later(pyfileh, exc)
    except BaseException as e:
        unraisable(e, f"announcing a change of block {blk}")
    finally:
        PyErr_SetHandledException(handled)
        Py_XDECREF(handled)
        wc_put_raised(raised)
    return result


cdef int raise_later(BigFileH fileh, exc) except -1:
    """Raise exc in this thread when it is back in Python code, and refuse changes till then."""
    ident = addressee(fileh.owner)
    if exc not in fileh.failures and not fileh.read_only:
        if len(fileh.failures) < MAX_FAILURES:
            fileh.failures.append(exc)
        if fileh.fileh.announces and not isinstance(exc, DoomedError):
            try:
                fileh.first_change()
            except Exception as e:
                exc.add_note(f"(its transaction could not be told: {type(e).__name__}: {e})")
    return raise_in(ident, exc)


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
    """From now on a fault runs no Python: what is not in memory reads as zeros."""
    page_set_exiting()


page_set_ops(load_block, report, announce, wait_without_gil)
atexit.register(_at_exit)
