"""Read-ahead: threads that prepare the blocks that a sequential reader will touch next.

They fill page tables of mapped ranges; otherwise the reader has a fault every 64 KiB, a third of
its time. With one CPU that is in vain, except for what is not in the page cache. This also makes
the kernel read pages that are not in its cache. (POSIX_FADV_WILLNEED would read into single pages,
which are slower to map ever after.) And they load blocks by copying, two at a time. A thread ends
when it had no work for a second.

All of this is advice: a range that is not mapped any more is an error that is ignored, and if a
block cannot be read, its reader gets the error.

This module knows addresses; readahead_set_op() gets the function that loads a block. It runs no
Python.

Locking: its own mutex, a leaf; not held while the kernel works, or a block is loaded.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memmove

from wendelin.bigfile.virtmem.kernel cimport (CLOCK_REALTIME, CPU_COUNT, MADV_POPULATE_READ,
                                              _SC_PAGESIZE, clock_gettime, cpu_set_t, madvise,
                                              mincore, pthread_atfork, pthread_cond_broadcast,
                                              pthread_cond_init, pthread_cond_t,
                                              pthread_cond_timedwait, pthread_mutex_init,
                                              pthread_mutex_lock, pthread_mutex_t,
                                              pthread_mutex_unlock, sched_getaffinity, sysconf,
                                              timespec)
from wendelin.bigfile.virtmem.threads cimport thread_start

cdef enum:
    QUEUE = 4 * AHEAD_PAGES
    THREADS = 2

cdef pthread_mutex_t mutex
cdef pthread_cond_t posted
# protected by: mutex
cdef Ahead[QUEUE] queue     # the oldest first
cdef size_t used
cdef size_t running         # threads
cdef size_t idle            # of them, those that wait
cdef void (*op_load)(void *, uint64_t, bint) noexcept nogil


cdef void readahead_set_op(void (*load)(void *, uint64_t, bint) noexcept nogil) noexcept nogil:
    """Set the function that loads a block.

    load(fileh, blk, yes) ends an entry: it loads the block, if yes, and drops its reference of
    fileh.
    """
    global op_load
    op_load = load


cdef void readahead_post(Ahead *items, size_t n) noexcept nogil:
    """Prepare ranges, in this order. If there are too many, the last ones are dropped."""
    global used, running
    cdef size_t i, taken
    n = worth_it(items, n)
    if n == 0:
        return
    pthread_mutex_lock(&mutex)
    taken = min(n, QUEUE - used)
    for i in range(taken):
        queue[used] = items[i]
        used += 1
    if idle != 0:
        pthread_cond_broadcast(&posted)
    elif running < THREADS:
        running += thread_start(run, NULL)
    if running == 0:                            # the system has no threads to give
        taken = 0
        used = 0
    pthread_mutex_unlock(&mutex)
    for i in range(taken, n):
        if items[i].fileh != NULL:
            op_load(items[i].fileh, items[i].blk, False)


cdef size_t worth_it(Ahead *items, size_t n) noexcept nogil:
    """Leave out page tables that only this thread's CPU could fill, in vain; return how many stay.

    To fill those of what is in the page cache costs twice what it saves. That pays if another CPU
    does it. What has to come from the disk comes while this thread works.
    """
    cdef cpu_set_t cpus
    cdef size_t i, kept = 0
    if sched_getaffinity(0, sizeof(cpus), &cpus) != 0 or CPU_COUNT(&cpus) != 1:
        return n
    for i in range(n):
        if items[i].fileh != NULL or not in_cache(items[i].addr, items[i].size):
            items[kept] = items[i]
            kept += 1
    return kept


cdef bint in_cache(void *addr, size_t size) noexcept nogil:
    """Say whether the first and the last OS page of a range are in memory, or it is not mapped."""
    cdef unsigned char first = 0, last = 0
    cdef size_t os_page = sysconf(_SC_PAGESIZE)
    if mincore(addr, os_page, &first) != 0:
        return True
    return first & 1 and (mincore(<char *>addr + size - os_page, os_page, &last) != 0 or last & 1)


cdef void *run(void *arg) noexcept nogil:
    """A thread."""
    global used, running, idle
    cdef Ahead item
    cdef timespec until
    cdef bint timed_out
    pthread_mutex_lock(&mutex)
    while True:
        if used == 0:
            clock_gettime(CLOCK_REALTIME, &until)
            until.tv_sec += 1
            idle += 1
            timed_out = pthread_cond_timedwait(&posted, &mutex, &until) != 0
            idle -= 1
            if timed_out and used == 0:
                break
            continue
        item = queue[0]
        used -= 1
        memmove(&queue[0], &queue[1], used * sizeof(Ahead))
        pthread_mutex_unlock(&mutex)
        if item.fileh != NULL:
            op_load(item.fileh, item.blk, True)
        else:
            madvise(item.addr, item.size, MADV_POPULATE_READ)
        pthread_mutex_lock(&mutex)
    running -= 1
    pthread_mutex_unlock(&mutex)
    return NULL


cdef void before_fork() noexcept nogil:
    pthread_mutex_lock(&mutex)


cdef void after_fork_in_parent() noexcept nogil:
    pthread_mutex_unlock(&mutex)


cdef void after_fork_in_child() noexcept nogil:
    global used, running, idle
    used = running = idle = 0                   # the threads stayed in the parent
    pthread_cond_init(&posted, NULL)
    pthread_mutex_unlock(&mutex)


pthread_mutex_init(&mutex, NULL)
pthread_cond_init(&posted, NULL)
pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child)
