"""The records of a transaction that is being written, at the end of a file of FileStorage.

This module knows FileStorage's position in its file, and that readers ignore a transaction with
status 'c'. It does not know the contents of records.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from wendelin.lib.storage.fsalign import ALIGNMENT, Pieces
from wendelin.lib.storage.fscopy import share_range
from wendelin.lib.storage.fsscan import UNFINISHED
from wendelin.lib.storage.fssync import begin_to_write
from wendelin.lib.storage.pad import Hole

__all__ = ["Tail"]

_BUFFER = 1 << 16  # small writes are gathered up to this [bytes]
#: so much of a transaction goes to the disk while the rest of it is written [bytes]
_EARLY = 8 << 20


@runtime_checkable
class _Shared(Protocol):
    """Memory of which a file has the bytes, so that another one can share them."""

    def shared_at(self, part: memoryview) -> tuple[int, int] | None:
        """Return (descriptor, offset) of these bytes; None: no file has them."""


class Tail:
    """The records of the running transaction, written to their final place in Data.fs.

    FileStorage uses it as its temporary file. Position 0 is behind the transaction header.
    """

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self._buffer = bytearray()  # the bytes before the position that are not in the file yet
        self._position = 0
        self.started = False  # something is in the file
        self._early = 0  # up to there the disk has begun with it

    def _base(self) -> int:
        return int(self._storage.end + self._storage.header_size)

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def clear(self) -> None:
        """Start again for another transaction."""
        self._buffer = bytearray()
        self._position = 0
        self.started = False
        self._early = 0

    def seek(self, position: int) -> None:
        """Set the position."""
        if position != self._position:
            self._flush()
        self._position = position

    def read(self, size: int) -> bytes:
        """Read bytes that were written before."""
        self._flush()
        data = os.pread(self._storage.file.fileno(), size, self._base() + self._position)
        self._position += len(data)
        return data

    def write(self, data: bytes | Pieces) -> None:
        """Write at the position; large pieces are not buffered, and a Hole is not written."""
        if not isinstance(data, Pieces):
            self._write([data])
            return
        pieces: list[bytes | memoryview] = []
        for piece in data.pieces:
            if isinstance(piece, Hole):
                self._write(pieces)
                pieces = []
                self.seek(self._position + len(piece))
            else:
                pieces.append(piece)
        self._write(pieces)

    def _write(self, pieces: list[bytes | memoryview]) -> None:
        size = sum(map(len, pieces))
        if len(self._buffer) + size <= _BUFFER:
            self._buffer += b"".join(pieces)
        else:
            self._flush(pieces)
        self._position += size

    def finish(self, size: int) -> None:
        """Complete the transaction in the file, of this size [bytes]; still with status 'c'."""
        self._flush()
        self._pwrite([self._storage.transaction_header(size)], self._storage.end)
        # FileStorage reads and writes through a buffer, which may have older bytes
        self._storage.file.flush()

    def close(self) -> None:
        """Do nothing: the file is FileStorage's."""

    def _flush(self, more: Sequence[bytes | memoryview] = ()) -> None:
        if not self._buffer and not more:
            return
        if not self.started:
            self.started = True
            self._storage.file.flush()  # of a new file: its magic
            fd = self._storage.file.fileno()
            if os.fstat(fd).st_size > self._storage.end:  # nothing may be where Holes will be
                os.ftruncate(fd, self._storage.end)
            self._pwrite([self._storage.transaction_header(UNFINISHED)], self._storage.end)
        at = self._base() + self._position - len(self._buffer)
        self._pwrite([self._buffer, *more], at)
        self._buffer = bytearray()
        if self._position - self._early >= _EARLY:
            begin_to_write(
                self._storage.file.fileno(),
                self._base() + self._early,
                self._position - self._early,
            )
            self._early = self._position

    def _pwrite(self, pieces: Iterable[bytes | bytearray | memoryview], at: int) -> None:
        fd = self._storage.file.fileno()
        views = [memoryview(piece) for piece in pieces if piece]
        begin = at
        for i, view in enumerate(views):
            if _share(view, fd, begin):
                self._pwrite(views[:i], at)
                self._pwrite(views[i + 1 :], begin + len(view))
                return
            begin += len(view)
        while views:
            done = os.pwritev(fd, views, at)
            at += done
            while views and done >= len(views[0]):
                done -= len(views.pop(0))
            if views:
                views[0] = views[0][done:]


def _share(view: memoryview, fd: int, at: int) -> bool:
    """Let a file share bytes with the file that they are in, if it can; say whether it does."""
    if at % ALIGNMENT != 0 or len(view) % ALIGNMENT != 0:
        return False
    place = view.obj.shared_at(view) if isinstance(view.obj, _Shared) else None
    return place is not None and share_range(*place, fd, at, len(view))
