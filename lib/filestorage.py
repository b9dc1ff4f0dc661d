"""AlignedFileStorage: a FileStorage whose large byte strings can be mapped into memory.

Data.fs is what ZODB.FileStorage writes, and reads: the one difference is that a record whose
state is bytes, a whole number of OS pages of them, is padded so that they begin at a multiple
of the OS page in the file (see zrecord.aligned; others unpickle the pad and throw it away).
locate() tells where bytes are, aligned or not, of a committed revision: they never change there,
as long as somebody has the file open. Pack writes another file, aligned again - also what was not.

Organization
------------
A transaction's records are written once, to where they are to be in Data.fs (_Tail); FileStorage
writes them to a file of their own first, and copies them at the vote. They lie behind a
transaction header with status 'c', as at a vote: who opens the file after a crash, or at this
moment to read, stops there.

It knows records of ZODB. What is in the bytes it does not know.

Locking: as in FileStorage: the commit lock > the pool of readers > _lock.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from errno import EOPNOTSUPP
from importlib import import_module
from os import RWF_NOWAIT
from struct import unpack_from
from typing import Any, NamedTuple

from ZODB.FileStorage import FileIterator, FileStorage
from ZODB.FileStorage.format import DATA_HDR, DATA_HDR_LEN, TxnHeader
from ZODB.POSException import StorageTransactionError
from ZODB.utils import p64

from wendelin.lib.fsalign import ALIGNMENT, Pieces, aligned_at
from wendelin.lib.fsfollow import FileFollower
from wendelin.lib.fspack import Packer, data_find
from wendelin.lib.interrupt import interrupts_later
from wendelin.lib.zrecord import (
    LONGEST_END,
    BytesRecord,
    RecordError,
    find_payload,
    is_end,
    without_pad,
)

__all__ = ["AlignedFileStorage", "Located", "OpenFile", "Stat"]

_HEAD = 512  # what is before the pad and the payload, at most [bytes]
_BUFFER = 1 << 16  # small writes are gathered up to this [bytes]
_UNFINISHED = 1 << 62  # the length of a transaction that is being written: of no file


class OpenFile:
    """An open file, closed when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # for mapping
        # Not __del__: while that runs, weak references still give the object to other threads.
        weakref.finalize(self, os.close, self.fd).atexit = False
        self.heads = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # for reading heads of records
        weakref.finalize(self, os.close, self.heads).atexit = False
        os.posix_fadvise(self.heads, 0, 0, os.POSIX_FADV_RANDOM)


class Located(NamedTuple):
    """A record whose state is bytes, in one piece of a file."""

    file: OpenFile
    offset: int  # of the payload [bytes]: a multiple of ALIGNMENT, if it could be made one
    size: int  # of the payload [bytes]
    head: bytes  # the beginning of the record, which tells the class


class Stat(NamedTuple):
    """What a storage says of a record without giving it."""

    tid: bytes
    size: int  # [bytes]


def _stat(fd: int, oid: bytes, pos: int, before: bytes) -> Stat | None:
    """Return the Stat of an object's last record before a tid; its last one is at pos."""
    while pos:
        header = os.pread(fd, DATA_HDR_LEN, pos)
        if len(header) < DATA_HDR_LEN or header[:8] != oid:
            return None
        _, tid, prev, _, _, size = unpack_from(DATA_HDR, header)
        if tid < before:
            return Stat(tid, size or 8)  # 0: where the record is that an undo brought back
        pos = prev
    return None


_PYTHON2 = b"FS21"  # how files of Python 2 begin
# in ZODB.FileStorage, the name is that of the class
_module = import_module("ZODB.FileStorage.FileStorage")


class _EitherMagic(bytes):
    """How a file may begin."""

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        return bytes(self) == other or other == _PYTHON2

    def __ne__(self, other: object) -> bool:
        return not self == other


_reading = threading.Lock()


@contextmanager
def _reads_python2() -> Iterator[None]:
    """Let FileStorage read files of Python 2.

    They have another magic, so that Python 2 does not take files of Python 3 for its own; the
    format is the same.
    """
    with _reading:
        magic = _module.packed_version
        setattr(_module, "packed_version", _EitherMagic(magic))  # noqa: B010  # for mypy
        try:
            yield
        finally:
            setattr(_module, "packed_version", magic)  # noqa: B010


def _read_index(*args: Any, **kw: Any) -> Any:
    with _reads_python2():
        return _module.read_index(*args, **kw)


