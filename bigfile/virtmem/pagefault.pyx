"""The SIGSEGV entry: from a fault to its page. And SIGBUS: a mapped file that failed.

1. the kernel calls on_segv() on the thread's own stack, SIGSEGV not blocked: a loader that
   touches another cold page faults again, and comes here again
2. read or write? The error code in the context says (ESR on aarch64)
3. page_touch() makes the address accessible; the thread goes on at the instruction
4. for an address in no area, the previous handler of SIGSEGV is called

The kernel sends SIGBUS if the disk of a mapped file cannot be read, or the file was cut: the
thread goes on over scrap, and gets an exception (page_broken).

Staying on top
--------------
Other code installs handlers, too: faulthandler (pytest enables it) before or after us. When a
mapping is made, keep_on_top() looks, with one system call, and puts ours on top again; the handler
that was there is called for faults that are not ours.

A handler that is set later, and does not call ours, gets all touches of existing views. Most such
handlers end the process, as they would for any fault. But a handler of signal.signal() only makes a
note, for Python to run it later, and returns: the instruction faults for ever, and no code of ours
is called. So a thread, the guard, looks every half second of CPU time of the process (it does not
wake an idle one), and puts ours on top; it says so on stderr, once. A child of a fork does not have
it, and starts it again with the next mapping: Python warns of threads at a fork.

faulthandler, when it was called, restores the handler it found and raises the signal again,
now without an address (SI_TKILL):

    enabled before us   we call it, it restores the default, raises: the process ends
    enabled after us, and we are on top again
                        we call it, it restores *us*, raises: we are called with SI_TKILL
                        inside of our own call: the default action it is
    enabled after us, on top of us
                        it was called first, restores us, raises: SI_TKILL, without a call of
                        ours. The fault may have been ours: return, and let the instruction
                        fault once more, with an address

Only these two signals are touched, in handlers and in masks. All of the above holds for both.

This module knows signals. It does not know pages, and runs no Python.

Locking: `mutex`, a leaf, for threads that put us on top and for the guard; not taken in a fault.
"""

from libc.errno cimport errno
from libc.stdio cimport snprintf
from libc.string cimport memset, strlen

from wendelin.bigfile.virtmem.kernel cimport (CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID,
                                              PTHREAD_CANCEL_DISABLE, PTHREAD_CANCEL_ENABLE,
                                              SA_NODEFER, SA_SIGINFO, SI_TKILL, SIG_DFL, SIG_IGN,
                                              SIGBUS, SIGSEGV, clock_nanosleep, pthread_atfork,
                                              pthread_cancel, pthread_join, pthread_mutex_init,
                                              pthread_mutex_lock, pthread_mutex_t,
                                              pthread_mutex_unlock, pthread_setcancelstate,
                                              pthread_t, raise_, set_errno, sigaction, sigaction_t,
                                              sigemptyset, siginfo_t, timespec, write as write_fd)
from wendelin.bigfile.virtmem.threads cimport thread_start
from wendelin.bigfile.virtmem.touch cimport page_broken, page_touch
from wendelin.bigfile.virtmem.handle cimport virtmem_set_on_map

cdef extern from *:
    """
    #include <ucontext.h>
    #include <stdint.h>

    /* Was the fault a write? From what the kernel leaves in the signal's context. */
    #if defined(__x86_64__)
    static int wc_fault_is_write(void *context) {
        /* page fault error code, bit 1 (Intel SDM vol. 3, 4.7) */
        return (((ucontext_t *)context)->uc_mcontext.gregs[REG_ERR] >> 1) & 1;
    }
    #elif defined(__aarch64__)
    /* Records (magic, size) follow each other in __reserved; ESR has its own. */
    static int wc_fault_is_write(void *context) {
        unsigned char *rec = ((ucontext_t *)context)->uc_mcontext.__reserved;
        unsigned char *end = rec + sizeof(((ucontext_t *)context)->uc_mcontext.__reserved);
        while (rec + 16 <= end) {
            uint32_t magic = *(uint32_t *)rec, size = *(uint32_t *)(rec + 4);
            if (magic == 0x45535201)                    /* ESR_MAGIC */
                return (*(uint64_t *)(rec + 8) >> 6) & 1;       /* ISS.WnR (Arm ARM D17.2) */
            if (magic == 0 || size == 0)
                break;
            rec += size;
        }
        return 0;
    }
    #else
    #error "wendelin.core runs on x86-64 and aarch64 only"
    #endif

    static __thread int wc_chaining;    /* this thread is in a handler that we called */
    static __thread int wc_retries;     /* SI_TKILL that we returned from, without a fault since */
    """
    bint fault_is_write "wc_fault_is_write"(void *context) nogil
    int chaining "wc_chaining"
    int retries "wc_retries"

# the previous handlers
cdef sigaction_t previous_segv, previous_bus

cdef pthread_mutex_t mutex
# protected by: mutex
cdef pthread_t guard
cdef bint guarded           # the guard runs
cdef bint installed         # we were on top before
cdef bint said


