"""Pads: how a record is written whose state is bytes, so that these begin at a place of their own.

A pad is a value at the beginning of a state, which every reader throws away: see record. It has a
checksum of the bytes, and may be of any size. A long one is mostly a Hole: its zeros are not
written, and the file system keeps no blocks for them.

This module knows records. It does not know which of them are aligned to what (fsalign).
"""

from __future__ import annotations

from collections.abc import Callable

from wendelin.lib.storage.record import (
    BINBYTES,
    CHECKSUM_MAGIC,
    POP,
    STOP,
    Payload,
    digest_of,
    find_in_any,
    is_end,
    state_at,
)

__all__ = [
    "Alignment",
    "BytesRecord",
    "Hole",
    "Pieces",
    "aligned",
    "repadded",
    "without_hole",
    "without_pad",
]


#: a pad of this size has a Hole [bytes]
HOLE_FROM = 1 << 16


def without_pad(record: bytes) -> bytes:
    """Return a record without the pad of aligned(); its checksum stays."""
    found = find_in_any(record)
    if found is None or found.begin == found.op:
        return record
    view = memoryview(record)
    pad = b"".join(map(bytes, _pad(0, 1, found.digest)))
    return b"".join((view[: found.begin], pad, view[found.op :]))


def without_hole(record: bytes) -> bytes:
    """Return a record; without its pad, if that is so long that a file has a hole there."""
    if len(record) < HOLE_FROM:
        return record
    found = find_in_any(record)
    long = found is not None and found.op - found.begin >= HOLE_FROM
    return without_pad(record) if long else record


def repadded(
    head: bytes, found: Payload, end: bytes, at: int, alignment: Alignment
) -> Pieces | None:
    """Return what is before the payload of a record, to align it at another position.

    Parameters
    ----------
    head : bytes
        The beginning of the record, to the pad, at least.
    found : Payload
        Of it.
    end : bytes
        What is behind the payload.
    at, alignment
        See aligned().

    Returns
    -------
    Pieces or None
        None: the record is to be copied as it is.
    """
    if found.framed or found.opcode != BINBYTES or not is_end(end):
        return None
    between = found.between[1:]
    multiple = alignment(found.stop - found.start)
    pad = _pad(at + found.begin + len(between), multiple, found.digest)
    return head[: found.begin], *pad, between


class Hole:
    """Zeros of a pad that are not written: the file has a hole there."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return bytes(self.size)


class BytesRecord:
    """A record whose state is bytes in other memory, which are not copied.

    It has a checksum of them.

    Parameters
    ----------
    like : bytes
        A record of the same class; its beginning is used.
    payload : memoryview
        The state; less than 4 GiB.
    """

    def __init__(self, like: bytes, payload: memoryview) -> None:
        self.before = like[: state_at(like)] + b"\x80\x03"  # class, PROTO
        self.op = BINBYTES + len(payload).to_bytes(4, "little")
        self.payload = payload
        self.digest = digest_of([payload])

    def __len__(self) -> int:
        return sum(map(len, self.pieces(0, 1)))

    def __bytes__(self) -> bytes:
        return b"".join(map(bytes, self.pieces(0, 1)))

    def pieces(self, at: int, multiple: int) -> Pieces:
        """Return the pieces of the record, with its payload at a multiple: see aligned()."""
        pad = _pad(at + len(self.before) + len(self.op), multiple, self.digest)
        return self.before, *pad, self.op, self.payload, STOP


#: of a record
Pieces = tuple[bytes | memoryview | Hole, ...]
#: size of a payload -> it is to be at a multiple of this: a power of two; 1: anywhere [bytes]
Alignment = Callable[[int], int]


def aligned(record: bytes | BytesRecord, at: int, alignment: Alignment) -> Pieces:
    """Return a record, in pieces, with its payload at a multiple of something in a file.

    Records whose state is not bytes are returned as they are. A checksum stays.

    Parameters
    ----------
    record : bytes or BytesRecord
    at : int
        Where in the file the record begins.
    alignment : Alignment
    """
    if isinstance(record, BytesRecord):
        return record.pieces(at, alignment(len(record.payload)))
    found = find_in_any(record)
    # Python 2 does not know BINBYTES: add a pad only if the payload is BINBYTES, too
    if found is None or found.framed or found.opcode != BINBYTES:
        return (record,)
    multiple = alignment(found.stop - found.start)
    if multiple == 1:
        return (record,)
    view = memoryview(record)
    pad = _pad(at + found.begin + found.start - found.op, multiple, found.digest)
    return view[: found.begin], *pad, view[found.op :]


def _pad(start: int, multiple: int, digest: bytes | None) -> Pieces:
    """Return a pad that moves a payload at `start` to a multiple of something."""
    value = b"" if digest is None else CHECKSUM_MAGIC + digest
    size = -start % multiple
    if size == 0 and not value:
        return ()
    over = 1 + 4 + 1  # BINBYTES, its length, POP
    least = over + len(value)
    if size < least:
        size -= (size - least) // multiple * multiple
    begin = BINBYTES + (size - over).to_bytes(4, "little") + value
    if size >= HOLE_FROM:
        return begin, Hole(size - len(begin) - 1), POP
    return (begin.ljust(size - 1, b"\0") + POP,)
