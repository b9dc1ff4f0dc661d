"""See threads.pyx."""

from wendelin.bigfile.virtmem.kernel cimport pthread_t

cdef bint thread_start(void *(*run)(void *) noexcept nogil, pthread_t *thread) noexcept nogil
