"""Deadlocks: loaders that wait for each other, and a watchdog.

A table has each thread that waits for a page which another thread loads, and each thread that waits
for Python's lock (the GIL) to load a page.

*Cycles.* Two loaders that touch each other's pages, in two threads, would wait for ever. The thread
that would close such a cycle sees it in the table, and gets an exception (CIRCULAR_LOAD).

*The deadlock that cannot be solved.* A thread of BLAS, OpenMP or other native code touches a block
that is not in memory, while the thread that waits for it holds the GIL. The block cannot be loaded
without the GIL, and the instruction cannot go on without the block. A watchdog thread reports it on
stderr, as no Python can run: when a wait takes SECONDS, and then at each tenfold time. It runs
while a thread waits, and a few seconds more.

This module knows threads and the names of the pages that they wait for. It runs no Python.

Locking: its own mutex, a leaf below the pager lock. waits_circular() and waits_loaded() also need
the pager lock, so that the loads in the table are still going on.
"""

from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport strlen

from wendelin.bigfile.virtmem.kernel cimport (CLOCK_REALTIME, O_CLOEXEC, O_RDONLY, clock_gettime,
                                              close, getpid, gettid, open_, pthread_atfork,
                                              pthread_cond_broadcast, pthread_cond_init,
                                              pthread_cond_t, pthread_cond_timedwait,
                                              pthread_equal, pthread_mutex_init, pthread_mutex_lock,
                                              pthread_mutex_t, pthread_mutex_unlock, pthread_self,
                                              pthread_t, read, timespec, write as write_fd)
from wendelin.bigfile.virtmem.threads cimport thread_start

#: After how long the watchdog says that a thread waits for the GIL [s].
SECONDS = 5.0

cdef enum:
    WAITERS = 256           # more than these are not watched
    LINGER = 10             # how long the watchdog stays when no thread waits [s]

cdef struct Waiter:
    bint used
    bint for_gil
    pthread_t thread
    int tid                 # the kernel's name of the thread
    pthread_t loader        # the thread that loads the page
    const void *fileh       # the handle; NULL: the load is over, and the waiter about to wake up
    const char *file        # for_gil: its name, as long as the wait
    uint64_t blk
    double since            # [s]
    double say_at           # [s]

cdef pthread_mutex_t mutex
cdef pthread_cond_t came
# protected by: mutex
cdef Waiter[WAITERS] waiters
cdef size_t used            # waiters[used:] are not used
cdef size_t for_gil         # of them
cdef bint watching          # the watchdog runs


cdef double now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


cdef int add(Waiter *waiter) noexcept nogil:
    """Put a waiter into the table; return its index, or -1 if it is full. With the mutex held."""
    global used
    cdef size_t i
    for i in range(<size_t>WAITERS):
        if not waiters[i].used:
            waiters[i] = waiter[0]
            waiters[i].used = True
            waiters[i].thread = pthread_self()
            waiters[i].tid = gettid()
            used = max(used, i + 1)
            return <int>i
    return -1


cdef int wait_for_gil(const char *file, uint64_t blk) noexcept nogil:
    """This thread is going to wait for the GIL. Return the argument of wait_over()."""
    global for_gil
    cdef Waiter waiter
    cdef int i
    waiter.for_gil = True
    waiter.fileh = NULL
    waiter.file = file
    waiter.blk = blk
    waiter.since = now()
    waiter.say_at = waiter.since + limit
    pthread_mutex_lock(&mutex)
    i = add(&waiter)
    if i >= 0:
        for_gil += 1
        if not watching:
            start()
        elif for_gil == 1:
            pthread_cond_broadcast(&came)
    pthread_mutex_unlock(&mutex)
    return i


cdef int wait_for_load(const void *fileh, uint64_t blk, pthread_t loader) noexcept nogil:
    """This thread is going to wait for a page that `loader` loads. As wait_for_gil()."""
    cdef Waiter waiter
    cdef int i
    waiter.for_gil = False
    waiter.fileh = fileh
    waiter.blk = blk
    waiter.loader = loader
    pthread_mutex_lock(&mutex)
    i = add(&waiter)
    pthread_mutex_unlock(&mutex)
    return i


cdef void wait_over(int waiter) noexcept nogil:
    """End a wait."""
    global used, for_gil
    if waiter < 0:
        return
    pthread_mutex_lock(&mutex)
    waiters[waiter].used = False
    for_gil -= waiters[waiter].for_gil
    while used != 0 and not waiters[used - 1].used:
        used -= 1
    pthread_mutex_unlock(&mutex)


