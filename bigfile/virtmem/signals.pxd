"""See signals.pyx."""

cdef bint signals_hold() noexcept
cdef object signals_raised()
cdef void signals_release() noexcept
