"""A trace of the pager, for a developer who debugs it: one line for each transition of a page.

Off, unless WENDELIN_CORE_TRACE names a file when the pager is imported; lines are appended to that.

    12.034518 4711 LOADING -> LOADED FILERANGE, block 3 of <ZBigFile 0x12 in 'data.fs'>

are the time since the system started [s], the system's number of the thread, the states and what
the page has in memory then, the block and its file.

This module knows only lines. It runs no Python, as its caller holds the pager lock.
"""

import os

from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf

from wendelin.bigfile.virtmem.kernel cimport (CLOCK_MONOTONIC, clock_gettime, gettid, timespec,
                                              write as write_fd)

cdef int trace_fd = -1      # set once, when this module is imported


cdef void trace_page(const char *file, uint64_t blk, const char *before, const char *before_backing,
                     const char *after, const char *after_backing) noexcept nogil:
    """A page goes from one state to another. A backing is b"" if it has nothing in memory."""
    cdef char[256] line
    cdef timespec now
    cdef int n
    if trace_fd < 0:
        return
    clock_gettime(CLOCK_MONOTONIC, &now)
    n = snprintf(line, sizeof(line), b"%lld.%06ld %d %s%s%s -> %s%s%s, block %llu of %s\n",
                 <long long>now.tv_sec, now.tv_nsec // 1000, gettid(),
                 before, b" " if before_backing[0] else b"", before_backing,
                 after, b" " if after_backing[0] else b"", after_backing,
                 <unsigned long long>blk, file)
    write_fd(trace_fd, line, min(n, <int>sizeof(line) - 1))  # in one piece: lines of threads


def _open(path):
    """Begin to trace.

    Raises
    ------
    OSError
        The file cannot be opened.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as e:
        raise type(e)(e.errno, f"WENDELIN_CORE_TRACE names a file that cannot be opened: "
                      f"{e.strerror}", path) from None


if os.environ.get("WENDELIN_CORE_TRACE"):
    trace_fd = _open(os.environ["WENDELIN_CORE_TRACE"])
