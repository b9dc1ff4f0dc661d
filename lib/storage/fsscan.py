"""Which transactions of a Data.fs are whole, and where the last one of them ends.

After a power failure, any bytes may be behind the last transaction whose commit returned: zeros, a
part of the transaction that was being written, pages of earlier ones that were aborted, in any
mixture. A transaction counts if it is whole:

- its status says that it is committed,
- its length stands at both of its ends, and it lies in the file,
- its records follow one another from its header to its end, and each of them points back to the
  position of that header.

So bytes of an array are never taken for a length, and a piece of another file is not a transaction
of this one. A reader ignores bytes behind the last whole transaction, and a writer cuts them off.
This is right only at the end of the file: if a whole transaction follows a broken one, the file is
damaged in its middle. Then nothing is cut, and the file is refused.

The check of the first transaction is stricter, as a file without it is an empty database: a broken
one may only be a transaction that was being written. So whole transactions count as followers there
even if they were moved. A large one whose status was written is damaged, as its records were synced
before. (FileStorage does not do that, so one of its own is refused, too, after a power failure.)

This module knows the format of FileStorage, but not the contents of records.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from struct import unpack
from typing import Any, NamedTuple, Protocol

import numpy as np
from ZODB.FileStorage.FileStorage import CorruptedTransactionError
from ZODB.FileStorage.format import DATA_HDR, DATA_HDR_LEN, TRANS_HDR, TRANS_HDR_LEN
from ZODB.POSException import StorageSystemError

from wendelin.lib.storage.fsheads import cold_at, drop
from wendelin.lib.storage.fssync import sync_folder

__all__ = ["FIRST", "LARGE", "UNFINISHED", "Scanned", "cut_end", "scan"]

log = logging.getLogger(__name__)

#: where the first transaction of a file is [bytes]
FIRST = 4
#: the records of a transaction of this size are synced before its status is written [bytes]
LARGE = 16 << 20
#: the length of a transaction that is being written: not possible for a file [bytes]
UNFINISHED = 1 << 62

_LAST = b"\xff" * 8  # a tid above all others
_WINDOW = 1 << 13  # read at a time [bytes]
_FAR = 1 << 16  # from a piece to the next one, so that what is between is large [bytes]
_PIECE = 1 << 20  # read at a time where there is no transaction [bytes]


class _Index(Protocol):
    def update(self, found: dict[bytes, int], /) -> Any: ...


class Scanned(NamedTuple):
    """The result of a scan."""

    pos: int  # behind the last whole transaction [bytes]
    tid: bytes  # of that transaction


class _Transaction(NamedTuple):
    tid: bytes
    end: int  # where the next one is [bytes]
    records: dict[bytes, int]  # oid -> position


class _Window:
    """Small pieces of a file, mostly one after another.

    A piece between large records does not stay in the page cache, if a part of it was not there:
    see fsrecord.OpenFile.cold.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0
        self._data = b""
        self._cold = False  # the page cache had not all of it
        # not overlayfs: byte 0, which was just read, is said not to be there
        self._tells = bool(os.pread(fd, 1, 0)) and not cold_at(fd, 0, 1)

    def __call__(self, pos: int, size: int) -> bytes:
        start = pos - self._at
        if not 0 <= start <= len(self._data) - size:
            if self._cold and start > _FAR:
                drop(self._fd, self._at, len(self._data))
            size_read = max(size, _WINDOW)
            self._cold = self._tells and cold_at(self._fd, pos, size_read)
            self._at, self._data, start = pos, os.pread(self._fd, size_read, pos), 0
        return self._data[start : start + size]

    def number(self, pos: int) -> int:
        """Return a number; -1 if it is not in the file."""
        data = self(pos, 8)
        return int.from_bytes(data, "big") if len(data) == 8 else -1


def _whole(read: _Window, size: int, pos: int, moved: bool = False) -> _Transaction | None:
    """Return the transaction at a position, if it is whole in a file of this size.

    moved: accept one whose records say that it begins elsewhere, all at the same position.
    """
    header = read(pos, TRANS_HDR_LEN)
    if len(header) < TRANS_HDR_LEN:
        return None
    tid, length, status, *lengths = unpack(TRANS_HDR, header)
    end = pos + length
    at = pos + TRANS_HDR_LEN + sum(lengths)
    # FileStorage reads transactions of an unknown status, too, if it is ASCII
    if status == b"c" or not 0 < status[0] < 128 or at > end or end + 8 > size:
        return None
    records: dict[bytes, int] = {}
    begin = pos
    while at < end and status != b"u":  # an undone one is skipped
        header = read(at, DATA_HDR_LEN)
        if len(header) < DATA_HDR_LEN:
            return None
        oid, _, _, back, version, payload = unpack(DATA_HDR, header)
        if moved and not records:
            begin = back
        if back != begin or version:
            return None
        records[oid] = at
        at += DATA_HDR_LEN + (payload or 8)  # 0: a position is there instead
    if (at != end and status != b"u") or read.number(end) != length:
        return None
    return _Transaction(tid, end + 8, records)


