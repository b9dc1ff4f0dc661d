"""Spools: files on a disk with the memory of changed pages for which there is no room in memory.

Or of those that are stored in a file of the same file system, if that can share bytes: overwrite.

A spool is a folder, and a file in it that has no name. So the file is gone with the process,
whatever ends that. It is made for the first page, and closed after the last one.

A page in a spool has a slot: a range of the file that is mapped shared, as page memory is. The
kernel writes it to the disk and drops it when memory is short, and reads it again when a thread
touches it. The caller allocates the range (fallocate) before it is shown, so that a full disk is an
errno and not a SIGBUS. A slot that was freed is made a hole; the next page of that size gets it
first. To make a hole takes as long as the disk wants, so spool_clean() does that without the lock.

This module knows files and sizes. It does not know pages.

Locking: all need the pager lock, except spool_of() and spool_clean(), which take it.
"""

import os
import tempfile

from libc.errno cimport EINTR, EISDIR, errno
from libc.stdlib cimport calloc, free, getenv, realloc
from libc.string cimport strcmp, strdup

from wendelin.bigfile.virtmem.kernel cimport (BTRFS_SUPER_MAGIC, EOPNOTSUPP, FALLOC_FL_KEEP_SIZE,
                                              FALLOC_FL_PUNCH_HOLE, FICLONERANGE, FS_IOC_GETFLAGS,
                                              FS_IOC_SETFLAGS, FS_NOCOW_FL, O_CLOEXEC, O_RDWR,
                                              O_TMPFILE, RAMFS_MAGIC, TMPFS_MAGIC, close, fallocate,
                                              file_clone_range, fstatfs, ftruncate, ioctl, mkostemp,
                                              open_, snprintf, statfs_, statfs_t, unlink)
from wendelin.bigfile.virtmem.ram cimport fd_high, pager_lock, pager_unlock

cdef enum:
    HUGE = 1 << 21          # [bytes]: large slots begin at multiples of this
    MOST_FOLDERS = 64

cdef Spool *spools          # all; protected by: the pager lock
#: What spool_folder() has found, for thousands of files in a database. A folder that cannot be
#: written to any more is an error when a page needs it.
cdef dict folders = {}


cdef Spool *spool_of(const char *folder) noexcept nogil:
    """Return the spool of a folder, which lives as long as the process. NULL: no memory."""
    cdef Spool *spool
    pager_lock()
    spool = spools
    while spool != NULL and strcmp(spool.folder, folder) != 0:
        spool = spool.next
    if spool == NULL:
        spool = spool_new(folder)
    pager_unlock()
    return spool


cdef Spool *spool_new(const char *folder) noexcept nogil:
    global spools
    cdef Spool *spool = <Spool *>calloc(1, sizeof(Spool))
    if spool == NULL:
        return NULL
    spool.folder = strdup(folder)
    if spool.folder == NULL:
        free(spool)
        return NULL
    spool.fd = -1
    spool.shares = -1
    spool.next = spools
    spools = spool
    return spool


cdef int spool_take(Spool *spool, size_t size, long *offset) noexcept nogil:
    """Give a page a slot, which is a hole until the caller allocates it. 0 or errno."""
    cdef long start = spool.end
    if spool.fd < 0:
        spool.fd = fd_high(file_open(spool.folder))
        if spool.fd < 0:
            return errno
    # One that is not a hole yet is made one here: there may be no room for more on the disk. While
    # a buffer shows a slot, none is used again: no buffer shows another block.
    if spool.shown != 0 or not take(slots_of(spool.slots, size), offset) and not (
            take(slots_of(spool.given, size), offset) and punch(spool.fd, size, offset[0])):
        if size >= <size_t>HUGE:
            start = (start + HUGE - 1) // HUGE * HUGE
        if ftruncate(spool.fd, start + size) != 0:
            return spool_failed(spool)
        offset[0] = start
        spool.end = start + size
    spool.used += 1
    return 0


