"""Which records are aligned in a Data.fs, and how; used by the storage and its pack.

Payloads begin at a multiple of the OS page, so that they can be mapped. Large ones begin at a
multiple of the kernel's huge page: then the kernel maps them by huge pages, if its page cache has
such. The pad is a hole, which takes no room on the disk, but the file is longer by 2 MiB a payload.
"""

from __future__ import annotations

import mmap
from typing import Any

from wendelin.lib.storage.pad import Alignment, BytesRecord, aligned

__all__ = ["ALIGNMENT", "HUGE", "HUGE_FROM", "SMALLEST", "Pieces", "aligned_at", "alignment"]

#: of payloads in the file [bytes]; 4096 at least, so that files move between machines
ALIGNMENT = max(4096, mmap.PAGESIZE)
#: smaller payloads are not aligned, if a storage is not told otherwise [bytes]: a pad is half of
#: ALIGNMENT on average
SMALLEST = 16 * ALIGNMENT
#: the kernel's huge page [bytes]
HUGE = 1 << 21
#: a payload of whole huge pages, and of this size, is at a multiple of HUGE [bytes]: the file is
#: longer by a quarter at most
HUGE_FROM = 4 * HUGE


def alignment(smallest: int) -> Alignment:
    """Return what payloads are aligned to, if smaller ones than this are not [bytes]."""

    def multiple(size: int) -> int:
        if size < smallest or size % ALIGNMENT:
            return 1
        return HUGE if size >= HUGE_FROM and size % HUGE == 0 else ALIGNMENT

    return multiple


class Pieces:
    """What is written one after another: bytes, Holes, and what else a file takes.

    FileStorage just takes the length, and writes it to its temporary file.
    """

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces
        self._len = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._len

    def __bytes__(self) -> bytes:
        return b"".join(map(bytes, self.pieces))


def aligned_at(record: bytes | BytesRecord, at: int, smallest: int) -> Pieces:
    """Return a record as it must be at an offset of the file."""
    if isinstance(record, bytes) and len(record) < smallest:
        return Pieces(record)
    return Pieces(*aligned(record, at, alignment(smallest)))
