"""wendelin copy: a database, or arrays and groups, into another storage.

A database is copied transaction by transaction, with its history. Transactions that were copied
before are skipped. So an interrupted copy can go on, and a copy can follow its source.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import click
from transaction.interfaces import TransientError
from ZODB.Connection import TransactionMetaData
from ZODB.DemoStorage import DemoStorage
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import POSKeyError, ReadOnlyError, Unsupported
from ZODB.utils import z64

from wendelin.cli.address import Address
from wendelin.cli.arguments import AddressType, json_option, replace_option, step_option
from wendelin.cli.copyobjects import copy_objects
from wendelin.cli.database import storage_opened, tid_time
from wendelin.cli.errors import Failure
from wendelin.cli.output import (
    Advance,
    print_json,
    progress,
    say,
    shown_tid,
    size_text,
    warn,
)
from wendelin.lib.storage.inert import InertError, Pairs, Reader
from wendelin.lib.storage.pad import without_pad
from wendelin.lib.storage.record import ChecksumError, RecordError, check, class_of

__all__ = ["copy"]


class _Begun(TransactionMetaData):  # type: ignore[misc]  # ZODB has no type hints
    """The metadata of a transaction that a destination gets: texts, and notes of programs.

    The notes are a pickle, which may call anything. A file takes it as it is, and a server gets
    only its plain values.
    """

    def __init__(self, txn: Any) -> None:
        super().__init__(txn.user, txn.description, txn.extension_bytes)

    @cached_property
    def extension(self) -> dict[str, Any]:
        """Notes of programs: texts and numbers."""
        try:
            noted = Reader(self.extension_bytes).load() if self.extension_bytes else None
        except InertError:
            return {}
        plain = (str, bytes, int, float, type(None))
        pairs = noted.pairs if isinstance(noted, Pairs) else []
        return {k: v for k, v in pairs if type(k) is str and isinstance(v, plain)}


def _is_blob(data: bytes) -> bool:
    try:
        return class_of(data) == "ZODB.blob.Blob"
    except RecordError:
        return False


class Copy:
    """The copy of a database.

    Parameters
    ----------
    source, destination : storage
    """

    def __init__(self, source: Any, destination: Any) -> None:
        self.source, self.destination = source, destination
        self.transactions = 0
        self.size = 0  # [bytes]
        #: (oid, tid) of records that were copied as they are, and do not match their checksum
        self.mismatches: list[tuple[bytes, bytes]] = []
        # the destination takes records with their tids; None: it was not tried yet
        self._restores: bool | None = None if hasattr(destination, "restore") else False
        self._serials: dict[bytes, bytes] = {}  # of objects, in a destination that does not

    @contextmanager
    def _iterated(self, storage: Any, start: bytes | None = None) -> Iterator[Iterator[Any]]:
        iterator = storage.iterator(start)
        try:
            yield iter(iterator)
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def last(self) -> bytes:
        """Return the last transaction of the destination; z64 if it is empty.

        Raises
        ------
        Failure
            The destination is not a copy of the source.
        """
        last: bytes = self.destination.lastTransaction()
        if last == z64:
            return last
        with self._iterated(self.destination) as there, self._iterated(self.source) as here:
            ours, theirs = next(here, None), next(there, None)
            same = ours is not None and theirs is not None and ours.tid == theirs.tid
        with self._iterated(self.source, last) as rest:
            found = next(rest, None)
            if not same or found is None or found.tid != last:
                raise Failure(
                    "the destination is neither empty nor an unfinished copy of the source: "
                    "copy arrays, as in `wendelin copy URL1#path URL2#path`, or into an empty one"
                )
        return last

    def run(self, tell: Advance) -> None:
        """Copy the transactions that are missing."""
        last = self.last()
        with self._iterated(self.source, None if last == z64 else last) as transactions:
            for txn in transactions:
                if txn.tid > last:
                    self._copy(txn, tell)
                    self.transactions += 1

    def _copy(self, txn: Any, tell: Advance) -> None:
        size = self._give(txn, tell) if self._restores else self._try(txn, tell)
        self.size += size

    def _try(self, txn: Any, tell: Advance) -> int:
        """Find out, with a transaction, whether the destination takes records with their tids."""
        if self._restores is None:
            try:
                self._restores = True
                return self._give(txn, lambda n: None)
            except (Failure, TransientError, ReadOnlyError, OSError, MemoryError):
                raise
            except Exception:  # a server refuses at the vote, with an exception of its own
                self._restores = False
        return self._give(txn, tell)

    def _give(self, txn: Any, tell: Advance) -> int:
        """Copy a transaction; return its size."""
        destination = self.destination
        records = txn
        txn = _Begun(records)
        destination.tpc_begin(txn, records.tid, records.status)
        total = 0
        try:
            oids = []
            for record in records:
                (self._restore if self._restores else self._store)(record, txn)
                oids.append(record.oid)
                size = len(record.data or b"")
                total += size
                self._check(record)
                tell(size)
            destination.tpc_vote(txn)
            tid = destination.tpc_finish(txn)
        except BaseException:
            with suppress(Exception):
                destination.tpc_abort(txn)
            raise
        if not self._restores:
            self._serials.update(dict.fromkeys(oids, tid or records.tid))
        return total

    def _check(self, record: Any) -> None:
        """Note a record that does not match its checksum. Its copy will not match it either."""
        try:
            check(record.data or b"")
        except ChecksumError:
            found = record.oid, record.tid
            if found not in self.mismatches:  # a transaction is tried twice
                self.mismatches.append(found)

    def _store(self, record: Any, txn: Any) -> None:
        """Give a record to a destination that takes only new revisions."""
        if record.data is None:  # an undo took the object away
            return
        serial = self._serials.get(record.oid) or self._serial(record.oid)
        data = without_pad(record.data)
        if _is_blob(data):
            raise Failure("the destination does not take blobs with their history")
        self.destination.store(record.oid, serial, data, "", txn)

    def _serial(self, oid: bytes) -> bytes:
        try:
            return bytes(self.destination.getTid(oid))
        except (KeyError, AttributeError):  # NEO's is not a POSKeyError
            return bytes(z64)

    def _restore(self, record: Any, txn: Any) -> None:
        """Give a record to the destination, without its pad, which is for the other file."""
        data = None if record.data is None else without_pad(record.data)
        blob = self._blob(record)
        if blob is None:
            self.destination.restore(record.oid, record.tid, data, "", record.data_txn, txn)
            return
        if not getattr(self.destination, "blob_dir", None):
            raise Failure("the database has blobs, which the destination does not take")
        folder = self.destination.fshelper.temp_dir
        with (
            open(blob, "rb") as file,
            tempfile.NamedTemporaryFile(
                prefix="copy-", suffix=".tmp", dir=folder, delete=False
            ) as new,
        ):
            for piece in iter(lambda: file.read(1 << 20), b""):
                new.write(piece)
        self.destination.restoreBlob(record.oid, record.tid, data, new.name, record.data_txn, txn)

    def _blob(self, record: Any) -> str | None:
        """Return the file of a blob; None if the record is not one of a blob."""
        if record.data is None or not _is_blob(record.data):
            return None
        try:
            path: str = self.source.loadBlob(record.oid, record.tid)
            return path
        except POSKeyError:
            return None
        except (Unsupported, AttributeError, TypeError) as e:
            raise Failure(
                "the database has blobs: its URL must say where, ?blobstorage_dir=..."
            ) from e


@click.command(
    short_help="Copy a database, or arrays and groups, into another.",
    epilog="""\b
