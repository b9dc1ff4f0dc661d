"""Heads of records in a Data.fs that are like a record that was read before, many at a time.

Blocks of an array are records of one class and size: they differ in their oids, places, pads and
checksums. HeadReader (fsrecord) has parsed one of them. This module compares the others with it, in
C. Records that are not alike are left to HeadReader.

It knows how FileStorage lays out a record (ZODB.FileStorage.format), and what a pad is.

Locking: none; it reads a file with pread(2), without the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from "<fcntl.h>" nogil:
    enum: POSIX_FADV_DONTNEED
    int posix_fadvise(int fd, long offset, long size, int advice)

cdef extern from "<unistd.h>" nogil:
    """
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef SYS_cachestat
    #define SYS_cachestat 451           /* Linux 6.5, the same on all processors */
    #endif
    struct wc_cachestat { uint64_t cached, dirty, writeback, evicted, recently_evicted; };
    static long wc_cachestat(int fd, uint64_t start, uint64_t size, struct wc_cachestat *found)
    {
        uint64_t range[2] = {start, size};
        return syscall(SYS_cachestat, fd, range, found, 0);
    }
    """
    enum: _SC_PAGESIZE
    long sysconf(int name)
    struct cachestat_t "wc_cachestat":
        uint64_t cached
    long cachestat "wc_cachestat" (int fd, uint64_t start, uint64_t size, cachestat_t *found)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int fd, const iovec *iov, int n, long offset, int flags)

cdef enum:
    HEADER = 42             # of a record: oid, tid, previous, transaction, version, size [bytes]
    HEAD = 8192             # what is read of a record, to its payload or into a long pad [bytes]
    LONGEST_AFTER = 16      # between a pad and the payload [bytes]
    LONGEST_REST = 16       # behind a payload [bytes]
    DIGEST = 8              # of a checksum [bytes]
    PARTS = 3               # of a record that are read

cdef struct Found:
    int64_t offset          # of the payload; -1: not alike, or not readable without waiting
    bint has_digest
    char[DIGEST] digest
    # of its head, of what is between a long pad and the payload, and of its end:
    int64_t[PARTS] at       # where they are; 0: not read
    bint[PARTS] cold        # they were not in the page cache when they were asked for


cdef inline uint64_t big64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(8):
        value = value << 8 | at[i]
    return value


cdef struct Alike:
    const uint8_t *before   # the pad: the bytes of the record before its length, after it
    size_t n_before
    const uint8_t *after
    size_t n_after
    const uint8_t *end      # the bytes behind the payload
    size_t n_end
    const uint8_t *magic    # of a checksum in the pad
    size_t n_magic
    uint64_t payload        # its size [bytes]
    uint64_t tid            # revisions before this one


cdef ssize_t read_at(int fd, uint8_t *buf, size_t size, long offset, int flags) noexcept nogil:
    cdef iovec iov
    cdef ssize_t n
    iov.iov_base = buf
    iov.iov_len = size
    while True:
        n = preadv2(fd, &iov, 1, offset, flags)
        if n >= 0 or errno != EINTR:
            return n


cdef struct Window:         # the bytes of the file that were read last
    uint8_t *buf
    size_t size             # of buf [bytes]
    int64_t pos             # where it begins in the file
    ssize_t n               # [bytes] in it
    int fd
    int flags               # of preadv2(2)


cdef bint is_cold(int fd, int64_t pos, size_t n) noexcept nogil:
    """Say whether some of the bytes are not in the page cache; False if the kernel does not tell."""
    cdef int64_t os_page = sysconf(_SC_PAGESIZE)
    cdef cachestat_t found
    if cachestat(fd, pos, n, &found) != 0:      # it is older, or the file is another user's
        return False
    return <int64_t>found.cached < (pos + <int64_t>n - 1) // os_page - pos // os_page + 1


cdef ssize_t read_part(Window *window, uint8_t *buf, size_t size, int64_t pos, size_t n,
                       Found *found, int part) noexcept nogil:
    """Read up to size bytes of a part of a record, of which n are needed."""
    found.at[part] = pos
    found.cold[part] = is_cold(window.fd, pos, n)
    return read_at(window.fd, buf, size, pos, window.flags)


cdef const uint8_t *window_at(Window *window, int64_t pos, size_t n, Found *found, int part) \
        noexcept nogil:
    """Return bytes [pos, pos + n) of the file; NULL: they are not there.

    More is read with them: mostly the head of the next record follows the end of one.
    """
    if pos < window.pos or pos + <int64_t>n > window.pos + window.n:
        window.pos = pos
        window.n = read_part(window, window.buf, window.size, pos, n, found, part)
        if window.n < <ssize_t>n:
            window.n = max(window.n, 0)
            return NULL
    return window.buf + (pos - window.pos)


cdef void look(const uint8_t *oid, int64_t pos, const Alike *like, size_t read, Window *window,
               Found *found) noexcept nogil:
    """Find the payload of one record, if it is alike."""
    cdef size_t length = HEADER + like.n_before, pad, start
    cdef uint64_t size
    cdef const uint8_t *buf
    cdef uint8_t[LONGEST_AFTER] after
    found.offset = -1
    memset(found.at, 0, sizeof(found.at))
    memset(found.cold, 0, sizeof(found.cold))
    if pos <= 0:
        return
    buf = window_at(window, pos, read, found, 0)
    if buf == NULL or memcmp(buf, oid, 8) != 0 or big64(buf + 8) >= like.tid:
        return
    if buf[32] != 0 or buf[33] != 0:                    # a version
        return
    size = big64(buf + 34)
    if memcmp(buf + HEADER, like.before, like.n_before) != 0:
        return
    pad = length + 4
    start = pad + (buf[length] | buf[length + 1] << 8 | buf[length + 2] << 16)
    if buf[length + 3] != 0:
        return
    found.has_digest = (start - pad >= like.n_magic + DIGEST and
                        memcmp(buf + pad, like.magic, like.n_magic) == 0)
    if found.has_digest:
        memcpy(found.digest, buf + pad + like.n_magic, DIGEST)
    if start + like.n_after <= read:
        buf += start
    else:
        # a long pad; no byte of the payload is read: its large page of the cache would be cut
        if read_part(window, after, like.n_after, pos + start, like.n_after, found, 1) \
                != <ssize_t>like.n_after:
            return
        buf = after
    if memcmp(buf, like.after, like.n_after) != 0:
        return
    start += like.n_after
    if start - HEADER + like.payload + like.n_end != size:
        return
    # no part of a truncated record may be shown
    buf = window_at(window, pos + start + like.payload, like.n_end, found, 2)
    if buf == NULL or memcmp(buf, like.end, like.n_end) != 0:
        return
    found.offset = pos + start


def cold_at(int fd, int64_t pos, size_t size):
    """Say whether some of these bytes are not in the page cache; False if that is not known."""
    return is_cold(fd, pos, size)


def drop(int fd, int64_t pos, int64_t size):
    """Drop bytes [pos, pos + size) from the page cache, if no process maps or has changed them."""
    cdef int64_t os_page = sysconf(_SC_PAGESIZE), start = pos - pos % os_page
    # whole OS pages: the kernel leaves one that is given in part
    posix_fadvise(fd, start, (pos + size - start + os_page - 1) // os_page * os_page,
                  POSIX_FADV_DONTNEED)


cdef int keep_cold(const Window *window, const Found *found, int64_t pos, set cold) except -1:
    """Leave a record as cold as it was: drop its parts from the page cache, or remember them."""
    cdef int part
    cdef int64_t at
    for part in range(PARTS):
        at = pos if part == 0 else found.at[part]   # the window may have had the head
        if found.offset < 0:
            if found.cold[part]:
                cold.add(at)
        elif found.cold[part] or cold and at in cold:
            cold.discard(at)
            drop(window.fd, at, LONGEST_AFTER if part == 1 else window.size)
    return 0


def find_alike(int fd, int flags, list oids, list positions, bytes before_tid, bytes before,
               bytes after, bytes end, bytes magic, uint64_t payload, size_t read, set cold):
    """Return, for each record, (offset of its payload, digest), or None if it is not alike.

    Parameters
    ----------
    fd, flags : int
        Of preadv2(2).
    oids, positions : list of bytes, list of int
        Where the last record of each object is; 0: there is none.
    before_tid : bytes
        A later revision is not alike.
    before, after : bytes
        The bytes of a record before the length of the pad, and between the pad and the payload.
    end : bytes
        The bytes behind the payload.
    magic : bytes
        The beginning of a pad that has a checksum.
    payload : int
        Its size [bytes].
    read : int
        How much of a record is read, so that its checksum is in it [bytes].
    cold : set of int
        Positions of parts that were not in the page cache when they were asked for. When a record is found,
        its own are dropped from it again: see OpenFile.
    """
    cdef size_t n = len(oids), i
    cdef Alike like
    cdef Found *found
    cdef int64_t *at
    cdef const uint8_t **keys
    cdef uint8_t[HEAD + LONGEST_REST] buf
    cdef Window window
    if (read > HEAD or <size_t>(HEADER + len(before) + 4 + len(magic) + DIGEST) > read
            or len(end) > LONGEST_REST or len(after) > LONGEST_AFTER
            or len(before_tid) != 8 or len(positions) != len(oids)):
        raise ValueError(f"read is {read}, of {len(end)} bytes at the end")
    like.before = <const uint8_t *>PyBytes_AS_STRING(before)
    like.n_before = PyBytes_GET_SIZE(before)
    like.after = <const uint8_t *>PyBytes_AS_STRING(after)
    like.n_after = PyBytes_GET_SIZE(after)
    like.end = <const uint8_t *>PyBytes_AS_STRING(end)
    like.n_end = PyBytes_GET_SIZE(end)
    like.magic = <const uint8_t *>PyBytes_AS_STRING(magic)
    like.n_magic = PyBytes_GET_SIZE(magic)
    like.payload = payload
    window.buf = buf
    window.size = read + LONGEST_REST
    window.pos = window.n = 0
    window.fd = fd
    window.flags = flags
    like.tid = big64(<const uint8_t *>PyBytes_AS_STRING(before_tid))
    found = <Found *>malloc(n * sizeof(Found) + 1)
    at = <int64_t *>malloc(n * sizeof(int64_t) + 1)
    keys = <const uint8_t **>malloc(n * sizeof(uint8_t *) + 1)
    try:
        if found == NULL or at == NULL or keys == NULL:
            raise MemoryError
        for i in range(n):
            if len(<bytes?>oids[i]) != 8:
                raise ValueError(f"no oid: {oids[i]!r}")
            keys[i] = <const uint8_t *>PyBytes_AS_STRING(oids[i])
            at[i] = positions[i]
        with nogil:
            for i in range(n):
                look(keys[i], at[i], &like, read, &window, &found[i])
        for i in range(n):
            keep_cold(&window, &found[i], at[i], cold)
        return [None if found[i].offset < 0 else
                (found[i].offset, found[i].digest[:DIGEST] if found[i].has_digest else None)
                for i in range(n)]
    finally:
        free(found)
        free(at)
        free(keys)
