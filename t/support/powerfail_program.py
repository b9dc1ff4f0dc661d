"""Does with a database all that programs do: the workload that a power failure meets.

    LD_PRELOAD=… python t/support powerfail_program WRITER BLOBS FOLDER NOTES SEED

It creates FOLDER/Data.fs, and commits, aborts, undoes and packs; a follower reads beside it. When a
commit has returned, it puts a mark into the record (powerfail_record.c). It writes what must be
found after that to NOTES, a JSON file: Expected.

After each step, the arrays of the writer and of the follower are compared with a model. So what is
expected is not only what the storage says.
"""

import json
import logging
import os
import random
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import transaction
from persistent.mapping import PersistentMapping
from persistent.TimeStamp import TimeStamp
from ZODB import DB
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError
from ZODB.utils import p64

from support.powerfail_mark import mark, mark_files
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.storage import fsalign, fstrim, pad
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.storage.trimmed import HEAD

BLK = 8192
FORMATS = ("ZBlk0", "ZBlk1")
TRIM = "trim"  # before the oids of a pack, if it is a trim
LARGEST = 8 * BLK
ORDERED = 1 << 16  # so that small databases do what large ones do


def aligned(path: str, **options):
    return AlignedFileStorage(path, align_from=ALIGNMENT, order_from=ORDERED, **options)


def ordered(path: str, **options):
    return AlignedFileStorage(path, align_from=ALIGNMENT, ordered=True, **options)


def copied(path: str, **options):
    return AlignedFileStorage(path, align=False, order_from=ORDERED, **options)


def stock(path: str, **options):
    return FileStorage(path, **options)


#: name of a writer -> function that opens its storage
WRITERS = {"aligned": aligned, "ordered": ordered, "copied": copied, "stock": stock}


def digest(data: bytes | None) -> int | None:
    """Return a digest of a record, whatever its pad."""
    return None if data is None else zlib.crc32(pad.without_pad(data))


@dataclass
class Expected:
    """What a workload has committed. Tids and oids are in hexadecimal, as JSON has no bytes."""

    #: tid -> oid -> digest of the record, or None for an object whose creation was undone
    records: dict[str, dict[str, int | None]] = field(default_factory=dict)
    #: tid -> name of an array -> checksum of its bytes
    arrays: dict[str, dict[str, int]] = field(default_factory=dict)
    #: tid -> oid -> checksum of its blob
    blobs: dict[str, dict[str, int]] = field(default_factory=dict)
    #: for each pack: (the last tid that is not after its time, the oids that it has removed)
    packs: list[tuple[str, list[str]]] = field(default_factory=list)


class Abort(Exception):  # noqa: N818  # it is wanted
    """The exception that aborts a transaction."""


class Refusing:
    """A data manager that refuses every transaction, after all others have voted."""

    transaction_manager = None

    def __init__(self, then) -> None:
        self.then = then

    def tpc_vote(self, txn) -> None:
        self.then()
        raise Abort

    def sortKey(self) -> str:
        return "~"

    def abort(self, txn) -> None:
        pass

    commit = tpc_begin = tpc_finish = tpc_abort = abort