cdef void waits_loaded(const void *fileh, uint64_t blk) noexcept nogil:
    """A load is over: no thread waits for its thread any more, even if it is not awake yet."""
    cdef size_t i
    if used == 0:           # waiters were added during the load, under the pager lock
        return
    pthread_mutex_lock(&mutex)
    for i in range(used):
        if waiters[i].fileh == fileh and waiters[i].blk == blk:
            waiters[i].fileh = NULL
    pthread_mutex_unlock(&mutex)


cdef bint waits_circular(pthread_t loader) noexcept nogil:
    """Say whether a loader waits, directly or through others, for a page that this thread loads."""
    cdef size_t i, _steps
    cdef bint circular = False
    if used == 0:
        return False
    pthread_mutex_lock(&mutex)
    for _steps in range(<size_t>WAITERS):
        for i in range(used):
            if (waiters[i].used and not waiters[i].for_gil and waiters[i].fileh != NULL
                    and pthread_equal(waiters[i].thread, loader)):
                loader = waiters[i].loader
                circular = pthread_equal(loader, pthread_self())
                break
        else:
            break
        if circular:
            break
    pthread_mutex_unlock(&mutex)
    return circular


# ---- the watchdog ----

cdef double limit = SECONDS


def set_seconds(double seconds):
    """Set the time after which the watchdog reports: for tests."""
    global limit
    limit = seconds


cdef void start() noexcept nogil:
    """Start the watchdog, if the system has a thread to give. With the mutex held."""
    global watching
    watching = thread_start(watch, NULL)


cdef void *watch(void *arg) noexcept nogil:
    """The watchdog."""
    global watching
    cdef timespec until
    cdef double next_, t, idle_since = now()
    cdef size_t i
    pthread_mutex_lock(&mutex)
    while True:
        t = now()
        next_ = t + LINGER
        if for_gil != 0:
            idle_since = t
        elif t - idle_since >= LINGER:
            break
        for i in range(used):
            if waiters[i].used and waiters[i].for_gil:
                if waiters[i].say_at <= t:
                    say(&waiters[i], t)
                    waiters[i].say_at = t + 10 * (t - waiters[i].since)
                next_ = min(next_, waiters[i].say_at)
        until.tv_sec = <long>next_
        until.tv_nsec = <long>((next_ - <double>until.tv_sec) * 1e9)
        pthread_cond_timedwait(&came, &mutex, &until)
    watching = False
    pthread_mutex_unlock(&mutex)
    return NULL


cdef void say(const Waiter *waiter, double t) noexcept nogil:
    """Write to stderr that a thread waits for the GIL. With the mutex held: the file lives."""
    cdef char[1024] text
    cdef char[32] name
    cdef char[48] path
    cdef int fd
    cdef ssize_t n = 0
    snprintf(path, sizeof(path), b"/proc/self/task/%d/comm", waiter.tid)
    fd = open_(path, O_RDONLY | O_CLOEXEC)
    if fd >= 0:
        n = read(fd, name, sizeof(name) - 1)
        close(fd)
    name[n - 1 if n > 0 else 0] = 0             # without the newline
    snprintf(
        text, sizeof(text),
        b"wendelin.core: thread %d (%s) of process %d has been waiting for Python's lock (GIL) "
        b"for %.1f s, to load block %llu of %s. Most likely the thread that holds the lock waits "
        b"for this one: BLAS, OpenMP or other native code that was called without releasing the "
        b"lock. Then they wait for ever. Load rows before you give them to such code: "
        b"with A.load(rows) as a: ... (py-spy dump --pid %d shows which code it is.)\n",
        waiter.tid, name, getpid(), t - waiter.since, <unsigned long long>waiter.blk, waiter.file,
        getpid())
    write_fd(2, text, strlen(text))


# ---- fork ----

cdef void before_fork() noexcept nogil:
    pthread_mutex_lock(&mutex)


cdef void after_fork_in_parent() noexcept nogil:
    pthread_mutex_unlock(&mutex)


cdef void after_fork_in_child() noexcept nogil:
    global used, for_gil, watching
    cdef size_t i
    for i in range(used):                       # the waiters stayed in the parent
        waiters[i].used = False
    used = for_gil = 0
    watching = False
    pthread_cond_init(&came, NULL)
    pthread_mutex_unlock(&mutex)


pthread_mutex_init(&mutex, NULL)
pthread_cond_init(&came, NULL)
pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child)