cdef bint spool_shares(Spool *spool) noexcept nogil:
    """Say whether other files of its file system can share bytes with its file (reflinks).

    Not on btrfs: the file is one whose bytes are changed in place there, and these are not shared.
    (With one whose are, an append took as long as before.)
    """
    if spool.shares < 0:
        spool.shares = can_share(spool.folder)
    return spool.shares == 1


cdef int can_share(const char *folder) noexcept nogil:
    """1 or 0; -1: it cannot be found out now."""
    cdef file_clone_range range
    cdef int to, fd = file_open(folder)
    cdef bint shares = False
    if fd < 0:
        return -1
    to = open_(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0o600)
    if to >= 0:
        range.src_fd = fd
        range.src_offset = range.src_length = range.dest_offset = 0
        shares = ftruncate(fd, HUGE) == 0 and ioctl(to, FICLONERANGE, &range) == 0
        close(to)
    close(fd)
    return shares


cdef int spool_failed(Spool *spool) noexcept nogil:
    cdef int err = errno
    if is_unused(spool):
        close_file(spool)
    return err


cdef bint is_unused(const Spool *spool) noexcept nogil:
    return spool.used == 0 and spool.cleaned == 0 and spool.shown == 0


cdef void spool_show(Spool *spool) noexcept nogil:
    """A buffer shows a slot, until spool_hide()."""
    spool.shown += 1


cdef void spool_hide(Spool *spool) noexcept nogil:
    spool.shown -= 1
    if spool.fd >= 0 and is_unused(spool):
        close_file(spool)


cdef void spool_give(Spool *spool, size_t size, long offset) noexcept nogil:
    """Take a page's slot back. The caller gives its room on the disk back: spool_clean()."""
    spool.used -= 1
    if is_unused(spool) and any_slot(spool.given) == NULL:
        close_file(spool)       # there was one slot
    else:
        keep_slot(&spool.given, size, offset)


cdef void spool_clean(Spool *spool) noexcept nogil:
    """Give the room of freed slots back to the disk. Without the pager lock."""
    cdef Slots *slots
    cdef size_t size
    cdef long offset = 0
    cdef int fd
    cdef bint done
    if spool == NULL or spool.fd < 0:
        return
    pager_lock()
    while spool.fd >= 0:
        fd = spool.fd
        slots = any_slot(spool.given)
        if is_unused(spool):
            forget_file(spool)
            pager_unlock()
            close(fd)
            pager_lock()
        elif slots == NULL:
            break
        else:
            size = slots.size
            take(slots, &offset)
            spool.cleaned += 1
            pager_unlock()
            done = punch(fd, size, offset)
            pager_lock()
            spool.cleaned -= 1
            if done:            # else it may have bytes, and a new page is all zeros
                keep_slot(&spool.slots, size, offset)
    pager_unlock()


cdef bint punch(int fd, size_t size, long offset) noexcept nogil:
    while fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size) != 0:
        if errno != EINTR:
            return False
    return True


cdef Slots *slots_of(Slots *slots, size_t size) noexcept nogil:
    """Return those of a size; NULL: there are none."""
    while slots != NULL and slots.size != size:
        slots = slots.next
    return slots


cdef Slots *any_slot(Slots *slots) noexcept nogil:
    """Return those of a size of which there is one; NULL: there is none."""
    while slots != NULL and slots.n == 0:
        slots = slots.next
    return slots


cdef bint take(Slots *slots, long *offset) noexcept nogil:
    """Take one of some slots; False: there is none."""
    if slots == NULL or slots.n == 0:
        return False
    slots.n -= 1
    offset[0] = slots.offsets[slots.n]
    return True


cdef void keep_slot(Slots **list, size_t size, long offset) noexcept nogil:
    """Remember a slot. Without memory for that, it is lost until the file is closed."""
    cdef Slots *slots = slots_of(list[0], size)
    cdef long *offsets
    cdef size_t room
    if slots == NULL:
        slots = <Slots *>calloc(1, sizeof(Slots))
        if slots == NULL:
            return
        slots.size = size
        slots.next = list[0]
        list[0] = slots
    if slots.n == slots.room:
        room = max(2 * slots.room, <size_t>64)
        offsets = <long *>realloc(slots.offsets, room * sizeof(long))
        if offsets == NULL:
            return
        slots.offsets = offsets
        slots.room = room
    slots.offsets[slots.n] = offset
    slots.n += 1


