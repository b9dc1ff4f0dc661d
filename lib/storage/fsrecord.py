"""Where the bytes of an object lie in a file of FileStorage, found in the heads of its records.

This module knows how FileStorage lays out a record (ZODB.FileStorage.format), and records of ZODB.
It does not know the index, which says which record of an object is the last one.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterable, Iterator
from errno import EIO, EOPNOTSUPP
from struct import unpack_from
from typing import NamedTuple

from ZODB.FileStorage.format import DATA_HDR, DATA_HDR_LEN

from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.storage.fsheads import MOST_READ, cold_at, drop, read_heads
from wendelin.lib.storage.record import (
    BETWEEN,
    CHECKSUM_MAGIC,
    LONGEST_END,
    ChecksumError,
    RecordError,
    digest_of,
    find_payload,
    is_end,
)

__all__ = ["HeadReader", "Located", "OpenFile", "Stat", "load_small", "stat"]

_HEAD = 512  # at most, before the pad and the payload [bytes]
#: of a payload that is read through, at a time: it is still in the processor's cache [bytes]
_READ = 256 << 10
#: memory to read into, that no thread uses: to get it anew takes longer than to read
_spare: list[memoryview] = []


class OpenFile:
    """An open file, closed when nothing refers to it any more."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # for mapping
        # Not __del__: while that runs, other threads still get the object from weak references.
        weakref.finalize(self, os.close, self.fd).atexit = False
        self.heads = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # for reading heads of records
        weakref.finalize(self, os.close, self.heads).atexit = False
        os.posix_fadvise(self.heads, 0, 0, os.POSIX_FADV_RANDOM)
        self.nowait = _nowait(self.heads)  # of preadv(2): not to wait for the disk
        #: positions of heads that were not in the page cache when they were asked for: they do not
        #: stay there. The kernel reads the data around a page that is there in single pages,
        #: as no large folio fits, and a sum of a GiB takes four times the CPU.
        #: None: nobody knows, as byte 0, which was just read, is said not to be there (overlayfs)
        self.cold: set[int] | None = None if cold_at(self.heads, 0, 1) else set()
        #: offsets of payloads that were read through, and match their checksums
        self.matched: set[int] = set()
        #: records with pads that were found, the last ones: others of their classes are alike
        self.likes: tuple[_Like, ...] = ()
        self._mapped: mmap.mmap | None = None

    def read_head(self, into: bytearray | memoryview, pos: int, flags: int) -> int:
        """Read the head of a record, as os.preadv() does. In any thread."""
        # not all of it: the file may end before, and has no pages there
        if self.cold is not None and cold_at(self.heads, pos, min(len(into), DATA_HDR_LEN)):
            self.cold.add(pos)
        return os.preadv(self.heads, [into], pos, flags)

    def leave_cold(self, read: Iterable[tuple[int, int]]) -> None:
        """Drop (positions, bytes) that were read, unless the page cache had them before."""
        for pos, n in read:
            if self.cold is not None and pos in self.cold:
                self.cold.discard(pos)
                drop(self.heads, pos, n)

    def view(self, offset: int, size: int) -> memoryview:
        """Return bytes of the file, in a mapping of all of it, without a copy. In any thread.

        A failed read would be a SIGBUS, so use it only for bytes that were just read through.

        Raises
        ------
        OSError
            There is no address space for it, or the file is shorter.
        """
        mapped = self._mapped
        if mapped is None or len(mapped) < offset + size:
            # if the file has grown, a mapping that is in use stays as it is
            mapped = self._mapped = mmap.mmap(self.fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        found = memoryview(mapped)[offset : offset + size]
        if len(found) < size:
            raise OSError(EIO, "the file was cut")
        return found


def _nowait(fd: int) -> int:
    """Return RWF_NOWAIT, or 0 if the file system, such as tmpfs, does not know it."""
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as e:
        if e.errno == EOPNOTSUPP:
            return 0
    return os.RWF_NOWAIT


class Located(NamedTuple):
    """A record whose state is bytes, in one piece of a file."""

    file: OpenFile
    offset: int  # of the payload [bytes]: a multiple of ALIGNMENT, if it is aligned
    size: int  # of the payload [bytes]
    head: bytes  # the beginning of the record, with the class
    digest: bytes | None = None  # of the payload, as it was stored; None: there is no checksum

    def matches(self) -> bool:
        """Say whether the payload was read through, and matches its checksum; or has none."""
        return self.digest is None or self.offset in self.file.matched

    def check(self, flags: int = 0) -> None:
        """Read the payload through, and compare it with its checksum, if it has one.

        It is read into a buffer, not touched in a mapping: a failed read is an error, not a SIGBUS.

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

    def read_into(self, into: memoryview) -> None:
        """Copy the payload into memory of its size, and compare it with its checksum.

        Raises
        ------
        ChecksumError, OSError
            See check(). The memory has anything then.
        """
        done = 0
        while done < self.size:
            n = os.preadv(self.file.fd, [into[done:]], self.offset + done)
            if n == 0:
                raise ChecksumError  # the file was cut
            done += n
        if self.digest is not None and digest_of([into]) != self.digest:
            raise ChecksumError

    def _pieces(self, flags: int) -> Iterator[memoryview]:
        try:
            data = _spare.pop()
        except IndexError:
            data = memoryview(bytearray(_READ))
        done = 0
        try:
            while done < self.size:
                n = os.preadv(self.file.fd, [data[: self.size - done]], self.offset + done, flags)
                if n == 0:
                    return  # the file was cut
                yield data[:n]
                done += n
        finally:
            _spare.append(data)


class Stat(NamedTuple):
    """Tid and size of a record."""

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
            return Stat(tid, size or 8)  # 0: the position of a record that an undo brought back
        pos = _before(prev, pos)
    return None


_SMALL = 4096  # what is read of a record at once [bytes]
_TABLE = b"BTrees.LOBTree"  # in the class of the nodes of block tables
_BLOCKS = 1 << 16  # what is before a node, if there are blocks [bytes]
_MOST_DROPPED = 1 << 14


def load_small(
    fd: int, oid: bytes, pos: int, before: bytes, dropped: set[int]
) -> tuple[bytes, bytes] | None:
    """Return the state and the tid of an object, whose last record is at pos, by one system call.

    None: it is longer, or not before this tid, or not plain: FileStorage says what it is.

    A node of a block table lies between blocks. If these are not in the page cache, it does not
    stay there, but for the second time it is read: see OpenFile.cold. dropped has positions of
    nodes that did not stay.
    """
    data = os.pread(fd, _SMALL, pos)
    if len(data) < DATA_HDR_LEN or data[:8] != oid:
        return None
    _, tid, prev, begin, version, size = unpack_from(DATA_HDR, data)
    if tid >= before or prev >= pos or version or not 0 < size <= len(data) - DATA_HDR_LEN:
        return None
    state = data[DATA_HDR_LEN : DATA_HDR_LEN + size]
    if _TABLE in state[:64] and pos not in dropped and _follows_blocks(fd, pos, begin):
        if len(dropped) >= _MOST_DROPPED:
            dropped.clear()
        dropped.add(pos)
        drop(fd, pos, len(data))
    return state, tid


def _follows_blocks(fd: int, pos: int, begin: int) -> bool:
    """Say whether blocks that are not in the page cache are before a record.

    In its transaction, which begins there, or in the one before: its length is at its end, too.
    """
    if pos < _BLOCKS or not cold_at(fd, pos - _BLOCKS, _BLOCKS - ALIGNMENT):
        return False
    if pos - begin > _BLOCKS:
        return True
    # nothing is before the first transaction, and a damaged record may say anything
    return 8 <= begin < pos and int.from_bytes(os.pread(fd, 8, begin - 8), "big") > _BLOCKS


def _is_bytes(record: bytes) -> bool:
    """Say whether the state of a record is one piece of bytes, or it is not known."""
    try:
        return find_payload(record) is not None
    except RecordError:
        return True


def _before(earlier: int, pos: int) -> int:
    """Return where an earlier record of an object is; 0 if there is none."""
    return earlier if earlier < pos else 0


class _Like(NamedTuple):
    """What records of one class and writer have in common: all but oids, places, pads, sizes."""

    before: bytes  # the bytes of a record before the length of the pad
    after: bytes  # between the pad and the length of the payload
    end: bytes  # behind the payload
    head: bytes  # the bytes before the state


_LIKES = 8  # that are kept of a file, which has a few


class HeadReader:
    """Reads heads of records, to find the bytes of objects in the state before a tid."""

    def __init__(self, file: OpenFile, before: bytes) -> None:
        self._file = file
        self._before = before
        self._data = bytearray(min(DATA_HDR_LEN + ALIGNMENT + _HEAD, MOST_READ))
        self._tail = bytearray(max(LONGEST_END, BETWEEN))
        self._read: list[tuple[int, int]] = []  # for one record

    def locate_all(
        self,
        oids: list[bytes],
        positions: list[int],
        flags: int = 0,
        *,
        wait: bool = True,
        small: dict[bytes, bytes] | None = None,
    ) -> list[Located | None]:
        """Return where the bytes of objects lie; see locate().

        Parameters
        ----------
        oids : list of bytes
        positions : list of int
            Where their last records are.
        flags
        wait : bool
            False: None instead of an OSError.
        small : dict, optional
            It gets the records of small objects that are not bytes.
        """
        found: list[Located | None] = [None] * len(oids)
        todo = list(range(len(oids)))
        stop = True  # at one that may be like others that follow
        while todo:
            heads = self._heads([oids[i] for i in todo], [positions[i] for i in todo], flags, stop)
            others = []
            for i, head in zip(todo, heads, strict=False):
                if isinstance(head, Located):
                    found[i] = head
                elif head is None or _is_bytes(head):
                    others.append(i)
                elif small is not None:
                    small[oids[i]] = head
            todo = todo[len(heads) :]
            for n, i in enumerate(others, 1):
                known = self._file.likes
                try:
                    found[i] = self.locate(oids[i], positions[i], flags)
                except OSError:
                    if wait:
                        raise  # else the kernel reads it now, or a touch gets the error
                stop = self._file.likes is not known
                if stop:
                    todo = others[n:] + todo
                    break
        return found

    def _heads(
        self, oids: list[bytes], positions: list[int], flags: int, stop: bool
    ) -> list[Located | bytes | None]:
        """Return what read_heads() finds."""
        file, likes = self._file, self._file.likes
        heads = read_heads(
            file.heads,
            flags,
            oids,
            positions,
            self._before,
            [like[:3] for like in likes],
            CHECKSUM_MAGIC,
            len(self._data),
            stop,
            file.cold,
        )
        return [
            Located(file, head[0], head[1], likes[head[3]].head, head[2])
            if isinstance(head, tuple)
            else head
            for head in heads
        ]

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
            The file cannot be read; BlockingIOError: with RWF_NOWAIT, it would have to wait.
        """
        self._read.clear()
        found = self._locate(oid, pos, flags)
        if found is not None:  # else some of it may be on its way from the disk
            self._file.leave_cold(self._read)
        return found

    def _locate(self, oid: bytes, pos: int, flags: int) -> Located | None:
        data = self._data
        current = True
        while pos:
            n = self._read_at(data, pos, flags)
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
                return self._payload(pos, n, size, flags)
        return None

    def _read_at(self, into: bytearray | memoryview, pos: int, flags: int) -> int:
        self._read.append((pos, len(into)))
        return self._file.read_head(into, pos, flags)

    def _payload(self, pos: int, n: int, size: int, flags: int) -> Located | None:
        pos += DATA_HDR_LEN
        head = bytes(self._data[DATA_HDR_LEN:n])

        def read(at: int, length: int) -> bytes:
            """Read a few bytes; not more, as a part of a large page of the cache would do harm."""
            if at + length <= len(head):
                return head[at : at + length]
            size = self._read_at(memoryview(self._tail)[:length], pos + at, flags)
            return bytes(self._tail[:size])

        try:
            found = find_payload(head, size, read)
        except RecordError:
            return None
        if found is None:
            return None
        payload = found.stop - found.start
        rest = size - found.stop
        end = read(found.stop, rest)
        if len(end) != rest or not is_end(end):
            return None  # no part of a truncated record may be shown
        if found.begin != found.op and found.between[1:-4] == b"B":
            like = _Like(head[: found.begin + 1], found.between[:-4], end, head[: found.state])
            if like not in self._file.likes:
                self._file.likes = (*self._file.likes, like)[-_LIKES:]
        return Located(self._file, pos + found.start, payload, head[: found.state], found.digest)