class AlignedFileStorage(FileStorage):  # type: ignore[misc]  # ZODB has no type hints
    """A FileStorage that aligns large byte strings in its file, and tells where they are.

    Parameters
    ----------
    file_name : str
    align : bool
        False: be a FileStorage, without locate(), which finds nothing then.
    **options
        Of FileStorage. With read_only, another process may have the file open, to write: each
        transaction sees what was committed before it began, as with a server.
    """

    _opened: weakref.ref[OpenFile] | None = None  # held by who maps it
    _follower: FileFollower | None = None
    _tfile: Any
    _file: Any

    def __init__(self, file_name: str, *, align: bool | int = True, **options: Any) -> None:
        self.align = bool(align)
        with _reads_python2():
            super().__init__(file_name, **options)
        self._python2 = os.pread(self._file.fileno(), len(_PYTHON2), 0) == _PYTHON2
        if self._is_read_only and options.get("stop") is None:
            self._follower = FileFollower(self, self._again, _read_index)
        if align and self._tfile is not None:
            self._tfile.close()
            os.unlink(self._tfile.name)
            self._tfile = _Tail(self)
            self._tfmt._file = self._tfile

    # ---- files that others write ----

    def sync(self) -> None:
        """See IStorage: be up to date, if this storage only reads."""
        if self._follower is not None:
            self._follower.follow()

    def registerDB(self, db: Any) -> None:
        """See IStorage."""
        if self._follower is not None:
            self._follower.db = db

    def _again(self) -> AlignedFileStorage:
        return AlignedFileStorage(self._file_name, align=self.align, read_only=True)

    # ---- files of Python 2 ----

    def _begin(self, tid: bytes, u: bytes, d: bytes, e: bytes) -> None:
        if self._python2:  # it is going to have what Python 2 cannot read
            self._file.seek(0)
            self._file.write(bytes(_module.packed_version))
            self._file.flush()
            self._python2 = False
        super()._begin(tid, u, d, e)

    # ---- where records are ----

    def locate(
        self, oids: Iterable[bytes], before: bytes, *, wait: bool = True
    ) -> list[Located | None]:
        """Return where the bytes of objects lie in the file, and None for those that do not.

        Parameters
        ----------
        oids : iterable of bytes
        before : bytes
            Of each object, the last revision before this tid.
        wait : bool
            False: return None as well where the disk would have to be waited for.
        """
        oids = list(oids)
        if not self.align:
            return [None] * len(oids)
        with self._files.get() as current:  # no commit or pack ends meanwhile
            file = self._open_file(current)
            if file is None:
                return [None] * len(oids)
            reader = _HeadReader(file, before)
            result: list[Located | None] = []
            flags = 0 if wait else RWF_NOWAIT
            for oid in oids:
                pos = self._index.get(oid, 0)
                try:
                    result.append(reader.locate(oid, pos, flags))
                except OSError as e:
                    if wait:
                        raise
                    if e.errno == EOPNOTSUPP:  # this file system cannot tell
                        flags = 0
                    result.append(None)  # the kernel reads it now, or who touches it is told
            return result

    def stat(self, oids: Iterable[bytes], before: bytes) -> list[Stat | None]:
        """Return tids and sizes of objects' records, and None for those that are not there.

        Parameters
        ----------
        oids, before
            See locate().
        """
        with self._files.get() as file:  # no commit or pack ends meanwhile
            return [_stat(file.fileno(), oid, self._index.get(oid, 0), before) for oid in oids]

    def has_open(self, file: OpenFile) -> bool:
        """Say whether a file is the storage's, and not one that was packed."""
        return self._opened is not None and self._opened() is file

    def _open_file(self, current: Any) -> OpenFile | None:
        opened = self._opened() if self._opened is not None else None
        if opened is None:
            opened = OpenFile(self._files.name)
            if not os.path.sameopenfile(opened.fd, current.fileno()):
                return None  # somebody has moved the file
            self._opened = weakref.ref(opened)
        return opened

    def _initIndex(self, index: Any, tindex: Any) -> None:
        # called when the file is opened, and when pack has put another in its place
        super()._initIndex(index, tindex)
        self._opened = None

    def _restore_index(self) -> Any:
        # called between opening and reading the file
        restored = super()._restore_index()
        if not self._is_read_only:
            self._cut_unfinished(restored[1] if restored else 4)
        return restored

    def _cut_unfinished(self, pos: int) -> None:
        """Cut what a process that crashed has left of a transaction before its vote.

        FileStorage would copy it to a file of its own first: useless, and on a full disk, maybe
        the reason of the crash, an error.
        """
        fd = self._file.fileno()
        while len(header := os.pread(fd, 17, pos)) == 17:
            _, size, status = unpack_from(">8sQc", header)
            if (status, size) == (b"c", _UNFINISHED):
                self._file.truncate(pos)
                return
            if not len(header) <= size < _UNFINISHED:
                return  # damaged: FileStorage finds out
            pos += size + 8

    def close(self) -> None:
        """See IStorage."""
        with self._lock:
            if isinstance(self._tfile, _Tail) and self._tfile.started and not self._nextpos:
                self._cut()
            super().close()

    # ---- writing ----

    def store(
        self,
        oid: bytes,
        oldserial: bytes,
        data: bytes | BytesRecord,
        version: str,
        transaction: Any,
    ) -> None:
        """See IStorage; data may be a BytesRecord."""
        if self.align and transaction is self._transaction:
            with self._lock:
                record = Pieces(data, self._at() + DATA_HDR_LEN)
                super().store(oid, oldserial, record, version, transaction)
        else:
            super().store(oid, oldserial, bytes(data), version, transaction)

    def restore(
        self,
        oid: bytes,
        serial: bytes,
        data: bytes | None,
        version: str,
        prev_txn: bytes | None,
        transaction: Any,
    ) -> None:
        """See IStorageRestoreable."""
        if self.align and transaction is self._transaction and data is not None:
            with self._lock:
                data = aligned_at(data, self._at() + DATA_HDR_LEN)
                super().restore(oid, serial, data, version, prev_txn, transaction)
        else:
            super().restore(oid, serial, data, version, prev_txn, transaction)

    def tryToResolveConflict(
        self, oid: bytes, committed: bytes, old: bytes, new: Any, data: bytes = b""
    ) -> Any:
        """See ConflictResolvingStorage."""
        new = b"".join(new.pieces) if isinstance(new, Pieces) else new
        return super().tryToResolveConflict(oid, committed, old, new, data)

    def _at(self) -> int:
        """Return where the next record of the transaction is to be in the file."""
        return int(self._pos + self._thl + self._tfile.tell())

    def tpc_vote(self, transaction: Any) -> Any:
        """See IStorage."""
        if not self.align:
            try:
                return super().tpc_vote(transaction)
            except OSError:
                with self._lock:
                    self._renew_file()
                raise
        with self._lock:
            if transaction is not self._transaction:
                raise StorageTransactionError("tpc_vote called with wrong transaction")
            try:
                size = self._thl + self._tfile.tell()
                self._tfile.write(p64(size))
                self._tfile.finish(size)
            except BaseException:
                self._cut()
                raise
            self._nextpos = self._pos + size + 8
            return self._resolved

    def tpc_finish(self, transaction: Any, f: Any = None) -> Any:
        """See IStorage. FileStorage closes itself if this is interrupted, for good."""
        with interrupts_later():
            return super().tpc_finish(transaction, f)

    def _txn_header(self, size: int) -> bytes:
        user, description, extension = self._ude
        header = TxnHeader(self._tid, size, "c", len(user), len(description), len(extension))
        header.user, header.descr, header.ext = user, description, extension
        return bytes(header.asString())

    def _abort(self) -> None:
        if not self.align:
            self._renew_temp()
        elif self._tfile.started and not self._nextpos:
            self._cut()
        super()._abort()

    def _clear_temp(self) -> None:
        if isinstance(self._tfile, _Tail):
            self._tfile.clear()
        super()._clear_temp()

    def _renew_temp(self) -> None:
        """Give back the room of FileStorage's temporary file; and its buffer, if there is none."""
        try:
            os.ftruncate(self._tfile.fileno(), 0)
            self._tfile.truncate(0)
        except OSError:
            _throw_away(self._tfile)
            self._tfile = open(f"{self._file_name}.tmp", "w+b")  # noqa: SIM115
            self._tfmt._file = self._tfile

    def _renew_file(self) -> None:
        """Open the file anew, without what a vote has written, or was about to.

        FileStorage goes on with a buffer for which there is no room on the disk: so it fails for
        ever, or writes it behind a later transaction.
        """
        _throw_away(self._file)
        self._file = open(self._file_name, "r+b")  # noqa: SIM115
        self._cut()

    def _cut(self) -> None:
        """Take what the transaction has written out of the file."""
        self._file.truncate(self._pos)
        self._files.flush()

    def iterator(self, start: bytes | None = None, stop: bytes | None = None) -> Any:
        """See IStorageIteration."""
        with self._lock, _reads_python2():
            iterator = FileIterator(self._files.name, None, stop)
            # Behind that may be what is being written: it has no length at its end, by which
            # the last transaction would be found.
            iterator._file_size = self._pos
        if start and iterator._file_size > 4:  # the magic
            iterator._skip_to_start(start)
        return iterator

    # ---- where pads would be seen ----

    def _data_find(self, tpos: int, oid: bytes, data: bytes) -> int:
        return (
            data_find(self, tpos, oid, data) if self.align else super()._data_find(tpos, oid, data)
        )

    def _undoDataInfo(self, oid: bytes, pos: int, tpos: int) -> tuple[bytes, int, bytes]:
        tid, pos, data = super()._undoDataInfo(oid, pos, tpos)
        return tid, pos, without_pad(data) if data else data

    def _loadBack_impl(
        self, oid: bytes, back: int, fail: bool = True, _file: Any = None
    ) -> tuple[bytes | None, bytes, int, int]:
        data, tid, pos, tpos = super()._loadBack_impl(oid, back, fail, _file)
        return data and without_pad(data), tid, pos, tpos

    # ---- pack ----

    @staticmethod
    def packer(
        storage: AlignedFileStorage, referencesf: Any, stop: bytes, gc: bool
    ) -> tuple[int, Any] | None:
        """See IFileStoragePacker."""
        if not storage.align:
            return FileStorage.packer(storage, referencesf, stop, gc)  # type: ignore[no-any-return]
        packer = Packer(storage, referencesf, stop, gc)
        try:
            end = packer.pack()
            return None if end is None else (end, packer.index)
        finally:
            packer.close()


