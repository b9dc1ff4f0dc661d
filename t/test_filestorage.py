"""lib/filestorage.py: records whose bytes lie aligned in Data.fs, and nothing else changed."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import storages
import transaction
import ZODB.config
import zodb_suite
from child import check_child, run_child
from persistent import Persistent
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.FileStorage import FileStorage as StockFileStorage
from ZODB.POSException import ConflictError, POSKeyError
from ZODB.utils import p64, u64

from wendelin.lib import zrecord
from wendelin.lib.filestorage import AlignedFileStorage
from wendelin.lib.fsalign import ALIGNMENT
from wendelin.lib.zodb import dbclose, dbopen
from wendelin.lib.zrecord import bytes_state, find_payload, without_pad

MIB = 1 << 20


class Bytes(Persistent):
    """An object whose state is bytes, as blocks are."""

    __module__ = "t_bytes"  # what unpickles it, knows where it is

    def __init__(self, data=b""):
        self.data = data

    def __getstate__(self):
        return self.data

    def __setstate__(self, state):
        self.data = state


sys.modules["t_bytes"] = sys.modules[__name__]


def aligned(record, at):
    return b"".join(zrecord.aligned(record, at, 4096, 65536))


def data_of(seed, pages=16):
    return os.urandom(16) * (pages * ALIGNMENT // 16 - 1) + f"{seed:16}".encode()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "a.fs")


def current(storage):
    return p64(u64(storage.lastTransaction()) + 1)


def located(storage, obj, before=None):
    """Return the bytes where locate() says they are, or None."""
    (found,) = storage.locate([obj._p_oid], before or current(storage))
    if found is None or found.offset % ALIGNMENT != 0:
        return None
    return os.pread(found.file.fd, found.size, found.offset)


def write(path, *values, storage=AlignedFileStorage):
    """Make a database with an object for each value; return (db, root)."""
    db = DB(storage(path))
    root = db.open().root()
    for i, value in enumerate(values):
        root[i] = Bytes(value)
    transaction.commit()
    return db, root


# ---- what is aligned ----


def test_bytes_lie_aligned_and_are_located(path):
    values = [data_of(i, pages) for i, pages in enumerate([16, 17, 512, 16])]
    db, root = write(path, *values)
    for i, value in enumerate(values):
        assert located(db.storage, root[i]) == value
    db.close()


@pytest.mark.parametrize(
    "value", [b"", b"x", b"x" * 15 * ALIGNMENT, b"x" * (16 * ALIGNMENT - 1), b"x" * 65537]
)
def test_what_is_small_or_no_whole_pages_is_as_in_filestorage(path, tmp_path, value):
    db, root = write(path, value)
    assert located(db.storage, root[0]) is None
    oid = root[0]._p_oid
    record, _ = db.storage.load(oid)
    db.close()
    db, root = write(str(tmp_path / "stock.fs"), value, storage=StockFileStorage)
    assert db.storage.load(root[0]._p_oid)[0] == record
    db.close()


def test_stock_filestorage_reads_and_writes_it(path):
    values = [data_of(i) for i in range(3)]
    db, _ = write(path, *values)
    db.close()
    db = DB(StockFileStorage(path))
    root = db.open().root()
    assert [root[i].data for i in range(3)] == values
    root[3] = Bytes(data_of(3))
    transaction.commit()
    db.close()
    db = DB(AlignedFileStorage(path))
    root = db.open().root()
    assert [located(db.storage, root[i]) for i in range(3)] == values
    assert root[3].data.endswith(b" 3")
    db.close()


def test_a_record_unpickles_with_the_pickle_of_python(path):
    db, root = write(path, data_of(1))
    record, _ = db.storage.load(root[0]._p_oid)
    db.close()
    found = find_payload(record)
    assert found.op > found.begin  # there is a pad
    assert pickle.loads(record) is Bytes
    assert pickle.loads(record[found.begin - 2 :]) == bytes_state(record)


@pytest.mark.parametrize("at", [0, 1, 4, 2**40 + 4090, 2**40 + 4091, *range(4096 - 90, 4096)])
def test_any_place_can_be_padded(at):
    record = b"\x80\x03cm\nC\nq\x01.\x80\x03B" + (65536).to_bytes(4, "little")
    record += bytes(range(256)) * 256 + b"q\x02."
    padded = aligned(record, at)
    found = find_payload(padded)
    assert (at + found.start) % 4096 == 0
    assert padded[found.start : found.stop] == bytes(range(256)) * 256
    assert without_pad(padded) == record
    assert aligned(without_pad(padded), at) == padded
    assert len(padded) - len(record) <= 4096 + 5


@pytest.mark.parametrize("record", [b"", b"junk" * 40000, b"\x80\x03" + b"N" * 70000])
def test_what_is_no_pickle_is_stored_as_it_is(record):
    assert aligned(record, 5) == record
    assert without_pad(record) == record


def test_switched_off(path):
    db = DB(AlignedFileStorage(path, align=False))
    root = db.open().root()
    root[0] = Bytes(data_of(0))
    transaction.commit()
    record, _ = db.storage.load(root[0]._p_oid)
    assert without_pad(record) == record
    assert located(db.storage, root[0]) is None
    assert os.path.exists(path + ".tmp")
    db.close()


# ---- revisions ----


def test_locate_sees_the_revision_that_is_asked_for(path):
    db, root = write(path, data_of(0))
    tids = [db.storage.lastTransaction()]
    for i in 1, 2:
        root[0].data = data_of(i)
        root[0]._p_changed = True
        transaction.commit()
        tids.append(db.storage.lastTransaction())
    for i, tid in enumerate(tids):
        assert located(db.storage, root[0], p64(u64(tid) + 1)).endswith(f"{i}".encode())
    assert located(db.storage, root[0], tids[0]) is None  # before it was there
    assert db.storage.locate([p64(999)], current(db.storage)) == [None]
    db.close()


def test_undo(path):
    db, root = write(path, data_of(0))
    root[0].data = data_of(1)
    root[0]._p_changed = True
    transaction.commit()
    db.undo(db.undoLog(0, 1)[0]["id"])
    transaction.commit()
    assert root[0].data.endswith(b" 0")
    assert located(db.storage, root[0]) == root[0].data
    db.undo(db.undoLog(0, 1)[0]["id"])
    transaction.commit()
    assert located(db.storage, root[0]) == root[0].data
    assert root[0].data.endswith(b" 1")
    db.close()


@pytest.mark.parametrize("storage", [AlignedFileStorage, StockFileStorage])
def test_undo_of_what_was_stored_again_in_between(path, storage):
    """The same bytes in two records have two pads: to undo, that is no difference."""
    db, root = write(path, data_of(0), storage=storage)
    value = data_of(1)
    for _ in range(2):
        root[0].data = value
        root[0]._p_changed = True
        transaction.commit()
    db.undo(db.undoLog(1, 2)[0]["id"])
    transaction.commit()
    assert root[0].data.endswith(b" 0")
    db.close()


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EOPNOTSUPP])
@pytest.mark.parametrize("first", [AlignedFileStorage, StockFileStorage])
def test_locate_waits_for_the_disk_if_asked_to(path, monkeypatch, first, error):
    """What is not in the kernel's cache is read for who touches it, and not for who looks ahead."""
    db, root = write(path, *(data_of(i) for i in range(4)), storage=first)
    db.close()
    db = DB(AlignedFileStorage(path))
    root = db.open().root()
    oids = [root[i]._p_oid for i in range(4)]
    want = db.storage.locate(oids, current(db.storage))
    assert None not in want
    preadv, refused = os.preadv, []

    def cold(fd, buffers, offset, flags=0):
        if flags & os.RWF_NOWAIT and len(refused) < 2:
            refused.append(offset)
            raise OSError(error, os.strerror(error))
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", cold)
    assert db.storage.locate(oids, current(db.storage)) == want
    assert not refused
    missing = 2 if error == errno.EAGAIN else 1  # a file system that cannot tell is asked once
    expected = [None] * missing + want[missing:]
    assert db.storage.locate(oids, current(db.storage), wait=False) == expected
    assert len(refused) == missing
    db.close()


