"""The last transactions of a Data.fs: which objects each has written, by the heads of records.

It knows the storage, and which class a record is of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wendelin.lib.adapters.filestorage import TransactionsOf
from wendelin.lib.storage.fsscan import FIRST
from wendelin.lib.storage.record import RecordError, class_of

__all__ = ["Entry", "last_invalidations", "last_transactions"]

_HEAD = 512  # of a record, with the name of its class [bytes]

#: (tid, user, description, records); a record is (oid, name of its class)
Entry = tuple[bytes, bytes, bytes, list[tuple[bytes, str]]]


def last_transactions(storage: Any, count: int, stop: bytes | None) -> list[Entry]:
    """Return the last transactions; see AlignedFileStorage.last_transactions()."""
    found: list[Entry] = []
    with storage.state_lock:
        pos = storage.end
        while len(found) < count and pos > FIRST:
            pos -= 8 + storage.read_number(pos - 8)
            header = storage.read_transaction(pos)
            if stop is not None and header.tid > stop:
                continue
            records = list(_records_at(storage, pos, header))
            found.append((header.tid, header.user, header.descr, records))
    return found


def last_invalidations(storage: Any, count: int) -> list[tuple[bytes, list[bytes]]]:
    """Return (tid, oids) of the last transactions, the oldest one first."""
    with storage.state_lock:
        pos = storage.end
        while count > 0 and pos > FIRST:
            count -= 1
            pos -= 8 + storage.read_number(pos - 8)
        transactions = TransactionsOf(storage.readers.name, pos, storage.end)
    return [(txn.tid, [record.oid for record in txn]) for txn in transactions]


def _records_at(storage: Any, pos: int, header: Any) -> Iterator[tuple[bytes, str]]:
    end = pos + header.tlen
    pos += header.headerlen()
    while pos < end:
        record = storage.read_record(pos)
        head = storage.file.read(min(record.plen, _HEAD)) if record.plen else b""
        if not head and record.back:  # written by undo: the state is further back
            data = storage.load_back(record.oid, record.back)
            head = (data or b"")[:_HEAD]
        yield record.oid, _class_in(head)
        pos += record.recordlen()


def _class_in(head: bytes) -> str:
    """Return the name of the class at the beginning of a record; "" if it is not readable."""
    try:
        return class_of(head) if head else ""
    except RecordError:
        return ""
