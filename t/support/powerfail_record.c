/* Records what a process does to the files of a folder: for LD_PRELOAD.

   POWERFAIL_FOLDER is the folder, POWERFAIL_LOG what is written; powerfail_disk.py reads it. A
   record is a head, one or two names, and the bytes of a write. Bytes are taken from where the call
   had them by a writev(): the kernel reads them, and memory of the pager is not touched here.

   A call and its record are one step: `lock` is held from before the call until the record is
   written. So the order of records is the order of calls, for all threads of one process.

   A call that changes files, and that the reader of the log has no model of, is recorded as
   "unknown" with its name: the reader refuses the log. What does not come here at all (io_uring,
   syscall(), the C library itself) is found by the reader, as files are then not what the records
   say. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct head {
    char kind[8];
    uint64_t inode;
    int64_t a, b;      /* offsets and sizes [bytes], by kind */
    uint64_t size;     /* of the data behind the names [bytes] */
    uint32_t name, to; /* lengths of the names */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static int log_fd = -1; /* -1: nothing is recorded */

/* The C library's own function behind ours. */
#define REAL(name)                        \
    static __typeof__(name) *real_##name; \
    if (!real_##name)                     \
    real_##name = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}
static void after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void start(void)
{
    const char *in = getenv("POWERFAIL_FOLDER"), *log = getenv("POWERFAIL_LOG");
    REAL(open);
    if (!in || !log || !realpath(in, folder))
        return;
    log_fd = real_open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    pthread_atfork(before_fork, after_fork, after_fork);
}

/* ---- the log ---- */
static void put_all(struct iovec *iov, int n)
{
    REAL(writev);
    while (n) {
        ssize_t done = real_writev(log_fd, iov, n > 1000 ? 1000 : n);
        if (done < 0) {
            perror("powerfail_record");
            abort();
        }
        for (; n && (size_t)done >= iov->iov_len; iov++, n--)
            done -= iov->iov_len;
        if (n) {
            iov->iov_base = (char *)iov->iov_base + done;
            iov->iov_len -= done;
        }
    }
}

/* Write a record, with `size` bytes of iov behind it. */
static void record_data(const char *kind, uint64_t inode, int64_t a, int64_t b, const char *name,
                        const char *to, const struct iovec *iov, uint64_t size)
{
    int saved = errno, n = 3, at = 0;
    struct head head = {
        .inode = inode, .a = a, .b = b, .size = size, .name = strlen(name), .to = strlen(to)};
    for (uint64_t left = size; left; at++)
        left -= left < iov[at].iov_len ? left : iov[at].iov_len;
    struct iovec all[n + at];
    strncpy(head.kind, kind, sizeof head.kind);
    all[0] = (struct iovec){&head, sizeof head};
    all[1] = (struct iovec){(void *)name, head.name};
    all[2] = (struct iovec){(void *)to, head.to};
    for (int i = 0; i < at; i++, n++) {
        all[n] = iov[i];
        if (all[n].iov_len > size)
            all[n].iov_len = size;
        size -= all[n].iov_len;
    }
    put_all(all, n);
    errno = saved;
}

static void record(const char *kind, uint64_t inode, int64_t a, int64_t b, const char *name,
                   const char *to)
{
    record_data(kind, inode, a, b, name, to, NULL, 0);
}

/* For the program: what it has come to. */
void powerfail_mark(const char *text, size_t size)
{
    struct iovec iov = {(void *)text, size};
    pthread_mutex_lock(&lock);
    if (log_fd >= 0)
        record_data("mark", 0, 0, 0, "", "", &iov, size);
    pthread_mutex_unlock(&lock);
}

/* ---- which files ---- */
static int is_inside(const char *path)
{
    size_t n = strlen(folder);
    return strncmp(path, folder, n) == 0 && (path[n] == '/' || path[n] == 0);
}

/* Put the path of a descriptor, and say whether it is in the folder. A file without a name is not:
 * it is gone after a power failure (O_TMPFILE, or its name was removed). */
static int fd_inside(int fd, char *path)
{
    static const char gone[] = " (deleted)";
    char link[40];
    if (log_fd < 0 || fd == log_fd)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    path[n < 0 ? 0 : n] = 0;
    size_t end = sizeof gone - 1;
    if (n > (ssize_t)end && strcmp(path + n - end, gone) == 0)
        return 0;
    return is_inside(path);
}

/* Put the path of a name, whose last part is not followed, and say whether it is in the folder. */
static int name_inside(int at, const char *name, char *path)
{
    char copy[PATH_MAX], in[PATH_MAX], start[PATH_MAX] = "";
    if (log_fd < 0)
        return 0;
    if (name[0] != '/' && at != AT_FDCWD && !fd_inside(at, start))
        return 0;
    if (snprintf(copy, PATH_MAX, "%s%s%s", start, start[0] ? "/" : "", name) >= PATH_MAX)
        return 0; /* the call fails */
    for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/'; n--)
        copy[n - 1] = 0;
    char *slash = strrchr(copy, '/');
    if (slash)
        *slash = 0;
    if (!realpath(!slash ? "." : slash == copy ? "/" : copy, in))
        return 0;
    if (snprintf(path, PATH_MAX, "%s/%s", in, slash ? slash + 1 : copy) >= PATH_MAX)
        abort();
    return is_inside(path);
}

static uint64_t inode_of(int fd)
{
    struct stat st;
    return fstat(fd, &st) ? 0 : st.st_ino;
}

static uint64_t inode_at(const char *path)
{
    struct stat st;
    return lstat(path, &st) ? 0 : st.st_ino;
}

/* The same function, for programs that are compiled for 64-bit offsets: these are all there are. */
#define ALIAS(name, of) extern __typeof__(of) name __attribute__((alias(#of)))

/* Do a call under the lock; `after` sees its result, and is done if it did not fail. */
#define STEP(type, call, after)      \
    do {                             \
        pthread_mutex_lock(&lock);   \
        type result = call;          \
        if (result != (type) - 1) {  \
            after;                   \
        }                            \
        pthread_mutex_unlock(&lock); \
        return result;               \
    } while (0)

/* ---- opening ---- */
static int open_step(int at, const char *name, int flags, mode_t mode)
{
    REAL(openat);
    char path[PATH_MAX];
    int there = 1;
    pthread_mutex_lock(&lock);
    if (log_fd >= 0 && flags & O_CREAT)
        there = faccessat(at, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
    int fd = real_openat(at, name, flags, mode);
    if (fd >= 0 && (flags & O_ACCMODE) != O_RDONLY && fd_inside(fd, path)) {
        if (!there)
            record("create", inode_of(fd), 0, 0, path, "");
        else if (flags & O_TRUNC)
            record("size", inode_of(fd), 0, 0, path, "");
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

/* The mode is there only if a file may be made; what is in its place otherwise is not used. */
#define MODE(flags)                  \
    va_list args;                    \
    va_start(args, flags);           \
    mode_t mode = va_arg(args, int); \
    va_end(args)

int open(const char *name, int flags, ...)
{
    MODE(flags);
    return open_step(AT_FDCWD, name, flags, mode);
}
int openat(int at, const char *name, int flags, ...)
{
    MODE(flags);
    return open_step(at, name, flags, mode);
}
int creat(const char *name, mode_t mode)
{
    return open_step(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
/* of programs that are compiled with _FORTIFY_SOURCE */
int __open_2(const char *name, int flags)
{
    return open_step(AT_FDCWD, name, flags, 0);
}
int __openat_2(int at, const char *name, int flags)
{
    return open_step(at, name, flags, 0);
}
ALIAS(open64, open);
ALIAS(openat64, openat);
ALIAS(creat64, creat);
ALIAS(__open64_2, __open_2);
ALIAS(__openat64_2, __openat_2);

FILE *fopen(const char *name, const char *mode)
{
    REAL(fopen);
    char path[PATH_MAX];
    pthread_mutex_lock(&lock);
    FILE *file = real_fopen(name, mode);
    if (file && strpbrk(mode, "wa+") && fd_inside(fileno(file), path))
        record("unknown", 0, 0, 0, "fopen", path);
    pthread_mutex_unlock(&lock);
    return file;
}
ALIAS(fopen64, fopen);

/* ---- writing ---- */
/* Record that n bytes of iov were written to a file, which is at the end of them, or at `at`. */
static void wrote(int fd, int64_t at, const struct iovec *iov, ssize_t n)
{
    char path[PATH_MAX];
    if (n <= 0 || !fd_inside(fd, path))
        return;
    if (at >= 0 && fcntl(fd, F_GETFL) & O_APPEND)
        record("unknown", 0, 0, 0, "pwrite, O_APPEND", path);
    if (at < 0)
        at = lseek(fd, 0, SEEK_CUR) - n;
    record_data("write", inode_of(fd), at, 0, path, "", iov, n);
}

#define ONE(buf, size) &(struct iovec){(void *)buf, size}
ssize_t write(int fd, const void *buf, size_t size)
{
    REAL(write);
    STEP(ssize_t, real_write(fd, buf, size), wrote(fd, -1, ONE(buf, size), result));
}
ssize_t writev(int fd, const struct iovec *iov, int n)
{
    REAL(writev);
    STEP(ssize_t, real_writev(fd, iov, n), wrote(fd, -1, iov, result));
}

ssize_t pwrite(int fd, const void *buf, size_t size, off_t at)
{
    REAL(pwrite);
    STEP(ssize_t, real_pwrite(fd, buf, size, at), wrote(fd, at, ONE(buf, size), result));
}
ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t at)
{
    REAL(pwritev);
    STEP(ssize_t, real_pwritev(fd, iov, n, at), wrote(fd, at, iov, result));
}
ALIAS(pwrite64, pwrite);
ALIAS(pwritev64, pwritev);

static void wrote2(int fd, int64_t at, const struct iovec *iov, ssize_t n, int flags)
{
    char path[PATH_MAX];
    if (flags & ~RWF_HIPRI && fd_inside(fd, path))
        record("unknown", 0, flags, 0, "pwritev2 with flags", path);
    wrote(fd, at, iov, n);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int n, off_t at, int flags)
{
    REAL(pwritev2);
    STEP(ssize_t, real_pwritev2(fd, iov, n, at, flags), wrote2(fd, at, iov, result, flags));
}
ALIAS(pwritev64v2, pwritev2);

/* Record bytes that the kernel has copied to a file, as they are there now. */
static void copied(int fd, int64_t at, ssize_t n)
{
    char path[PATH_MAX], link[40];
    REAL(open);
    if (n <= 0 || !fd_inside(fd, path))
        return;
    if (at < 0)
        at = lseek(fd, 0, SEEK_CUR) - n;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd); /* that one may be write-only */
    int reader = real_open(link, O_RDONLY | O_CLOEXEC);
    void *bytes = malloc(n);
    if (reader < 0 || !bytes || pread(reader, bytes, n, at) != n)
        record("unknown", 0, at, n, "a copy that cannot be read back", path);
    else
        record_data("write", inode_of(fd), at, 0, path, "", ONE(bytes, n), n);
    free(bytes);
    close(reader);
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t size,
                        unsigned flags)
{
    REAL(copy_file_range);
    int64_t at = out_at ? *out_at : -1;
    STEP(ssize_t, real_copy_file_range(in, in_at, out, out_at, size, flags),
         copied(out, at, result));
}

ssize_t sendfile(int out, int in, off_t *in_at, size_t size)
{
    REAL(sendfile);
    STEP(ssize_t, real_sendfile(out, in, in_at, size), copied(out, -1, result));
}
ALIAS(sendfile64, sendfile);

ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags)
{
    REAL(splice);
    int64_t at = out_at ? *out_at : -1;
    STEP(ssize_t, real_splice(in, in_at, out, out_at, size, flags), copied(out, at, result));
}

/* ---- sizes ---- */
static void about(const char *kind, int fd, int64_t a, int64_t b)
{
    char path[PATH_MAX];
    if (fd_inside(fd, path))
        record(kind, inode_of(fd), a, b, path, "");
}

static void about_path(const char *kind, const char *name, int64_t a)
{
    char path[PATH_MAX];
    if (name_inside(AT_FDCWD, name, path))
        record(kind, inode_at(path), a, 0, path, "");
}

int ftruncate(int fd, off_t size)
{
    REAL(ftruncate);
    STEP(int, real_ftruncate(fd, size), about("size", fd, size, 0));
}
int truncate(const char *path, off_t size)
{
    REAL(truncate);
    STEP(int, real_truncate(path, size), about_path("size", path, size));
}
ALIAS(ftruncate64, ftruncate);
ALIAS(truncate64, truncate);

static void allocated(int fd, int mode, int64_t at, int64_t size)
{
    struct stat st;
    char path[PATH_MAX];
    if (!fd_inside(fd, path) || mode == FALLOC_FL_KEEP_SIZE)
        return;
    if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        record("unknown", 0, at, size, "fallocate with flags", path);
    if ((mode & FALLOC_FL_KEEP_SIZE) && !fstat(fd, &st) && at + size > st.st_size)
        size = at < st.st_size ? st.st_size - at : 0;
    if (size > 0 && (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
        record("zeros", inode_of(fd), at, size, path, "");
    if (!(mode & FALLOC_FL_KEEP_SIZE) && !fstat(fd, &st))
        record("size", inode_of(fd), st.st_size, 0, path, "");
}

int fallocate(int fd, int mode, off_t at, off_t size)
{
    REAL(fallocate);
    STEP(int, real_fallocate(fd, mode, at, size), allocated(fd, mode, at, size));
}
int posix_fallocate(int fd, off_t at, off_t size)
{
    REAL(posix_fallocate);
    STEP(int, real_posix_fallocate(fd, at, size), if (!result) allocated(fd, 0, at, size));
}
ALIAS(fallocate64, fallocate);
ALIAS(posix_fallocate64, posix_fallocate);

/* ---- syncing ---- */
static void synced(int fd)
{
    struct stat st;
    about(!fstat(fd, &st) && S_ISDIR(st.st_mode) ? "names" : "sync", fd, 0, 0);
}

int fsync(int fd)
{
    REAL(fsync);
    STEP(int, real_fsync(fd), synced(fd));
}
int fdatasync(int fd)
{
    REAL(fdatasync);
    STEP(int, real_fdatasync(fd), synced(fd));
}
int syncfs(int fd)
{
    REAL(syncfs);
    STEP(int, real_syncfs(fd), about("syncall", fd, 0, 0));
}
void sync(void)
{
    REAL(sync);
    pthread_mutex_lock(&lock);
    real_sync();
    if (log_fd >= 0)
        record("syncall", 0, 0, 0, "", "");
    pthread_mutex_unlock(&lock);
}
/* sync_file_range() promises nothing, and needs no record. */

/* ---- names ---- */
/* Record a file that came from outside, as if it had been written where it is. */
static void came(const char *path)
{
    struct stat st;
    REAL(open);
    int fd = real_open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode))
        record("unknown", 0, 0, 0, "a rename from outside, of no file that can be read", path);
    else {
        record("create", st.st_ino, 0, 0, path, "");
        copied(fd, 0, st.st_size);
    }
    close(fd);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    REAL(renameat2);
    char a[PATH_MAX], b[PATH_MAX];
    pthread_mutex_lock(&lock);
    int from_in = name_inside(from_at, from, a), to_in = name_inside(to_at, to, b);
    int result = real_renameat2(from_at, from, to_at, to, flags);
    if (result == 0 && (from_in || to_in)) {
        if (!to_in || flags & ~RENAME_NOREPLACE)
            record("unknown", 0, 0, 0, "rename out of the folder, or with flags", to);
        else if (!from_in)
            came(b);
        else if (!inode_at(a)) /* two names of one file stay as they are */
            record("rename", inode_at(b), 0, 0, a, b);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to)
{
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}
int renameat(int a, const char *from, int b, const char *to)
{
    return renameat2(a, from, b, to, 0);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags)
{
    REAL(linkat);
    char path[PATH_MAX];
    STEP(int, real_linkat(from_at, from, to_at, to, flags),
         if (name_inside(to_at, to, path)) {
             if (flags & AT_SYMLINK_FOLLOW) /* it may be one that had no name: not recorded */
                 record("unknown", 0, 0, 0, "link, AT_SYMLINK_FOLLOW", path);
             else
                 record("link", inode_at(path), 0, 0, path, "");
         });
}

int link(const char *from, const char *to)
{
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

static void new_name(const char *kind, const char *what, int at, const char *name)
{
    char path[PATH_MAX];
    if (name_inside(at, name, path))
        what ? record(kind, 0, 0, 0, what, path) : record(kind, inode_at(path), 0, 0, path, "");
}

int symlink(const char *to, const char *name)
{
    return symlinkat(to, AT_FDCWD, name);
}
int symlinkat(const char *to, int at, const char *name)
{
    REAL(symlinkat);
    STEP(int, real_symlinkat(to, at, name), new_name("unknown", "symlink", at, name));
}
int mkdir(const char *name, mode_t mode)
{
    return mkdirat(AT_FDCWD, name, mode);
}
int mkdirat(int at, const char *name, mode_t mode)
{
    REAL(mkdirat);
    STEP(int, real_mkdirat(at, name, mode), new_name("mkdir", NULL, at, name));
}

int unlinkat(int at, const char *name, int flags)
{
    REAL(unlinkat);
    char path[PATH_MAX];
    pthread_mutex_lock(&lock);
    int inside = name_inside(at, name, path);
    int result = real_unlinkat(at, name, flags);
    if (result == 0 && inside)
        record("unlink", 0, 0, 0, path, "");
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *name)
{
    return unlinkat(AT_FDCWD, name, 0);
}
int rmdir(const char *name)
{
    return unlinkat(AT_FDCWD, name, AT_REMOVEDIR);
}
int remove(const char *name)
{
    int result = unlinkat(AT_FDCWD, name, 0);
    return result && errno == EISDIR ? unlinkat(AT_FDCWD, name, AT_REMOVEDIR) : result;
}

/* ---- what has no model ---- */
static void mapped(int fd, int protection, int flags)
{
    char path[PATH_MAX];
    if (fd >= 0 && protection & PROT_WRITE && (flags & MAP_TYPE) != MAP_PRIVATE &&
        fd_inside(fd, path))
        record("unknown", 0, 0, 0, "mmap, shared and writable", path);
}

void *mmap(void *p, size_t size, int protection, int flags, int fd, off_t at)
{
    REAL(mmap);
    if (log_fd < 0 || flags & MAP_ANONYMOUS || !(protection & PROT_WRITE))
        return real_mmap(p, size, protection, flags, fd, at); /* also while dlsym() works */
    STEP(void *, real_mmap(p, size, protection, flags, fd, at), mapped(fd, protection, flags));
}
ALIAS(mmap64, mmap);

int ioctl(int fd, unsigned long request, ...)
{
    REAL(ioctl);
    va_list args;
    va_start(args, request);
    void *arg = va_arg(args, void *);
    va_end(args);
    char path[PATH_MAX];
    if (request != FICLONE && request != FICLONERANGE)
        return real_ioctl(fd, request, arg);
    STEP(int, real_ioctl(fd, request, arg),
         if (fd_inside(fd, path)) record("unknown", 0, 0, 0, "ioctl, FICLONE", path));
}
