"""Kernel and libc declarations of the pager: pure extern, nothing of our own.

Sections are in the order of the Linux manual: memory (2), files (2), signals (2), threads (3).
"""

cdef extern from *:
    ctypedef char volatile_char "volatile char"

cdef extern from "<sys/mman.h>" nogil:
    """
    #ifndef MADV_POPULATE_READ
    #define MADV_POPULATE_READ 22       /* Linux 5.14; libc may be older */
    #define MADV_POPULATE_WRITE 23
    #endif
    """
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int mprotect(void *addr, size_t length, int prot)
    int madvise(void *addr, size_t length, int advice)
    int mincore(void *addr, size_t length, unsigned char *vec)
    int memfd_create(const char *name, unsigned int flags)
    void *MAP_FAILED
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_ANONYMOUS, MAP_NORESERVE
    int MAP_POPULATE
    int MADV_DONTNEED, MADV_DONTFORK, MADV_HUGEPAGE, MADV_POPULATE_READ, MADV_POPULATE_WRITE
    int MADV_WILLNEED
    unsigned int MFD_CLOEXEC

cdef extern from "<errno.h>" nogil:
    """
    #define wc_set_errno(e) (errno = (e))
    """
    int EBADMSG, EDEADLK, EOPNOTSUPP
    void set_errno "wc_set_errno"(int err)

cdef extern from "<fcntl.h>" nogil:
    int posix_fadvise(int fd, long offset, long length, int advice)
    int POSIX_FADV_NOREUSE
    int fallocate(int fd, int mode, long offset, long length)
    int fcntl(int fd, int cmd, ...)
    int FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
    ssize_t splice(int fd_in, long *off_in, int fd_out, long *off_out, size_t len,
                   unsigned int flags)
    int F_DUPFD_CLOEXEC, F_SETPIPE_SZ, O_CLOEXEC, O_RDONLY, O_RDWR, O_TMPFILE
    int O_NOFOLLOW
    int open_ "open" (const char *path, int flags, ...)
    int sync_file_range(int fd, long offset, long nbytes, unsigned int flags)
    unsigned int SYNC_FILE_RANGE_WRITE
    int openat(int folder, const char *path, int flags, ...)

cdef extern from "<sched.h>" nogil:
    ctypedef struct cpu_set_t:
        pass
    int sched_getaffinity(int pid, size_t size, cpu_set_t *cpus)
    int CPU_COUNT(cpu_set_t *cpus)

cdef extern from "<stdlib.h>" nogil:
    int mkostemp(char *template, int flags)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *str, size_t size, const char *format, ...)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<linux/fs.h>" nogil:
    unsigned long FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FICLONERANGE
    int FS_NOCOW_FL
    struct file_clone_range:
        long src_fd
        unsigned long src_offset, src_length, dest_offset

cdef extern from "<sys/vfs.h>" nogil:
    """
    #include <linux/magic.h>
    """
    ctypedef struct statfs_t "struct statfs":
        long f_type
    int statfs_ "statfs" (const char *path, statfs_t *buf)
    int fstatfs(int fd, statfs_t *buf)
    long TMPFS_MAGIC, RAMFS_MAGIC, BTRFS_SUPER_MAGIC

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void *buf, size_t count)
    int getpid()
    int gettid()
    int pipe2(int *ends, int flags)
    int ftruncate(int fd, long length)
    int unlink(const char *path)
    ssize_t pread(int fd, void *buf, size_t count, long offset)
    ssize_t pwrite(int fd, const void *buf, size_t count, long offset)
    ssize_t write(int fd, const void *buf, size_t count)
    long sysconf(int name)
    int _SC_PAGESIZE

cdef extern from "<signal.h>" nogil:
    ctypedef struct siginfo_t:
        int si_code
        void *si_addr
    ctypedef struct sigset_t:
        pass
    struct sigaction_t "sigaction":
        void (*sa_handler)(int) noexcept nogil
        void (*sa_sigaction)(int, siginfo_t *, void *) noexcept nogil
        sigset_t sa_mask
        int sa_flags
    int sigaction(int signum, const sigaction_t *act, sigaction_t *oldact)
    int sigemptyset(sigset_t *set)
    int sigfillset(sigset_t *set)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *oldset)
    int SIG_SETMASK
    int raise_ "raise" (int sig)
    void SIG_DFL(int) noexcept
    void SIG_IGN(int) noexcept
    int SIGSEGV, SIGBUS, SA_SIGINFO, SA_NODEFER, SI_TKILL

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int clock_nanosleep(int clock, int flags, const timespec *time, timespec *left)
    int CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_attr_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef unsigned long pthread_t
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attr)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *cond, void *attr)
    int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
    int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                               const timespec *until)
    int pthread_cond_broadcast(pthread_cond_t *cond)
    pthread_t pthread_self()
    bint pthread_equal(pthread_t a, pthread_t b)
    int pthread_attr_init(pthread_attr_t *attr)
    int pthread_attr_setdetachstate(pthread_attr_t *attr, int state)
    int pthread_attr_destroy(pthread_attr_t *attr)
    int pthread_setname_np(pthread_t thread, const char *name)
    int pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                       void *(*run)(void *) noexcept nogil, void *arg)
    int pthread_cancel(pthread_t thread)
    int pthread_setcancelstate(int state, int *old)
    int pthread_join(pthread_t thread, void **result)
    int PTHREAD_CREATE_DETACHED, PTHREAD_CANCEL_ENABLE, PTHREAD_CANCEL_DISABLE
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept,
                       void (*child)() noexcept)
