"""Exceptions of wendelin.core that storages raise, too. The others: bigfile.virtmem.errors.

They know nothing of what raises them.
"""

from __future__ import annotations

__all__ = ["BigFileError", "ForkError"]


class BigFileError(Exception):
    """Something went wrong with a file that is mapped in memory: the root of the others."""


class ForkError(BigFileError):
    """A child of a fork used an array, or a database, of its parent.

    Open the database anew in the child.
    """
