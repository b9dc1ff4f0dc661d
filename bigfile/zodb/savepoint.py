"""Savepoints of pages: copies of changed pages, for a rollback within a transaction.

This module knows numbers and bytes of blocks, and the handle that takes them back, but not ZODB.
Pages are copied to a temporary file, as Connections copy their objects, so a savepoint takes no
memory. The file is where changes go that are larger than memory. The thread of the transaction uses
it.
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from typing import Protocol

__all__ = ["SavedPages", "Savepoint"]


class SavedPages:
    """Pages of the savepoints of a transaction, in a temporary file.

    Without a buffer, and without a position in the file: a child of a fork would share them.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder or tempfile.gettempdir()
        self._file = tempfile.TemporaryFile(  # noqa: SIM115
            prefix="wendelin.core-savepoint-", buffering=0, dir=folder
        )
        self._end = 0
        #: blk -> (offset, size) of the last copy [bytes]; in the block, zeros follow
        self.where: dict[int, tuple[int, int]] = {}

    def save(self, blk: int, buf: memoryview) -> None:
        """Save a page, except zeros at its end.

        Raises
        ------
        OSError
            There is no space.
        """
        at, size = self._end, len(buf)
        while buf:
            try:
                n = os.pwrite(self._file.fileno(), buf, at)
            except OSError as e:
                raise OSError(
                    e.errno, f"no room for a savepoint of changes in {self._folder}: {e.strerror}"
                ) from e
            buf, at = buf[n:], at + n
        self.where[blk] = self._end, size
        self._end = at

    def read(self, offset: int, buf: memoryview) -> None:
        """Fill buf with the copy at an offset."""
        start, stop = 0, len(buf)
        while start < stop:
            # not preadv(): the kernel would write to the page, and the pager cannot help it
            piece = os.pread(self._file.fileno(), stop - start, offset + start)
            if not piece:
                raise OSError(errno.EIO, "the file of savepoints was cut")
            buf[start : start + len(piece)] = piece
            start += len(piece)

    def close(self) -> None:
        """Drop all copies."""
        self._file.close()


class Handle(Protocol):
    """The handle whose pages are saved."""

    def rollback(self, to: Savepoint) -> None:
        """Restore the changes of a savepoint, and drop all others."""


@dataclass(frozen=True)
class Savepoint:
    """Changes of a handle at one moment (transaction.interfaces.IDataManagerSavepoint)."""

    handle: Handle
    pages: dict[int, tuple[int, int]]  # changed blk -> where SavedPages have it
    truncated_at: int | None  # zeros from this block on

    def rollback(self) -> None:
        """Restore these changes, and drop all others."""
        self.handle.rollback(self)