Examples:
  wendelin copy old.fs new.fs
  wendelin copy data.fs zeo://host:9991
  wendelin copy zeo://host:9991 backup.fs
  wendelin copy old.fs#runs/A zeo://host:9991#A
  wendelin copy data.fs#run/7 '#old/7'
  wendelin copy 'old.fs#run/*' new.fs#run""",
)
@click.argument("source", metavar="URL1[#path]", type=AddressType("possible"))
@click.argument(
    "destination", metavar="[URL2][#path]", shell_complete=AddressType("possible").shell_complete
)
@replace_option
@step_option
@json_option
def copy(source: Address, destination: str, replace: bool, step: int, as_json: bool) -> int:
    """Copy a database, with its history, into another storage; or arrays and groups, as they are.

    The other storage must be empty, or have the beginning of the copy: then the rest is copied.
    In a file, blocks are aligned, so that they can be mapped. If the copy was interrupted, the same
    command goes on.

    An array keeps its block size, its format and its attributes; a ZarrGroup, or an array in one,
    its values, and a ZRagged its pieces. A group is copied with the arrays
    and groups in it; other objects are named on stderr. Until it is complete, it is in NAME~import.
    With the wildcards * and ? in the first path, all that it means is copied into the second one, a
    group. Within one database, the second URL may be left out.

    If a block does not match its checksum, the copy of a database has both as they are. The command
    reports the block, and the exit code is 1. A single array with such a block is not copied.
    """
    text = f"{source.url}{destination}" if destination.startswith("#") else destination
    to: Address = AddressType("possible").convert(text, None, click.get_current_context())
    if bool(source.path) != bool(to.path):
        raise click.UsageError("give a #path for both, or for neither")
    there = os.path.exists(source.url) and os.path.exists(to.url)
    one_file = there and os.path.samefile(source.url, to.url)
    if source.path:
        copy_objects(source, to, one_file or source.url == to.url, replace, step, as_json)
        return 0
    if replace:
        raise click.UsageError("--replace is for arrays: a database is copied into an empty one")
    if one_file:
        raise click.UsageError(f"{source.url} and {to.url} are the same file")
    return _copy_database(source.url, to.url, as_json)


def _copy_database(source: str, destination: str, as_json: bool) -> int:
    with (
        storage_opened(source) as old,
        storage_opened(destination, write=True) as new,
    ):
        for url, storage in (source, old), (destination, new):
            if not hasattr(storage, "iterator"):
                raise Failure(f"{url} cannot list its transactions: copy arrays, by URL#path")
        if isinstance(new, MappingStorage | DemoStorage):
            raise Failure(f"{destination} is in memory: the copy would be lost at the end")
        work = Copy(old, new)
        with progress("copy", old.getSize(), in_bytes=True) as tell:
            work.run(tell)
        last = new.lastTransaction()
    if as_json:
        print_json(
            {
                "transactions": work.transactions,
                "bytes": work.size,
                "last": shown_tid(last),
                "mismatches": [
                    {"oid": oid.hex(), "written": shown_tid(tid)} for oid, tid in work.mismatches
                ],
            }
        )
    else:
        upto = "" if last == z64 else f", up to {tid_time(last):%Y-%m-%d %H:%M:%S}"
        say(f"{destination}: {work.transactions} transactions, {size_text(work.size)}{upto}")
    for oid, tid in work.mismatches:
        warn(
            "copy",
            f"object 0x{oid.hex()}, which transaction 0x{tid.hex()} wrote, was copied unchanged: "
            f"its bytes do not match their checksum (`wendelin verify` says which array it is of)",
        )
    return 1 if work.mismatches else 0
