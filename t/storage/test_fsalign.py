"""Large payloads begin at a multiple of the kernel's huge page: the gap before is a hole."""

import os
import pickle
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.child import check_child
from support.fsbytes import Bytes, current, data_of, write
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.POSException import UndoError
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.storage import fsalign
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsalign import ALIGNMENT, HUGE, HUGE_FROM
from wendelin.lib.storage.pad import BytesRecord, aligned, without_pad
from wendelin.lib.storage.record import bytes_state, find_payload
from wendelin.lib.zodb import dbclose, dbopen

MIB = 1 << 20
#: what is aligned, as if the kernel had huge pages of this size, and arrays were small
SMALL_HUGE, SMALL_FROM = 1 << 17, 1 << 18
HEAD = b"\x80\x03cwendelin.bigfile.file_zodb\nZBlk0\nq\x01.\x80\x03"
SMALL = 1 << 14  # of a record, beside its payload [bytes]


@pytest.fixture
def small_huge(monkeypatch):
    monkeypatch.setattr(fsalign, "HUGE", SMALL_HUGE)
    monkeypatch.setattr(fsalign, "HUGE_FROM", SMALL_FROM)


def places(storage, *objects):
    """Return where locate() finds objects, looked at one by one, and together."""
    oids = [obj._p_oid for obj in objects]
    for oid in oids[:1], oids:  # the others are like the first one: they are read in C
        found = storage.locate(oids, current(storage))
        assert None not in found, oid
    one = []
    for oid in oids:
        found[0].file.likes = ()
        one += storage.locate([oid], current(storage))
    assert [(f.offset, f.size, f.digest, f.head) for f in one] == [
        (f.offset, f.size, f.digest, f.head) for f in found
    ]
    return found


def bytes_at(place):
    return os.pread(place.file.fd, place.size, place.offset)


def zeros_before(place, n):
    """Say whether there is a hole within the n bytes before a payload."""
    at = os.lseek(place.file.fd, place.offset - n, os.SEEK_HOLE)
    return at < place.offset - ALIGNMENT


# ---- what is aligned to what ----


@pytest.mark.parametrize(
    ("size", "multiple"),
    [
        (HUGE_FROM, HUGE),
        (HUGE_FROM + HUGE, HUGE),
        (HUGE_FROM + ALIGNMENT, ALIGNMENT),
        (HUGE_FROM - HUGE, ALIGNMENT),
        (HUGE_FROM + 1, 1),
        (ALIGNMENT, 1),
    ],
)
def test_which_payloads_are_at_huge_pages(size, multiple):
    assert fsalign.alignment(16 * ALIGNMENT)(size) == multiple
    assert fsalign.alignment(HUGE_FROM + 2 * HUGE)(size) == 1


@pytest.mark.parametrize("at", [0, HUGE - 90, HUGE - 80, HUGE - 70, HUGE - 60, HUGE, 2**40 + 12345])
def test_any_place_can_be_padded(at):
    record = BytesRecord(HEAD, memoryview(b"x" * SMALL_FROM))
    pieces = aligned(record, at, lambda _: HUGE)
    padded = b"".join(map(bytes, pieces))
    assert len(padded) == sum(map(len, pieces))
    found = find_payload(padded)
    assert (at + found.start) % HUGE == 0
    assert len(padded) - len(bytes(record)) <= HUGE
    assert bytes_state(padded) == b"x" * SMALL_FROM
    assert without_pad(padded) == bytes(record)
    assert pickle.loads(padded[found.begin - 2 :]) == b"x" * SMALL_FROM
    # the same is found by the beginning, and what is behind the pad
    reads = []

    def read(start, size):
        reads.append((start, size))
        return padded[start : start + size]

    assert find_payload(padded[:4096], len(padded), read) == found
    assert reads == [(found.op - 1, found.start - found.op + 1)] or found.start < 4096


