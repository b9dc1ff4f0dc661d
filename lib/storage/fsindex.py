"""The saved index of a Data.fs: NAME.index, which is used for no other file.

ZODB's format (fsIndex.save), which stock FileStorage reads, is followed by a trailer, which stock
FileStorage ignores: it says to which file the index belongs, and has a checksum of all. An index is
used if

- its checksum is right,
- it was saved for this very file: its inode number, the position and the tid where the index ends,
  and a digest of the bytes at the beginning of the file and of those before that position. Bytes
  in a Data.fs never change, so a file that grows keeps its index; a pack writes another file.

The index of an earlier wendelin.core or of stock FileStorage has no trailer. A copy of a file has
another inode number. In both cases the file is read once, and a new index is saved.

Its pickles are read as data (inert): an index may come from a stranger, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

from BTrees.fsBTree import fsBucket
from ZODB.fsIndex import fsIndex
from zodbpickle.pickle import Pickler

from wendelin.lib.adapters.trees import buckets_of
from wendelin.lib.storage.fsscan import FIRST
from wendelin.lib.storage.inert import InertError, Reader

__all__ = ["Saved", "inode_of", "load_index", "positions", "save_index", "snapshot_of"]

_MAGIC = b"wc3index"
_DIGEST = 16  # [bytes]
_TRAILER = Struct(f">8sQQ8s{_DIGEST}s")  # magic, inode number, position, tid, digest of the file
_SAMPLE = 4096  # of a file, at each end [bytes]


class Saved(NamedTuple):
    """A saved index with a right checksum.

    If it is of this file, all bytes before pos were whole, and on disk.
    """

    pos: int  # the end of the file at that time [bytes]
    tid: bytes  # of the last transaction before that
    positions: fsIndex | None  # oid -> position; None: it is not known to be of this file


def positions(index: fsIndex, oids: Iterable[bytes]) -> list[int]:
    """Return where the last records of objects are, 0 for those that do not exist.

    This is index.get() for many oids, which mostly differ in their last two bytes: fsIndex keeps
    these together.
    """
    known = buckets_of(index)
    buckets: dict[bytes, fsBucket] = {}
    found = []
    for oid in oids:
        bucket = buckets.get(oid[:6])
        if bucket is None:
            bucket = buckets[oid[:6]] = known.get(oid[:6], {})
        found.append(int.from_bytes(bucket.get(oid[6:], b""), "big"))
    return found


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST).digest()


def inode_of(fd: int) -> int:
    """Return the inode number of an open file."""
    return os.fstat(fd).st_ino


def _trailer(fd: int, pos: int, tid: bytes) -> bytes:
    # Not the magic at the very beginning: the first commit to a file of Python 2 changes it.
    begin = os.pread(fd, min(_SAMPLE, pos - FIRST), FIRST)
    start = max(FIRST, pos - _SAMPLE)
    end = os.pread(fd, pos - start, start)
    return _TRAILER.pack(_MAGIC, inode_of(fd), pos, tid, _digest(begin + end))


def snapshot_of(index: fsIndex) -> list[tuple[bytes, bytes]]:
    """Return what save_index() saves of an index; others may change the index then."""
    return [(prefix, bucket.toString()) for prefix, bucket in buckets_of(index).items()]


def save_index(
    path: str, fd: int, index: Iterable[tuple[bytes, bytes]], pos: int, tid: bytes
) -> None:
    """Save the index of an open file, and sync it.

    Parameters
    ----------
    path : str
    fd : int
    index
        What snapshot_of() has returned.
    pos, tid
        Where the file ended then, and its last transaction.

    Raises
    ------
    OSError
        The previous index stays.
    """
    new = f"{path}.index_tmp"
    try:
        with open(new, "w+b") as file:
            pickler = Pickler(file, 3)
            pickler.fast = True  # as fsIndex.save() has it: nothing stands in it twice
            for value in (pos, *index, None):
                pickler.dump(value)
            file.seek(0)
            data = file.read() + _trailer(fd, pos, tid)
            file.write(data[-_TRAILER.size :] + _digest(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        with suppress(OSError):
            os.unlink(new)
        raise


def load_index(path: str, fd: int) -> Saved | None:
    """Return the saved index of an open file; None if there is none, or it is damaged."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    length = len(data) - _TRAILER.size - _DIGEST
    if length < 0 or _digest(data[:-_DIGEST]) != data[-_DIGEST:]:
        return None
    magic, _, pos, tid, _ = _TRAILER.unpack_from(data, length)
    if magic != _MAGIC or pos < FIRST:
        return None
    ours = pos <= os.fstat(fd).st_size and data[length:-_DIGEST] == _trailer(fd, pos, tid)
    return Saved(pos, tid, _unpickled(data, pos) if ours else None)


def _unpickled(data: bytes, pos: int) -> fsIndex | None:
    index = fsIndex()
    try:
        load = Reader(data, python2="bytes").load
        if load() != pos:
            return None
        while (entry := load()) is not None:
            prefix, bucket = entry
            buckets_of(index)[prefix] = fsBucket().fromString(bucket)
    except (InertError, ValueError, TypeError):
        return None
    return index
