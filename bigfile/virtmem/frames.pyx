"""Frames: page memory of whole blocks, which is used again.

To give page memory back to the kernel, and to get other memory, cleared, takes as long as to copy a
block into it. So a page that gets all bytes of its block at once has a frame: a range of a memory
file that has been of another page before, mostly. Pages that get less have their memory at their
own place (memory), as all bytes of a frame are written before an area shows it.

            frame_new              page gives it: frame_give
    (no frame) ──► USED ────────────────► SPARE ────── frame_take ───► USED
                    │                       │ idle, or memory is short
                    │ too many are spare    ▼
                    ├───────────────────► HOLE ─────── frame_take ───► USED
                    │ a buffer shows it     ▲
                    └──► (in no list) ──────┘ the last buffer is gone

    USED      a page has it, and ram counts it as that page's memory
    SPARE     it has its memory, and the bytes of its last page, which nobody sees. SPARE_MOST, and
              an eighth of the limit, at most: ram_spare. They go when memory is short
              (ram_reserve), at a fork, and as far as none of them was taken for SECONDS: a thread
              looks after them, which ends with the last one
    HOLE      without memory

A frame whose bytes a buffer shows (see buffer) is not used again before that is gone: it never
shows the bytes of another block.

*The mapping.* All of each memory file is mapped, in chunks. What is written to be stored is copied
into it, and stored out of it: so a frame that was mapped once costs no fault and no system call.
Page tables of it count as memory of the process (RSS), beside those of areas. So blocks that are
only read are not copied through it, and a frame loses its page tables when such a block gets it.
Only allocated memory is touched there: no SIGBUS. Children of a fork do not inherit it.

This module knows sizes. It does not know pages.

Locking: all need the pager lock, except frames_before_fork(), which takes it.
"""

from libc.stdlib cimport calloc, realloc

from wendelin.bigfile.virtmem.kernel cimport (CLOCK_REALTIME, MADV_DONTFORK, MADV_DONTNEED,
                                              MAP_FAILED, MAP_NORESERVE, MAP_SHARED, PROT_NONE,
                                              PROT_READ, PROT_WRITE, clock_gettime, close, madvise,
                                              mmap, mprotect, munmap, pthread_cond_broadcast,
                                              pthread_cond_init, pthread_cond_t,
                                              pthread_cond_timedwait, pthread_join, pthread_t,
                                              timespec)
from wendelin.bigfile.virtmem.ram cimport (pager_lock, pager_mutex, pager_unlock, ram_free,
                                           ram_limit, ram_open, ram_set_trim, ram_spare)
from wendelin.bigfile.virtmem.threads cimport thread_start

cdef enum:
    # [bytes]. Each page with a frame is a mapping of the kernel of its own, of which there are few:
    # smaller blocks would use them up.
    SMALLEST = 256 << 10
    LARGEST = 64 << 20
    SPARE_MOST = 256 << 20
    CHUNK = 64 << 20
    MOST = 1 << 14          # that pages have: more would use up the mappings of the kernel
    FILES = 4               # as the kernel lets one thread at a time write to a file
    SECONDS = 2             # without use: then spare frames are given back, within twice of that

cdef struct File:
    int fd                  # -1: not open
    long end                # of its frames [bytes]
    char **chunks           # where [i*CHUNK, (i + 1)*CHUNK) is mapped
    size_t n_chunks

cdef struct Size:           # frames of one size that no page has
    size_t size             # [bytes]
    Frame *spare
    Frame *holes
    Size *next

# protected by: the pager lock
cdef size_t smallest = SMALLEST
cdef Size *sizes
cdef File[FILES] files
cdef size_t next_file       # for the next new frame
cdef size_t lowest          # what was spare at the least, since the thread looked [bytes]
cdef size_t frames_used     # that pages have
# the thread that looks after spare frames
cdef pthread_cond_t stopped
cdef pthread_t thread
cdef bint started           # there is one, or it has ended and is to be joined
cdef bint ended
cdef bint stop


# ---- frames ----

