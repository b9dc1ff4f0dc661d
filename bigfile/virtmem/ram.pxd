"""See ram.pyx."""

from libc.stdint cimport uint64_t

from wendelin.bigfile.virtmem.kernel cimport (pthread_cond_t, pthread_mutex_lock, pthread_mutex_t,
                                              pthread_mutex_unlock)

cdef enum Queue:
    OFF                     # dirty, loading, or not in page memory
    HOT                     # clean and accessible
    COLD                    # clean and protected: next to go unless it is touched
    PINNED                  # clean and accessible, and not given back

cdef struct Resident:       # embedded in a page as its first field
    Resident *prev
    Resident *next
    Queue queue
    size_t size             # [bytes] of page memory that it has, or is getting
    bint spooled            # that is in a spool, and does not count here

cdef struct Place:          # where the bytes of a page are, in a file
    int fd
    long offset             # [bytes]

cdef inline size_t ram_counted(const Resident *res) noexcept nogil:
    """Return how much memory a page takes [bytes]."""
    return 0 if res.spooled else res.size

cdef size_t os_page         # [bytes]

cdef inline size_t whole_os_pages(size_t size) noexcept nogil:
    return (size + os_page - 1) // os_page * os_page

# The one lock of the pager; see "Locking" in page.pyx.
cdef pthread_mutex_t pager_mutex
cdef pthread_cond_t pager_cond

cdef inline void pager_lock() noexcept nogil:
    pthread_mutex_lock(&pager_mutex)

cdef inline void pager_unlock() noexcept nogil:
    pthread_mutex_unlock(&pager_mutex)

# protected by: the pager lock
cdef size_t ram_limit       # of all pages [bytes]
cdef size_t ram_memory      # that this process may use [bytes]
cdef size_t ram_largest     # of one page [bytes]
cdef size_t ram_clean       # [bytes] in HOT, COLD and PINNED
cdef size_t ram_pinned      # [bytes] in PINNED
cdef size_t ram_dirty       # [bytes]
cdef size_t ram_loading     # [bytes] reserved by pages that are being loaded
cdef size_t ram_spare       # [bytes] of no page, kept for the next ones: see frames

cdef void ram_set_ops(void (*cool)(Resident *) noexcept nogil,
                      void (*evict)(Resident *) noexcept nogil) noexcept nogil
cdef void ram_set_trim(void (*trim)(size_t) noexcept nogil) noexcept nogil
cdef int ram_open() noexcept nogil
cdef int fd_high(int fd) noexcept nogil
cdef int ram_alloc(Place memory, size_t start, size_t stop) noexcept nogil
cdef int ram_write(Place memory, const char *data, size_t size) noexcept nogil
cdef int ram_copy(Place memory, size_t size, int fd, long start) noexcept nogil
cdef int ram_free(Place memory, size_t size) noexcept nogil

cdef int ram_reserve(size_t size) noexcept nogil
cdef void ram_hold(Resident *res) noexcept nogil
cdef void ram_unreserve(size_t size) noexcept nogil
cdef void ram_add(Resident *res) noexcept nogil
cdef void ram_touch(Resident *res) noexcept nogil
cdef void ram_remove(Resident *res) noexcept nogil
cdef bint ram_may_pin(size_t size) noexcept nogil
cdef void ram_pin(Resident *res) noexcept nogil
cdef void ram_unpin(Resident *res) noexcept nogil
cdef bint ram_may_dirty(size_t size, bint spool) noexcept nogil
cdef void ram_make_dirty(Resident *res) noexcept nogil
cdef void ram_make_clean(Resident *res) noexcept nogil
cdef void ram_forget_dirty(Resident *res) noexcept nogil
cdef int ram_grow(Resident *res, Place memory, size_t size) noexcept nogil
cdef void ram_read_once(int fd, size_t shown) noexcept nogil
cdef size_t ram_reclaim_all() noexcept nogil
cdef void ram_after_fork() noexcept nogil
