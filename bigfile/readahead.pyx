"""Read-ahead: a thread that makes ready what a sequential reader will touch next.

It lets the kernel read ranges of files that are not in its cache, and fills page tables of
ranges that are mapped: on a file mapped page by page, that costs a fault every 64 KiB, a third of
the time of a fast reader. The thread works on what it is given, the latest first to be kept, and
ends when there was nothing to do for a second.

All of it is advice: a range that is not mapped any more, or a descriptor that is closed, is an
error that nobody sees; and a page that cannot be read is for its reader to find.

This room knows addresses and descriptors. It runs no Python, and the thread takes no signals.

Locking: its own mutex, a leaf; not held while the kernel works.
"""

from libc.string cimport memmove

from wendelin.bigfile.kernel cimport (CLOCK_REALTIME, MADV_POPULATE_READ, POSIX_FADV_WILLNEED,
                                      PTHREAD_CREATE_DETACHED, RWF_NOWAIT, SIG_SETMASK,
                                      clock_gettime, iovec, madvise, posix_fadvise, preadv2,
                                      pthread_atfork, pthread_attr_destroy, pthread_attr_init,
                                      pthread_attr_setdetachstate, pthread_attr_t,
                                      pthread_cond_init, pthread_cond_signal, pthread_cond_t,
                                      pthread_cond_timedwait, pthread_create, pthread_mutex_init,
                                      pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
                                      pthread_sigmask, pthread_t, sigfillset, sigset_t, timespec)

cdef enum:
    QUEUE = 4 * AHEAD_PAGES

cdef pthread_mutex_t mutex
cdef pthread_cond_t posted
# protected by: mutex
cdef Ahead[QUEUE] queue     # the oldest first
cdef size_t used
cdef bint running


cdef void readahead_post(const Ahead *items, size_t n) noexcept nogil:
    """Make ranges ready, in this order. What waits longest is forgotten, if there is too much."""
    global used, running
    cdef size_t i, over
    pthread_mutex_lock(&mutex)
    if used + n > QUEUE:
        over = used + n - QUEUE
        used -= over
        memmove(&queue[0], &queue[over], used * sizeof(Ahead))
    for i in range(n):
        queue[used] = items[i]
        used += 1
    if running:
        pthread_cond_signal(&posted)
    else:
        running = start()
    pthread_mutex_unlock(&mutex)


cdef bint start() noexcept nogil:
    """Start the thread; False: the system has none to give."""
    cdef pthread_t thread
    cdef pthread_attr_t attr
    cdef sigset_t all_signals, mask
    cdef int err
    if pthread_attr_init(&attr) != 0:
        return False
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED)
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &mask)   # the thread inherits it
    err = pthread_create(&thread, &attr, run, NULL)
    pthread_sigmask(SIG_SETMASK, &mask, NULL)
    pthread_attr_destroy(&attr)
    return err == 0


cdef void *run(void *arg) noexcept nogil:
    """The thread."""
    global used, running
    cdef Ahead item
    cdef timespec until
    pthread_mutex_lock(&mutex)
    while True:
        if used == 0:
            clock_gettime(CLOCK_REALTIME, &until)
            until.tv_sec += 1
            if pthread_cond_timedwait(&posted, &mutex, &until) != 0 and used == 0:
                break
            continue
        item = queue[0]
        used -= 1
        memmove(&queue[0], &queue[1], used * sizeof(Ahead))
        pthread_mutex_unlock(&mutex)
        make_ready(&item)
        pthread_mutex_lock(&mutex)
    running = False
    pthread_mutex_unlock(&mutex)
    return NULL


cdef void make_ready(const Ahead *item) noexcept nogil:
    cdef char byte
    cdef iovec iov
    if item.addr != NULL:
        madvise(item.addr, item.size, MADV_POPULATE_READ)
        return
    iov.iov_base = &byte
    iov.iov_len = 1
    # a look at one byte is much cheaper than advice on what is there
    if preadv2(item.fd, &iov, 1, item.offset + item.size // 2, RWF_NOWAIT) != 1:
        posix_fadvise(item.fd, item.offset, item.size, POSIX_FADV_WILLNEED)


cdef void before_fork() noexcept nogil:
    pthread_mutex_lock(&mutex)


cdef void after_fork_in_parent() noexcept nogil:
    pthread_mutex_unlock(&mutex)


cdef void after_fork_in_child() noexcept nogil:
    global used, running
    used = 0
    running = False                             # the thread stayed in the parent
    pthread_cond_init(&posted, NULL)
    pthread_mutex_unlock(&mutex)


pthread_mutex_init(&mutex, NULL)
pthread_cond_init(&posted, NULL)
pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child)