def _throw_away(file: Any) -> None:
    """Close a buffered file of which the buffer cannot be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno(), inheritable=False)
    os.close(nowhere)
    file.close()


class _HeadReader:
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
                pos = prev
            elif size == 0:  # written by undo: the bytes are in an earlier record
                current = False
                pos = int.from_bytes(data[DATA_HDR_LEN : DATA_HDR_LEN + 8], "big")
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
        return Located(self._file, pos + start, payload, before[:state])

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
        return Located(self._file, at, payload, head[: found.state])


class _Tail:
    """The records of the running transaction, written to where they are to be in Data.fs.

    FileStorage takes it for its temporary file. Position 0 is behind the transaction header.
    """

    def __init__(self, storage: AlignedFileStorage) -> None:
        self._storage = storage
        self._buffer = bytearray()  # what comes before the position, and is not in the file yet
        self._position = 0
        self.started = False  # something is in the file

    def _base(self) -> int:
        return int(self._storage._pos + self._storage._thl)

    def tell(self) -> int:
        return self._position

    def clear(self) -> None:
        """Begin with nothing, for another transaction."""
        self._buffer = bytearray()
        self._position = 0
        self.started = False

    def seek(self, position: int) -> None:
        if position != self._position:
            self._flush()
        self._position = position

    def read(self, size: int) -> bytes:
        self._flush()
        data = os.pread(self._storage._file.fileno(), size, self._base() + self._position)
        self._position += len(data)
        return data

    def write(self, data: bytes | Pieces) -> None:
        pieces = data.pieces if isinstance(data, Pieces) else (data,)
        if len(self._buffer) + len(data) <= _BUFFER:
            self._buffer += b"".join(pieces)
        else:
            self._flush(pieces)
        self._position += len(data)

    def finish(self, size: int) -> None:
        """Complete the transaction in the file, of this size [bytes]; still with status 'c'."""
        self._flush()
        self._pwrite([self._storage._txn_header(size)], self._storage._pos)
        # FileStorage reads and writes through a buffer, which may have the file as it was
        self._storage._file.flush()

    def close(self) -> None:
        pass

    def _flush(self, more: tuple[bytes | memoryview, ...] = ()) -> None:
        if not self._buffer and not more:
            return
        if not self.started:
            self.started = True
            self._storage._file.flush()  # of a new file: its magic
            self._pwrite([self._storage._txn_header(_UNFINISHED)], self._storage._pos)
        at = self._base() + self._position - len(self._buffer)
        self._pwrite([self._buffer, *more], at)
        self._buffer = bytearray()

    def _pwrite(self, pieces: Iterable[bytes | bytearray | memoryview], at: int) -> None:
        fd = self._storage._file.fileno()
        views = [memoryview(piece) for piece in pieces if piece]
        while views:
            done = os.pwritev(fd, views, at)
            at += done
            while views and done >= len(views[0]):
                done -= len(views.pop(0))
            if views:
                views[0] = views[0][done:]
