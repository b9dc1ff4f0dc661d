"""lib/storage/fsindex.py: a saved index is believed for its file, and for no other."""

import os
import shutil
from pathlib import Path

import pytest
from support.fsbytes import commit, data_of, write
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage as StockFileStorage
from ZODB.FileStorage.FileStorage import CorruptedTransactionError

from wendelin.lib.storage import fsindex
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsindex import load_index, save_index


@pytest.fixture
def saved(path):
    """Return the path of a database that was closed, with its index."""
    db, _ = write(path, *(data_of(i) for i in range(3)))
    db.close()
    assert used(path) == 1
    return path


def used(path, storage=AlignedFileStorage, **options):
    """Say whether the index of a file is used; all its objects are read."""
    opened = storage(path, **options)
    for oid in opened._index:
        opened.load(oid)
    result = opened._used_index
    assert len(opened) == 4
    opened.close()
    return result


def loaded(path, file):
    """Return the index of a file, if it is believed."""
    found = load_index(str(path), file.fileno())
    return found and found.positions


def test_stock_filestorage_uses_the_index_and_its_own_is_not_believed(saved):
    assert used(saved, StockFileStorage) == 1
    assert used(saved) == 0  # stock FileStorage has saved it
    assert used(saved) == 1


@pytest.mark.parametrize("read_only", [False, True])
def test_the_index_of_a_copied_file(saved, read_only):
    copy = f"{saved}2"
    for suffix in "", ".index":
        shutil.copy(saved + suffix, copy + suffix)
    assert used(copy, read_only=read_only) == 0
    assert used(copy, read_only=read_only) == (not read_only)


def test_the_index_of_a_file_that_was_moved(saved):
    for suffix in "", ".index":
        os.rename(saved + suffix, f"{saved}2{suffix}")
    assert used(f"{saved}2") == 1


def test_the_index_of_a_file_that_has_grown(saved):
    index = Path(f"{saved}.index").read_bytes()
    db = DB(AlignedFileStorage(saved))
    tids = []
    for i in range(3):
        with db.transaction() as conn:
            conn.root()["x"] = i
        tids.append(db.storage.lastTransaction())
    db.close()
    Path(f"{saved}.index").write_bytes(index)
    storage = AlignedFileStorage(saved)
    assert storage._used_index == 1
    assert storage.lastTransaction() == tids[-1]
    storage.close()
    db = DB(AlignedFileStorage(saved))
    with db.transaction() as conn:
        assert conn.root()["x"] == 2
    db.close()


def test_every_flipped_byte_is_noticed(saved):
    path = Path(f"{saved}.index")
    raw = path.read_bytes()
    with open(saved, "rb") as file:
        assert loaded(path, file) is not None
        for at in [*range(0, len(raw), 7), *range(len(raw) - 80, len(raw))]:
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :])
            assert loaded(path, file) is None
        for size in range(0, len(raw), 5):
            path.write_bytes(raw[:size])
            assert loaded(path, file) is None


@pytest.mark.parametrize("at", ["begin", "end"])
def test_another_file_that_was_written_over_it(saved, at):
    """It has the same inode, and the same length."""
    raw = bytearray(Path(saved).read_bytes())
    where = 4 + 25 if at == "begin" else len(raw) - 30
    raw[where] ^= 1
    with open(saved, "r+b") as file:
        file.write(raw)
        assert loaded(f"{saved}.index", file) is None


def test_the_index_of_a_file_that_was_cut(saved):
    with open(saved, "r+b") as file:
        file.truncate(os.path.getsize(saved) - 1)
        assert loaded(f"{saved}.index", file) is None


def test_the_index_after_a_pack_by_stock_filestorage_that_was_killed(saved, monkeypatch):
    db = DB(AlignedFileStorage(saved))
    for i in range(3):
        with db.transaction() as conn:
            conn.root()["x"] = i
    db.close()
    monkeypatch.setattr(StockFileStorage, "_save_index", lambda self: None)
    db = DB(StockFileStorage(saved))
    db.pack()
    db.close()
    monkeypatch.undo()
    assert os.path.exists(f"{saved}.index")
    assert used(saved) == 0


class _Code:
    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


def test_nothing_in_an_index_is_run(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = AlignedFileStorage(saved, read_only=True)
    pos, tid = real.getSize(), real.lastTransaction()
    real.close()

    with open(saved, "rb") as file:
        save_index(f"{saved}.index", file.fileno(), [_Code()], pos, tid)
        assert loaded(f"{saved}.index", file) is None
    assert used(saved) == 0
    assert not os.path.exists("code-was-run")


def test_a_new_index_is_on_disk_before_it_takes_the_name(saved, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        fsindex.os,
        "fsync",
        lambda fd: done.append(("sync", os.readlink(f"/proc/self/fd/{fd}"))) or fsync(fd),
    )
    monkeypatch.setattr(
        fsindex.os, "replace", lambda *names: done.append(("rename", names[0])) or replace(*names)
    )
    storage = AlignedFileStorage(saved)
    commit(storage, (4, b"x"))
    del done[:]
    storage.close()
    assert done == [(what, f"{saved}.index.index_tmp") for what in ("sync", "rename")]


def test_no_room_for_the_index_is_not_an_error(saved, monkeypatch, caplog):
    storage = AlignedFileStorage(saved)
    before = Path(f"{saved}.index").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    commit(storage, (1, b"x"))
    monkeypatch.setattr(fsindex.os, "fsync", full)
    storage.close()
    monkeypatch.undo()
    assert "the index cannot be saved" in caplog.text
    assert Path(f"{saved}.index").read_bytes() == before
    assert not os.path.exists(f"{saved}.index.index_tmp")
    assert used(saved) == 1


@pytest.mark.parametrize("read_only", [False, True])
def test_the_index_says_that_a_broken_end_was_whole(saved, read_only):
    """The index knows this end as whole: it is damage, not a torn commit, and is not cut off."""
    raw = bytearray(Path(saved).read_bytes())
    raw[-1] ^= 1  # of the length
    Path(saved).write_bytes(raw)
    with pytest.raises(CorruptedTransactionError, match="index says that there was"):
        AlignedFileStorage(saved, read_only=read_only)
    assert Path(saved).read_bytes() == raw
    os.unlink(f"{saved}.index")
    AlignedFileStorage(saved, read_only=read_only).close()
    assert os.path.exists(f"{saved}.tr0") is not read_only
