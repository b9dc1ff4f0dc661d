"""BigFile: a file in blocks, the base class of backends; and the results of mapblk.

This module knows what a backend may return. It knows handles only to open one.

Locking: none.
"""

from contextlib import suppress
from operator import index

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc

from wendelin.bigfile.virtmem.kernel cimport _SC_PAGESIZE, sysconf
from wendelin.bigfile.virtmem.mapping cimport Piece, Pieces
from wendelin.bigfile.virtmem.page cimport FILERANGE, NOTHING, ZEROS, Source

from wendelin.bigfile.virtmem.abilities import MOST_MAPPED, FilePieces, FileRange, NamedFile
from wendelin.bigfile.virtmem.checksum import AVAILABLE

#: What mapblk returns for a block that reads as zeros.
HOLE = type("Hole", (), {"__repr__": lambda self: "HOLE", "__slots__": ()})()

cdef size_t os_page = sysconf(_SC_PAGESIZE), most_mapped = MOST_MAPPED

cdef uint64_t number(bytes digest) except? 0:
    """Return a digest, the highest byte first, as a number."""
    cdef const uint8_t *at = digest
    cdef uint64_t value = 0
    cdef int i
    if len(digest) != 8:
        raise ValueError(f"{digest!r} is not a digest")
    for i in range(8):
        value = value << 8 | at[i]
    return value


cdef int source_from(found, size_t blksize, Source *source) except -1:
    """Return the Source of a result of mapblk."""
    source.fd = -1
    source.checked = source.named = False
    source.pieces = NULL
    if found is HOLE:
        source.backing = ZEROS
        return 0
    if isinstance(found, FilePieces):
        return source_of_pieces(found, blksize, source)
    if isinstance(found, NamedFile):
        return source_named(found, blksize, source)
    fd, offset, size, digest = found if isinstance(found, FileRange) else file_range(found)
    source.size = blksize if size is None else size
    if digest is not None:
        if not AVAILABLE:
            raise ValueError(f"mapblk returned {found}: digests cannot be compared here")
        source.checked = True
        source.digest = number(digest)
    mapped = size is None or (source.checked and size == blksize and offset % os_page == 0)
    source.backing = FILERANGE if mapped else NOTHING
    source.offset = offset
    if fd < 0 or source.offset < 0 or source.size > blksize:
        raise ValueError(f"mapblk returned {found}: that is not a place of a block of {blksize} "
                         f"bytes")
    if source.backing == FILERANGE and source.offset % os_page != 0:
        raise ValueError(f"mapblk returned (fd {fd}, offset {offset}): the offset must be a "
                         f"multiple of the OS page, {os_page} bytes")
    source.fd = fd
    return 0


cdef int source_of_pieces(found, size_t blksize, Source *source) except -1:
    """As source_from(), of a FilePieces."""
    cdef size_t n = len(found.pieces), stop = 0, all_of = 0
    cdef Pieces *pieces
    cdef Piece *piece
    pieces = <Pieces *>malloc(sizeof(Pieces) + n * sizeof(Piece))
    if pieces == NULL:
        raise MemoryError
    try:
        pieces.n = <int>n
        for i, (start, offset, size, digest) in enumerate(found.pieces):
            piece = &pieces.piece[<size_t>i]
            piece.start = start
            piece.offset = offset
            piece.size = size
            piece.checked = digest is not None
            if piece.checked:
                if not AVAILABLE:
                    raise ValueError(f"mapblk returned {found}: digests cannot be compared here")
                piece.digest = number(digest)
            all_of |= piece.start | <size_t>piece.offset | piece.size
            if piece.start < stop or piece.size == 0 or piece.size > blksize - piece.start \
                    or piece.offset < 0 or piece.start > blksize:
                raise ValueError(f"mapblk returned {found}: these are not pieces of a block of "
                                 f"{blksize} bytes")
            stop = piece.start + piece.size
        if found.fd < 0 or n == 0:
            raise ValueError(f"mapblk returned {found}: that is not a place")
        source.fd = found.fd
    except BaseException:
        free(pieces)
        raise
    source.backing = FILERANGE if n <= most_mapped and all_of % os_page == 0 else NOTHING
    source.offset = 0
    source.size = stop
    source.pieces = pieces
    return 0