cdef int file_open(const char *folder) noexcept nogil:
    """Return a new file without a name; -1 with errno."""
    cdef char[4096] name
    cdef statfs_t fs
    cdef int flags = 0, length
    cdef int fd = open_(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0o600)
    if fd < 0 and errno in (EOPNOTSUPP, EISDIR):
        length = snprintf(name, sizeof(name), b"%s/.wendelin.core-spool-XXXXXX", folder)
        if 0 < length < <int>sizeof(name):
            fd = mkostemp(name, O_CLOEXEC)
            if fd >= 0:
                unlink(name)
    # btrfs would write changed bytes elsewhere, where there may be no room
    if fd >= 0 and fstatfs(fd, &fs) == 0 and fs.f_type == BTRFS_SUPER_MAGIC \
            and ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0:
        flags |= FS_NOCOW_FL
        ioctl(fd, FS_IOC_SETFLAGS, &flags)
    return fd


cdef void close_file(Spool *spool) noexcept nogil:
    """Close the file of a spool that has no page."""
    cdef int fd = spool.fd
    forget_file(spool)
    close(fd)


cdef void forget_file(Spool *spool) noexcept nogil:
    spool.fd = -1
    spool.end = 0
    free_slots(spool.slots)
    free_slots(spool.given)
    spool.slots = spool.given = NULL


cdef void free_slots(Slots *slots) noexcept nogil:
    cdef Slots *next
    while slots != NULL:
        next = slots.next
        free(slots.offsets)
        free(slots)
        slots = next


cdef void spool_count(long change) noexcept nogil:
    """Pages have more, or less, in spools."""
    global spool_used
    spool_used += change


cdef void spool_after_fork() noexcept nogil:
    """In the child of a fork: the files, and the pages in them, are the parent's."""
    global spool_used
    cdef Spool *spool = spools
    spool_used = 0
    while spool != NULL:
        spool.used = spool.cleaned = spool.shown = 0
        if spool.fd >= 0:
            close_file(spool)
        spool = spool.next


# ---- which folder ----

def spool_folder(near=None):
    """Return the folder of the spool of a file; None: it has none.

    It is WENDELIN_CORE_SPOOL. Without that, the folder of the database, or else that of temporary
    files: the first that can be written to, and is on a disk, as a file in memory would not help.

    Parameters
    ----------
    near : str, optional
        The folder of the database, if that is a local file.

    Raises
    ------
    ValueError
        WENDELIN_CORE_SPOOL is not a folder that can be written to.
    """
    given = None
    if getenv("WENDELIN_CORE_SPOOL") != NULL:   # os.environ takes long to say no
        given = os.environ.get("WENDELIN_CORE_SPOOL")
    if given == "0":
        return None
    found = folders.get((given, near, tempfile.tempdir))
    if found is None:
        found = find_folder(given, near, tempfile.gettempdir())
        if found is not None:
            if len(folders) >= MOST_FOLDERS:
                folders.clear()
            folders[given, near, tempfile.tempdir] = found
    return found


cdef find_folder(given, near, temporary):
    if given is not None:
        if not is_writable(given):
            raise ValueError(f"WENDELIN_CORE_SPOOL is {given!r}: it must be a folder in which "
                             f"files can be made, or 0")
        return os.path.abspath(given)
    for folder in (near, temporary):
        if folder is not None and is_writable(folder) and not is_in_memory(folder):
            return os.path.abspath(folder)
    return None


cdef bint is_writable(folder) except -1:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


cdef bint is_in_memory(folder) except -1:
    cdef statfs_t fs
    cdef bytes name = os.fsencode(folder)
    return statfs_(name, &fs) == 0 and fs.f_type in (TMPFS_MAGIC, RAMFS_MAGIC)


def spooled():
    """Return how much is in all spools of this process [bytes]."""
    return spool_used
