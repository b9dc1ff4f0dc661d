"""Pack of an AlignedFileStorage: as FileStorage packs, and aligns what it copies."""

from __future__ import annotations

import os
from typing import Any

from ZODB.FileStorage.format import DATA_HDR_LEN
from ZODB.FileStorage.fspack import FileStoragePacker, PackCopier
from ZODB.utils import p64

from wendelin.lib.fsalign import aligned_at
from wendelin.lib.zrecord import without_pad

__all__ = ["Packer", "data_find"]


def data_find(formatter: Any, tpos: int, oid: bytes, data: bytes) -> int:
    """Return where the transaction at tpos has this data for an object, whatever its pad; or 0."""
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


class _PackCopier(PackCopier):  # type: ignore[misc]  # ZODB has no type hints
    """Copies transactions after the pack time."""

    def _data_find(self, tpos: int, oid: bytes, data: bytes) -> int:
        return data_find(self, tpos, oid, data)

    def copy(
        self,
        oid: bytes,
        serial: bytes,
        data: bytes | None,
        prev_txn: bytes | None,
        txnpos: int,
        datapos: int,
    ) -> None:
        if data is not None:
            data = aligned_at(data, datapos + DATA_HDR_LEN)
        super().copy(oid, serial, data, prev_txn, txnpos, datapos)


class Packer(FileStoragePacker):  # type: ignore[misc]  # ZODB has no type hints
    """Aligns what it copies."""

    def writePackedDataRecord(self, h: Any, data: bytes | None, new_tpos: int) -> None:
        """Copy a record of before the pack time."""
        if data:
            data = aligned_at(data, self._tfile.tell() + DATA_HDR_LEN)
        super().writePackedDataRecord(h, data, new_tpos)

    def copyRest(self, ipos: int) -> None:
        """Copy transactions after the pack time."""
        self._copier = _PackCopier(self._tfile, self.index, self.tindex)
        super().copyRest(ipos)

    def copyOne(self, ipos: int) -> int:
        """Copy a transaction, which may have another length then; return where the next is."""
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