cdef int source_named(found, size_t blksize, Source *source) except -1:
    """As source_from(), of a NamedFile."""
    folder, first, second, size, digest = found
    if folder < 0 or len(first) != 8 or len(second) != 8 or not 0 < size <= blksize:
        raise ValueError(f"mapblk returned {found}: that is not a file of a folder")
    source.backing = FILERANGE
    source.named = True
    source.fd = folder
    source.size = size
    source.offset = int.from_bytes(first, "big", signed=True)
    source.second = int.from_bytes(second, "big")
    source.checked = AVAILABLE
    source.digest = int.from_bytes(digest, "big")
    return 0


cdef object file_range(found):
    """Return the FileRange that a plain tuple means."""
    if isinstance(found, (tuple, list)) and 2 <= len(found) <= 4:
        return FileRange(*found)
    raise TypeError(f"mapblk returned {found!r}: it must be a FileRange, HOLE or None")


def _blksize_of(blksize):
    """Check a block size, and return it [bytes]."""
    size = index(blksize) if hasattr(type(blksize), "__index__") else None
    if size is None:
        raise TypeError(f"blksize must be an integer, not {type(blksize).__name__}")
    if size <= 0 or size % os_page != 0 or size > 1 << 40:
        raise ValueError(f"blksize is {size}: it must be a multiple of the OS page, "
                         f"{os_page} bytes")
    return size


cdef class BigFile:
    """A file in blocks. Subclass it and define how a block is loaded and stored.

    Parameters
    ----------
    blksize : int
        Block size [bytes]; a multiple of the OS page.

    Methods to define
    -----------------
    loadblk(blk, buf)
        Fill buf, a writable buffer of blksize zero bytes, and return None; or return a
        bytes-like object with the block; a shorter one is followed by zeros. Or return a
        NamedFile, which has the block now, and is mapped. Called in any
        thread. Its exception becomes a BlockLoadError of the thread that touched the memory.
    storeblk(blk, buf)
        Store a block; buf is a read-only buffer of blksize bytes.
    mapblk(blk), optional
        Return where a block lies in a file, a FileRange or a tuple of its items: (fd, offset) of a
        file that has all of the block, page-aligned and immutable, is mapped. HOLE for a block of
        zeros. FilePieces for one that lies in several pieces. None: loadblk.
    mapahead(start, stop), optional
        Return {block: result of mapblk}, without None, for those blocks in [start, stop) for
        which it is cheap. Touches of them will not call Python.
    mismatch(blk), optional
        Return the exception that says why a block does not match its digest.
    truncate(blk), optional
        Drop this block and all after it. Without this method, an array that shrinks writes zeros.

    The optional ones are Protocols in `virtmem.abilities`.
    """

    # Subclasses for 0.x give the block size to __new__(), and need not call __init__(). If a
    # subclass has no __new__(), this one gets the arguments of its __init__(), of any kind.

    def __cinit__(self, *args, **kw):
        blksize = args[0] if args else kw.get("blksize")
        if type(self).__new__ is not BigFile.__new__:
            if blksize is not None:  # by the __new__() of a subclass
                self.blksize = _blksize_of(blksize)
        elif hasattr(type(blksize), "__index__"):
            with suppress(TypeError, ValueError):
                self.blksize = _blksize_of(blksize)

    def __init__(self, *args, **kw):
        given = args or kw
        if self.blksize != 0 and type(self).__new__ is not BigFile.__new__:
            if not given or type(self).__init__ is BigFile.__init__:
                return  # the arguments are those of that __new__()
        self.blksize = _blksize_of(*args, **kw)

    def loadblk(self, blk, buf):
        """Load a block; see the class."""
        raise NotImplementedError(f"{type(self).__name__} does not define loadblk")

    def storeblk(self, blk, buf):
        """Store a block; see the class."""
        raise NotImplementedError(f"{type(self).__name__} does not define storeblk")

    def fileh_open(self):
        """Return a new handle, with its own pages and changes."""
        from wendelin.bigfile.virtmem.handle import BigFileH

        return BigFileH(self)
