"""Which records are aligned in a Data.fs, and how; used by the storage and its pack."""

from __future__ import annotations

import mmap

from wendelin.lib.storage.record import BytesRecord, aligned, without_pad

__all__ = ["ALIGNMENT", "SMALLEST", "Pieces", "aligned_at"]

#: of payloads in the file [bytes]; 4096 at least, so that files move between machines
ALIGNMENT = max(4096, mmap.PAGESIZE)
#: smaller payloads are not aligned, if a storage is not told otherwise [bytes]: a pad is half of
#: ALIGNMENT on average
SMALLEST = 16 * ALIGNMENT


def aligned_at(record: bytes, at: int, smallest: int) -> bytes:
    """Return a record as it must be at an offset."""
    return b"".join(aligned(without_pad(record), at, ALIGNMENT, smallest))


class Pieces:
    """A record as it must be at an offset, in pieces.

    FileStorage just takes its length, and writes it to its temporary file.
    """

    def __init__(self, record: bytes | BytesRecord, at: int, smallest: int) -> None:
        self.pieces = aligned(record, at, ALIGNMENT, smallest)
        self._len = sum(map(len, self.pieces))

    def __len__(self) -> int:
        return self._len
