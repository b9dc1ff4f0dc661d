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
from collections.abc import Iterable
from contextlib import suppress
from os.path import exists
from typing import Any

from zc.lockfile import LockError
from ZODB.blob import FilesystemHelper
from ZODB.FileStorage import FileStorage
from ZODB.FileStorage.FileStorage import CorruptedTransactionError
from ZODB.FileStorage.format import DATA_HDR_LEN, CorruptedDataError, TxnHeader
from ZODB.fsIndex import fsIndex
from ZODB.POSException import StorageTransactionError
from ZODB.serialize import referencesf
from ZODB.utils import p64, z64

from wendelin.lib.adapters.filestorage import StorageFile, TransactionsOf
from wendelin.lib.interrupt import interrupts_later
from wendelin.lib.storage.forked import of_this_process
from wendelin.lib.storage.fsalign import ALIGNMENT, SMALLEST, Pieces, aligned_at
from wendelin.lib.storage.fsblob import (
    blank_layout,
    missing_folders,
    sync_blobs,
    sync_new_folder,
    write_layout,
)
from wendelin.lib.storage.fsfollow import FileFollower
from wendelin.lib.storage.fsholds import Hold, Holds
from wendelin.lib.storage.fsindex import load_index, positions, save_index, snapshot_of
from wendelin.lib.storage.fslock import FileLock
from wendelin.lib.storage.fslog import Entry, last_invalidations, last_transactions
from wendelin.lib.storage.fsmagic import check_magic, is_of_python2, set_of_python3
from wendelin.lib.storage.fspack import Packer, data_find, pack
from wendelin.lib.storage.fsrecord import HeadReader, Located, OpenFile, Stat, load_small, stat
from wendelin.lib.storage.fsscan import FIRST, LARGE, Scanned, cut_end, scan
from wendelin.lib.storage.fssync import sync_folder, throw_away
from wendelin.lib.storage.fstrim import TRIM, Trimmed, trim
from wendelin.lib.storage.fswrite import Tail
from wendelin.lib.storage.pad import BytesRecord, without_hole, without_pad
from wendelin.lib.storage.served import ASKED, answer
from wendelin.lib.utils import override

__all__ = ["AlignedFileStorage"]

log = logging.getLogger(__name__)

_Records = dict[bytes, bytes] | None  # of objects


