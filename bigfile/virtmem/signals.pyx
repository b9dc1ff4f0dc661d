"""Python's signal handlers wait while a fault runs Python.

Python runs a handler in the main thread, between any two of its instructions. If a loader runs
there, an exception of the handler would look like a failure of the storage, and the handler might
touch the block that its own thread loads. To the program, a touch of memory is one instruction, and
signals come before or after it. So while a fault of the main thread runs Python:

1. signals_hold() runs the handlers of earlier signals. The loader was not called yet, so they may
   touch anything (see Page.begun in page.pxd). Then it replaces all of Python's handlers by ours
2. ours notes each signal
3. signals_release() has Python call us when the thread is back in the program's code
   (Py_AddPendingCall). Then the handlers are put back, and run for the noted signals. If the thread
   is in another loader by then, all of this waits for its end: replacing handlers takes some
   microseconds, and a reader of many blocks pays for it once

    free ── signals_hold ──► held ── signals_release ──► replaced ── pending_call ──► free
                              │ ▲                            │
                              │ └─────── signals_hold ───────┘
                              └── a signal, after PATIENCE ──► held: its handler runs at once

While handlers are replaced, but signals are not held, ours calls the one that it replaces.

A loader that hangs can be interrupted: after PATIENCE seconds, handlers run inside of it, and a
thread sends earlier signals again. An exception of a handler then ends the load. signals_raised()
returns it, as it is not a failure.

Only Python's handlers are replaced, not the action of the system: flags of a signal, or a library's
handler in front of Python's, stay.

This module knows handlers of Python. It does not know what runs meanwhile.

Locking: the GIL. All of it runs in the main thread, except the thread that sends signals again.
"""

import os
import signal
import threading
import time

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.interpreter cimport (PyErr_CheckSignals, PyErr_SetInterruptEx,
                                                   PyThread_get_thread_ident, Py_AddPendingCall)
from wendelin.bigfile.virtmem.kernel cimport sigaction, sigaction_t

from wendelin.lib.adapters import cpython as python

#: After this time a load is assumed to hang, so that handlers run inside of it [s].
PATIENCE = 5.0

# Faults of the processor come again before Python could run a handler.
cdef tuple NEVER = tuple(map(int, (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS,
                                   signal.SIGFPE, signal.SIGILL)))

cdef tuple signals = tuple(sorted(set(map(int, signal.valid_signals())).difference(NEVER)))
cdef object getsignal = python.getsignal
cdef object set_handler = python.set_handler
cdef object current_frame = python.current_frame
cdef object monotonic = time.monotonic
cdef unsigned long main_ident = threading.main_thread().ident

# protected by: the GIL
cdef bint held
cdef bint replaced                      # handlers are ours
cdef list handlers = [None] * 65        # replaced by ours, by signal
cdef uint64_t came                      # signals that ours noted, a bit each
cdef object raised                      # exception of a handler, since signals_hold()
cdef double patience = PATIENCE
cdef double until                       # held: signals wait until this time
cdef object again                       # held: a lock that stops the thread that sends again


def set_patience(double seconds):
    """Set the time after which a load is assumed to hang: for tests."""
    global patience
    patience = seconds


class _Ours:
    """The handler of all signals while they are held."""

    def __call__(self, signum, frame):
        global came, raised
        handler = handlers[signum]
        if held and monotonic() < until:
            came |= <uint64_t>1 << (signum - 1)
            _send_again()
        elif handler is not None:
            try:
                handler(signum, frame)
            except BaseException as e:
                if held:                # else it goes to the program
                    raised = e
                raise


cdef object ours = _Ours()


cdef bint signals_hold() noexcept:
    """Make signals wait. True: call signals_release() later."""
    global held, raised, replaced, until
    if held or PyThread_get_thread_ident() != main_ident:
        return False
    try:
        handle_what_came()
        until = monotonic() + patience
        held = True
        if replaced:
            return True
        replaced = True
        for signum in signals:
            handler = getsignal(signum)
            if handler is not None and type(handler) is not int and handler is not ours:
                handlers[signum] = handler
                replace(signum, ours)
    except BaseException as e:
        raised = e                  # of a handler, or there is no memory: go on with this state
    return True