cdef Frame *frame_take(size_t size, bint to_store) noexcept nogil:
    """Return a frame for a page; NULL: it has its memory at its own place.

    to_store: the page is written through the mapping, if the frame is whole, and soon stored.
    """
    global ram_spare, lowest, frames_used
    cdef Size *of
    cdef Frame *frame
    if size < smallest or size > <size_t>LARGEST or frames_used >= <size_t>MOST:
        return NULL
    of = size_of(size)
    if of == NULL:
        return NULL
    frame = of.spare
    if frame != NULL:
        of.spare = frame.next
        ram_spare -= size
        lowest = min(lowest, ram_spare)
    elif of.holes != NULL:
        frame = of.holes
        of.holes = frame.next
    else:
        frame = frame_new(size)
        if frame == NULL:
            return NULL
    if to_store:
        frame.mapped = frame.addr != NULL
    elif frame.mapped:
        madvise(frame.addr, size, MADV_DONTNEED)
        frame.mapped = False
    frame.used = True
    frames_used += 1
    return frame


cdef void frame_give(Frame *frame) noexcept nogil:
    """A page has no use for its frame any more. No area shows it."""
    global ram_spare, frames_used
    cdef Size *of = size_of(frame.size)
    frame.used = False
    frames_used -= 1
    if frame.whole and frame.buffers == 0 \
            and ram_spare + frame.size <= min(<size_t>SPARE_MOST, ram_limit // 8) \
            and looked_after():
        frame.next = of.spare
        of.spare = frame
        ram_spare += frame.size
    else:
        frame_empty(frame)
        if frame.buffers == 0:
            keep_hole(of, frame)


cdef char *frame_show(Frame *frame) noexcept nogil:
    """A buffer shows the frame of a page, until frame_hide(). NULL: by a mapping of its own."""
    frame.buffers += 1
    return frame.addr if frame.mapped else NULL


cdef void frame_hide(Frame *frame) noexcept nogil:
    frame.buffers -= 1
    if not frame.used and frame.buffers == 0:
        frame_empty(frame)          # again, as a reader of the buffer got memory for it
        keep_hole(size_of(frame.size), frame)


cdef void frame_empty(Frame *frame) noexcept nogil:
    """Give the memory of a frame to the kernel."""
    ram_free(frame.place, frame.size)
    frame.whole = frame.mapped = False


cdef void keep_hole(Size *of, Frame *frame) noexcept nogil:
    frame.next = of.holes
    of.holes = frame


cdef Size *size_of(size_t size) noexcept nogil:
    """Return the lists of a size; NULL: no memory, and there is no frame of this size."""
    global sizes
    cdef Size *of = sizes
    while of != NULL and of.size != size:
        of = of.next
    if of == NULL:
        of = <Size *>calloc(1, sizeof(Size))
        if of != NULL:
            of.size = size
            of.next = sizes
            sizes = of
    return of


cdef Frame *frame_new(size_t size) noexcept nogil:
    """Return a new frame, a hole; NULL: no memory or descriptor."""
    global next_file
    cdef File *file = &files[next_file]
    cdef Frame *frame
    cdef long start = file.end
    if file.fd < 0:
        file.fd = ram_open()
        if file.fd < 0:
            return NULL
    if start % <long>CHUNK + <long>size > <long>CHUNK:
        start = (start // <long>CHUNK + 1) * <long>CHUNK
    frame = <Frame *>calloc(1, sizeof(Frame))
    if frame == NULL:
        return NULL
    frame.place.fd = file.fd
    frame.place.offset = start
    frame.size = size
    frame.addr = mapped_at(file, start)
    file.end = start + size
    next_file = (next_file + 1) % <size_t>FILES
    return frame


cdef char *mapped_at(File *file, long offset) noexcept nogil:
    """Return where an offset of a file is mapped; NULL: nowhere, as the system has no mapping."""
    cdef size_t i = offset // <long>CHUNK
    cdef char **chunks
    cdef void *addr
    if i >= file.n_chunks:
        chunks = <char **>realloc(file.chunks, (i + 1) * sizeof(char *))
        if chunks == NULL:
            return NULL
        file.chunks = chunks
        while file.n_chunks <= i:
            # not accessible at first: else the kernel allocates all of it after mlockall(2)
            addr = mmap(NULL, CHUNK, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file.fd,
                        file.n_chunks * <size_t>CHUNK)
            if addr == MAP_FAILED:
                return NULL
            if mprotect(addr, CHUNK, PROT_READ | PROT_WRITE) != 0:
                munmap(addr, CHUNK)
                return NULL
            madvise(addr, CHUNK, MADV_DONTFORK)
            chunks[file.n_chunks] = <char *>addr
            file.n_chunks += 1
    return file.chunks[i] + offset % <long>CHUNK


cdef void frames_drop_tables() noexcept nogil:
    """Take away the page tables of all frames. A thread that touches one gets them back."""
    cdef size_t i, k
    for i in range(<size_t>FILES):
        for k in range(files[i].n_chunks):
            madvise(files[i].chunks[k], CHUNK, MADV_DONTNEED)


# ---- spare frames ----

cdef Frame *take_spare(size_t *size) noexcept nogil:
    """Take any spare frame out of its list; NULL: there is none. It counts until it is a hole."""
    cdef Size *of = sizes
    cdef Frame *frame
    while of != NULL and of.spare == NULL:
        of = of.next
    if of == NULL:
        return NULL
    frame = of.spare
    of.spare = frame.next
    size[0] = frame.size
    return frame


cdef void frames_trim(size_t size) noexcept nogil:
    """Give back spare frames, so many bytes at least."""
    global ram_spare
    cdef size_t done = 0, n = 0
    cdef Frame *frame
    while done < size:
        frame = take_spare(&n)
        if frame == NULL:
            break
        frame_empty(frame)
        keep_hole(size_of(n), frame)
        ram_spare -= n
        done += n


cdef bint looked_after() noexcept nogil:
    """Make sure that a thread looks after spare frames; False: the system has none to give."""
    global started, ended
    if stop:
        return False
    if started and ended:
        pthread_join(thread, NULL)      # it has left the pager lock, or is about to end
        started = False
    if not started:
        ended = False
        started = thread_start(look, &thread)
    return started


cdef void *look(void *arg) noexcept nogil:
    """The thread: give spare frames back when none was taken for SECONDS."""
    global ram_spare, lowest, ended
    cdef timespec until
    cdef Frame *frame
    cdef size_t n = 0, unused
    pager_lock()
    while True:
        lowest = ram_spare
        clock_gettime(CLOCK_REALTIME, &until)
        until.tv_sec += SECONDS
        while not stop and pthread_cond_timedwait(&stopped, &pager_mutex, &until) == 0:
            pass
        if stop or ram_spare == 0 and lowest == 0:
            break
        unused = min(lowest, ram_spare)
        while unused != 0 and not stop:
            frame = take_spare(&n)
            if frame == NULL:
                break
            pager_unlock()
            frame_empty(frame)      # nobody else has it
            pager_lock()
            keep_hole(size_of(n), frame)
            ram_spare -= n
            unused -= min(unused, n)
    ended = True
    pager_unlock()
    return NULL


cdef void frames_before_fork() noexcept nogil:
    """Give all spare frames back, and end the thread: Python warns of threads at a fork."""
    global stop, started
    cdef bint join
    pager_lock()
    frames_trim(ram_spare)
    join = started and not stop
    stop = stop or join
    pthread_cond_broadcast(&stopped)
    pager_unlock()
    if join:
        pthread_join(thread, NULL)
        pager_lock()
        started = stop = False
        pager_unlock()


cdef void frames_after_fork() noexcept nogil:
    """In the child of a fork: the files, and the frames in them, are the parent's."""
    global sizes, started, stop, frames_used
    cdef size_t i
    frames_used = 0
    sizes = NULL                # and ram_spare is 0: ram_after_fork()
    started = stop = False
    pthread_cond_init(&stopped, NULL)
    for i in range(<size_t>FILES):
        if files[i].fd >= 0:
            close(files[i].fd)
        files[i].fd = -1
        files[i].end = 0
        files[i].n_chunks = 0


def spare():
    """Return how much memory no page has, and the next ones get [bytes]."""
    return ram_spare


def set_smallest(size_t size):
    """Set the size from which blocks have frames [bytes]: for tests."""
    global smallest
    smallest = size


for _i in range(FILES):
    files[_i].fd = -1
pthread_cond_init(&stopped, NULL)
ram_set_trim(frames_trim)
