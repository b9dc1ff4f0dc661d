"""lib/fspack.py: undo, pack, and copies into other storages; what they write is aligned."""

import os
import time
from pathlib import Path

import pytest
import transaction
from fsbytes import Bytes, current, data_of, located, write
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage as StockFileStorage
from ZODB.utils import p64

from wendelin.lib.filestorage import AlignedFileStorage
from wendelin.lib.fsalign import ALIGNMENT


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


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_at_no_moment_of_a_pack_there_is_no_file(path, monkeypatch, align, keep):
    """Who is killed then would find an empty database when it is opened the next time."""
    db = DB(AlignedFileStorage(path, align=align, pack_keep_old=keep))
    with db.transaction() as conn:
        conn.root()["x"] = 1
    with db.transaction() as conn:
        conn.root()["x"] = 2
    rename, there = os.rename, []
    before = Path(path).read_bytes()

    def watched(src, dst):
        rename(src, dst)
        if path in (src, dst):
            there.append(os.path.exists(path))

    monkeypatch.setattr(os, "rename", watched)
    db.pack()
    assert len(there) == 2
    assert all(there)
    with db.transaction() as conn:
        assert conn.root()["x"] == 2
        conn.root()["x"] = 3
    db.close()
    assert os.path.getsize(path) < len(before) + 200
    assert os.path.exists(f"{path}.old") == keep
    if keep:
        assert Path(f"{path}.old").read_bytes() == before
    db = DB(AlignedFileStorage(path, align=align))
    with db.transaction() as conn:
        assert conn.root()["x"] == 3
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
