"""AlignedFileStorage: a FileStorage whose large byte strings can be mapped into memory.

Data.fs has the format of ZODB.FileStorage, with one difference: a record whose state is bytes, a
whole number of OS pages, is padded so that the bytes begin at a multiple of the OS page in the file
(see record.aligned; other readers unpickle the pad and throw it away). locate() returns where the
bytes of a committed revision are, aligned or not. They never change there, as long as a process has
the file open. Pack writes another file, with all blocks aligned, which takes its place at once.

Organization
------------
A transaction's records are written once, to their final place in Data.fs (fswrite); FileStorage
writes them to a file of their own first, and copies them at the vote. They lie behind a
transaction header with status 'c', as at a vote: a process that opens the file after a crash, or a
reader at this moment, stops there.

This module knows records of ZODB, but not the meaning of their bytes.

Locking: as in FileStorage: the commit lock > the pool of readers > _lock. Nobody waits for
`_saving`, which the thread has that saves the index.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from os.path import exists
from typing import Any

from zc.lockfile import LockError
from ZODB._compat import FILESTORAGE_MAGIC
from ZODB.blob import FilesystemHelper
from ZODB.FileStorage import FileIterator, FileStorage
from ZODB.FileStorage.FileStorage import CorruptedTransactionError, FileStorageFormatError
from ZODB.FileStorage.format import DATA_HDR_LEN, CorruptedDataError, TxnHeader
from ZODB.POSException import StorageTransactionError
from ZODB.utils import p64, z64

from wendelin.lib.interrupt import interrupts_later
from wendelin.lib.storage.forked import of_this_process
from wendelin.lib.storage.fsalign import Pieces, aligned_at
from wendelin.lib.storage.fsblob import (
    blank_layout,
    missing_folders,
    sync_blobs,
    sync_new_folder,
    write_layout,
)
from wendelin.lib.storage.fsfollow import FileFollower
from wendelin.lib.storage.fsindex import load_index, positions, save_index, snapshot_of
from wendelin.lib.storage.fslock import FileLock
from wendelin.lib.storage.fspack import Packer, data_find, pack
from wendelin.lib.storage.fsrecord import HeadReader, Located, OpenFile, Stat, stat
from wendelin.lib.storage.fsscan import FIRST, LARGE, Scanned, cut_end, scan
from wendelin.lib.storage.fssync import sync_folder
from wendelin.lib.storage.fswrite import Tail
from wendelin.lib.storage.record import BytesRecord, RecordError, class_of, without_pad

__all__ = ["AlignedFileStorage"]

log = logging.getLogger(__name__)

_HEAD = 512  # of a record, with the name of its class [bytes]
_PYTHON2 = b"FS21"  # the beginning of files of Python 2: the format is the same


class AlignedFileStorage(FileStorage):  # type: ignore[misc]  # ZODB has no type hints
    """A FileStorage that aligns large byte strings in its file, and says where they are.

    Parameters
    ----------
    file_name : str or path
    align : bool
        False: be a FileStorage; locate() finds nothing.
    ordered : bool
        True: the records of each transaction are on disk before its status says that it is
        committed. So a power failure in the middle of a commit never leaves a part of it. This
        costs a second sync for each commit. False: only for transactions of LARGE and more, whose
        second sync has no measurable cost.
    **options
        Of FileStorage. With read_only, another process may have the file open to write: each
        transaction sees all earlier commits, as with a server.
    """

    _opened: weakref.ref[OpenFile] | None = None  # held by mappings of it
    _follower: FileFollower | None = None
    _own: FileLock | None = None
    _index_end: Scanned | None = None  # of the saved index
    _tfile: Any
    _file: Any

    def __init__(
        self,
        file_name: str | os.PathLike[str],
        *,
        align: bool | int = True,
        ordered: bool | int = False,
        **options: Any,
    ) -> None:
        self.align = bool(align)
        self.ordered = bool(ordered)
        file_name = os.fspath(file_name)
        if os.path.islink(file_name):
            # all names of a file share its lock and index, and a pack replaces the file, not a link
            file_name = os.path.realpath(file_name)
        self._stop = options.get("stop")
        self._saving = threading.Lock()
        new = [name for name in (f"{file_name}.lock", f"{file_name}.tmp") if not exists(name)]
        if not options.get("read_only"):
            self._own = FileLock()
        try:
            if self._own is not None and exists(file_name):
                self._own.take(file_name)  # before FileStorage changes anything
            super().__init__(file_name, **options)
        except BaseException as e:
            self._let_go()
            if not isinstance(e, LockError):  # else they are of who has the lock
                for name in new:
                    with suppress(OSError):
                        os.unlink(name)
            raise
        # FileStorage has read on in an empty file, see _restore_index()
        self._file, (self._index_end, end) = self._whole_file, self._opens
        self._pos = end.pos
        self._used_index = int(self._index_end.pos != FIRST)
        with suppress(ValueError):  # there is no object
            self._oid = self._index.maxKey()
        self._python2 = os.pread(self._file.fileno(), len(_PYTHON2), 0) == _PYTHON2
        if self._is_read_only and self._stop is None:
            self._follower = FileFollower(self, self._again)
        if not self._used_index:
            self._save_index()
        if align and self._tfile is not None:
            self._tfile.close()
            os.unlink(self._tfile.name)
            self._tfile = Tail(self)
            self._tfmt._file = self._tfile
        of_this_process(self)

    def _let_go(self) -> None:
        """Close the files that __init__ has opened, when it fails."""
        for name in "_whole_file", "_file", "_tfile", "_lock_file", "_files":
            file = self.__dict__.get(name)
            if file is not None:
                file.close()
        if self._own is not None:
            self._own.release()

    # ---- opening ----

    def _restore_index(self) -> Any:
        """Read the file: FileStorage calls this after opening it, and reads on from there.

        FileStorage would take bytes behind the last whole transaction for damage, or for data. So
        it reads on in an empty file.
        """
        self._whole_file = file = self._file
        if self._own is not None:
            self._own.take(self._file_name)
        fd = file.fileno()
        self._check_magic(fd)
        size = _size(fd)
        begin = Scanned(FIRST, z64)
        index, _ = self._newIndexes()
        saved = load_index(f"{self._file_name}.index", fd)
        if saved and saved.positions and (self._stop is None or saved.tid < self._stop):
            index, begin = saved.positions, Scanned(saved.pos, saved.tid)
        elif os.path.exists(f"{self._file_name}.index"):
            log.info("%s: its index is not used, and all of it is read", self._file_name)
        end = scan(fd, self._file_name, index, *begin, stop=self._stop)
        if saved and self._stop is None and end.pos < saved.pos <= size:
            raise CorruptedTransactionError(
                f"{self._file_name} is damaged at {end.pos}: there is not a whole "
                f"transaction, but {self._file_name}.index says that there was. Nothing was "
                f"changed. Restore a backup. Or remove that index, if it is of another file: "
                f"then all bytes from {end.pos} on are cut off, and kept in another file"
            )
        if not self._is_read_only:
            cut_end(fd, self._file_name, end.pos)
            if end != begin or begin.pos == FIRST:
                os.fsync(fd)  # a process that was killed may not have synced it
            if end.pos == FIRST:  # it may be new
                sync_folder(os.path.dirname(self._file_name))
        self._opens = begin, end
        self._file = io.BytesIO()
        return index, end.pos, end.tid

    def _check_magic(self, fd: int) -> None:
        if not self._is_read_only:
            self._file.flush()
        magic = os.pread(fd, FIRST, 0)
        if magic in (FILESTORAGE_MAGIC, _PYTHON2):
            return
        if magic.strip(b"\0") and not FILESTORAGE_MAGIC.startswith(magic):
            raise FileStorageFormatError(self._file_name)
        if _size(fd) > FIRST:
            raise FileStorageFormatError(self._file_name)
        if not self._is_read_only:  # a new file, or one whose program was killed
            os.pwrite(fd, FILESTORAGE_MAGIC, 0)
            os.fsync(fd)

    def _save_index(self) -> None:
        """Save the index, for a quick start. Without it, only time is lost."""
        if self._is_read_only or not self._saving.acquire(blocking=False):
            return
        try:
            with self._lock:
                if self._file.closed:
                    return
                path, end = f"{self._file_name}.index", Scanned(self._pos, self._ltid)
                if end == self._index_end and os.path.exists(path):
                    return
                index = snapshot_of(self._index)
                fd = os.dup(self._file.fileno())
            try:
                save_index(path, fd, index, *end)
                self._index_end = end
            except OSError as e:
                log.warning("%s: the index cannot be saved: %s", self._file_name, e)
            finally:
                os.close(fd)
            self._saved += 1
        finally:
            self._saving.release()

    def _blob_init(self, blob_dir: str, layout: str = "automatic") -> None:
        """Prepare the folder of blobs; FileStorage calls this after opening the file."""
        blob_dir = os.path.abspath(blob_dir)
        found = blank_layout(blob_dir)
        if self._is_read_only:
            if found is None:
                super()._blob_init(blob_dir, layout)
            else:
                self.fshelper = FilesystemHelper(blob_dir, found)
                self.dirty_oids: list[tuple[bytes, bytes]] = []
            return
        if found is not None:
            write_layout(blob_dir, found)
        made = missing_folders(blob_dir)
        super()._blob_init(blob_dir, layout)
        sync_new_folder(blob_dir, made)

    # ---- files that others write ----

    def sync(self) -> None:
        """See IStorage: be up to date, if this storage only reads."""
        if self._follower is not None:
            self._follower.follow()

    def registerDB(self, db: Any) -> None:
        """See IStorage."""
        super().registerDB(db)  # how a storage around this one transforms records
        if self._follower is not None:
            self._follower.db = db

    def _again(self) -> AlignedFileStorage:
        return AlignedFileStorage(self._file_name, align=self.align, read_only=True)

    def _read_data_header(self, pos: int, oid: bytes | None = None, _file: Any = None) -> Any:
        # earlier revisions lie before it: else a load that follows them would not end
        header = super()._read_data_header(pos, oid, _file)
        if header.prev >= pos or header.back >= pos:
            raise CorruptedDataError(oid, None, pos)
        return header

    # ---- files of Python 2 ----

    def _finish(self, tid: bytes, u: bytes, d: bytes, e: bytes) -> None:
        if self._python2 and self._nextpos:  # it will have records that Python 2 cannot read
            self._file.seek(0)
            self._file.write(FILESTORAGE_MAGIC)
            self._file.flush()
            self._python2 = False
            log.warning(
                "%s was written by Python 2, and this is the first commit of Python 3: from now on "
                "Python 2 cannot open it",
                self._file_name,
            )
        super()._finish(tid, u, d, e)

    # ---- where records are ----

    def locate(
        self, oids: Iterable[bytes], before: bytes, *, wait: bool = True
    ) -> list[Located | None]:
        """Return where the bytes of objects lie in the file; None for those that do not.

        Parameters
        ----------
        oids : iterable of bytes
        before : bytes
            The last revision of each object before this tid is taken.
        wait : bool
            False: return None instead of waiting for the disk.
        """
        oids = list(oids)
        if not self.align:
            return [None] * len(oids)
        with self._files.get() as current:  # no commit or pack ends meanwhile
            file = self._open_file(current)
            if file is None:
                return [None] * len(oids)
            reader = HeadReader(file, before)
            flags = 0 if wait else file.nowait
            return reader.locate_all(oids, positions(self._index, oids), flags, wait=wait)

    def stat(self, oids: Iterable[bytes], before: bytes) -> list[Stat | None]:
        """Return tids and sizes of objects' records; None for those that do not exist.

        Parameters
        ----------
        oids, before
            See locate().
        """
        with self._files.get() as file:  # no commit or pack ends meanwhile
            return [stat(file.fileno(), oid, self._index.get(oid, 0), before) for oid in oids]

    def has_open(self, file: OpenFile) -> bool:
        """Say whether a file is still the storage's: a pack replaces it."""
        return self._opened is not None and self._opened() is file

    def _open_file(self, current: Any) -> OpenFile | None:
        opened = self._opened() if self._opened is not None else None
        if opened is None:
            opened = OpenFile(self._files.name)
            if not os.path.sameopenfile(opened.fd, current.fileno()):
                return None  # the file was moved
            self._opened = weakref.ref(opened)
        return opened

    def _initIndex(self, index: Any, tindex: Any) -> None:
        # called when the file is opened, and after a pack has replaced it
        super()._initIndex(index, tindex)
        self._opened = self._index_end = None

    def close(self) -> None:
        """See IStorage."""
        with self._lock:
            if isinstance(self._tfile, Tail) and self._tfile.started and not self._nextpos:
                self._cut()
        self._save_index()  # as long as the file is locked
        with self._lock:
            super().close()
            if self._own is not None:
                self._own.release()

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
        """Return where the next record of the transaction goes in the file."""
        return int(self._pos + self._thl + self._tfile.tell())

    def tpc_vote(self, transaction: Any) -> Any:
        """See IStorage."""
        if self.align:
            self._vote(transaction)
        else:
            try:
                super().tpc_vote(transaction)
            except OSError:
                with self._lock:
                    self._renew_file()
                raise
        if self.ordered or self._nextpos - self._pos >= LARGE:
            # The status is written after this. If this fails, the transaction is aborted.
            os.fdatasync(self._file.fileno())
        if self.dirty_oids:  # blobs, which must be on disk before the status, too
            sync_blobs(self.fshelper, self.dirty_oids)
        return self._resolved

    def _vote(self, transaction: Any) -> None:
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

    def tpc_finish(self, transaction: Any, f: Any = None) -> Any:
        """See IStorage. If this is interrupted, FileStorage closes itself for good."""
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
        if isinstance(self._tfile, Tail):
            self._tfile.clear()
        super()._clear_temp()

    def _renew_temp(self) -> None:
        """Free the space of FileStorage's temporary file; if the disk is full, drop its buffer."""
        try:
            os.ftruncate(self._tfile.fileno(), 0)
            self._tfile.truncate(0)
        except OSError:
            _throw_away(self._tfile)
            self._tfile = open(f"{self._file_name}.tmp", "w+b")  # noqa: SIM115
            self._tfmt._file = self._tfile

    def _renew_file(self) -> None:
        """Open the file again, without the bytes and the buffer of a failed vote.

        FileStorage would keep the buffer, for which there is no space on the disk. Then it fails
        for ever, or writes the buffer behind a later transaction.
        """
        _throw_away(self._file)
        self._file = open(self._file_name, "r+b")  # noqa: SIM115
        self._cut()

    def _cut(self) -> None:
        """Remove the bytes that the transaction has written from the file."""
        self._file.truncate(self._pos)
        self._files.flush()

    def iterator(self, start: bytes | None = None, stop: bytes | None = None) -> Any:
        """See IStorageIteration."""
        with self._lock:
            iterator = _Iterator(self._files.name, FIRST, self._pos, stop)
        if start and iterator._file_size > FIRST:
            iterator._skip_to_start(start)
        return iterator

    def lastInvalidations(self, count: int) -> list[tuple[bytes, list[bytes]]]:
        """See ZEO: return (tid, oids) of the last transactions."""
        with self._lock:
            pos = self._pos
            while count > 0 and pos > FIRST:
                count -= 1
                pos -= 8 + self._read_num(pos - 8)
            transactions = _Iterator(self._files.name, pos, self._pos, None)
        return [(txn.tid, [record.oid for record in txn]) for txn in transactions]

    def last_transactions(
        self, count: int, stop: bytes | None = None
    ) -> list[tuple[bytes, bytes, bytes, list[tuple[bytes, str]]]]:
        """Return (tid, user, description, records) of the last transactions, the newest one first.

        A record is (oid, name of its class); "" if the object was removed. Only heads are read.

        Parameters
        ----------
        count : int
        stop : bytes, optional
            No transaction after this tid.
        """
        found: list[tuple[bytes, bytes, bytes, list[tuple[bytes, str]]]] = []
        with self._lock:
            pos = self._pos
            while len(found) < count and pos > FIRST:
                pos -= 8 + self._read_num(pos - 8)
                header = self._read_txn_header(pos)
                if stop is not None and header.tid > stop:
                    continue
                records = list(self._records_at(pos, header))
                found.append((header.tid, header.user, header.descr, records))
        return found

    def _records_at(self, pos: int, header: Any) -> Iterator[tuple[bytes, str]]:
        end = pos + header.tlen
        pos += header.headerlen()
        while pos < end:
            record = self._read_data_header(pos)
            head = self._file.read(min(record.plen, _HEAD)) if record.plen else b""
            if not head and record.back:  # written by undo: the state is further back
                data = self._loadBack_impl(record.oid, record.back, fail=False)[0]
                head = (data or b"")[:_HEAD]
            yield record.oid, _class_in(head)
            pos += record.recordlen()

    # ---- where pads would be visible ----

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
            found = FileStorage.packer(storage, referencesf, stop, gc)
        else:
            packer = Packer(storage, referencesf, stop, gc)
            try:
                end = packer.pack()
                found = None if end is None else (end, packer.index)
            finally:
                packer.close()
        return found  # type: ignore[no-any-return]

    def pack(self, t: float, referencesf: Any, gc: bool | None = None) -> None:
        """See IStorage."""
        pack(self, t, referencesf, gc)


def _class_in(head: bytes) -> str:
    """Return the name of the class at the beginning of a record; "" if it is not readable."""
    try:
        return class_of(head) if head else ""
    except RecordError:
        return ""


def _size(fd: int) -> int:
    return os.fstat(fd).st_size


class _Iterator(FileIterator):  # type: ignore[misc]  # ZODB has no type hints
    """Iterates over transactions up to a position: bytes behind it may be anything."""

    def __init__(self, name: str, pos: int, end: int, stop: bytes | None) -> None:
        self._file = open(name, "rb")  # noqa: SIM115
        self._file_name = name
        self._file_size = end
        self._pos = pos
        self._start, self._stop = None, stop

    def __next__(self) -> Any:
        if self._pos >= self._file_size:
            self.close()
            raise StopIteration
        return super().__next__()

    next = __next__


def _throw_away(file: Any) -> None:
    """Close a buffered file whose buffer cannot be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno(), inheritable=False)
    os.close(nowhere)
    file.close()