def scan(
    fd: int, name: str, index: _Index, start: int, tid: bytes, stop: bytes | None = None
) -> Scanned:
    """Read the whole transactions from a position on.

    Parameters
    ----------
    fd : int
        A writer may write to the file at the same time.
    name : str
        For messages.
    index : fsIndex or dict
        oid -> position of its last record, brought up to date.
    start : int
        Where a transaction begins, or the file ends [bytes].
    tid : bytes
        Of the transaction before.
    stop : bytes, optional
        End before the first transaction with this tid, or a later one.

    Raises
    ------
    CorruptedTransactionError
        A transaction is broken, and whole ones follow it; or it is the first one, and a power
        failure cannot have left it so.
    """
    pos = start
    while True:
        read, size = _Window(fd), os.fstat(fd).st_size
        while (found := _whole(read, size, pos)) is not None and found.tid < (stop or _LAST):
            if found.tid <= tid:
                log.warning("%s: time-stamp reduction at %d", name, pos)
            index.update(found.records)
            pos, tid = found.end, found.tid
        why = None if found is not None else _why_damaged(fd, size, pos, tid)
        if why is None:
            return Scanned(pos, tid)
        # The writer may have finished this transaction, and begun the next, just now.
        if _whole(_Window(fd), os.fstat(fd).st_size, pos) is None:
            raise CorruptedTransactionError(
                f"{name} is damaged at {pos}: there is not a whole transaction, but "
                f"{why}. Nothing was changed. Restore a backup, or try ZODB's fsrecover on a "
                f"copy of the file"
            )


def _why_damaged(fd: int, size: int, pos: int, tid: bytes) -> str | None:
    """Say why a file cannot end at a position; None if it can."""
    behind = _whole_behind(fd, size, pos, tid)
    if behind is not None:
        return f"a whole one follows at {behind}"
    header = os.pread(fd, TRANS_HDR_LEN, pos)
    if pos == FIRST and len(header) == TRANS_HDR_LEN:
        _, length, status, *_ = unpack(TRANS_HDR, header)
        if length >= LARGE and status in (b" ", b"p"):
            return (
                f"its header says that {length} bytes are committed, which wendelin.core writes "
                f"only when they are on disk"
            )
    return None


def _whole_behind(fd: int, size: int, pos: int, tid: bytes) -> int | None:
    """Return where the next whole transaction with records is; there is none at `pos`."""
    read = _Window(fd)
    header = read(pos, TRANS_HDR_LEN)
    if len(header) < TRANS_HDR_LEN:
        return None
    _, length, status, *_ = unpack(TRANS_HDR, header)
    if (status, length) == (b"c", UNFINISHED):
        return None
    candidates: list[Iterable[int]] = [[size - 8 - read.number(size - 8)]]
    if TRANS_HDR_LEN <= length < size and read.number(pos + length) == length:
        if pos + length + 8 == size:
            return None  # it is the last one
        candidates.append([pos + length + 8])
    candidates.append(_candidates(fd, size, pos + 1, tid[:1].strip(b"\0")))
    for group in candidates:
        for at in group:
            found = _whole(read, size, at, moved=pos == FIRST) if at > pos else None
            if found is not None and found.records:
                return at
    return None


def _candidates(fd: int, size: int, pos: int, begin: bytes) -> Iterable[int]:
    """Yield where a header could be: its tid begins so, and its transaction lies in the file.

    Lengths are below 2**48. There may be gigabytes to search.
    """
    while (n := min(_PIECE, size - pos - TRANS_HDR_LEN)) > 0:
        data = np.frombuffer(os.pread(fd, n + TRANS_HDR_LEN, pos), np.uint8)
        n = len(data) - TRANS_HDR_LEN
        if n <= 0:
            return  # the file was cut
        status = data[16 : 16 + n]
        could = (status == ord(" ")) | (status == ord("p")) | (status == ord("u"))
        could &= (data[8 : 8 + n] == 0) & (data[9 : 9 + n] == 0)
        if begin:
            could &= data[:n] == begin[0]
        at = np.flatnonzero(could)
        length = np.zeros(len(at), np.int64)
        for i in range(10, 16):
            length = length << 8 | data[at + i]
        at = at[(length >= TRANS_HDR_LEN) & (pos + at + length + 8 <= size)]
        yield from (pos + at).tolist()
        pos += n


def cut_end(fd: int, name: str, pos: int) -> None:
    """Cut a file off behind its last whole transaction; keep the rest in another file.

    Zeros, and the rest of a transaction that a crash stopped before its vote, are not kept.

    Raises
    ------
    StorageSystemError
        There is no space to keep it. Nothing was cut.
    """
    size = os.fstat(fd).st_size
    if size <= pos:
        return
    header = os.pread(fd, TRANS_HDR_LEN, pos)
    ours = header[8:17] == UNFINISHED.to_bytes(8, "big") + b"c"
    if not ours and not _is_zeros(fd, pos, size):
        kept = _keep(fd, name, pos, size)
        log.warning(
            "%s: %d bytes behind the last whole transaction were moved to %s",
            name,
            size - pos,
            kept,
        )
    os.ftruncate(fd, pos)


def _is_zeros(fd: int, pos: int, size: int) -> bool:
    while pos < size:
        data = os.pread(fd, min(_PIECE, size - pos), pos)
        if not data or data.count(0) != len(data):
            return False
        pos += len(data)
    return True


def _keep(fd: int, name: str, pos: int, size: int) -> str:
    """Copy the end of a file to NAME.trN, as FileStorage does; return that name."""
    number = 0
    while os.path.lexists(kept := f"{name}.tr{number}"):
        number += 1
    try:
        with open(kept, "xb") as copy:
            at = pos
            while at < size and (done := os.sendfile(copy.fileno(), fd, at, size - at)):
                at += done
            os.fsync(copy.fileno())
        sync_folder(os.path.dirname(os.path.abspath(kept)))
    except OSError as e:
        if os.path.exists(kept):
            os.unlink(kept)
        raise StorageSystemError(
            f"{name} has {size - pos} bytes behind its last whole transaction, which cannot be "
            f"kept in {kept}: {e}. Free some space; or cut them off: truncate -s {pos} {name}"
        ) from e
    return kept
