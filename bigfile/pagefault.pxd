"""See pagefault.pyx."""