cdef sigaction_t *previous(int sig) noexcept nogil:
    return &previous_bus if sig == SIGBUS else &previous_segv


cdef void on_fault(int sig, siginfo_t *info, void *context) noexcept nogil:
    """Handle SIGSEGV and SIGBUS."""
    global retries
    cdef int saved_errno = errno
    cdef bint served = False, write
    if info.si_code > 0:        # by the kernel, for an address
        retries = 0
        write = fault_is_write(context)
        if sig == SIGBUS:
            served = page_broken(<const char *>info.si_addr, write)
        else:
            served = page_touch(<const char *>info.si_addr, write)
    elif info.si_code == SI_TKILL and not chaining and not retries and not calls(previous(sig)):
        retries = 1
        served = True
    set_errno(saved_errno)
    if not served:
        call_previous(sig, info, context)


cdef bint calls(const sigaction_t *action) noexcept nogil:
    """Say whether an action is a function, not SIG_DFL or SIG_IGN."""
    return action.sa_handler != SIG_DFL and action.sa_handler != SIG_IGN


cdef void call_previous(int sig, siginfo_t *info, void *context) noexcept nogil:
    global chaining
    cdef sigaction_t default
    cdef sigaction_t *action = previous(sig)
    if chaining or not calls(action):
        # The default action, at the same instruction, so that a core dump shows the place. A
        # signal that was sent, not caused, has to be raised again for that.
        memset(&default, 0, sizeof(default))
        default.sa_handler = SIG_DFL
        sigaction(sig, &default, NULL)
        if info.si_code <= 0:
            raise_(sig)
        return
    chaining += 1
    if action.sa_flags & SA_SIGINFO:
        action.sa_sigaction(sig, info, context)
    else:
        action.sa_handler(sig)
    chaining -= 1


cdef void keep_on_top_of(int sig) noexcept nogil:
    cdef sigaction_t now, ours
    sigaction(sig, NULL, &now)
    if now.sa_flags & SA_SIGINFO and now.sa_sigaction == on_fault:
        return
    # It does not get the address, so it does not serve memory, and returns; faulthandler would not.
    if installed and calls(&now) and not now.sa_flags & (SA_SIGINFO | SA_NODEFER):
        say(sig)
    previous(sig)[0] = now
    memset(&ours, 0, sizeof(ours))
    ours.sa_sigaction = on_fault
    ours.sa_flags = SA_SIGINFO | SA_NODEFER     # not SA_ONSTACK: Python runs in here
    sigemptyset(&ours.sa_mask)
    sigaction(sig, &ours, NULL)


cdef void say(int sig) noexcept nogil:
    global said
    cdef char[512] text
    if said:
        return
    said = True
    snprintf(text, sizeof(text),
             b"wendelin.core: a handler of %s was set after wendelin.core's, by signal.signal() "
             b"most likely. It cannot load memory of arrays: threads that touch them would fault "
             b"for ever. So wendelin.core's is called first again, and the other one for all "
             b"else.\n",
             b"SIGBUS" if sig == SIGBUS else b"SIGSEGV")
    write_fd(2, text, strlen(text))


cdef void keep_on_top() noexcept nogil:
    """Install our handler of both signals, and remember the previous ones."""
    global installed
    pthread_mutex_lock(&mutex)
    keep_on_top_of(SIGSEGV)
    keep_on_top_of(SIGBUS)
    installed = True
    pthread_mutex_unlock(&mutex)


# ---- the guard ----

cdef void on_map() noexcept nogil:
    """A mapping was made."""
    keep_on_top()
    if not guarded:
        start_guard()


cdef void start_guard() noexcept nogil:
    """Start the guard, if the system has a thread to give."""
    global guarded
    pthread_mutex_lock(&mutex)
    guarded = guarded or thread_start(watch, &guard)
    pthread_mutex_unlock(&mutex)


cdef void *watch(void *arg) noexcept nogil:
    """The guard."""
    cdef timespec half
    half.tv_sec = 0
    half.tv_nsec = 500_000_000
    while True:
        if clock_nanosleep(CLOCK_PROCESS_CPUTIME_ID, 0, &half, NULL) != 0:
            clock_nanosleep(CLOCK_MONOTONIC, 0, &half, NULL)    # there is no such clock
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL)
        keep_on_top()
        pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL)
    return NULL


cdef void before_fork() noexcept nogil:
    global guarded
    cdef pthread_t thread
    cdef bint running
    pthread_mutex_lock(&mutex)
    running = guarded
    thread = guard
    guarded = False
    pthread_mutex_unlock(&mutex)
    if running:
        pthread_cancel(thread)
        pthread_join(thread, NULL)
    pthread_mutex_lock(&mutex)


cdef void after_fork() noexcept nogil:
    pthread_mutex_unlock(&mutex)


pthread_mutex_init(&mutex, NULL)
pthread_atfork(before_fork, after_fork, after_fork)
virtmem_set_on_map(on_map)
keep_on_top()
