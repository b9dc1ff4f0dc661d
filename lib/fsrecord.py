"""Where the bytes of an object lie in a file of FileStorage: told by the heads of its records.

It knows how FileStorage lays out a record (ZODB.FileStorage.format), and records of ZODB. Which
record of an object is the last, its index says, which is not known here.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from errno import EOPNOTSUPP
from struct import unpack_from
from typing import NamedTuple

from ZODB.FileStorage.format import DATA_HDR, DATA_HDR_LEN

from wendelin.lib.fsalign import ALIGNMENT
from wendelin.lib.zrecord import (
    CHECKSUM,
    LONGEST_END,
    ChecksumError,
    RecordError,
    digest_in,
    digest_of,
    find_payload,
    is_end,
)

__all__ = ["HeadReader", "Located", "OpenFile", "Stat", "stat"]

_HEAD = 512  # what is before the pad and the payload, at most [bytes]
_READ = 1 << 20  # of a payload that is read through, at once [bytes]


class OpenFile:
    """An open file, closed when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # for mapping
        # Not __del__: while that runs, weak references still give the object to other threads.
        weakref.finalize(self, os.close, self.fd).atexit = False
        self.heads = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # for reading heads of records
        weakref.finalize(self, os.close, self.heads).atexit = False
        os.posix_fadvise(self.heads, 0, 0, os.POSIX_FADV_RANDOM)
        self.nowait = _nowait(self.heads)  # of preadv(2): not to wait for the disk
        #: offsets of payloads that were read through, and match their checksums
        self.matched: set[int] = set()


def _nowait(fd: int) -> int:
    """Return RWF_NOWAIT, or 0 where the file system does not know it, as tmpfs."""
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as e:
        if e.errno == EOPNOTSUPP:
            return 0
    return os.RWF_NOWAIT


class Located(NamedTuple):
    """A record whose state is bytes, in one piece of a file."""

    file: OpenFile
    offset: int  # of the payload [bytes]: a multiple of ALIGNMENT, if it could be made one
    size: int  # of the payload [bytes]
    head: bytes  # the beginning of the record, which tells the class
    digest: bytes | None = None  # of the payload, as it was stored; None: there is no checksum

    def matches(self) -> bool:
        """Say whether the payload was read through, and matches its checksum; or has none."""
        return self.digest is None or self.offset in self.file.matched

    def check(self, flags: int = 0) -> None:
        """Read the payload through, and compare it with its checksum, if it has one.

        It is not read into memory that it is shown from: what cannot be read is an error, and no
        SIGBUS.

        Parameters
        ----------
        flags : int
            Of preadv(2).

        Raises
        ------
        ChecksumError
            It does not match.
        OSError
            See HeadReader.locate().
        """
        if self.digest is not None:
            if digest_of(self._pieces(flags)) != self.digest:
                raise ChecksumError
            self.file.matched.add(self.offset)

    def _pieces(self, flags: int) -> Iterator[memoryview]:
        data = memoryview(bytearray(min(self.size, _READ)))
        done = 0
        while done < self.size:
            n = os.preadv(self.file.fd, [data[: self.size - done]], self.offset + done, flags)
            if n == 0:
                return  # the file was cut
            yield data[:n]
            done += n


class Stat(NamedTuple):
    """What a storage says of a record without giving it."""

    tid: bytes
    size: int  # [bytes]


def stat(fd: int, oid: bytes, pos: int, before: bytes) -> Stat | None:
    """Return the Stat of an object's last record before a tid; its last one is at pos."""
    while pos:
        header = os.pread(fd, DATA_HDR_LEN, pos)
        if len(header) < DATA_HDR_LEN or header[:8] != oid:
            return None
        _, tid, prev, _, _, size = unpack_from(DATA_HDR, header)
        if tid < before:
            return Stat(tid, size or 8)  # 0: where the record is that an undo brought back
        pos = _before(prev, pos)
    return None


def _before(earlier: int, pos: int) -> int:
    """Return where an earlier record of an object is; 0: there is none, or not before."""
    return earlier if earlier < pos else 0


class HeadReader:
    """Reads heads of records, to find the bytes of objects as they were before a tid."""

    def __init__(self, file: OpenFile, before: bytes) -> None:
        self._file = file
        self._before = before
        self._data = bytearray(DATA_HDR_LEN + ALIGNMENT + _HEAD)
        self._tail = bytearray(LONGEST_END)
        # the last record that was found: (what is before the pad, after it, where the state
        # begins, size of the payload, of what follows); others of the same writer are alike
        self._last: tuple[bytes, bytes, int, int, int] | None = None

    def locate(self, oid: bytes, pos: int, flags: int = 0) -> Located | None:
        """Return where the bytes of an object lie.

        Parameters
        ----------
        oid : bytes
        pos : int
            Where its last record is.
        flags : int
            Of preadv(2).

        Raises
        ------
        OSError
            The file cannot be read; BlockingIOError: with RWF_NOWAIT, not without waiting.
        """
        data = self._data
        current = True
        while pos:
            n = os.preadv(self._file.heads, [data], pos, flags)
            if n < DATA_HDR_LEN + 8:
                return None
            found, tid, prev, _, version, size = unpack_from(DATA_HDR, data)
            if found != oid or version != 0:
                return None
            if current and tid >= self._before:
                pos = _before(prev, pos)
            elif size == 0:  # written by undo: the bytes are in an earlier record
                current = False
                back = int.from_bytes(data[DATA_HDR_LEN : DATA_HDR_LEN + 8], "big")
                pos = _before(back, pos)
            else:
                located = self._alike(pos, size) or self._payload(pos, n, size)
                return located if located and self._ends(located, pos, n, size, flags) else None
        return None

    def _ends(self, located: Located, pos: int, n: int, size: int, flags: int) -> bool:
        """Say whether a record ends as it must: of what was cut short, no part is to be shown."""
        stop = located.offset + located.size
        length = pos + DATA_HDR_LEN + size - stop
        at = stop - pos
        if at + length > n:
            if os.preadv(self._file.heads, [self._tail], stop, flags) < length:
                return False
            return is_end(bytes(self._tail[:length]))
        return is_end(bytes(self._data[at : at + length]))

    def _alike(self, pos: int, size: int) -> Located | None:
        """Find the payload as in the last record: the same, many times faster."""
        if self._last is None:
            return None
        before, after, state, payload, rest = self._last
        data = self._data
        length = DATA_HDR_LEN + len(before)
        if data[DATA_HDR_LEN:length] != before:
            return None
        pad = length + 4 + int.from_bytes(data[length : length + 4], "little")
        start = pad + len(after)
        if data[pad:start] != after:
            return None
        if start - DATA_HDR_LEN + payload + rest != size:
            return None
        digest = digest_in(bytes(data[length + 4 : min(pad, length + 4 + CHECKSUM)]))
        return Located(self._file, pos + start, payload, before[:state], digest)

    def _payload(self, pos: int, n: int, size: int) -> Located | None:
        head = bytes(self._data[DATA_HDR_LEN:n])
        try:
            found = find_payload(head, size)
        except RecordError:
            return None
        if found is None:
            return None
        payload = found.stop - found.start
        if found.begin != found.op:
            before, after = head[: found.begin + 1], head[found.op - 1 : found.start]
            self._last = (before, after, found.state, payload, size - found.stop)
        at = pos + DATA_HDR_LEN + found.start
        return Located(self._file, at, payload, head[: found.state], found.digest)
