"""See mapping.pyx."""

from libc.stdint cimport uint8_t, uint64_t

from wendelin.bigfile.virtmem.memory cimport Memory
from wendelin.bigfile.virtmem.ram cimport Place

cdef enum Kind:             # the mapping of one page of an area
    NONE                    # PROT_NONE: a touch faults
    RO                      # page memory, read-only
    RW                      # page memory, read-write
    ZERO                    # anonymous and read-only: the kernel's zero page
    FILE                    # a range of a file, read-only and private
    SINK                    # scrap for writes of a doomed transaction; never stored

cdef struct Piece:          # a range of a block that is a range of a file
    size_t start            # in the block [bytes]
    size_t size             # [bytes]
    long offset             # in the file [bytes]
    bint checked            # copied bytes are compared with:
    uint64_t digest         # XXH3-64 of the range

cdef struct Pieces:         # ascending, not overlapping; zeros are between them, and after them
    int n
    Piece[1] piece          # [n]

cdef struct Origin:         # where the bytes are that an area maps
    Place place
    bint framed             # it is that of a frame
    const Pieces *pieces    # of that file; NULL: all of them are at that place

cdef struct Area:
    char *start             # address range [start, stop): not all of its last page, perhaps
    char *stop
    uint64_t pgoffset       # first page of the file that it shows
    uint64_t pglen          # [pages]
    size_t blksize          # [bytes]
    const Memory *memory    # of the handle; borrowed
    void *fileh             # the FileH; not for this module
    bint keeps              # it may be kept when no view shows it; not for this module
    bint idle               # no view shows it: it gives back first
    Area *prev              # neighbours in the handle's list; not for this module
    Area *next
    # protected by: the pager lock
    # [pglen] of Kind, with flags: SHOWN, it was not NONE since a reset; STAYS, it must stay shown;
    # ELSEWHERE, it is RO or RW, but not of the page's own place; FRAMED, and of a frame; PIECED, it
    # is a FILE of pieces
    uint8_t *kinds
    uint64_t stays          # pages that have STAYS
    uint64_t maps           # kernel mappings it consists of, estimated from above
    uint64_t shown          # pages that have SHOWN: they may have page tables
    uint64_t hand           # page where the next giving back begins
    bint crowded            # it had to give back
    uint64_t expected       # page that a sequential reader touches next; for ahead and touch
    uint64_t streak         # how often in a row that was right; for ahead and touch
    bint scrap              # some pages are SINK, or ZERO instead of a failed load

cdef struct Table:
    Area **areas            # sorted by address, not overlapping
    size_t used
    size_t size

cdef Table live             # areas of this process; protected by: the pager lock

cdef inline size_t area_bytes(const Area *area, uint64_t page, uint64_t n) noexcept nogil:
    """Return how many bytes of pages [page, page + n) an area shows."""
    return min(n * area.blksize, <size_t>(area.stop - area.start) - page * area.blksize)

cdef Area *area_map(const Memory *memory, uint64_t pgoffset, uint64_t pglen, size_t nbytes) \
    noexcept nogil
cdef void area_unmap(Area *area) noexcept nogil
cdef Area *area_lookup(const char *addr) noexcept nogil
cdef Kind area_kind(Area *area, uint64_t page) noexcept nogil
cdef int area_show(Area *area, uint64_t page, uint64_t n, Kind kind, Origin at) noexcept nogil
cdef bint area_is_elsewhere(Area *area, uint64_t page) noexcept nogil
cdef bint area_was_shown(Area *area, uint64_t page) noexcept nogil
cdef void area_set_stays(Area *area, uint64_t page, bint stays) noexcept nogil
cdef bint areas_may_stay() noexcept nogil
cdef bint areas_have_room() noexcept nogil
cdef int area_reset(Area *area) noexcept nogil
cdef void areas_reset_scrap() noexcept nogil
cdef void areas_before_fork() noexcept nogil
cdef void areas_after_fork() noexcept nogil
cdef Area *area_inherited(const char *addr) noexcept nogil
cdef bint area_show_inherited(Area *area, const char *addr) noexcept nogil

cdef Origin NOWHERE
cdef uint64_t areas_maps, areas_shown_bytes
