"""Compares a database after a power failure with what had been committed; for powerfail.py.

It opens what powerfail_disk.py has made, as any program would. From the notes of
powerfail_program.py it knows what must be there.
"""

import zlib
from contextlib import closing, suppress
from pathlib import Path

import transaction
from persistent.mapping import PersistentMapping
from ZODB import DB
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import POSKeyError
from ZODB.utils import p64, z64

from support.powerfail_program import FORMATS, TRIM, WRITERS, Expected, digest

#: reader -> (the storage: a key of WRITERS, its options)
READERS = {
    "ours": ("aligned", {}),
    "ours, read-only": ("aligned", {"read_only": True}),
    "stock": ("stock", {}),
}

#: outcome of a state -> what it means
OUTCOMES = {
    "right": "all transactions are there that had returned, and at most the next one, whole; "
    "nothing else is seen; another transaction is committed, and is there after the next opening, "
    "with all others",
    "lost": "of a transaction that had returned, something is not there, or not as it was",
    "blob lost": "the same of a blob's file",
    "torn": "a transaction that had not returned is there, and not whole",
    "others": "something is seen that was never committed",
    "unopenable": "an exception; read-only: if something had been committed",
    "wrong last": "all of this is right, but lastTransaction() is another one; then Connections "
    "see another moment",
    "stuck": "no other transaction can be committed",
}


class Wrong(Exception):  # noqa: N818  # in the storage
    """A state that is not right: (outcome, what was found)."""


