"""Threads of the pager: how they are started. They run no Python, and take no signals.

This module knows pthreads. It does not know what the threads do.
"""

from wendelin.bigfile.virtmem.kernel cimport (PTHREAD_CREATE_DETACHED, SIG_SETMASK,
                                              pthread_attr_destroy, pthread_attr_init,
                                              pthread_attr_setdetachstate, pthread_attr_t,
                                              pthread_create, pthread_setname_np, pthread_sigmask,
                                              pthread_t, sigfillset, sigset_t)


cdef bint thread_start(void *(*run)(void *) noexcept nogil, pthread_t *thread) noexcept nogil:
    """Start a thread; False: the system has none to give.

    thread: gets it, to be joined; NULL: it is detached.
    """
    cdef pthread_t started
    cdef pthread_attr_t attr
    cdef sigset_t all_signals, mask
    cdef int err
    if pthread_attr_init(&attr) != 0:
        return False
    if thread == NULL:
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED)
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &mask)   # the thread inherits it
    err = pthread_create(&started, &attr, run, NULL)
    if err == 0:
        pthread_setname_np(started, b"wendelin.core")   # it is none of those in blocked.py
        if thread != NULL:
            thread[0] = started
    pthread_sigmask(SIG_SETMASK, &mask, NULL)
    pthread_attr_destroy(&attr)
    return err == 0