def test_large_blocks_are_at_huge_pages_and_take_no_more_room(tmp_path):
    path = f"{tmp_path}/1.fs"
    root = dbopen(path)
    n, blksize = 3, HUGE_FROM
    root["A"] = A = ZBigArray((n * blksize,), np.uint8, blksize=blksize)
    transaction.commit()
    A[:] = np.arange(n * blksize, dtype=np.uint8)
    transaction.commit()
    storage = root._p_jar.db().storage
    found = places(storage, *A.zfile.blktab.values())
    assert all(place.offset % HUGE == 0 and place.digest is not None for place in found)
    assert all(zeros_before(place, HUGE // 2) for place in found)

    def check(storage):
        over = os.stat(storage.getName()).st_blocks * 512 - n * blksize
        assert over <= 4 * n * ALIGNMENT + SMALL
        assert storage.getSize() - n * blksize <= n * HUGE + SMALL

    check(storage)
    with closing(AlignedFileStorage(f"{tmp_path}/copy.fs")) as copy:
        copy.copyTransactionsFrom(storage)
        check(copy)
    for stop in time.time(), time.time() + 1:  # transactions after that time, and before
        root["x"] = stop
        transaction.commit()
        storage.pack(stop, referencesf)
        check(storage)
    found = places(storage, *A.zfile.blktab.values())
    assert all(place.offset % HUGE == 0 for place in found)
    dbclose(root)


# ---- what others get ----


def test_no_long_pad_is_sent(tmp_path, small_huge):
    """A record that leaves the file has its checksum, and no zeros."""
    db, root = write(f"{tmp_path}/1.fs", data_of(1, SMALL_FROM // ALIGNMENT))
    storage, oid, tid = db.storage, root[0]._p_oid, root[0]._p_serial
    storage_size = storage.getSize()
    place = storage.locate([oid], current(storage))[0]
    with closing(FileStorage(db.storage.path, read_only=True)) as stock:
        long = stock.load(oid)[0]
        assert len(long) > SMALL_FROM + 40000
    got = [storage.load(oid)[0], storage.loadSerial(oid, tid)]
    got.append(storage.loadBefore(oid, p64(u64(tid) + 1))[0])
    with closing(storage.iterator()) as transactions:
        got += [record.data for txn in transactions for record in txn if record.oid == oid]
    assert got == [without_pad(long)] * 4
    assert len(got[0]) < SMALL_FROM + 200
    assert storage_size - place.offset < SMALL_FROM + 200
    db.close()


def test_a_conflict_is_resolved_without_a_long_pad(tmp_path, small_huge):
    seen = []

    class Resolves(Bytes):
        def _p_resolveConflict(self, *states):
            seen.append([len(state) for state in states])
            return states[2]

    Resolves.__qualname__ = Resolves.__name__ = "ResolvesConflicts"
    globals()["ResolvesConflicts"] = Resolves
    db = DB(AlignedFileStorage(f"{tmp_path}/1.fs"))
    root = db.open().root()
    root[0] = Resolves(data_of(0, 64))
    transaction.commit()
    managers = [transaction.TransactionManager() for _ in range(2)]
    objects = [db.open(m).root()[0] for m in managers]
    for i, obj in enumerate(objects):
        obj._p_activate()
        obj.data = data_of(i, 64)
        obj._p_changed = True
    for manager in managers:
        manager.commit()
    assert seen == [[SMALL_FROM] * 3]
    assert db.open().root()[0].data == objects[1].data
    for manager in managers:
        manager.abort()
    db.close()
    del globals()["ResolvesConflicts"]


# ---- transactions ----


@pytest.mark.parametrize("stage", ["voted", "stored", "not cut"])
def test_nothing_of_an_aborted_transaction_is_in_a_hole(tmp_path, small_huge, monkeypatch, stage):
    """Not even if the file could not be cut."""
    path = f"{tmp_path}/1.fs"
    db, root = write(path, b"x")
    with monkeypatch.context() as patch:
        if stage == "not cut":
            patch.setattr(AlignedFileStorage, "_cut", lambda self: None)
        root[0].data = b"secret" * 100000
        root[0]._p_changed = True
        transaction.get().join(Refusing() if stage == "voted" else RefusingBefore())
        with pytest.raises(ValueError, match="refused"):
            transaction.commit()
        transaction.abort()
    assert (b"secret" in Path(path).read_bytes()) == (stage == "not cut")
    root[1] = Bytes(data_of(1, SMALL_FROM // ALIGNMENT))
    transaction.commit()
    assert b"secret" not in Path(path).read_bytes()
    place = db.storage.locate([root[1]._p_oid], current(db.storage))[0]
    assert place.offset % SMALL_HUGE == 0
    db.close()


class Refusing:
    """A data manager that refuses a transaction after the storage has voted."""

    transaction_manager = transaction.manager

    def tpc_vote(self, txn):
        raise ValueError("refused")

    def sortKey(self):
        return "~"

    def abort(self, txn):
        pass

    commit = tpc_begin = tpc_finish = tpc_abort = abort


class RefusingBefore(Refusing):
    """One that refuses it after all is stored, before the storage votes."""

    def commit(self, txn):
        raise ValueError("refused")


def test_others_read_while_large_blocks_are_written(tmp_path, small_huge):
    """They stop before a transaction with holes, whose header says that it is not finished."""
    path = f"{tmp_path}/1.fs"
    db, root = write(path, *(data_of(i, 64) for i in range(3)))
    tid = db.storage.lastTransaction()
    root[3] = Bytes(data_of(3, 64))
    txn = transaction.get()
    found = []

    class Looks(Refusing):
        def tpc_vote(self, txn):
            with closing(AlignedFileStorage(path, read_only=True)) as storage:
                found.append(storage.lastTransaction())

    txn.join(Looks())
    transaction.commit()
    assert found == [tid]
    db.close()


# ---- histories ----

SIZES = {"small": 100, "page": 1 << 16, "large": SMALL_FROM, "larger": SMALL_FROM + SMALL_HUGE}
steps = st.lists(
    st.sampled_from(
        [*SIZES, "undo", "abort", "delete", "pack", "stock pack", "trim", "reopen", "copy", "stock"]
    ),
    min_size=3,
    max_size=12,
)


def value_of(number, size):
    return bytes([number % 250 + 1]) * (size - 8) + number.to_bytes(8, "big")


def contents(storage):
    with closing(DB(storage)) as db:
        root = db.open(transaction.TransactionManager()).root()
        return {key: obj.data for key, obj in root.items()}


@pytest.mark.slow
@given(steps)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_history_is_as_stock_storage_reads_it(tmp_path_factory, steps):
    """Stock FileStorage reads, iterates, writes and packs it; ours has large payloads aligned."""
    path = f"{tmp_path_factory.mktemp('history')}/1.fs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsalign, "HUGE", SMALL_HUGE)
        patch.setattr(fsalign, "HUGE_FROM", SMALL_FROM)
        follow_history(path, steps)


def follow_history(path, steps):
    def commit(db, change):
        with db.transaction() as conn:
            change(conn.root())

    db = DB(AlignedFileStorage(path))
    model = {}
    for number, step in enumerate(steps):
        if step in SIZES:
            model[number % 3] = value = value_of(number, SIZES[step])

            def put(root, key=number % 3, value=value):
                root[key] = obj = root.get(key, Bytes())
                obj.data, obj._p_changed = value, True

            commit(db, put)
        elif step == "delete" and model:
            key = min(model)
            del model[key]
            commit(db, lambda root, key=key: root.pop(key))
        elif step == "undo" and len(undoable := db.undoInfo(0, 2)) == 2:  # one made the root
            db.undo(undoable[0]["id"])
            try:
                transaction.commit()
            except UndoError:
                transaction.abort()
            with db.transaction() as conn:
                model = {key: obj.data for key, obj in conn.root().items()}
        elif step == "abort":
            with pytest.raises(ValueError, match="refused"), db.transaction() as conn:
                conn.root()[9] = Bytes(value_of(number, SMALL_FROM))
                conn.transaction_manager.get().join(Refusing())
        elif step == "pack":
            db.pack(time.time() + 1)
        elif step == "trim":
            db.storage.trim()
        elif step == "copy":
            with closing(AlignedFileStorage(f"{path}.copy", create=True)) as other:
                other.copyTransactionsFrom(db.storage)
                for name in model:
                    assert contents_of(other, db, name) == model[name]
        else:
            db.close()
            if step == "stock pack":
                with closing(DB(FileStorage(path))) as stock:
                    stock.pack(time.time() + 1)
            elif step == "stock":
                model[2] = value = value_of(number, SMALL_FROM)
                with closing(DB(FileStorage(path))) as stock:
                    commit(stock, lambda root, value=value: root.update({2: Bytes(value)}))
            db = DB(AlignedFileStorage(path))
        with db.transaction() as conn:
            assert {key: obj.data for key, obj in conn.root().items()} == model
    with db.transaction() as conn:
        conn.root()._p_changed = True  # else there may be nothing to pack
    db.pack(time.time() + 1)
    with db.transaction() as conn:
        for obj in conn.root().values():
            (found,) = db.storage.locate([obj._p_oid], current(db.storage))
            assert bytes_at(found) == obj.data
            multiple = fsalign.alignment(16 * ALIGNMENT)(len(obj.data))
            assert found.offset % multiple == 0
    db.close()
    assert contents(FileStorage(path)) == model
    with closing(FileStorage(path)) as stock, closing(stock.iterator()) as transactions:
        assert all(record.oid for txn in transactions for record in txn)


def contents_of(storage, db, name):
    with db.transaction() as conn:
        oid = conn.root()[name]._p_oid
    (found,) = storage.locate([oid], current(storage))
    return bytes_at(found)


# ---- what a damaged file has in place of a pad ----


@pytest.mark.parametrize("what", ["between", "end", "length", "cut", "oid"])
def test_what_is_damaged_is_not_located(tmp_path, small_huge, what):
    path = f"{tmp_path}/1.fs"
    db, root = write(path, *(data_of(i, 64) for i in range(4)))
    objects = [root[i] for i in range(4)]
    pairs = zip(places(db.storage, *objects), [obj._p_oid for obj in objects], strict=True)
    found, oids = zip(*sorted(pairs, key=lambda pair: pair[0].offset), strict=True)
    size = db.storage.getSize()
    victim = 3 if what == "cut" else 1
    place = found[victim]
    with open(path, "r+b") as file:
        if what == "cut":
            file.truncate(size - 20)
        else:
            header = found[victim - 1].offset + SMALL_FROM + 1
            at = {
                "between": place.offset - 6,
                "end": place.offset + place.size,
                "length": header + 42 + len(place.head) + 2 + 3,
                "oid": header + 7,
            }[what]
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 8]))
    for likes in place.file.likes, ():
        place.file.likes = likes
        now = db.storage.locate([oids[0], oids[victim]], current(db.storage))
        assert now == [found[0], None]
    db.close()


def test_no_byte_of_a_payload_is_read_to_find_it(tmp_path, small_huge, monkeypatch):
    db, root = write(f"{tmp_path}/1.fs", *(data_of(i, 64) for i in range(3)))
    found = places(db.storage, *(root[i] for i in range(3)))
    found[0].file.likes = ()
    preadv, reads = os.preadv, []

    def counted(fd, buffers, offset, flags=0):
        reads.append((offset, offset + sum(map(len, buffers))))
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", counted)
    assert db.storage.locate([root[1]._p_oid], current(db.storage)) == [found[1]]
    assert len(reads) == 3  # the head, what is behind the pad, the end
    place = found[1]
    assert not any(a < place.offset + place.size and b > place.offset for a, b in reads)
    db.close()


# ---- the kernel ----


@pytest.mark.slow
def test_large_blocks_are_mapped_huge(tmp_path):
    """As the kernel maps a plain file here, whose bytes are at huge pages, too."""
    got = check_child(
        """
        import mmap, os, sys
        from resource import RUSAGE_SELF, getrusage
        import numpy as np, transaction
        from wendelin.bigarray.array_zodb import ZBigArray
        from wendelin.lib.storage.fsalign import HUGE, HUGE_FROM
        from wendelin.lib.zodb import dbclose, dbopen

        def mapped_huge():
            with open("/proc/self/smaps") as smaps:
                return sum(int(s.split()[1]) for s in smaps if s.startswith("FilePmdMapped")) << 10

        n = 4 * HUGE_FROM
        values = np.arange(n // 8, dtype=np.int64)
        with open(sys.argv[1] + "/plain", "w+b") as file:
            file.write(values.data)
            file.flush()
            os.fsync(file.fileno())
            plain = np.frombuffer(mmap.mmap(file.fileno(), n, prot=mmap.PROT_READ), np.int64)
            plain.sum()
            print(mapped_huge())
            del plain
        path = sys.argv[1] + "/1.fs"
        root = dbopen(path)
        root["A"] = A = ZBigArray(values.shape, values.dtype, blksize=HUGE_FROM)
        transaction.commit()
        A[:] = values
        transaction.commit()
        dbclose(root)
        A = dbopen(path)["A"]
        view = A[:]
        before = getrusage(RUSAGE_SELF).ru_minflt
        assert view[:: HUGE // 8].sum() == values[:: HUGE // 8].sum()
        assert np.array_equal(view[: 4096], values[: 4096])
        print(mapped_huge(), getrusage(RUSAGE_SELF).ru_minflt - before)
        assert (view == values).all()
        """,
        str(tmp_path),
    )
    plain, ours, faults = map(int, got.split())
    size = 4 * HUGE_FROM
    if plain < size // 2:
        pytest.skip("the kernel does not map this file system's files huge")
    assert ours >= size // 2
    assert faults < size // HUGE + 300


def test_threads_touch_what_is_mapped_huge(tmp_path):
    root = dbopen(f"{tmp_path}/1.fs")
    n = 2 * HUGE_FROM
    root["A"] = A = ZBigArray((n,), np.uint8, blksize=HUGE_FROM)
    transaction.commit()
    A[:] = 7
    transaction.commit()
    view, sums = A[:], []

    def add(view=view):
        sums.append(int(view.sum()))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [7 * n] * 4
    view[5] = 8  # a page of the block gets memory of its own
    assert int(view.sum()) == 7 * n + 1
    transaction.abort()
    assert int(A[:].sum()) == 7 * n
    del view
    dbclose(root)
