"""See spool.pyx."""

cdef struct Slots:          # of one size that were freed
    size_t size             # [bytes]
    long *offsets           # n of them [bytes], room for more
    size_t n
    size_t room
    Slots *next

cdef struct Spool:
    char *folder
    # protected by: the pager lock
    int fd                  # -1: no page is in it
    int shares              # 1: other files can share what is in it; 0: no; -1: not known yet
    long end                # of its file [bytes]
    size_t used             # slots in use
    size_t shown            # slots that buffers show, also after they were freed
    size_t cleaned          # slots that threads make holes of, without the lock: it stays open
    Slots *slots            # that are holes
    Slots *given            # that were freed, and have their bytes yet
    Spool *next             # of another folder

# protected by: the pager lock
cdef size_t spool_used      # by pages, in all spools [bytes]

cdef Spool *spool_of(const char *folder) noexcept nogil
cdef int spool_take(Spool *spool, size_t size, long *offset) noexcept nogil
cdef void spool_give(Spool *spool, size_t size, long offset) noexcept nogil
cdef bint spool_shares(Spool *spool) noexcept nogil
cdef void spool_show(Spool *spool) noexcept nogil
cdef void spool_hide(Spool *spool) noexcept nogil
cdef void spool_clean(Spool *spool) noexcept nogil
cdef void spool_count(long change) noexcept nogil
cdef void spool_after_fork() noexcept nogil
