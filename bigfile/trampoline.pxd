"""See trampoline.pyx."""