class Work:
    """A database, a model of it, and what was committed."""

    def __init__(self, writer: str, blobs: bool, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.make = WRITERS[writer]
        self.options = {"blob_dir": str(folder / "blobs")} if blobs else {}
        self.folder = folder
        self.path = str(folder / "Data.fs")
        self.expected = Expected()
        self.models: dict[str, np.ndarray] = {}
        self.follower = None
        self.open()

    # ---- the database ----

    def returned(self) -> None:
        """Note a commit that has returned just now."""
        tid = self.db.storage.lastTransaction()
        if tid.hex() not in self.expected.records:  # something was stored
            mark(returned=tid.hex())
            self.note(tid)

    def note(self, tid: bytes) -> None:
        """Note what a transaction has stored."""
        expected, key = self.expected, tid.hex()
        with closing(self.db.storage.iterator(tid, tid)) as transactions:
            txn = next(transactions)  # an iterator that is read to its end closes itself
            expected.records[key] = {r.oid.hex(): digest(r.data) for r in txn}
        expected.arrays[key] = {f: zlib.crc32(a.tobytes()) for f, a in self.models.items()}
        expected.blobs[key] = (
            {
                blob._p_oid.hex(): zlib.crc32(blob.open("r").read())
                for blob in self.root["blobs"].values()
            }
            if "blobs" in self.root
            else {}
        )

    def open(self) -> None:
        self.db = DB(self.make(self.path, **self.options))
        self.root = self.db.open().root()
        if not self.expected.records:
            self.returned()  # the root
            self.create()
        if self.make is not stock:
            self.follower = DB(self.make(self.path, read_only=True))
            self.tm = transaction.TransactionManager()
            self.seen = self.follower.open(self.tm).root()

    def create(self) -> None:
        for fmt in FORMATS:
            self.root[fmt] = A = ZBigArray((3 * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
            self.root._p_jar.add(A)
            self.models[fmt] = np.zeros(3 * BLK, "u1")
        self.root["objects"] = PersistentMapping()
        self.root["blobs"] = PersistentMapping()
        self.commit()

    def close(self) -> None:
        transaction.abort()
        if self.follower is not None:
            self.tm.abort()
            self.follower.close()
        self.db.close()

    def commit(self) -> None:
        transaction.commit()
        self.returned()

    def check(self) -> None:
        """Compare with the model what the writer has, and what the follower sees."""
        roots = [self.root]
        if self.follower is not None:
            self.tm.begin()
            roots.append(self.seen)
        for root in roots:
            for fmt in FORMATS:
                assert np.array_equal(root[fmt].read(), self.models[fmt]), fmt

    # ---- steps ----

    def change(self, kinds=("byte", "piece", "blocks", "append", "shrink")) -> None:
        """Change arrays, and their models."""
        rng = self.rng
        for fmt in rng.sample(FORMATS, rng.choice([1, 2])):
            A, a = self.root[fmt], self.models[fmt]
            kind = rng.choice(kinds)
            start = rng.randrange(len(a))
            value = rng.randrange(1, 256)
            if kind == "append" and len(a) < LARGEST:
                more = np.full(rng.randrange(1, 3 * BLK), value, "u1")
                A.append(more)
                self.models[fmt] = np.append(a, more)
                continue
            if kind == "shrink" and len(a) > 2 * BLK:
                A.resize((max(start, BLK),))
                self.models[fmt] = a[: max(start, BLK)].copy()
                continue
            size = {"byte": 1, "piece": 3000}.get(kind, 3 * BLK)
            noise = np.random.default_rng(rng.randrange(1 << 30)).integers(1, 256, len(a), "u1")
            part = slice(start, start + size)
            A[part] = a[part] = noise[part]

    def step_change(self) -> None:
        self.change()
        self.commit()

    def step_byte(self) -> None:
        self.change(["byte"])
        self.commit()

    def step_piece(self) -> None:
        self.change(["piece"])
        self.commit()

    def step_append(self) -> None:
        self.change(["append"])
        self.commit()

    def step_all(self) -> None:
        """Change everything, many times the size of a writer's buffer."""
        for fmt in FORMATS:
            a = self.models[fmt]
            self.root[fmt][:] = a[:] = np.frombuffer(self.rng.randbytes(len(a)), "u1")
        self.commit()

    def step_objects(self) -> None:
        objects = self.root["objects"]
        for _ in range(self.rng.randint(1, 4)):
            value = self.rng.randbytes(self.rng.choice([0, 10, 600, 5000]))
            objects[self.rng.randrange(10)] = PersistentMapping(value=value)
        self.commit()

    def step_remove(self) -> None:
        self.root["objects"].clear()
        self.commit()

    def step_savepoint(self) -> None:
        self.change()
        models = {fmt: a.copy() for fmt, a in self.models.items()}
        savepoint = transaction.savepoint()
        self.change()
        if self.rng.random() < 0.7:
            savepoint.rollback()
            self.models = models
        self.commit()

    def aborted(self, stage) -> None:
        models = {fmt: a.copy() for fmt, a in self.models.items()}
        self.change(["blocks", "append"])
        stage()
        transaction.abort()
        self.models = models
        self.root._p_jar.sync()

    def step_abort(self) -> None:
        self.aborted(lambda: None)

    def step_abort_voted(self) -> None:
        def vote():
            # it has been voted for, but is not committed: a follower sees nothing of it
            before, self.models = self.models, models
            seen = self.root
            if self.follower is not None:
                self.root = self.seen
                self.check()
            self.root, self.models = seen, before

        def refuse():
            transaction.get().join(Refusing(vote))
            with suppress(Abort):
                transaction.commit()

        models = {fmt: a.copy() for fmt, a in self.models.items()}
        self.aborted(refuse)

    def step_abort_stored(self) -> None:
        """Abort a transaction that has stored, but not voted."""
        storage = self.db.storage
        txn = TransactionMetaData()
        storage.tpc_begin(txn)
        for _ in range(3):
            storage.store(storage.new_oid(), p64(0), self.rng.randbytes(40_000), "", txn)
        storage.tpc_abort(txn)

    def step_undo(self) -> None:
        """Undo a transaction that changed the first byte of each array."""
        models = {fmt: a.copy() for fmt, a in self.models.items()}
        for fmt in FORMATS:
            self.root[fmt][:1] = self.models[fmt][:1] = self.rng.randrange(256)
        self.root["objects"]["undone"] = PersistentMapping(value=b"y" * 100)
        self.commit()
        self.db.undo(self.db.undoLog(0, 1)[0]["id"])
        self.models = models
        self.commit()

    def step_reopen(self) -> None:
        self.close()
        mark_files(self.folder)
        self.open()

    def step_rest(self) -> None:
        """Open the file with something at its end that a power failure may have left."""
        self.close()
        data = Path(self.path).read_bytes()
        size = int.from_bytes(data[-8:], "big")
        tid = p64(int(max(self.expected.records), 16) + 1)
        again = tid + data[-size:]  # the last transaction, as another one
        rests = [again[:16] + b"c" + again[17:], again[: self.rng.randrange(1, size)]]
        if self.make is not stock:  # stock reads nothing after these
            rests.append(bytes(self.rng.randrange(1, 9000)))
            rests.append(tid + p64(1 << 62) + b"c" + self.rng.randbytes(5000))  # as before a vote
        rest = self.rng.choice(rests)
        with open(self.path, "ab") as file:
            file.write(rest)
            file.flush()
            os.fsync(file.fileno())
        self.open()

    def step_blob(self) -> None:
        blobs = self.root["blobs"]
        n = self.rng.randrange(3)
        if n in blobs and self.rng.random() < 0.3:
            del blobs[n]
        else:
            blob = blobs.setdefault(n, Blob())
            with blob.open("w") as file:
                file.write(self.rng.randbytes(self.rng.choice([10, 3000, 20_000])))
        self.commit()

    def pack(self, at: float, beside=None) -> None:
        """Pack; meanwhile, call `beside` again and again, and once more when the pack is done."""
        last = max(
            tid for tid in self.expected.records if TimeStamp(bytes.fromhex(tid)).timeTime() <= at
        )
        before = self.oids()
        mark(pack=len(self.expected.packs))
        self.expected.packs.append((last, []))
        if beside is None:
            self.db.pack(at)
        else:
            with ThreadPoolExecutor() as pool:
                packed = pool.submit(self.db.pack, at)
                for _ in range(10):
                    if not packed.done():
                        beside()
                packed.result()
            beside()
        # it removes what nothing refers to; check() looks at what is referred to
        self.expected.packs[-1] = (last, sorted(before - self.oids()))

    def oids(self) -> set[str]:
        """Return the oids of all objects that can be loaded."""
        oids = {oid for records in self.expected.records.values() for oid in records}
        found = set()
        for oid in oids:
            with suppress(POSKeyError):
                self.db.storage.load(bytes.fromhex(oid))
                found.add(oid)
        return found

    def step_pack(self) -> None:
        self.pack(time.time())
        mark_files(self.folder)

    def step_trim(self) -> None:
        """Trim, where the storage can: what is superseded may be "packed away"."""
        trim = getattr(self.db.storage, "trim", None)
        if trim is not None and self.db.storage.align:
            mark(pack=len(self.expected.packs))
            self.expected.packs.append((max(self.expected.records), [TRIM]))
            fstrim.SMALLEST = 4096  # [bytes]; blocks are small here
            trim()
            # these are objects that nothing refers to
            last, _ = self.expected.packs[-1]
            gone = sorted(oid for oid in self.oids() if self.is_packed_away(oid))
            self.expected.packs[-1] = (last, [TRIM, *gone])

    def is_packed_away(self, oid: str) -> bool:
        """Say whether the last revision of an object was trimmed."""
        return self.db.storage.load(bytes.fromhex(oid))[0].startswith(HEAD)

    def step_pack_earlier(self) -> None:
        """Pack what is older than some transactions."""
        at = time.time()
        time.sleep(0.01)
        for step in self.step_change, self.step_objects, self.step_undo:
            step()
        self.pack(at)

    def step_pack_beside(self) -> None:
        """Pack while commits go on."""
        at = time.time()
        time.sleep(0.01)
        self.step_change()
        self.pack(at, self.step_piece)


#: step -> how often it is done
STEPS = {
    "change": 8,
    "byte": 3,
    "append": 3,
    "all": 2,
    "objects": 4,
    "remove": 2,
    "savepoint": 3,
    "abort": 1,
    "abort_voted": 3,
    "abort_stored": 3,
    "undo": 3,
    "reopen": 3,
    "rest": 2,
    "blob": 4,
    "pack": 3,
    "pack_earlier": 2,
    "pack_beside": 2,
    "trim": 3,
}


def main(writer: str, blobs: str, folder: str, notes: str, seed: str) -> None:
    """Do all steps, in an order that the seed says."""
    logging.disable()  # no warnings of what is found after the last transaction
    fsalign.HUGE = fsalign.HUGE_FROM = BLK  # there are holes before blocks, as before large ones
    pad.HOLE_FROM = ALIGNMENT // 2
    rng = random.Random(int(seed))
    steps = [name for name, n in STEPS.items() for _ in range(n) if name != "blob" or blobs]
    rng.shuffle(steps)
    work = Work(writer, bool(blobs), Path(folder), rng)
    for name in steps:
        mark(step=name)
        getattr(work, f"step_{name}")()
        work.check()
    work.close()
    mark_files(work.folder)
    Path(notes).write_text(json.dumps(asdict(work.expected)))


if __name__ == "__main__":
    main(*sys.argv[1:])
