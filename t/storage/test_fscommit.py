"""filestorage: the transaction that is being written: its readers, and what an abort leaves."""

import errno
import os
import signal
from functools import partial
from importlib import import_module
from pathlib import Path
from struct import unpack_from

import pytest
import transaction
from support.child import check_child, run_child
from support.fsbytes import data_of, located, write
from ZODB.Connection import TransactionMetaData
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError, POSKeyError
from ZODB.utils import p64, u64

from wendelin.lib.storage import fswrite
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsscan import LARGE
from wendelin.lib.zodb import dbclose, dbopen

MIB = 1 << 20
fs_module = import_module("ZODB.FileStorage.FileStorage")  # ZODB.FileStorage has the class there


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


def test_the_disk_begins_with_a_large_transaction_while_it_is_written(path, monkeypatch):
    begun = []
    monkeypatch.setattr(fswrite, "begin_to_write", lambda fd, at, n: begun.append((at, at + n)))
    monkeypatch.setattr(fswrite, "_EARLY", 4 * MIB)
    db, _ = write(path, data_of(0))
    for vote in (False, True):
        begun.clear()
        end = os.path.getsize(path)
        txn = TransactionMetaData()
        db.storage.tpc_begin(txn)
        for i in range(10):
            db.storage.store(p64(50 + i), p64(0), b"y" * MIB, "", txn)
        assert [stop - start >= 4 * MIB for start, stop in begun] == [True, True]
        assert end < begun[0][0] < end + 1000, "its header has a record's size at the vote"
        assert begun[0][1] == begun[1][0]
        assert begun[1][1] <= os.path.getsize(path)
        if vote:
            db.storage.tpc_vote(txn)
        db.storage.tpc_abort(txn)
        assert os.path.getsize(path) == end
    begun.clear()
    write_again = TransactionMetaData()
    db.storage.tpc_begin(write_again)
    db.storage.store(p64(50), p64(0), b"y" * 3 * MIB, "", write_again)
    db.storage.tpc_abort(write_again)
    assert begun == [], "small, and the next one after a large one"
    db.close()


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
        from wendelin.lib.storage.filestorage import AlignedFileStorage
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
    reader = FileStorage(path, read_only=True)  # it does not mend, and sees what is committed
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
        from wendelin.lib.storage.filestorage import AlignedFileStorage
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
        from wendelin.lib.storage.filestorage import AlignedFileStorage
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


class Synced:
    """Notes what a file has at each of its syncs, and can let them fail."""

    def __init__(self, path, monkeypatch):
        self.path = path
        self.seen = []  # (name of the call, status of the last transaction, whether it is whole)
        self.fails = False
        for module, name in (os, "fdatasync"), (fs_module, "fsync"):
            monkeypatch.setattr(module, name, partial(self._sync, name, getattr(os, name)))

    def _sync(self, name, call, fd):
        if os.path.samestat(os.fstat(fd), os.stat(self.path)):
            raw = Path(self.path).read_bytes()
            pos = self.storage._pos
            size, status = unpack_from(">Qc", raw, pos + 8)
            whole = pos + size + 8 == len(raw) and raw[-8:] == raw[pos + 8 : pos + 16]
            self.seen.append((name, status, whole))
            if self.fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(fd)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize(("ordered", "size"), [(False, 1000), (True, 1000), (False, LARGE)])
def test_records_are_on_disk_before_the_status(path, monkeypatch, align, ordered, size):
    """So it is with the option, and where that costs nothing."""
    storage = AlignedFileStorage(path, align=align, ordered=ordered)
    db = DB(storage, large_record_size=2 * LARGE)
    synced = Synced(path, monkeypatch)
    synced.storage = storage
    with db.transaction() as conn:
        conn.root()["x"] = b"x" * size
    first = [("fdatasync", b"c", True)] if ordered or size == LARGE else []
    assert synced.seen == [*first, ("fsync", b" ", True)]
    if first:
        before = Path(path).read_bytes()
        synced.fails = True
        with pytest.raises(OSError, match="Input/output error"), db.transaction() as conn:
            conn.root()["x"] = b"y" * size
        assert Path(path).read_bytes() == before
        synced.fails = False
        with db.transaction() as conn:
            assert conn.root()["x"] == b"x" * size
            conn.root()["x"] = b"z" * size
    monkeypatch.undo()
    db.close()
    db = DB(AlignedFileStorage(path))
    with db.transaction() as conn:
        assert conn.root()["x"][:1] == (b"z" if first else b"x")
    db.close()


def test_a_new_file_is_on_disk_with_its_name(path, monkeypatch):
    """Else a commit that has returned could be lost with the file."""
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd)
    )
    AlignedFileStorage(path).close()
    assert path in synced
    assert os.path.dirname(path) in synced[synced.index(path) :]


def test_what_a_killed_process_has_not_synced_is_synced_before_it_is_shown(path, monkeypatch):
    db, _ = write(path, data_of(0))
    index = Path(f"{path}.index").read_bytes()  # what a kill leaves
    db.close()
    Path(f"{path}.index").write_bytes(index)
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd)
    )
    AlignedFileStorage(path).close()
    assert synced == [path, f"{path}.index.index_tmp"]
    AlignedFileStorage(path).close()  # nothing is new
    assert len(synced) == 2


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
