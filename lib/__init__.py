"""Helpers: memory, numbers, NumPy, ZODB. They know nothing of files, pages or arrays."""