class AlignedFileStorage(StorageFile):
    """A FileStorage that aligns large byte strings in its file, and says where they are.

    Parameters
    ----------
    file_name : str or path
    align : bool
        False: be a FileStorage; locate() finds nothing.
    align_from : int
        Smaller byte strings are not aligned [bytes], and smaller blocks are copied, not mapped. A
        page (4096) at least: it saves copies, and costs half a page for each block on average.
    ordered : bool
        True: the records of each transaction are on disk before its status says committed, by a
        second sync: no power failure leaves a part of a commit. False: from `order_from` on.
    order_from : int
        A second sync of a transaction of this size costs nothing measurable: 16 MiB [bytes].
    **options
        Of FileStorage. With read_only, another process may have the file open to write: each
        transaction sees all earlier commits, as with a server.
    """

    _opened: weakref.ref[OpenFile] | None = None  # held by mappings of it
    _kept: OpenFile | None = None  # the same, so that it is not opened for each block
    follower: FileFollower | None = None
    file_lock: FileLock | None = None
    _index_end: Scanned | None = None  # of the saved index
    _whole_file: Any = None  # what was opened, until FileStorage has read on in an empty file

    def __init__(
        self,
        file_name: str | os.PathLike[str],
        *,
        align: bool | int = True,
        align_from: int = SMALLEST,
        ordered: bool | int = False,
        order_from: int = LARGE,
        **options: Any,
    ) -> None:
        if align_from < ALIGNMENT:
            raise ValueError(f"align_from is {align_from}: it must be {ALIGNMENT} or more")
        self.align = bool(align)
        self.align_from = int(align_from)
        self.ordered = bool(ordered)
        self._order_from = 0 if ordered else int(order_from)
        file_name = os.fspath(file_name)
        if os.path.islink(file_name):
            # all names of a file share its lock and index, and a pack replaces the file, not a link
            file_name = os.path.realpath(file_name)
        self._stop = options.get("stop")
        self._saving = threading.Lock()
        self._holds = Holds()
        self._dropped: set[int] = set()  # for load_small()
        self._open(file_name, options)
        self._take_file()
        self._python2 = is_of_python2(self.file.fileno())
        if self.isReadOnly() and self._stop is None:
            self.follower = FileFollower(self, self._again)
        if not self.used_index:
            self.write_index()
        if align and self.changes is not None:
            self.changes.close()
            os.unlink(self.changes.name)
            self.changes = Tail(self)
        of_this_process(self)

    def _open(self, file_name: str, options: dict[str, Any]) -> None:
        """Have FileStorage open the file, locked; if it fails, leave nothing behind."""
        new: list[str] = []  # a reader makes no files, so these would be of a writer that begins
        if not options.get("read_only"):
            new = [name for name in (f"{file_name}.lock", f"{file_name}.tmp") if not exists(name)]
            self.file_lock = FileLock()
        try:
            if self.file_lock is not None and exists(file_name):
                self.file_lock.take(file_name)  # before FileStorage changes anything
            super().__init__(file_name, **options)
        except BaseException as e:
            self._let_go()
            if not isinstance(e, LockError):  # else they belong to the owner of the lock
                for name in new:
                    with suppress(OSError):
                        os.unlink(name)
            raise

    def _take_file(self) -> None:
        """Go on with the file, as FileStorage has read on in an empty one: see read_index()."""
        self.file, (self._index_end, end) = self._whole_file, self._opens
        self.end = end.pos
        self.used_index = int(self._index_end.pos != FIRST)
        with suppress(ValueError):  # there is no object
            self.newest_oid = self.index.maxKey()

    def _let_go(self) -> None:
        """Close the files that __init__ has opened, when it fails."""
        for file in (self._whole_file, *self.files_to_close()):
            if file is not None:
                file.close()
        if self.file_lock is not None:
            self.file_lock.release()

    # ---- opening ----

    def read_index(self) -> Any:
        """Read the file: FileStorage calls this after opening it, and reads on from there.

        FileStorage would take bytes behind the last whole transaction for damage, or for data. So
        it reads on in an empty file.
        """
        self._whole_file = file = self.file
        if self.file_lock is not None:
            self.file_lock.take(self.path)
        fd = file.fileno()
        check_magic(file, self.path, read_only=self.isReadOnly())
        size = os.fstat(fd).st_size
        begin = Scanned(FIRST, z64)
        index = fsIndex()
        saved = load_index(f"{self.path}.index", fd)
        if saved and saved.positions and (self._stop is None or saved.tid < self._stop):
            index, begin = saved.positions, Scanned(saved.pos, saved.tid)
        elif os.path.exists(f"{self.path}.index"):
            log.info("%s: its index is not used, and all of it is read", self.path)
        end = scan(fd, self.path, index, *begin, stop=self._stop)
        if saved and self._stop is None and end.pos < saved.pos <= size:
            raise CorruptedTransactionError(
                f"{self.path} is damaged at {end.pos}: there is not a whole "
                f"transaction, but {self.path}.index says that there was. Nothing was "
                f"changed. Restore a backup. Or remove that index, if it is of another file: "
                f"then all bytes from {end.pos} on are cut off, and kept in another file"
            )
        if not self.isReadOnly():
            cut_end(fd, self.path, end.pos)
            if end != begin or begin.pos == FIRST:
                os.fsync(fd)  # a process that was killed may not have synced it
            if end.pos == FIRST:  # it may be new
                sync_folder(os.path.dirname(self.path))
        self._opens = begin, end
        self.file = io.BytesIO()
        return index, end.pos, end.tid

    def write_index(self) -> None:
        """Save the index, for a quick start. Without it, only time is lost."""
        if self.isReadOnly() or not self._saving.acquire(blocking=False):
            return
        try:
            with self.state_lock:
                if self.file.closed:
                    return
                path, end = f"{self.path}.index", Scanned(self.end, self.newest_tid)
                if end == self._index_end and os.path.exists(path):
                    return
                index = snapshot_of(self.index)
                fd = os.dup(self.file.fileno())
            try:
                save_index(path, fd, index, *end)
                self._index_end = end
            except OSError as e:
                log.warning("%s: the index cannot be saved: %s", self.path, e)
            finally:
                os.close(fd)
            self.index_saved += 1
        finally:
            self._saving.release()

    def open_blobs(self, blob_dir: str, layout: str) -> None:
        """Prepare the folder of blobs; FileStorage calls this after opening the file."""
        blob_dir = os.path.abspath(blob_dir)
        found = blank_layout(blob_dir)
        if self.isReadOnly():
            if found is None:
                super().open_blobs(blob_dir, layout)
            else:
                self.fshelper = FilesystemHelper(blob_dir, found)
                self.dirty_oids: list[tuple[bytes, bytes]] = []
            return
        if found is not None:
            write_layout(blob_dir, found)
        made = missing_folders(blob_dir)
        super().open_blobs(blob_dir, layout)
        sync_new_folder(blob_dir, made)

    # ---- files that others write ----

    def sync(self) -> None:
        """See IStorage: be up to date, if this storage only reads."""
        if self.follower is not None:
            self.follower.follow()

    @override
    def registerDB(self, db: Any) -> None:
        super().registerDB(db)  # how a storage around this one transforms records
        if self.follower is not None:
            self.follower.db = db

    def _again(self) -> AlignedFileStorage:
        return AlignedFileStorage(
            self.path, align=self.align, align_from=self.align_from, read_only=True
        )

    @override
    def check_record(self, pos: int, oid: bytes | None, header: Any) -> None:
        # earlier revisions come before: else a load that goes from one to the next does not end
        if header.prev >= pos or header.back >= pos:
            raise CorruptedDataError(oid, None, pos)

    # ---- files of Python 2 ----

    @override
    def before_finish(self) -> None:
        if self._python2 and self.next_end:  # it will have records that Python 2 cannot read
            set_of_python3(self.file, self.path)
            self._python2 = False

    # ---- where records are ----

    def locate(
        self, oids: Iterable[bytes], before: bytes, *, wait: bool = True, small: _Records = None
    ) -> list[Located | None]:
        """Return where the bytes of objects lie in the file; None for those that do not.

        Parameters
        ----------
        oids : iterable of bytes
        before : bytes
            The last revision of each object before this tid is taken.
        wait : bool
            False: return None instead of waiting for the disk.
        small : dict, optional
            It gets records of small objects that are not bytes: they were read on the way.
        """
        oids = list(oids)
        if not self.align:
            return [None] * len(oids)
        with self.readers.get() as current:  # no commit or pack ends meanwhile
            file = self._open_file(current)
            reader = HeadReader(file, before)
            flags = 0 if wait else file.nowait
            at = positions(self.index, oids)
            return reader.locate_all(oids, at, flags, wait=wait, small=small)

    @override
    def loadBefore(self, oid: bytes, tid: bytes) -> tuple[bytes, bytes, bytes | None] | None:
        with self.readers.get() as file:  # no commit or pack ends meanwhile
            pos = self.index.get(oid)
            found = load_small(file.fileno(), oid, pos, tid, self._dropped) if pos else None
        return super().loadBefore(oid, tid) if found is None else (*found, None)

    def stat(self, oids: Iterable[bytes], before: bytes) -> list[Stat | None]:
        """Return tids and sizes of records, None for those that do not exist; see locate()."""
        with self.readers.get() as file:  # no commit or pack ends meanwhile
            return [stat(file.fileno(), oid, self.index.get(oid, 0), before) for oid in oids]

    def has_open(self, file: OpenFile) -> bool:
        """Say whether a file is still the storage's: a pack replaces it."""
        return self._opened is not None and self._opened() is file

    @override
    def loadSerial(self, oid: bytes, serial: bytes) -> Any:
        # a client of a server has no other way to ask
        return answer(self, oid, serial) if oid in ASKED else super().loadSerial(oid, serial)

    def _open_file(self, current: Any) -> OpenFile:
        opened = self._opened() if self._opened is not None else None
        if opened is None:
            # this very file, also if it was moved
            opened = OpenFile(f"/proc/self/fd/{current.fileno()}")
            self._opened = weakref.ref(opened)
        self._kept = opened
        return opened

    @override
    def set_index(self, index: Any, changed: Any) -> None:
        super().set_index(index, changed)
        self._opened = self._kept = self._index_end = None
        self._dropped.clear()
        if self._holds.is_open:
            self._holds.renew(self.file.fileno())

    @override
    def close(self) -> None:
        with self.state_lock:
            if isinstance(self.changes, Tail) and self.changes.started and not self.next_end:
                self._cut()
        self.write_index()  # as long as the file is locked
        with self.state_lock:
            super().close()
            self._kept = None
            if self.file_lock is not None:
                self.file_lock.release()

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
        if self.align and transaction is self.running:
            with self.state_lock:
                record = aligned_at(data, self._at() + DATA_HDR_LEN, self.align_from)
                super().store(oid, oldserial, record, version, transaction)
        else:
            super().store(oid, oldserial, bytes(data), version, transaction)

    @override
    def restore(
        self,
        oid: bytes,
        serial: bytes,
        data: bytes | None,
        version: str,
        prev_txn: bytes | None,
        transaction: Any,
    ) -> None:
        if self.align and transaction is self.running and data is not None:
            with self.state_lock:
                record = aligned_at(without_pad(data), self._at() + DATA_HDR_LEN, self.align_from)
                super().restore(oid, serial, record, version, prev_txn, transaction)
        else:
            super().restore(oid, serial, data, version, prev_txn, transaction)

    @override
    def tryToResolveConflict(
        self, oid: bytes, committed: bytes, old: bytes, new: Any, data: bytes = b""
    ) -> Any:
        new = bytes(new) if isinstance(new, Pieces) else new
        return super().tryToResolveConflict(oid, committed, old, new, data)

    def _at(self) -> int:
        """Return where the next record of the transaction goes in the file."""
        return int(self.end + self.header_size + self.changes.tell())

    @override
    def tpc_vote(self, transaction: Any) -> Any:
        if self.align:
            self._vote_in_place(transaction)
        else:
            try:
                super().tpc_vote(transaction)
            except OSError:
                with self.state_lock:
                    self._renew_file()
                raise
        if self.next_end - self.end >= self._order_from:
            # The status is written after this. If this fails, the transaction is aborted.
            os.fdatasync(self.file.fileno())
        if self.dirty_oids:  # blobs, which must be on disk before the status, too
            sync_blobs(self.fshelper, self.dirty_oids)
        return self.resolved

    def _vote_in_place(self, transaction: Any) -> None:
        with self.state_lock:
            if transaction is not self.running:
                raise StorageTransactionError("tpc_vote called with wrong transaction")
            try:
                size = self.header_size + self.changes.tell()
                self.changes.write(p64(size))
                self.changes.finish(size)
            except BaseException:
                self._cut()
                raise
            self.next_end = self.end + size + 8

    def tpc_finish(self, transaction: Any, f: Any = None) -> Any:
        """See IStorage. If this is interrupted, FileStorage closes itself for good."""
        with interrupts_later():
            return super().tpc_finish(transaction, f)

    def transaction_header(self, size: int) -> bytes:
        """Return the header of the running transaction, with this size [bytes]."""
        user, description, extension = self.texts
        header = TxnHeader(self.new_tid, size, "c", len(user), len(description), len(extension))
        header.user, header.descr, header.ext = user, description, extension
        return bytes(header.asString())

    @override
    def before_abort(self) -> None:
        if not self.align:
            self._renew_temp()
        elif self.changes.started and not self.next_end:
            self._cut()

    @override
    def before_clear(self) -> None:
        if isinstance(self.changes, Tail):
            self.changes.clear()

    def _renew_temp(self) -> None:
        """Free the space of FileStorage's temporary file; if the disk is full, drop its buffer."""
        try:
            os.ftruncate(self.changes.fileno(), 0)
            self.changes.truncate(0)
        except OSError:
            throw_away(self.changes)
            self.changes = open(f"{self.path}.tmp", "w+b")  # noqa: SIM115

    def _renew_file(self) -> None:
        """Open the file again, without the bytes and the buffer of a failed vote.

        FileStorage would keep the buffer, for which there is no space on the disk. Then it fails
        for ever, or writes the buffer behind a later transaction.
        """
        throw_away(self.file)
        self.file = open(self.path, "r+b")  # noqa: SIM115
        self._cut()

    def _cut(self) -> None:
        """Remove the bytes that the transaction has written from the file."""
        self.file.truncate(self.end)
        self.readers.flush()

    @override
    def iterator(self, start: bytes | None = None, stop: bytes | None = None) -> Any:
        with self.state_lock:
            end = self.end
            iterator = TransactionsOf(self.readers.name, FIRST, end, stop, self.sent_data)
        if start and end > FIRST:
            iterator.skip_to(start)
        return iterator

    def lastInvalidations(self, count: int) -> list[tuple[bytes, list[bytes]]]:
        """See ZEO: return (tid, oids) of the last transactions."""
        return last_invalidations(self, count)

    def last_transactions(self, count: int, stop: bytes | None = None) -> list[Entry]:
        """Return (tid, user, description, records) of the last ones up to a tid, the newest first.

        A record is (oid, name of its class); "" if the object was removed. Only heads are read.
        """
        return last_transactions(self, count, stop)

    # ---- where pads would be visible ----

    @override
    def sent_data(self, data: bytes) -> bytes:
        return without_hole(data)

    @override
    def find_data(self, tpos: int, oid: bytes, data: bytes) -> int:
        return (
            data_find(self, tpos, oid, data) if self.align else super().find_data(tpos, oid, data)
        )

    @override
    def plain_data(self, data: bytes) -> bytes:
        return without_pad(data)

    # ---- pack ----

    @staticmethod
    @override
    def packer(
        storage: AlignedFileStorage, referencesf: Any, stop: bytes, gc: bool
    ) -> tuple[int, Any] | None:
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

    @override
    def pack(self, t: Any, referencesf: Any, gc: bool | None = None) -> None:
        # a client of a ZEO server has no other way to ask for a trim: see TRIM
        if isinstance(t, tuple | list) and len(t) == 3 and t[0] == TRIM:
            trim(self, t[1], t[2], referencesf)
        else:
            pack(self, t, referencesf, gc)

    # ---- trim ----

    def hold(self, before: bytes) -> Hold:
        """Have no revision trimmed that the state before a tid has, until Hold is let go."""
        with self.state_lock:  # a pack may be replacing the file
            return self._holds.hold(self.file.fileno(), before)

    def holds(self, hold: Hold) -> bool:
        """Say whether a Hold is of this storage, and of its present file."""
        return self._holds.is_open and hold.is_of(self._holds)

    def hold_for(self, holds: Holds) -> None:
        """Hold what is looked at, by those who have no file until now, or another one."""
        with self.state_lock:
            self._holds = holds
            holds.renew(self.file.fileno())

    def trim(self, before: float | bytes | None = None, keep: int = 1) -> Trimmed:
        """Give back the room of large records that are in no state which is kept.

        The file is not written anew. A revision that is trimmed says so when it is read: of
        a block, that is a BlockLoadError by a TrimmedError.

        Parameters
        ----------
        before : float or bytes, optional
            States from this moment on are kept [s since 1970, or a tid]; None: the present one. The
            oldest state that a tag names, or that a Connection with arrays looks at in
            any process, is kept as well, and all after it.
        keep : int
            How many revisions of each object are kept, the one at that moment included.

        Raises
        ------
        OSError
            The file system cannot punch holes. Nothing was changed.
        ReadOnlyError
            The storage only reads.
        FileStorageError
            It is being packed, or trimmed.
        """
        return trim(self, before, keep, referencesf)

    def bytes_changed(self) -> None:
        """The file has other bytes where it had some: the saved index is believed by them."""
        self._index_end = None
        self.write_index()
