"""The functions of CPython's public C API that the pager uses. None of them needs memory.

Sections are in the order of its manual: exceptions, signals, threads, thread states.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    /* The exception that is being raised: taken and put back as it is. Before 3.12 it need not be
       an object yet, and to make it one runs Python. */
    typedef struct {
        PyObject *type, *value, *traceback, *handled;
    } wc_raised_t;

    static inline void wc_put_aside(wc_raised_t *aside) {
        aside->type = aside->traceback = NULL;
    #if PY_VERSION_HEX >= 0x030C0000
        aside->value = PyErr_GetRaisedException();
    #else
        PyErr_Fetch(&aside->type, &aside->value, &aside->traceback);
    #endif
        aside->handled = PyErr_GetHandledException();
        PyErr_SetHandledException(NULL);
    }

    static inline void wc_put_back(wc_raised_t *aside) {
        PyErr_SetHandledException(aside->handled);
        Py_XDECREF(aside->handled);
    #if PY_VERSION_HEX >= 0x030C0000
        PyErr_SetRaisedException(aside->value);
    #else
        PyErr_Restore(aside->type, aside->value, aside->traceback);
    #endif
    }
    """
    ctypedef struct Raised "wc_raised_t":
        pass
    void put_aside "wc_put_aside"(Raised *aside) noexcept
    void put_back "wc_put_back"(Raised *aside) noexcept

cdef extern from "Python.h":
    void PyErr_SetObject(object type, object value) noexcept
    void PyErr_WriteUnraisable(object obj) noexcept
    int PyErr_CheckSignals() except -1
    int PyErr_SetInterruptEx(int signum) noexcept
    int Py_AddPendingCall(int (*func)(void *) except -1, void *arg) noexcept

cdef extern from "Python.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef extern from "Python.h" nogil:
    ctypedef struct PyThreadState:
        pass
    bint PyGILState_Check()
    PyThreadState *PyGILState_GetThisThreadState()
    PyThreadState *PyEval_SaveThread()
    void PyEval_RestoreThread(PyThreadState *state)

cdef extern from "Python.h":
    PyThreadState *PyThreadState_Get() noexcept
    uint64_t PyThreadState_GetID(PyThreadState *state) noexcept
    int PyThreadState_SetAsyncExc(unsigned long thread, PyObject *exc) noexcept
