"""Page tables: how much memory the kernel says that this process has, and how it gets less.

The kernel counts each page that is in page tables of a process as resident, also those of a file
that all processes share. So a process that goes through an array which is mapped from a file seems
to take as much memory as the array has, until the views are gone. A program that watches this
number would end the process: Dask does so with its workers. Nothing is lost with page tables: the
next touch fills them in, from the page cache or from page memory, without the pager.

    a view ends         its area is kept for the next one, and loses its page tables when the
                        process has many (opened)
    a view is read      no thread comes to the pager: the pages are shown. So watch() starts a
                        thread that looks a hundred times a second, in a process whose memory is
                        watched

This module knows areas, but not what they show.

Locking: the pager lock while areas lose their page tables, so that none is unmapped meanwhile.
"""

import threading

from libc.stdint cimport uint64_t
from libc.stdlib cimport strtoull

from wendelin.bigfile.virtmem.frames cimport frames_drop_tables
from wendelin.bigfile.virtmem.kernel cimport (_SC_PAGESIZE, CLOCK_MONOTONIC, MADV_DONTNEED,
                                              O_CLOEXEC, O_RDONLY, clock_nanosleep, close, madvise,
                                              open_, read, sysconf, timespec)
from wendelin.bigfile.virtmem.mapping cimport Area, live
from wendelin.bigfile.virtmem.ram cimport pager_lock, pager_unlock, whole_os_pages

cdef enum:
    LIMIT = 128 << 20           # [bytes] if the memory of the process is not watched
    INTERVAL = 10_000_000       # [ns] in which a thread reads about 50 MiB

cdef size_t resident_limit = LIMIT

WATCHER = "wendelin.core-resident"


cdef size_t resident_shared() noexcept nogil:
    """Return the bytes of files and of shared memory in this process's page tables; 0: unknown."""
    cdef char[128] text
    cdef char *rest
    cdef ssize_t n = -1
    cdef int fd = open_(b"/proc/self/statm", O_RDONLY | O_CLOEXEC)
    if fd >= 0:
        n = read(fd, text, sizeof(text) - 1)
        close(fd)
    if n <= 0:
        return 0
    text[n] = 0
    strtoull(text, &rest, 10)           # address space, then all that is resident
    strtoull(rest, &rest, 10)
    return strtoull(rest, NULL, 10) * sysconf(_SC_PAGESIZE)


cdef void area_drop_tables(Area *area) noexcept nogil:
    """Take away the page tables of an area. It still maps what it showed.

    Private memory would lose its bytes, but an area has none that a program may keep: changes are
    in shared memory, and what is mapped from a file is read-only.
    """
    madvise(area.start, whole_os_pages(area.stop - area.start), MADV_DONTNEED)


cdef void drop_all() noexcept nogil:
    cdef uint64_t i
    pager_lock()
    for i in range(live.used):
        area_drop_tables(live.areas[i])
    frames_drop_tables()
    pager_unlock()


cdef void look_for_ever() noexcept nogil:
    cdef timespec interval
    interval.tv_sec, interval.tv_nsec = 0, INTERVAL
    while True:
        clock_nanosleep(CLOCK_MONOTONIC, 0, &interval, NULL)
        if resident_shared() > resident_limit:
            drop_all()


def shared():
    """Return how much of files and of shared memory is resident in this process [bytes]."""
    return resident_shared()


def drop_tables():
    """Take away the page tables of all areas of this process: then they are not resident."""
    with nogil:
        drop_all()


def _look():
    with nogil:
        look_for_ever()


def watch(nbytes):
    """Keep the process from having many resident pages of areas, from now on.

    A thread takes their page tables away when there are more than nbytes, beside what is resident
    of files and shared memory now, such as libraries. It does not wait for the GIL.

    Parameters
    ----------
    nbytes : int
        [bytes]
    """
    global resident_limit
    resident_limit = resident_shared() + <size_t>nbytes
    if not any(thread.name == WATCHER for thread in threading.enumerate()):
        threading.Thread(target=_look, daemon=True, name=WATCHER).start()
