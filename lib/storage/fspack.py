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
from ZODB.FileStorage.FileStorage import FileStorageError, RedundantPackWarning
from ZODB.POSException import ReadOnlyError
from ZODB.utils import p64, z64

from wendelin.lib.adapters.demostorage import let_pack
from wendelin.lib.adapters.filestorage import Copier, PackBase
from wendelin.lib.interrupt import interrupts_later
from wendelin.lib.storage.fsalign import Pieces
from wendelin.lib.storage.fscopy import Source, Stretch, Target, aligned_data
from wendelin.lib.storage.fslock import FileLock
from wendelin.lib.storage.fsreach import Reachable
from wendelin.lib.storage.fssync import sync_folder
from wendelin.lib.storage.pad import without_pad
from wendelin.lib.storage.record import ChecksumError
from wendelin.lib.storage.tags import pack_time

__all__ = ["Packer", "data_find", "pack"]

log = logging.getLogger(__name__)

let_pack()


def pack(storage: Any, t: float, referencesf: Any, gc: bool | None) -> None:
    """Pack an AlignedFileStorage as of a time; see IStorage.pack()."""
    if storage.isReadOnly():
        raise ReadOnlyError
    t = pack_time(storage, t)
    stop = TimeStamp(*time.gmtime(t)[:5], t % 60).raw()
    if stop == z64:
        raise FileStorageError("Invalid pack time")
    if not storage.index:
        return  # it is empty
    with storage.state_lock:
        if storage.packing:
            raise FileStorageError("Already packing")
        storage.packing = True
    old = f"{storage.path}.old"
    try:
        try:
            found = storage.packer(
                storage, referencesf, stop, storage.pack_gc if gc is None else gc
            )
        except RedundantPackWarning as e:
            log.info("%s", e)
            return
        if found is None:
            return
        try:
            _replace(storage, old, *found)
        finally:
            storage.commit_lock.release()
        if storage.blob_dir:
            if os.path.exists(f"{storage.blob_dir}.old"):
                remove_committed_dir(f"{storage.blob_dir}.old")
            storage.remove_packed_blobs()
        if not storage.pack_keep_old:
            with suppress(FileNotFoundError):
                os.remove(old)
        storage.write_index()
    finally:
        with storage.state_lock:
            storage.packing = False


def _rename(packed: str, path: str, old: str) -> None:
    """Give the packed file its name; the file that has it becomes `old`."""
    try:
        os.link(path, old)
    except OSError:  # a file system may have no links: for a moment there is no file
        os.rename(path, old)
        try:
            os.rename(packed, path)
        except BaseException:
            os.rename(old, path)
            raise
    else:
        try:
            os.rename(packed, path)
        except BaseException:
            os.unlink(old)
            raise


def _replace(storage: Any, old: str, end: int, index: Any) -> None:
    """Replace the file by the packed one, with this index."""
    path = storage.path
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
        with storage.readers.write_lock(), storage.state_lock:
            storage.readers.empty()
            with interrupts_later():
                _rename(packed, path, old)
                file.raw.name = path
                file, storage.file = storage.file, file
                lock, storage.file_lock = storage.file_lock, lock
                storage.set_index(index, storage.changed)
                storage.end = end
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


def data_find(formatter: Any, tpos: int, oid: bytes, data: bytes | Pieces) -> int:
    """Return where the transaction at tpos has this data of an object, ignoring pads; or 0."""
    header = formatter.read_transaction(tpos)
    pos = tpos + header.headerlen()
    found = 0
    while pos < tpos + header.tlen:
        record = formatter.read_record(pos)
        if record.oid == oid:  # the last one counts
            stored = formatter.file.read(record.plen) if record.plen else None
            # a record without data is a reference further back, and means the same
            same = stored is None or without_pad(stored) == without_pad(bytes(data))
            found = pos if same else 0
        pos += record.recordlen()
    return found


def _aligned(oid: bytes, tid: bytes, data: bytes | Stretch, at: int, smallest: int) -> Any:
    """Return a record as it is to be copied to a position.

    Raises
    ------
    OSError
        It does not match its checksum. FileStorage tidies up after these.
    """
    try:
        return aligned_data(data, at, smallest)
    except ChecksumError as e:
        raise OSError(
            EBADMSG,
            f"nothing was packed: of object 0x{oid.hex()}, which transaction 0x{tid.hex()} wrote, "
            f"{e}. `wendelin verify` says of which array it is; repair that first",
        ) from e


class _PackCopier(Copier):
    """Copies transactions after the pack time."""

    align_from: int  # of the storage that is packed

    def find_data(self, tpos: int, oid: bytes, data: bytes) -> int:
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
            data = _aligned(oid, serial, data, datapos, self.align_from)
        super().copy(oid, serial, data, prev_txn, txnpos, datapos)


class Packer(PackBase):
    """Aligns the records that it copies."""

    def __init__(self, storage: Any, referencesf: Any, stop: bytes, gc: bool) -> None:
        super().__init__(storage, referencesf, stop, gc)
        self._frees = False
        self._align_from: int = storage.align_from
        self.gc = Reachable(self.file, self.file_end, self.stop, gc, referencesf)
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
        self.file, self.packed = Source(self.file), Target(self.packed)
        end, new_end = super().copyToPacktime()
        return end, -1 if self._frees else new_end

    def writePackedDataRecord(self, h: Any, data: Any, new_tpos: int) -> None:
        """Copy a record from before the pack time."""
        if data:
            data = _aligned(h.oid, h.tid, data, self.packed.tell(), self._align_from)
        super().writePackedDataRecord(h, data, new_tpos)

    def copyRest(self, ipos: int) -> None:
        """Copy transactions after the pack time."""
        self.file = Source(self.file)  # opened anew
        self.copier = _PackCopier(self.packed, self.index, self.tindex)
        self.copier.align_from = self._align_from
        super().copyRest(ipos)

    def copyOne(self, ipos: int) -> int:
        """Copy a transaction, whose length may change; return where the next one is."""
        header = self.read_transaction(ipos)
        self.commit_lock.release()  # others may commit while this is copied
        self.locked = False
        start = self.packed.tell()
        self.copier.setTxnPos(start)
        self.packed.write(header.asString())
        end = ipos + header.tlen
        ipos += header.headerlen()
        while ipos < end:
            record = self.read_record(ipos)
            ipos += record.recordlen()
            prev_txn = None
            if record.plen:
                data = self.file.read(record.plen)
            else:
                data = self.fetchDataViaBackpointer(record.oid, record.back)
                if record.back:
                    prev_txn = self.getTxnFromData(record.oid, record.back)
            at = self.packed.tell()
            self.copier.copy(record.oid, record.tid, data, prev_txn, start, at)
        size = self.packed.tell() - start
        self.packed.write(p64(size))
        if size != header.tlen:
            self.packed.seek(start + 8)
            self.packed.write(p64(size))
            self.packed.seek(0, os.SEEK_END)
        self.index.update(self.tindex)
        self.tindex.clear()
        self.commit_lock.acquire()
        self.locked = True
        return ipos + 8
