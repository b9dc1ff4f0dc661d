"""Helpers: memory, numbers, NumPy, ZODB. They do not know files in blocks, pages or arrays."""
