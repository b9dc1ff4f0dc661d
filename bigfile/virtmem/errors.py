"""Exceptions of mapped files.

They do not know the pager, which raises them in the thread that touched the memory.
"""

from __future__ import annotations

from typing import Any

from wendelin.lib.errors import BigFileError, ForkError

__all__ = ["BigFileError", "BlockLoadError", "DoomedError", "ForkError", "PageMemoryError"]


class BlockLoadError(BigFileError):
    """A block could not be loaded; `__cause__` says why.

    It is raised in the thread that touched the memory, as soon as that thread is back in Python
    code: see "When a load fails" in docs/architecture.md. Until then the memory reads as zeros,
    and nothing computed from it can be stored: DoomedError.

    Attributes
    ----------
    file : object
        The BigFile.
    blk : int
        The block [blk].
    tid : bytes or None
        The last transaction that the file shows; None: it does not know transactions.
    """

    def __init__(
        self, message: str, file: object = None, blk: int = -1, tid: bytes | None = None
    ) -> None:
        super().__init__(message)
        self.file = file
        self.blk = blk
        self.tid = tid

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process does not have the file: it gets the name.
        return type(self), (str(self), repr(self.file), self.blk, self.tid)


class PageMemoryError(BigFileError, MemoryError):
    """There is no page memory for a change: commit in smaller steps.

    Raised as BlockLoadError is. Changes made after it were dropped, so no change of this
    transaction can be stored.
    """


class DoomedError(BigFileError):
    """Changes are refused because a touch failed since the transaction began.

    `__cause__` is the first failure. `transaction.abort()`, or BigFileH.dirty_discard(), makes
    the file usable again.
    """
