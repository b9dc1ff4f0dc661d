"""See page.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.frames cimport Frame
from wendelin.bigfile.virtmem.kernel cimport pthread_t
from wendelin.bigfile.virtmem.mapping cimport Area, Kind, Origin, Pieces
from wendelin.bigfile.virtmem.pagemap cimport PageMap
from wendelin.bigfile.virtmem.known cimport Pool
from wendelin.bigfile.virtmem.memory cimport Memory
from wendelin.bigfile.virtmem.ram cimport Resident
from wendelin.bigfile.virtmem.spool cimport Spool

cdef enum State:
    LOCATED
    LOADING
    LOADED
    DIRTY                   # EMPTY has no page at all

cdef enum Backing:
    NOTHING
    ZEROS
    FILERANGE
    MEMFD                   # page memory: see places

cdef enum Failure:          # why a touch cannot be served, other than by a failed load
    NO_FAILURE
    DIRTY_LIMIT             # dirty pages alone would pass the memory limit
    NO_MEMORY               # the system gave no memory for the page
    SPOOL_FAILED            # dirty pages would pass the limit, and the spool takes no more
    NO_MAPPING              # the system gave no mapping for the page
    FORKED                  # the handle is the parent's of this process
    TOUCH_IN_LOAD           # the thread that loads a page touched it
    CIRCULAR_LOAD           # two loaders touched each other's pages
    WRITE_IN_WRITEOUT       # the thread that writes out changed a page
    BROKEN_FILE             # the file that a page is mapped from cannot be read there
    LOAD_FAILED             # the file failed to load the block
    CHANGE_REFUSED          # first_change() refused a change
    EXITING                 # the interpreter is going away: no Python is called

cdef enum Purpose:          # of a load: where its failure goes
    FOR_TOUCH               # to the thread that touched: an exception is on its way
    FOR_CALL                # to the caller of fileh_load(): Failed has it
    AHEAD                   # nowhere: a thread that touches the page gets its own

cdef struct Failed:         # the failure of a load
    Failure why             # NO_FAILURE: it succeeded
    int err                 # BROKEN_FILE, NO_MEMORY: the errno
    # FOR_CALL: the exception to be raised, owned; also of a load that is done, if it was
    # interrupted. NULL: none, or none could be made
    void *exc

cdef struct Source:         # where a block is
    # ZEROS; FILERANGE: to be mapped from a file; NOTHING: to be copied from a file;
    # MEMFD: it is in page memory already, see page_fill
    Backing backing
    int fd                  # of the file, open for as long as the handle lives; -1: no file
    long offset             # in the file [bytes]; named: the first part of its name
    size_t size             # [bytes] of the block that the file has; zeros are after that
    Pieces *pieces          # where they are, if not in one piece. Owned, see page_set_source()
    uint64_t load           # of op_load: Page.load
    # fd is a folder. The file is the one that source_open() opens there, for as long as it takes to
    # map it: it begins with the block, and may be gone
    bint named
    bint checked            # copied bytes are compared with:
    uint64_t digest         # XXH3-64 of the block's bytes that the file has
    uint64_t second         # named: the second part of its name

cdef struct Located:        # where a block is that no thread has touched yet
    uint64_t blk
    Source source           # not MEMFD

cdef struct FileH
cdef struct Page:
    Resident res            # must be first: ram calls back with it
    FileH *fileh
    uint64_t blk
    # protected by: the pager lock; state and backing change only in page.pyx
    State state
    Backing backing         # what it has in memory
    pthread_t loader        # LOADING: the thread that loads it
    uint64_t load           # LOADING: the number of the load
    bint begun              # LOADING: the file was asked. Until then its thread may take it over
    bint reload             # LOADING: the block has changed meanwhile
    bint ahead              # it is posted to be read ahead
    bint stored             # DIRTY: stored since its last change
    long slot               # of the spool, where its memory is [bytes]; -1: not there
    Frame *frame            # that has its memory; NULL: none
    unsigned int pins       # number of pins, which keep it shown: see ready.pyx
    Source source           # where it is, or is again after reclaim, if it has an fd
    Page *list_prev         # DIRTY, LOADING: neighbours in the handle's list of these
    Page *list_next

cdef struct Counts:         # of a handle, since it was opened; see stats.py
    uint64_t faults, loads, reclaims, failures, waits
    uint64_t resident       # page memory, now [bytes]
    uint64_t dirty          # of it, of changed pages [bytes]
    uint64_t spooled        # page memory in the spool, now [bytes]
    uint64_t mapped         # pages shown from a file, now

cdef struct FileH:
    char[96] name           # of its file, for messages
    size_t blksize          # [bytes]
    Memory memory           # where its pages have their memory
    Spool *spool            # where changes have it that would pass the limit; NULL: nowhere
    bint shares             # its file can share what is in the spool: HasFolder
    int generation          # of the process that made it: see pager_generation
    # protected by: the GIL
    void *pyfileh           # its BigFileH, borrowed; NULL when that is gone
    # protected by: the pager lock
    int refs                # its BigFileH, its areas, the loads in progress
    PageMap pages           # of a Page, or of a Known, which is one in less space
    Pool known
    uint64_t end            # no page is at this block, or after it
    Area *areas             # also the kept one
    Area *kept              # that no view shows: see fileh_unmap
    uint64_t views          # areas that views show
    Page *dirty
    Page *loading
    size_t ndirty
    size_t nstored          # of them, pages that did not change since they were stored
    bint wants_first_change     # op_first_change is called at the first change of a transaction
    bint first_change_told      # it was called
    uint64_t transactions       # number that have ended
    uint64_t epoch          # changes whenever a place of a block may have changed
    uint64_t zero_from      # pages from here on read as zeros, whatever the file has
    int frozen              # write-outs in progress (nested, of one thread)
    pthread_t writer        # the thread that writes out
    # since changes were discarded: a touch failed, at which block. Zeros may have been read
    Failure doom
    uint64_t doom_blk
    bint doom_told          # the transaction was informed, or there was none
    Counts counts

# the functions given to page_set_ops()
cdef void (*op_load)(FileH *, uint64_t, Source *, Purpose, Failed *) noexcept nogil
cdef void (*op_fail)(FileH *, uint64_t, Failure, int) noexcept nogil
cdef int (*op_first_change)(FileH *, uint64_t) noexcept nogil
cdef void (*op_wait)() noexcept nogil

cdef int pager_generation   # changes in the child of a fork
cdef bint pager_exiting     # the interpreter is going away: no Python for a fault

cdef void page_set_ops(void (*load)(FileH *, uint64_t, Source *, Purpose, Failed *) noexcept nogil,
                       void (*fail)(FileH *, uint64_t, Failure, int) noexcept nogil,
                       int (*first_change)(FileH *, uint64_t) noexcept nogil,
                       void (*wait)() noexcept nogil) noexcept nogil
cdef void page_set_exiting() noexcept nogil
cdef void page_become(Page *page, State state, Backing backing) noexcept nogil
cdef void page_set_backing(Page *page, Backing backing) noexcept nogil
cdef void page_set_stored(Page *page, bint stored) noexcept nogil
cdef Page *page_new(FileH *fileh, uint64_t blk) noexcept nogil
cdef Page *page_peek(FileH *fileh, uint64_t blk, Page *copy) noexcept nogil
cdef Page *page_get(FileH *fileh, uint64_t blk) noexcept nogil
cdef Page *page_own(FileH *fileh, uint64_t blk) noexcept nogil
cdef bint fileh_know(FileH *fileh, uint64_t blk, const Source *source) noexcept nogil
cdef void fileh_unknow(FileH *fileh, uint64_t blk) noexcept nogil
cdef void page_protect(Page *page, Kind most) noexcept nogil
cdef Origin page_shown_from(const Page *page) noexcept nogil
cdef Kind page_kind(const Page *page) noexcept nogil
cdef void page_set_source(Page *page, const Source *source) noexcept nogil
cdef size_t page_needs(const Page *page, size_t size) noexcept nogil
cdef int page_reach(Page *page, Area *area, uint64_t i) noexcept nogil
cdef enum:
    GONE = -1               # page_map(): the file that had the block is not there
cdef int source_open(const Source *source) noexcept nogil
cdef int page_map(const Page *page, Area *area, uint64_t i, Kind kind) noexcept nogil
cdef void page_show(Page *page, bint stays) noexcept nogil
cdef void page_drop(Page *page) noexcept nogil
cdef void page_free_memory(Page *page) noexcept nogil
cdef void page_after_fork() noexcept nogil
cdef void fileh_doom(FileH *fileh, uint64_t blk, Failure why) noexcept nogil
cdef void fileh_undoom(FileH *fileh) noexcept nogil
cdef void fatal(const char *msg) noexcept nogil
cdef void page_forget(Page *page) noexcept nogil
cdef void page_free(Page *page) noexcept nogil