class Check:
    """A database after a power failure, compared with what had been committed.

    Parameters
    ----------
    folder : Path
        Where Data.fs is.
    reader : str
        One of READERS.
    expected : Expected
    returned : list of str
        Tids of the commits that had returned.
    packs : int
        How many packs had begun.
    views : bool
        Look at arrays as their views show them, too. This takes most of the time, and their records
        are looked at anyway.
    """

    def __init__(
        self,
        folder: Path,
        reader: str,
        expected: Expected,
        returned: list[str],
        packs: int,
        views: bool,
    ) -> None:
        writer, options = READERS[reader]
        self.make = WRITERS[writer]
        self.read_only = bool(options)
        self.options = options
        if any(expected.blobs.values()):
            self.options = options | {"blob_dir": str(folder / "blobs")}
        self.folder = folder
        self.with_views = views
        self.expected = expected
        self.returned = returned
        later = [tid for tid in self.expected.records if tid > max(self.returned, default="")]
        self.next = later[0] if later else ""  # it may be there
        self.packed = max((tid for tid, _ in self.expected.packs[:packs]), default="")
        trims = [tid for tid, oids in self.expected.packs[:packs] if TRIM in oids]
        self.trimmed = max(trims, default="")
        # oid -> the transaction that wrote it last before a trim
        self.newest = {
            oid: tid
            for tid, records in sorted(self.expected.records.items())
            if tid <= self.trimmed
            for oid in records
        }
        self.removed = {oid for _, oids in self.expected.packs[:packs] for oid in oids}

    def outcome(self) -> tuple[str, str]:
        """Return the outcome, and what is wrong."""
        try:
            try:
                storage = self.open()
            except Exception as e:
                if self.read_only and not self.returned:
                    return "right", "there is nothing to read yet"
                raise Wrong("unopenable", repr(e)) from e
            with closing(storage):
                self.look(storage)
                if not self.read_only:
                    self.commit(storage)
            if not self.read_only:
                with closing(self.open()) as storage:
                    self.look_again(storage)
        except Wrong as e:
            return e.args
        return "right", ""

    def look(self, storage) -> None:
        """Look at everything."""
        last = self.transactions(storage)
        if last:
            self.objects(storage, last)
            self.blobs(storage, last)
        self.last(storage, last)
        if last and self.with_views:
            self.views(storage, last)

    def look_again(self, storage) -> None:
        """Look at objects as the storage's index has them, after the next opening."""
        self.objects(storage, self.returned[-1])
        self.last(storage, self.returned[-1])
        if self.with_views:
            self.views(storage, self.returned[-1])

    def last(self, storage, tid: str) -> None:
        """Check that the storage says that this is the last transaction."""
        said = storage.lastTransaction().hex()
        if said != (tid or z64.hex()):
            raise Wrong(
                "wrong last", f"the last transaction is {tid}, and lastTransaction() {said}"
            )

    def open(self):
        return self.make(str(self.folder / "Data.fs"), **self.options)

    def wrong(self, tid: str, what: str) -> Wrong:
        return Wrong("lost" if tid in self.returned else "torn", f"{what}, of {self.named(tid)}")

    def named(self, tid: str) -> str:
        tids = list(self.expected.records)
        number = tids.index(tid) + 1 if tid in tids else 0
        return f"transaction {number} of {len(self.returned)} that had returned"

    def transactions(self, storage) -> str:
        """Check the transactions that can be iterated; return the last one, or ""."""
        records = self.expected.records
        due = self.returned[-1] if self.returned else ""
        found: dict[str, dict[str, int | None]] = {}
        if not due and not len(storage):
            return ""  # stock FileStorage has not written its file's header, and cannot iterate
        try:
            with closing(storage.iterator()) as transactions:
                for txn in transactions:
                    found[txn.tid.hex()] = {r.oid.hex(): digest(r.data) for r in txn}
        except Exception as e:
            outcome = "lost" if max(found, default="") < due else "torn"
            raise Wrong(outcome, f"iteration fails: {e!r}") from e
        last = max(found, default="")
        if last < due:
            at = self.named(last) if last in records else "nothing"
            raise Wrong("lost", f"the last one is {at}, and {len(self.returned)} had returned")
        for tid, got in found.items():
            if tid not in records or (tid > due and tid != self.next):
                raise Wrong("others", f"there is a transaction {tid}")
            wanted = records[tid]
            if tid <= self.packed:  # what was superseded may have been removed
                wanted = {oid: value for oid, value in wanted.items() if oid in got}
            if tid <= self.trimmed:  # what was superseded may be anything
                kept = {oid for oid in got if self.newest[oid] == tid and oid not in self.removed}
                got = {oid: value for oid, value in got.items() if oid in kept}
                wanted = {oid: value for oid, value in wanted.items() if oid in kept}
            if got != wanted:
                raise self.wrong(tid, "records are not as they were")
        for tid in records:
            if self.packed < tid <= last and tid not in found:
                raise self.wrong(tid, "iteration has nothing")
        return last

    def objects(self, storage, last: str) -> None:
        """Check the records of all objects as they are after a transaction."""
        current = {}
        for tid, records in self.expected.records.items():
            if tid <= last:
                current.update((oid, (tid, value)) for oid, value in records.items())
        for oid, (tid, value) in current.items():
            try:
                data, serial = storage.load(bytes.fromhex(oid))
            except POSKeyError as e:
                if value is not None and oid not in self.removed:
                    raise self.wrong(tid, f"object {oid} is not there") from e
            except Exception as e:
                raise self.wrong(tid, f"object {oid} cannot be loaded: {e!r}") from e
            else:
                trimmed = tid <= self.trimmed and oid in self.removed
                if not trimmed and (serial.hex(), digest(data)) != (tid, value):
                    raise self.wrong(tid, f"object {oid} is not as it was")

    def blobs(self, storage, last: str) -> None:
        """Check the files of blobs."""
        for oid, value in self.expected.blobs[last].items():
            serial = storage.load(bytes.fromhex(oid))[1]
            try:
                with storage.openCommittedBlobFile(bytes.fromhex(oid), serial) as file:
                    there = zlib.crc32(file.read())
            except Exception as e:
                there = e
            if there != value:
                outcome = "blob lost" if serial.hex() in self.returned else "torn"
                raise Wrong(outcome, f"blob {oid}: {there!r}")

    def views(self, storage, last: str) -> None:
        """Check arrays as their views show them."""
        db, tm = DB(storage), transaction.TransactionManager()
        root = db.open(tm).root()
        try:
            there = {name: zlib.crc32(root[name][:]) for name in self.expected.arrays[last]}
        except Exception as e:
            raise self.wrong(last, f"a view fails: {e!r}") from e
        finally:
            tm.abort()
            root._p_jar.close()
        if there != self.expected.arrays[last]:
            raise self.wrong(last, "a view is not as it was")

    def commit(self, storage) -> None:
        """Commit a transaction; from now on, expect those that are there, and then this one."""
        last = storage.lastTransaction().hex()
        arrays = dict(self.expected.arrays.get(last, {}))
        try:
            if self.with_views or not arrays:
                self.commit_views(storage, arrays)
            else:
                self.commit_records(storage, last)
            with closing(storage.iterator(p64(int(last, 16) + 1))) as transactions:
                new = {
                    txn.tid.hex(): {r.oid.hex(): digest(r.data) for r in txn}
                    for txn in transactions
                }
        except Exception as e:
            raise Wrong("stuck", repr(e)) from e
        expected = self.expected
        tid = storage.lastTransaction().hex()
        known = {tid: records for tid, records in expected.records.items() if tid <= last} | new
        self.returned, self.next = list(known), ""
        self.expected = Expected(known, {tid: arrays}, {tid: expected.blobs.get(last, {})})

    def commit_views(self, storage, arrays: dict[str, int]) -> None:
        """Change an array and an object, as a program does."""
        tm = transaction.TransactionManager()
        root = DB(storage).open(tm).root()
        root["after"] = PersistentMapping()
        if arrays:
            A = root[FORMATS[0]]
            A[0] ^= 255
            arrays[FORMATS[0]] = zlib.crc32(A[:])
        tm.commit()
        root._p_jar.close()

    def commit_records(self, storage, last: str) -> None:
        """Store the records of the last transaction again, and a new object's."""
        txn = TransactionMetaData()
        storage.tpc_begin(txn)
        for oid in map(bytes.fromhex, self.expected.records[last]):
            with suppress(POSKeyError):  # its creation was undone
                data, serial = storage.load(oid)
                storage.store(oid, serial, data, "", txn)
        storage.store(storage.new_oid(), z64, b"N." * 5000, "", txn)
        storage.tpc_vote(txn)
        storage.tpc_finish(txn)
