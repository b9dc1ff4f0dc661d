"""Heads of records in a Data.fs that are like records that were read before, many at a time.

Blocks of an array, and chunks of blocks, are records of one class: they differ in their oids,
places, sizes, pads and checksums. HeadReader (fsrecord) has parsed one of each class. This module
compares the others with these, in C. Other records are left to HeadReader: small ones as bytes, as
they are read as a whole.

It knows how FileStorage lays out a record (ZODB.FileStorage.format), and what a pad is.

Locking: none; it reads a file with pread(2), without the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
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
    LIKES = 8
    SPARE = 1 << 16         # [bytes]

#: how much of a record can be read at once [bytes]
MOST_READ = HEAD

cdef enum Kind:
    OTHER                   # or not readable without waiting
    ALIKE
    SMALL                   # not alike, and it was read as a whole

cdef struct Found:
    Kind kind
    int64_t offset          # ALIKE: of the payload; SMALL: of the record, in Records
    uint64_t size           # of the same [bytes]
    int like                # which one
    bint has_digest
    char[DIGEST] digest
    # of its head, of what is between a long pad and the payload, and of its end:
    int64_t[PARTS] at       # where they are; 0: not read
    bint[PARTS] cold        # they were not in the page cache when they were asked for

cdef struct Records:        # bytes of SMALL records
    uint8_t *at
    size_t used, size       # [bytes]


cdef inline uint64_t big64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(8):
        value = value << 8 | at[i]
    return value


cdef inline uint64_t little32(const uint8_t *at) noexcept nogil:
    return at[0] | at[1] << 8 | at[2] << 16 | <uint64_t>at[3] << 24


cdef struct Alike:
    const uint8_t *before   # the bytes of a record before the length of the pad
    size_t n_before
    const uint8_t *after    # between the pad and the length of the payload
    size_t n_after
    const uint8_t *end      # the bytes behind the payload
    size_t n_end

cdef struct Question:
    int fd
    bint tells              # the kernel says what is in the page cache
    int flags               # of preadv2
    size_t read             # how much of a record is read, so that its checksum is in it [bytes]
    uint64_t tid            # revisions before this one
    const uint8_t *magic    # of a checksum in the pad
    size_t n_magic
    Alike[LIKES] likes
    int n_likes


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


cdef bint is_cold(int fd, int64_t pos, size_t n) noexcept nogil:
    """Say whether some bytes are not in the page cache; False if the kernel does not tell."""
    cdef int64_t os_page = sysconf(_SC_PAGESIZE)
    cdef cachestat_t found
    if cachestat(fd, pos, n, &found) != 0:      # it is older, or the file is another user's
        return False
    return <int64_t>found.cached < (pos + <int64_t>n - 1) // os_page - pos // os_page + 1


cdef ssize_t read_part(const Question *ask, uint8_t *buf, size_t size, int64_t pos, size_t n,
                       Found *found, int part) noexcept nogil:
    """Read a part of a record: the n bytes that are needed, or up to size, if these are there."""
    if ask.tells and is_cold(ask.fd, pos, size):
        size = n
        found.cold[part] |= is_cold(ask.fd, pos, n)
    found.at[part] = pos
    return read_at(ask.fd, buf, size, pos, ask.flags)


cdef const uint8_t *window_at(Window *window, const Question *ask, int64_t pos, size_t n,
                              Found *found, int part) noexcept nogil:
    """Return bytes [pos, pos + n) of the file; NULL: they are not there.

    More is read with them: mostly the head of the next record follows the end of one.
    """
    if pos < window.pos or pos + <int64_t>n > window.pos + window.n:
        window.pos = pos
        window.n = read_part(ask, window.buf, window.size, pos, n, found, part)
        if window.n < <ssize_t>n:
            window.n = max(window.n, 0)
            return NULL
    return window.buf + (pos - window.pos)


cdef void look(const Question *ask, const uint8_t *oid, int64_t pos, Window *window,
               Found *found, Records *small) noexcept nogil:
    """Find the payload of one record, if it is alike, or its bytes."""
    cdef uint64_t size
    cdef size_t n
    cdef int i
    cdef const uint8_t *buf
    found.kind = OTHER
    memset(found.at, 0, sizeof(found.at))
    memset(found.cold, 0, sizeof(found.cold))
    if pos <= 0:
        return
    buf = window_at(window, ask, pos, HEADER, found, 0)
    if buf == NULL or memcmp(buf, oid, 8) != 0 or big64(buf + 8) >= ask.tid:
        return
    size = big64(buf + 34)
    if buf[32] != 0 or buf[33] != 0 or size == 0:       # a version; written by undo
        return
    n = min(HEADER + size, ask.read)
    buf = window_at(window, ask, pos, n, found, 0)
    if buf == NULL:
        return
    for i in range(ask.n_likes):
        if is_like(ask, &ask.likes[i], buf, n, pos, size, found):
            # no part of a truncated record may be shown
            found.offset += pos
            buf = window_at(window, ask, found.offset + found.size, ask.likes[i].n_end, found, 2)
            if buf == NULL or memcmp(buf, ask.likes[i].end, ask.likes[i].n_end) != 0:
                return
            found.like = i
            found.kind = ALIKE
            return
    if HEADER + size <= n:
        keep(buf + HEADER, size, found, small)


cdef bint is_like(const Question *ask, const Alike *like, const uint8_t *buf, size_t n, int64_t pos,
                  uint64_t size, Found *found) noexcept nogil:
    """Say whether a record of a size, of which buf has n bytes, is alike, but for its end."""
    cdef size_t pad = HEADER + like.n_before + 4, start, rest = like.n_after + 4
    cdef uint8_t[LONGEST_AFTER] after
    if pad + ask.n_magic + DIGEST > n or memcmp(buf + HEADER, like.before, like.n_before) != 0:
        return False
    start = pad + little32(buf + pad - 4)
    if start + rest > HEADER + size:
        return False
    found.has_digest = (start - pad >= ask.n_magic + DIGEST and
                        memcmp(buf + pad, ask.magic, ask.n_magic) == 0)
    if found.has_digest:
        memcpy(found.digest, buf + pad + ask.n_magic, DIGEST)
    if start + rest <= n:
        buf += start
    else:
        # a long pad; no byte of the payload is read: its large page of the cache would be cut
        if read_part(ask, after, rest, pos + <int64_t>start, rest, found, 1) != <ssize_t>rest:
            return False
        buf = after
    if memcmp(buf, like.after, like.n_after) != 0:
        return False
    found.offset = start + rest
    found.size = little32(buf + like.n_after)
    return found.offset - HEADER + found.size + like.n_end == size


cdef void keep(const uint8_t *record, size_t size, Found *found, Records *small) noexcept nogil:
    """Keep the bytes of a SMALL record, if there is memory."""
    cdef void *more
    if small.used + size > small.size:
        more = realloc(small.at, 2 * small.size + SPARE)
        if more == NULL:
            return
        small.at = <uint8_t *>more
        small.size = 2 * small.size + SPARE
    memcpy(small.at + small.used, record, size)
    found.offset = small.used
    found.size = size
    found.kind = SMALL
    small.used += size


def cold_at(int fd, int64_t pos, size_t size):
    """Say whether some of these bytes are not in the page cache; False if that is not known."""
    return is_cold(fd, pos, size)


def drop(int fd, int64_t pos, int64_t size):
    """Drop bytes [pos, pos + size) from the page cache, if no process maps or has changed them."""
    cdef int64_t os_page = sysconf(_SC_PAGESIZE), start = pos - pos % os_page
    # whole OS pages: the kernel leaves one that is given in part
    posix_fadvise(fd, start, (pos + size - start + os_page - 1) // os_page * os_page,
                  POSIX_FADV_DONTNEED)


cdef int keep_cold(const Question *ask, const Window *window, const Found *found, int64_t pos,
                   set cold) except -1:
    """Leave a record as cold as it was: drop its parts from the page cache, or remember them."""
    cdef int part
    cdef int64_t at
    for part in range(PARTS):
        at = pos if part == 0 else found.at[part]   # the window may have had the head
        if found.kind == OTHER:
            if found.cold[part]:
                cold.add(at)
        elif found.cold[part] or cold and at in cold:
            cold.discard(at)
            drop(ask.fd, at, LONGEST_AFTER if part == 1 else window.size)
    return 0


def read_heads(int fd, int flags, list oids, list positions, bytes before_tid, list likes,
               bytes magic, size_t read, bint stop, set cold):
    """Return, for each record, what its head says.

    (offset of its payload, its size, digest, which like) of a record that is alike. bytes: the
    record, which is not alike, and small. None: it is neither, or cannot be read without waiting.

    Parameters
    ----------
    fd, flags : int
        Of preadv2(2).
    oids, positions : list of bytes, list of int
        Where the last record of each object is; 0: there is none.
    before_tid : bytes
        A later revision is left out.
    likes : list of (before, after, end)
        The bytes of a record before the length of the pad, between the pad and the length of the
        payload, and behind the payload. The last LIKES of them are used.
    magic : bytes
        The beginning of a pad that has a checksum.
    read : int
        How much of a record is read, so that its checksum is in it [bytes].
    stop : bool
        The first None is the last result: for those that follow, there may be more likes then.
    cold : set of int, or None
        Positions of parts that were not in the page cache when they were asked for. When a record
        is found, its own are dropped from it again: see OpenFile.
    """
    cdef size_t n = len(oids), i
    cdef Question ask
    cdef Found *found
    cdef int64_t *at
    cdef const uint8_t **keys
    cdef uint8_t[HEAD + LONGEST_REST] buf
    cdef Window window
    cdef Records small
    cdef Alike *like
    if read > HEAD or len(before_tid) != 8 or len(positions) != len(oids):
        raise ValueError(f"read is {read}")
    likes = likes[-LIKES:]
    ask.fd = fd
    ask.tells = cold is not None
    ask.flags = flags
    ask.read = read
    ask.tid = big64(<const uint8_t *>PyBytes_AS_STRING(before_tid))
    ask.magic = <const uint8_t *>PyBytes_AS_STRING(magic)
    ask.n_magic = PyBytes_GET_SIZE(magic)
    ask.n_likes = 0
    for before, after, end in likes:
        if len(<bytes?>end) > LONGEST_REST or len(<bytes?>after) + 4 > LONGEST_AFTER:
            raise ValueError(f"{len(after)} bytes after the pad, {len(end)} at the end")
        like = &ask.likes[ask.n_likes]
        like.before = <const uint8_t *>PyBytes_AS_STRING(<bytes?>before)
        like.n_before = PyBytes_GET_SIZE(before)
        like.after = <const uint8_t *>PyBytes_AS_STRING(<bytes?>after)
        like.n_after = PyBytes_GET_SIZE(after)
        like.end = <const uint8_t *>PyBytes_AS_STRING(end)
        like.n_end = PyBytes_GET_SIZE(end)
        ask.n_likes += 1
    window.buf = buf
    window.size = read + LONGEST_REST
    window.pos = window.n = 0
    small.at = NULL
    small.used = small.size = 0
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
                look(&ask, keys[i], at[i], &window, &found[i], &small)
                if stop and found[i].kind == OTHER:
                    n = i + 1
                    break
        result = []
        for i in range(n):
            if cold is not None:
                keep_cold(&ask, &window, &found[i], at[i], cold)
            if found[i].kind == ALIKE:
                result.append((found[i].offset, found[i].size,
                               found[i].digest[:DIGEST] if found[i].has_digest else None,
                               found[i].like))
            elif found[i].kind == SMALL:
                result.append(PyBytes_FromStringAndSize(
                    <const char *>small.at + found[i].offset, found[i].size))
            else:
                result.append(None)
        return result
    finally:
        free(found)
        free(at)
        free(keys)
        free(small.at)
