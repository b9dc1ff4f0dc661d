"""Records of a Data.fs that are copied into another file: their payloads by the kernel.

FileStorage's pack reads a record from one file, and writes it to another. Source and Target replace
these files. For a large record, Source returns only where it lies, and Target copies it from there.
A payload is compared with its checksum, and gets a pad that aligns it in the new file.

This module knows records and files. The pack knows which record is copied when.
"""

from __future__ import annotations

import fcntl
import os
import struct
from errno import EINVAL, ENOSYS, EOPNOTSUPP, EXDEV
from typing import Any

from ZODB.FileStorage.format import DATA_HDR_LEN

from wendelin.lib.storage.fsalign import Pieces, aligned_at, alignment
from wendelin.lib.storage.fsreach import HEAD, LARGE, payload_of
from wendelin.lib.storage.pad import Hole, repadded, without_pad
from wendelin.lib.storage.record import ChecksumError, check, digest_of

__all__ = ["Source", "Stretch", "Target", "aligned_data", "copy_range", "share_range"]

_PIECE = 1 << 20  # compared at a time [bytes]
_FICLONERANGE = 0x4020940D  # linux/fs.h


class Stretch:
    """Bytes of a file that are not read: FileStorage asks for their length, and writes them."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self.fd = fd
        self.offset = offset
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __contains__(self, piece: bytes) -> bool:
        """Return False: it is not the record of a blob, as those are small."""
        return False

    def read(self, start: int, size: int) -> bytes:
        """Read some of the bytes.

        Raises
        ------
        OSError
            The file ends before.
        """
        data = os.pread(self.fd, size, self.offset + start)
        if len(data) < min(size, self.size - start):
            raise OSError(f"the file ends in a record at {self.offset}")
        return data

    def all(self) -> bytes:
        """Read all of the bytes."""
        pieces = []
        done = 0
        while done < self.size:
            pieces.append(self.read(done, min(_PIECE, self.size - done)))
            done += len(pieces[-1])
        return b"".join(pieces)

    def within(self, start: int, stop: int) -> Stretch:
        """Return some of the bytes."""
        return Stretch(self.fd, self.offset + start, stop - start)

    def digest(self) -> bytes:
        """Return XXH3-64 of the bytes, which are read through one buffer."""
        return digest_of(self._pieces())

    def _pieces(self) -> Any:
        data = memoryview(bytearray(min(self.size, _PIECE)))
        done = 0
        while done < self.size:
            n = os.preadv(self.fd, [data[: self.size - done]], self.offset + done)
            if n == 0:
                return  # the file was cut: it does not match
            yield data[:n]
            done += n


def aligned_data(data: bytes | Stretch, at: int, smallest: int) -> Pieces:
    """Return a record as it is to be at a position of the new file, behind its header.

    Raises
    ------
    ChecksumError
        The payload does not match.
    OSError
        It cannot be read.
    """
    at += DATA_HDR_LEN
    if isinstance(data, Stretch):
        head = data.read(0, min(HEAD, data.size))
        found = payload_of(head, data.size, data.read)
        end = data.read(found.stop, data.size - found.stop) if found is not None else b""
        again = None
        if found is not None:
            again = repadded(head, found, end, at, alignment(smallest))
        if found is None or again is None:
            data = data.all()
        else:
            payload = data.within(found.start, found.stop)
            if found.digest is not None and payload.digest() != found.digest:
                raise ChecksumError
            return Pieces(*again, payload, end)
    check(data)
    return aligned_at(without_pad(data), at, smallest)


class Source:
    """A file from which FileStorage reads records; a large one is returned as a Stretch."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> Any:
        """Read, or return a Stretch."""
        if size < LARGE:
            return self._file.read(size)
        return Stretch(self._file.fileno(), self._file.tell(), size)


class Target:
    """A file to which FileStorage writes records, also Stretches."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> None:
        """Write bytes, or pieces with Stretches and Holes."""
        for piece in data.pieces if isinstance(data, Pieces) else (data,):
            if isinstance(piece, Stretch):
                self._copy(piece)
            elif isinstance(piece, Hole):
                self._file.seek(len(piece), os.SEEK_CUR)
            else:
                self._file.write(piece)

    def _copy(self, data: Stretch) -> None:
        self._file.flush()
        at = self._file.tell()
        done = 0
        while done < data.size:
            n = copy_range(
                data.fd, data.offset + done, self._file.fileno(), at + done, data.size - done
            )
            if n == 0:
                raise OSError(f"the file ends in a record at {data.offset}")
            done += n
        self._file.seek(at + data.size)


def copy_range(source: int, offset: int, target: int, at: int, size: int) -> int:
    """Copy bytes, by the kernel if possible; return their number: fewer, or 0 at the end.

    Between aligned places of a file system with reflinks, such as XFS, nothing is copied: both
    files share the extent.
    """
    try:
        return os.copy_file_range(source, target, size, offset, at)
    except OSError as e:
        if e.errno not in (EXDEV, EOPNOTSUPP, ENOSYS, EINVAL):
            raise
    return os.pwrite(target, os.pread(source, min(size, _PIECE), offset), at)


def share_range(source: int, offset: int, target: int, at: int, size: int) -> bool:
    """Let two files share bytes, without reading or copying them; return False if they cannot.

    Both have to be on one file system with reflinks, such as XFS; all numbers are whole blocks.
    """
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, offset, size, at))
    except OSError:  # of many kinds; a copy of the bytes says what is wrong, if that fails, too
        return False
    return True
