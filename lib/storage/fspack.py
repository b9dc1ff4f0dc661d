"""Pack of an AlignedFileStorage: FileStorage's pack, which also aligns all blocks that it copies.

A record that does not match its checksum ends the pack, before anything is dropped: an older
revision may have the right bytes.

A kill or a power failure at any moment of a pack leaves the previous file, or the packed one.
Commits that return afterwards are in that file. The steps:

1. the packed file, NAME.pack, is on disk, and locked;
2. the index of the previous file is removed, and the folder synced;
3. the packed file takes the name, in one rename; the previous file gets the name NAME.old, or
   stays without one for readers that have it open. An older NAME.old stays until then;
4. the folder is synced, before any other transaction may be committed, and before a blob is
   removed;
5. the index of the packed file is saved.

Locking: the commit lock is held from the end of copying until 4 is done; see filestorage.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from errno import EBADMSG
from typing import Any

from persistent.TimeStamp import TimeStamp
from ZODB.blob import remove_committed_dir
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage.FileStorage import FileStorageError, RedundantPackWarning
from ZODB.FileStorage.fspack import FileStoragePacker, PackCopier
from ZODB.POSException import ReadOnlyError
from ZODB.utils import p64, z64

from wendelin.lib.storage.fscopy import Source, Stretch, Target, aligned_data
from wendelin.lib.storage.fslock import FileLock
from wendelin.lib.storage.fsreach import Reachable
from wendelin.lib.storage.fssync import sync_folder
from wendelin.lib.storage.record import ChecksumError, without_pad
from wendelin.lib.storage.tags import pack_time

__all__ = ["Packer", "data_find", "pack"]

log = logging.getLogger(__name__)

# DemoStorage.pack() reads this attribute, which DemoStorage has only if it has made the storage
# of changes itself. Else it ends with an AttributeError before it packs.
if not hasattr(DemoStorage, "_temporary_changes"):
    DemoStorage._temporary_changes = False


def pack(storage: Any, t: float, referencesf: Any, gc: bool | None) -> None:
    """Pack an AlignedFileStorage as of a time; see IStorage.pack()."""
    if storage.isReadOnly():
        raise ReadOnlyError
    t = pack_time(storage, t)
    stop = TimeStamp(*time.gmtime(t)[:5], t % 60).raw()
    if stop == z64:
        raise FileStorageError("Invalid pack time")
    if not storage._index:
        return  # it is empty
    with storage._lock:
        if storage._pack_is_in_progress:
            raise FileStorageError("Already packing")
        storage._pack_is_in_progress = True
    old = f"{storage._file_name}.old"
    try:
        try:
            found = storage.packer(
                storage, referencesf, stop, storage._pack_gc if gc is None else gc
            )
        except RedundantPackWarning as e:
            log.info("%s", e)
            return
        if found is None:
            return
        try:
            _replace(storage, old, *found)
        finally:
            storage._commit_lock.release()
        if storage.blob_dir:
            if os.path.exists(f"{storage.blob_dir}.old"):
                remove_committed_dir(f"{storage.blob_dir}.old")
            storage._remove_blob_files_tagged_for_removal_during_pack()
        if not storage.pack_keep_old:
            with suppress(FileNotFoundError):
                os.remove(old)
        storage._save_index()
    finally:
        with storage._lock:
            storage._pack_is_in_progress = False


def _replace(storage: Any, old: str, end: int, index: Any) -> None:
    """Replace the file by the packed one, with this index."""
    path = storage._file_name
    packed, folder = f"{path}.pack", os.path.dirname(path)
    lock = FileLock()
    file: Any = open(packed, "r+b")  # noqa: SIM115
    try:
        os.fsync(file.fileno())
        lock.take(packed)
        with suppress(FileNotFoundError):
            os.unlink(f"{path}.index")
        sync_folder(folder)
        # the NAME.old of an earlier pack stays until it is replaced
        with suppress(FileNotFoundError):
            os.remove(old)
        with storage._files.write_lock(), storage._lock:
            storage._files.empty()
            try:
                os.link(path, old)
            except OSError:  # a file system may have no links: for a moment there is no file
                os.rename(path, old)
            os.rename(packed, path)
            file.raw.name = path
            file, storage._file = storage._file, file
            lock, storage._own = storage._own, lock
            storage._initIndex(index, storage._tindex)
            storage._pos = end
    except BaseException:
        with suppress(OSError):
            os.unlink(packed)
        raise
    finally:
        lock.release()
        file.close()
    try:
        sync_folder(folder)
    except OSError:
        # Later commits may be lost with the new name. FileStorage closes itself, too, when a sync
        # fails.
        log.critical("%s: the folder cannot be synced after a pack: closing", path)
        storage.close()
        raise


def data_find(formatter: Any, tpos: int, oid: bytes, data: bytes) -> int:
    """Return where the transaction at tpos has this data of an object, ignoring pads; or 0."""
    header = formatter._read_txn_header(tpos)
    pos = tpos + header.headerlen()
    found = 0
    while pos < tpos + header.tlen:
        record = formatter._read_data_header(pos)
        if record.oid == oid:  # the last one counts
            stored = formatter._file.read(record.plen) if record.plen else None
            # a record without data is a reference further back, and means the same
            same = stored is None or without_pad(stored) == without_pad(data)
            found = pos if same else 0
        pos += record.recordlen()
    return found


def _aligned(oid: bytes, tid: bytes, data: bytes | Stretch, at: int) -> Any:
    """Return a record as it is to be copied to a position.

    Raises
    ------
    OSError
        It does not match its checksum. FileStorage tidies up after these.
    """
    try:
        return aligned_data(data, at)
    except ChecksumError as e:
        raise OSError(
            EBADMSG,
            f"nothing was packed: of object 0x{oid.hex()}, which transaction 0x{tid.hex()} wrote, "
            f"{e}. `wendelin verify` says of which array it is; repair that first",
        ) from e


class _PackCopier(PackCopier):  # type: ignore[misc]  # ZODB has no type hints
    """Copies transactions after the pack time."""

    def _data_find(self, tpos: int, oid: bytes, data: bytes) -> int:
        return data_find(self, tpos, oid, data)

    def copy(
        self,
        oid: bytes,
        serial: bytes,
        data: Any,
        prev_txn: bytes | None,
        txnpos: int,
        datapos: int,
    ) -> None:
        if data is not None:
            if prev_txn is not None and isinstance(data, Stretch):
                data = data.all()  # it may be in the new file already, which is compared
            data = _aligned(oid, serial, data, datapos)
        super().copy(oid, serial, data, prev_txn, txnpos, datapos)


class Packer(FileStoragePacker):  # type: ignore[misc]  # ZODB has no type hints
    """Aligns the records that it copies."""

    def __init__(self, storage: Any, referencesf: Any, stop: bytes, gc: bool) -> None:
        super().__init__(storage, referencesf, stop, gc)
        self._frees = False
        self.gc = Reachable(self._file, self.file_end, self._stop, gc, referencesf)
        is_reachable = self.gc.isReachable

        def noted(oid: bytes, pos: int) -> bool:
            reachable = bool(is_reachable(oid, pos))
            self._frees = self._frees or not reachable
            return reachable

        self.gc.isReachable = noted

    def copyToPacktime(self) -> tuple[int, int]:
        """Copy what is kept; return where that ends, in the previous file and in the new one.

        If the positions are equal, FileStorage does nothing more. But records and blobs may have
        been freed while pads have grown by the same size.
        """
        self._file, self._tfile = Source(self._file), Target(self._tfile)
        end, new_end = super().copyToPacktime()
        return end, -1 if self._frees else new_end

    def writePackedDataRecord(self, h: Any, data: Any, new_tpos: int) -> None:
        """Copy a record from before the pack time."""
        if data:
            data = _aligned(h.oid, h.tid, data, self._tfile.tell())
        super().writePackedDataRecord(h, data, new_tpos)

    def copyRest(self, ipos: int) -> None:
        """Copy transactions after the pack time."""
        self._file = Source(self._file)  # opened anew
        self._copier = _PackCopier(self._tfile, self.index, self.tindex)
        super().copyRest(ipos)

    def copyOne(self, ipos: int) -> int:
        """Copy a transaction, whose length may change; return where the next one is."""
        header = self._read_txn_header(ipos)
        self._commit_lock.release()  # others may commit while this is copied
        self.locked = False
        start = self._tfile.tell()
        self._copier.setTxnPos(start)
        self._tfile.write(header.asString())
        end = ipos + header.tlen
        ipos += header.headerlen()
        while ipos < end:
            record = self._read_data_header(ipos)
            ipos += record.recordlen()
            prev_txn = None
            if record.plen:
                data = self._file.read(record.plen)
            else:
                data = self.fetchDataViaBackpointer(record.oid, record.back)
                if record.back:
                    prev_txn = self.getTxnFromData(record.oid, record.back)
            at = self._tfile.tell()
            self._copier.copy(record.oid, record.tid, data, prev_txn, start, at)
        size = self._tfile.tell() - start
        self._tfile.write(p64(size))
        if size != header.tlen:
            self._tfile.seek(start + 8)
            self._tfile.write(p64(size))
            self._tfile.seek(0, os.SEEK_END)
        self.index.update(self.tindex)
        self.tindex.clear()
        self._commit_lock.acquire()
        self.locked = True
        return ipos + 8