# ---- the transaction that is being written ----


def test_an_abort_leaves_nothing(path):
    db, root = write(path, data_of(0))
    size = os.path.getsize(path)
    for stage in ("store", "vote"):
        txn = TransactionMetaData()
        db.storage.tpc_begin(txn)
        db.storage.store(p64(50), p64(0), b"y" * MIB, "", txn)
        assert os.path.getsize(path) > size + MIB  # written once, to its place
        if stage == "vote":
            db.storage.tpc_vote(txn)
        db.storage.tpc_abort(txn)
        assert os.path.getsize(path) == size
        with pytest.raises(POSKeyError):
            db.storage.load(p64(50))
    assert located(db.storage, root[0]) == root[0].data
    root["x"] = 1
    transaction.commit()
    db.close()
    assert not os.path.exists(path + ".tmp")
    dbclose(dbopen(path))


def test_what_was_read_before_an_abort_is_not_read_after_it(path):
    """Readers have buffers, which reach into the transaction that is being written."""
    db, root = write(path, b"x")
    storage = db.storage
    oid = root[0]._p_oid
    for value in b"y", b"z":
        txn = TransactionMetaData()
        storage.tpc_begin(txn)
        storage.store(p64(50), p64(0), value * 200_000, "", txn)
        storage.load(oid)
        storage.loadSerial(oid, root[0]._p_serial)
        storage.tpc_abort(txn)
    tid = storage.tpc_begin(txn) or storage._tid
    for i in range(60, 70):
        storage.store(p64(i), p64(0), bytes([i]) * 100, "", txn)
    storage.tpc_vote(txn)
    storage.tpc_finish(txn)
    for i in range(60, 70):
        assert storage.load(p64(i))[0] == storage.loadSerial(p64(i), tid) == bytes([i]) * 100
    db.close()


