"""Exceptions of wendelin.core that storages raise, too. The others: bigfile.virtmem.errors.

This module does not know the code that raises them.
"""

from __future__ import annotations

__all__ = ["BigFileError", "ForkError"]


class BigFileError(Exception):
    """An error of a file that is mapped in memory: the base class of the others."""


class ForkError(BigFileError):
    """A child of a fork used an array, or a database, of its parent.

    Open the database again in the child.
    """