cdef object signals_raised():
    """Return the exception of a handler since signals_hold(), or since the last call; or None."""
    global raised
    error = raised
    raised = None
    return error


cdef void signals_release() noexcept:
    """Let signals come."""
    global held, again
    held = False
    try:
        if again is not None:
            again.release()
            again = None
        if Py_AddPendingCall(pending_call, NULL) != 0:
            put_handlers_back()         # too many are pending
    except BaseException:
        pass


cdef int put_handlers_back() except -1:
    global replaced
    cdef int signum
    replaced = False
    for signum in signals:
        handler = handlers[signum]
        if handler is not None:
            if getsignal(signum) is ours:
                replace(signum, handler)
            if getsignal(signum) is not ours:
                handlers[signum] = None
    if came:
        post_what_came()
    return 0


cdef int replace(int signum, handler) except -1:
    """Make Python call another handler, without a change of the system's action."""
    global raised
    cdef sigaction_t action
    cdef int _attempt
    sigaction(signum, NULL, &action)
    for _attempt in range(3):
        try:
            set_handler(signum, handler)
            break
        except BaseException as e:      # it has run handlers of what came just now, first
            raised = e
    sigaction(signum, &action, NULL)
    return 0


# ---- noted signals ----

cdef int handle_what_came() except -1:
    """Run handlers now. Keep their exception."""
    global raised
    cdef bint more = True
    while more:
        more = False
        try:
            PyErr_CheckSignals()
            run_what_came()
        except BaseException as e:
            raised = e
            more = True
    return 0


cdef void post_what_came() noexcept:
    """Make Python run handlers when this thread is back in its code. Needs no memory."""
    cdef int signum
    if Py_AddPendingCall(pending_call, NULL) != 0:
        for signum in range(1, 65):
            if came >> (signum - 1) & 1:
                PyErr_SetInterruptEx(signum)


cdef int pending_call(void *arg) except -1:
    """Called by Python, in the main thread, between two instructions."""
    if not held:                        # else this is in a loader, and it is posted once more
        if replaced:
            put_handlers_back()
        error = signals_raised()
        if error is not None:
            raise error
        run_what_came()
    return 0


cdef int run_what_came() except -1:
    """Run the handlers of noted signals, until one raises."""
    global came
    cdef int signum
    try:
        for signum in range(1, 65):
            if came >> (signum - 1) & 1:
                came &= ~(<uint64_t>1 << (signum - 1))
                handler = getsignal(signum)
                if callable(handler):
                    handler(signum, current_frame())
    finally:
        if came:
            post_what_came()
    return 0


# ---- a load that hangs ----

cdef int _send_again() except -1:
    """Send noted signals again, if they are held for too long."""
    global again
    if again is None:
        lock = threading.Lock()
        lock.acquire()
        again = lock
        threading.Thread(target=_wait_and_send, args=(lock, until), daemon=True,
                         name="wendelin.core-signals").start()
    return 0


def _wait_and_send(lock, double hold):
    global came
    cdef int signum
    while monotonic() < hold:
        if lock.acquire(timeout=hold - monotonic()):
            return
    if held and until == hold:
        for signum in range(1, 65):
            if came >> (signum - 1) & 1:
                came &= ~(<uint64_t>1 << (signum - 1))
                signal.pthread_kill(main_ident, signum)


# ---- fork ----

def _after_fork_in_child():
    """Another thread may have forked while the main thread held signals: it is not there."""
    global main_ident, came, held
    if PyThread_get_thread_ident() != main_ident:
        main_ident = PyThread_get_thread_ident()
        came = 0
        held = False
    if replaced and not held:
        put_handlers_back()


os.register_at_fork(after_in_child=_after_fork_in_child)