@pytest.mark.parametrize("stage", ["store", "vote"])
def test_a_crash_loses_only_what_was_not_committed(path, stage):
    db, _ = write(path, data_of(0))
    size = os.path.getsize(path)
    db.close()
    code = f"""
        import os, signal
        from ZODB.Connection import TransactionMetaData
        from ZODB.utils import p64
        from wendelin.lib.filestorage import AlignedFileStorage
        s = AlignedFileStorage({path!r})
        txn = TransactionMetaData()
        s.tpc_begin(txn)
        for i in range(50, 60):
            s.store(p64(i), p64(0), b"y" * 70000, "", txn)
            s.store(p64(i + 10), p64(0), b"y", "", txn)
        if {stage!r} == "vote":
            s.tpc_vote(txn)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_child(code).returncode == -signal.SIGKILL
    assert os.path.getsize(path) > size + 500000
    reader = FileStorage(path, read_only=True)  # does not mend, and sees what is committed
    assert len(reader) == 2
    reader.close()
    db = DB(AlignedFileStorage(path))
    assert os.path.getsize(path) == size
    # a transaction that did not come to its vote leaves no copy, as it leaves none in FileStorage
    assert os.path.exists(path + ".tr0") is (stage == "vote")
    root = db.open().root()
    assert located(db.storage, root[0]) == root[0].data
    root["x"] = 1
    transaction.commit()
    db.close()


@pytest.mark.parametrize("index", [True, False])
def test_a_crash_on_a_full_disk_does_not_keep_it_from_being_opened(path, index):
    """There is no room for a copy of what was written of the transaction."""
    db, _ = write(path, data_of(0))
    size = os.path.getsize(path)
    db.close()
    if not index:
        os.unlink(path + ".index")
    code = f"""
        import os, resource, signal, sys
        from ZODB.Connection import TransactionMetaData
        from ZODB.utils import p64
        from wendelin.lib.filestorage import AlignedFileStorage
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if os.fork() == 0:
            s = AlignedFileStorage({path!r})
            txn = TransactionMetaData()
            s.tpc_begin(txn)
            s.store(p64(50), p64(0), b"y" * 1000000, "", txn)
            os._exit(0)
        os.wait()
        assert os.path.getsize({path!r}) > 1000000
        if not {index}:
            os.unlink({path!r} + ".index")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200000, 200000))
        s = AlignedFileStorage({path!r})
        print(len(s))
        s.close()
    """
    assert check_child(code) == "2\n"
    assert os.path.getsize(path) == size


def test_close_in_the_middle_of_a_transaction(path):
    db, _ = write(path, data_of(0))
    size = os.path.getsize(path)
    txn = TransactionMetaData()
    db.storage.tpc_begin(txn)
    db.storage.store(p64(50), p64(0), b"y" * MIB, "", txn)
    db.close()
    assert os.path.getsize(path) == size


def test_others_read_while_a_transaction_is_written(path):
    db, root = write(path, data_of(0))
    txn = TransactionMetaData()
    db.storage.tpc_begin(txn)
    db.storage.store(p64(50), p64(0), b"y" * MIB, "", txn)
    reader = AlignedFileStorage(path, read_only=True)
    assert located(reader, root[0]) == root[0].data
    assert len(reader) == 2
    assert len(list(reader.iterator())) == 2
    reader.close()
    assert len(list(db.storage.iterator())) == 2
    db.storage.tpc_vote(txn)
    db.storage.tpc_finish(txn)
    assert db.storage.load(p64(50))[0] == b"y" * MIB
    assert len(list(db.storage.iterator())) == 3
    db.close()


def test_iteration_from_a_tid_while_a_transaction_is_written(path):
    db, root = write(path, data_of(0, 512))
    root["x"] = 1
    transaction.commit()
    tids = [t.tid for t in db.storage.iterator()]
    txn = TransactionMetaData()
    db.storage.tpc_begin(txn)
    db.storage.store(p64(50), p64(0), b"y" * MIB, "", txn)
    reader = AlignedFileStorage(path, read_only=True)
    for storage in db.storage, reader:
        for i, tid in enumerate(tids):
            assert [t.tid for t in storage.iterator(tid)] == tids[i:]
        assert [t.tid for t in storage.iterator(None, tids[0])] == tids[:1]
        assert list(storage.iterator(p64(u64(tids[-1]) + 1))) == []
    reader.close()
    db.storage.tpc_abort(txn)
    db.close()


def test_disk_full_in_the_middle(path):
    code = f"""
        import os, resource, signal
        from ZODB.Connection import TransactionMetaData
        from ZODB.utils import p64
        from wendelin.lib.filestorage import AlignedFileStorage
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        AlignedFileStorage({path!r}).close()
        s = AlignedFileStorage({path!r})
        txn = TransactionMetaData()
        for limit in 300_000, 140_115:     # in a store; and in the vote
            size = os.path.getsize({path!r})
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            s.tpc_begin(txn)
            try:
                n = 0
                for i in range(10 if limit == 300_000 else 2):
                    s.store(p64(50 + i), p64(0), b"y" * 70000, "", txn)
                    n += 1
                s.tpc_vote(txn)
            except OSError as e:
                print(n, e.strerror)
            s.tpc_abort(txn)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert os.path.getsize({path!r}) == size
        s.tpc_begin(txn)
        s.store(p64(50), p64(0), b"z" * 70000, "", txn)
        s.tpc_vote(txn); s.tpc_finish(txn)
        assert s.load(p64(50))[0] == b"z" * 70000
        s.close()
    """
    assert check_child(code).split("\n")[:2] == ["4 File too large", "2 File too large"]
    storage = AlignedFileStorage(path)
    assert len(storage) == 1
    storage.close()


def test_conflict(path):
    db, root = write(path, data_of(0))
    tm = transaction.TransactionManager()
    other = db.open(tm).root()
    other[0].data = data_of(1)
    other[0]._p_changed = True
    root[0].data = data_of(2)
    root[0]._p_changed = True
    transaction.commit()
    with pytest.raises(ConflictError):
        tm.commit()
    tm.abort()
    assert other[0].data.endswith(b" 2")
    db.close()


# ---- pack, copy, iterate ----


@pytest.mark.parametrize("first", [AlignedFileStorage, StockFileStorage])
def test_pack_aligns(path, first):
    """Also what an old database has: all of it, before the pack time and after."""
    db, root = write(path, data_of(0), data_of(1), data_of(2), storage=first)
    for value in 3, 4:
        root[1].data = data_of(value)
        root[1]._p_changed = True
        transaction.commit()
    transaction.commit()
    packtime = time.time()
    time.sleep(0.01)
    root[2].data = data_of(5)
    root[2]._p_changed = True
    transaction.commit()
    db.undo(db.undoLog(0, 1)[0]["id"])
    transaction.commit()
    root["n"] = Bytes(data_of(6))
    transaction.commit()
    values = {key: root[key].data for key in (0, 1, 2, "n")}
    root._p_jar.close()
    if first is not AlignedFileStorage:
        db.close()
        db = DB(AlignedFileStorage(path))
    transactions = len(list(db.storage.iterator()))
    old = db.storage.locate([p64(1)], current(db.storage))[0]
    db.pack(packtime)
    root = db.open().root()
    for key, value in values.items():
        assert located(db.storage, root[key]) == value == root[key].data
    db.undo(db.undoLog(1, 2)[0]["id"])  # the undo
    transaction.abort()
    assert len(list(db.storage.iterator())) < transactions
    if old is not None:  # who had it, has it
        assert os.pread(old.file.fd, old.size, old.offset) == values[0]
    before = os.path.getsize(path)
    del root["n"]
    transaction.commit()
    db.pack(time.time())
    assert os.path.getsize(path) < before
    for key in 0, 1, 2:
        assert located(db.storage, root[key]) == values[key]
    db.close()
    DB(StockFileStorage(path)).close()
    db = DB(AlignedFileStorage(path))
    assert located(db.storage, db.open().root()[2]) == values[2]
    db.close()


def test_pack_while_others_commit(path, monkeypatch):
    db, root = write(path, data_of(0), data_of(1))
    root[0].data = data_of(2)
    root[0]._p_changed = True
    transaction.commit()
    from wendelin.lib import fspack

    other = db.open(tm := transaction.TransactionManager()).root()
    copied = []

    def to_packtime(self):
        result = fspack.FileStoragePacker.copyToPacktime(self)
        other[1].data = data_of(3)
        other[1]._p_changed = True
        tm.commit()
        copied.append(1)
        return result

    monkeypatch.setattr(fspack.Packer, "copyToPacktime", to_packtime, raising=False)
    db.pack(time.time())
    assert copied
    transaction.begin()
    assert located(db.storage, root[1]) == root[1].data
    assert root[1].data.endswith(b" 3")
    db.close()


@pytest.mark.parametrize("kinds", [("a", "a"), ("a", "s"), ("s", "a")])
def test_copy_into_another_storage(path, tmp_path, kinds):
    """As zodbconvert and fs copies do: also undone transactions stay references."""
    makes = {"a": AlignedFileStorage, "s": StockFileStorage}
    db, root = write(path, data_of(0), data_of(1, 20), storage=makes[kinds[0]])
    root[0].data = data_of(2)
    root[0]._p_changed = True
    transaction.commit()
    db.undo(db.undoLog(0, 1)[0]["id"])
    transaction.commit()
    values = [root[i].data for i in range(2)]
    oids = [root[i]._p_oid for i in range(2)]
    target = makes[kinds[1]](str(tmp_path / "b.fs"))
    target.copyTransactionsFrom(db.storage)
    size = db.storage.getSize()
    db.close()
    copy = DB(target)
    root = copy.open().root()
    assert [root[i].data for i in range(2)] == values
    if kinds[1] == "a":
        assert [located(copy.storage, root[i]) for i in range(2)] == values
        assert target.getSize() < size + 3 * 2 * ALIGNMENT
    assert [root[i]._p_oid for i in range(2)] == oids
    copy.close()


def test_history_iteration_and_blobs(path, tmp_path):
    db = DB(AlignedFileStorage(path, blob_dir=str(tmp_path / "blobs")))
    root = db.open().root()
    root["b"] = Blob(b"blob")
    root[0] = Bytes(data_of(0))
    transaction.commit()
    root[0].data = data_of(1)
    root[0]._p_changed = True
    transaction.commit()
    assert len(db.storage.history(root[0]._p_oid, 10)) == 2
    stored = [r for t in db.storage.iterator() for r in t if r.oid == root[0]._p_oid]
    assert [bytes(bytes_state(r.data))[-1:] for r in stored] == [b"0", b"1"]
    with root["b"].open() as f:
        assert f.read() == b"blob"
    db.close()


def test_zconfig(tmp_path):
    db = ZODB.config.databaseFromString(f"""
        %import wendelin.lib
        <zodb>
            <alignedfilestorage>
                path {tmp_path}/a.fs
                quota 100mb
            </alignedfilestorage>
        </zodb>""")
    assert type(db.storage) is AlignedFileStorage
    assert db.storage.align
    assert db.storage._quota == 100 * MIB
    db.close()
    db = ZODB.config.databaseFromString(f"""
        %import wendelin.lib
        <zodb>
            <alignedfilestorage>
                path {tmp_path}/a.fs
                align false
                packer ZODB.FileStorage.FileStorage.FileStorage.packer
            </alignedfilestorage>
        </zodb>""")
    assert not db.storage.align
    assert db.storage.packer is StockFileStorage.packer
    db.close()


@pytest.mark.usefixtures("no_leaks")
def test_urls(tmp_path):
    for query, align in ("", True), ("?align=false", False), ("?align=true&read_only=true", True):
        root = dbopen(f"file://{tmp_path}/a.fs{query}")
        storage = root._p_jar.db().storage
        assert type(storage) is AlignedFileStorage
        assert storage.align is align
        assert storage.isReadOnly() is ("read_only" in query)
        dbclose(root)
    for query in "align=perhaps", "quota=many", "aling=true":
        with pytest.raises(ValueError, match=query.split("=")[0]):
            dbopen(f"file://{tmp_path}/a.fs?{query}")


def test_the_file_was_moved_by_hand(path):
    db, root = write(path, data_of(0))
    os.rename(path, path + "2")
    Path(path).write_bytes(b"other")
    assert located(db.storage, root[0]) is None
    db.close()


@pytest.mark.skipif(
    storages.kind() is not storages.CopiedFileStorageDatabase,
    reason="takes a minute: runs with WENDELIN_CORE_TEST_DB=fscopy, which tests less elsewhere",
)
def test_zodbs_own_tests(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", zodb_suite.__file__],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-10000:]
    assert int(done.stdout.split("RAN")[1]) > 400
