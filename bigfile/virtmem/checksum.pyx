"""Checksums of blocks that the pager copies into page memory: XXH3-64, without the GIL.

The thread that copies a block may be one of OpenMP, whose caller holds the GIL. So C functions of
XXH3 compare it, which are in the extension module of the package xxhash. If that module hides them,
AVAILABLE is False. Then the pager may not copy a block with a digest, and its loader compares it,
in Python.

This module knows bytes of a file. It runs no Python when it compares.

Locking: none; called without the pager lock.
"""

import ctypes

import xxhash

from libc.errno cimport EINTR, EIO, ENOMEM, errno
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from wendelin.bigfile.virtmem.kernel cimport EBADMSG, pread

from wendelin.lib.adapters.cpython import library_of_xxhash

cdef enum:
    PIECE = 256 << 10       # read at a time, so that it is still in the processor's cache [bytes]

ctypedef void *(*create_t)() noexcept nogil
ctypedef int (*free_t)(void *) noexcept nogil
ctypedef int (*reset_t)(void *) noexcept nogil
ctypedef int (*update_t)(void *, const void *, size_t) noexcept nogil
ctypedef uint64_t (*digest_t)(const void *) noexcept nogil

# functions of xxhash.h
cdef create_t XXH3_createState
cdef free_t XXH3_freeState
cdef reset_t XXH3_64bits_reset
cdef update_t XXH3_64bits_update
cdef digest_t XXH3_64bits_digest


cdef int checksum_compare(int fd, long offset, size_t size, uint64_t digest) noexcept nogil:
    """Compare bytes of a file with their digest. 0, EBADMSG if they do not match, or errno.

    Call it only if AVAILABLE.
    """
    cdef char *piece = <char *>malloc(min(size, <size_t>PIECE) + 1)
    cdef void *state = XXH3_createState()
    cdef ssize_t n
    cdef int err = 0
    if piece == NULL or state == NULL:
        err = ENOMEM
    else:
        XXH3_64bits_reset(state)
    while size != 0 and err == 0:
        n = pread(fd, piece, min(size, <size_t>PIECE), offset)
        if n > 0:
            XXH3_64bits_update(state, piece, n)
            offset += n
            size -= n
        elif n == 0:
            err = EIO
        elif errno != EINTR:
            err = errno
    if err == 0 and XXH3_64bits_digest(state) != digest:
        err = EBADMSG
    if state != NULL:
        XXH3_freeState(state)
    free(piece)
    return err


def _find():
    """Find the functions in the extension module of xxhash, and try them. False: not found."""
    global XXH3_createState, XXH3_freeState
    global XXH3_64bits_reset, XXH3_64bits_update, XXH3_64bits_digest
    cdef void *state
    cdef char[1000] data
    cdef int i
    cdef list found = []
    try:
        library = library_of_xxhash()
        for name in ("XXH3_createState", "XXH3_freeState", "XXH3_64bits_reset",
                     "XXH3_64bits_update", "XXH3_64bits_digest"):
            found.append(ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    except AttributeError:
        return False
    XXH3_createState = <create_t><uintptr_t>found[0]
    XXH3_freeState = <free_t><uintptr_t>found[1]
    XXH3_64bits_reset = <reset_t><uintptr_t>found[2]
    XXH3_64bits_update = <update_t><uintptr_t>found[3]
    XXH3_64bits_digest = <digest_t><uintptr_t>found[4]
    for i in range(1000):
        data[i] = i % 127
    state = XXH3_createState()
    if state == NULL:
        return False
    XXH3_64bits_reset(state)
    XXH3_64bits_update(state, data, sizeof(data))
    digest = XXH3_64bits_digest(state)
    XXH3_freeState(state)
    return digest == xxhash.xxh3_64_intdigest(data[:sizeof(data)])


#: Whether the pager may copy blocks with a digest.
AVAILABLE = _find()
