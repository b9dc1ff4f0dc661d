"""A pack does not read payloads to find what is reachable, and has the kernel copy them."""

import errno
import os
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import transaction
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.serialize import referencesf

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.storage import filestorage, fsalign, fscopy
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsreach import LARGE
from wendelin.lib.zodb import dbclose, dbopen

BLK = 1 << 17  # [bytes]
N = 12  # blocks


def data_of(seed):
    return np.random.default_rng(seed).integers(1, 256, N * BLK, "u1")


@pytest.fixture(params=["pages", "huge pages"])
def path(tmp_path, monkeypatch, request):
    """Return the path of a database: old blocks, chunks, a deleted array, an undone change."""
    if request.param == "huge pages":
        monkeypatch.setattr(fsalign, "HUGE", BLK)
        monkeypatch.setattr(fsalign, "HUGE_FROM", BLK)
    path = str(tmp_path / "1.fs")
    root = dbopen(path)
    root["x"] = "small"
    for name, fmt in ("A", "ZBlk0"), ("B", "auto"), ("gone", "ZBlk0"):
        root[name] = array = ZBigArray((N * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
        transaction.commit()
        for seed in 1, 2:
            array[:] = data_of(seed)
            transaction.commit()
    for i in 5, 7:
        root["B"][::BLK] = i
        transaction.commit()
    root["A"][:BLK] = 3
    transaction.commit()
    db = root._p_jar.db()
    db.undo(db.undoInfo(0, 1)[0]["id"])
    transaction.commit()
    del root["gone"]
    transaction.commit()
    dbclose(root)
    return path


def contents(path):
    """Return the arrays, as stock FileStorage reads them."""
    with closing(DB(FileStorage(path))) as db:
        root = db.open().root()
        assert set(root) == {"x", "A", "B"}
        found = {name: root[name][:].copy() for name in "AB"}
        transaction.abort()
    return found


def test_payloads_are_copied_by_the_kernel_and_not_looked_at(path, monkeypatch):
    copied, asked, read = [], [], []
    copy_range = os.copy_file_range

    def counted(source, target, size, *args):
        copied.append(copy_range(source, target, size, *args))
        return copied[-1]

    def refs(record):
        asked.append(len(record))
        return referencesf(record)

    monkeypatch.setattr(os, "copy_file_range", counted)
    monkeypatch.setattr(fscopy.Stretch, "all", lambda self: read.append(self) or b"")
    with closing(DB(AlignedFileStorage(path))) as db:
        before = os.stat(path).st_blocks
        db.storage.pack(time.time(), refs)
        assert os.stat(path).st_blocks < before / 2
    assert max(asked) < LARGE
    assert not read
    assert sum(copied) >= N * BLK  # chunks of B are small
    assert sum(copied) < 2.1 * N * BLK
    expected = data_of(2)
    found = contents(path)
    assert np.array_equal(found["A"], expected)
    expected[::BLK] = 7
    assert np.array_equal(found["B"], expected)


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EOPNOTSUPP])
def test_the_packed_file_is_the_same_without_kernel_copies(path, tmp_path, monkeypatch, error):
    other = tmp_path / "2.fs"
    other.write_bytes(Path(path).read_bytes())
    with closing(DB(AlignedFileStorage(path))) as db:
        db.pack(when := time.time())

    def refuse(*args):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    with closing(DB(AlignedFileStorage(str(other)))) as db:
        db.pack(when)
    assert other.read_bytes() == Path(path).read_bytes()


def test_stock_pack_keeps_the_same_records(path, tmp_path):
    """They are of the same objects and transactions, and the arrays are the same."""
    other = tmp_path / "2.fs"
    other.write_bytes(Path(path).read_bytes())
    found = []
    for storage in AlignedFileStorage(path), FileStorage(str(other)):
        with closing(DB(storage)) as db:
            db.pack()
            with closing(storage.iterator()) as transactions:
                records = [(r.oid, r.tid) for txn in transactions for r in txn]
            conn = db.open()
            found.append((records, {n: conn.root()[n][:].tobytes() for n in "AB"}))
            transaction.abort()
    assert found[0] == found[1]


def test_others_commit_while_the_index_is_saved(path, monkeypatch):
    done = []
    save_index = filestorage.save_index

    def slow(*args):
        def commit():
            with db.transaction() as conn:
                conn.root()["x"] = "changed"
            done.append(True)

        thread = threading.Thread(target=commit, daemon=True)
        thread.start()
        thread.join(60)
        return save_index(*args)

    with closing(DB(AlignedFileStorage(path))) as db:
        monkeypatch.setattr(filestorage, "save_index", slow)
        db.pack()
        monkeypatch.undo()
        assert done
    with closing(AlignedFileStorage(path)) as storage:
        assert storage._used_index
