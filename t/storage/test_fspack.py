"""lib/storage/fspack.py: undo, pack, and copies into other storages; what they write is aligned."""

import errno
import os
import pickle
import time
from pathlib import Path

import pytest
import transaction
from persistent.mapping import PersistentMapping
from support.child import check_child
from support.fsbytes import Bytes, current, data_of, located, write
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.DB import DB
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage import FileStorage as StockFileStorage
from ZODB.serialize import referencesf
from ZODB.utils import p64, z64

from wendelin.lib.storage import fspack
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.storage.record import RecordError
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen


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
    """Two records of the same bytes have different pads; undo takes them for equal."""
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
    """It aligns all that an old database has, too, before the pack time and after."""
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
    if old is not None:  # a reader of the old file keeps it
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
def test_there_is_a_file_at_each_moment_of_a_pack(path, monkeypatch, align, keep):
    """Without a file, an open after a kill would make an empty database."""
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
    assert there == [True]
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


@pytest.mark.parametrize("links", [True, False])
def test_a_pack_that_cannot_rename_leaves_the_file(path, monkeypatch, links):
    """Where there are no hard links, the file is away for a moment."""
    db = DB(AlignedFileStorage(path))
    for x in 1, 2:
        with db.transaction() as conn:
            conn.root()["x"] = x
    rename, refused = os.rename, []

    def renamed(src, dst):
        if dst == path and not refused:
            refused.append(src)
            raise OSError(errno.EIO, os.strerror(errno.EIO), src)
        rename(src, dst)

    def linked(src, dst):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), src)

    monkeypatch.setattr(os, "rename", renamed)
    if not links:
        monkeypatch.setattr(os, "link", linked)
    with pytest.raises(OSError, match="pack"):
        db.pack()
    assert refused
    assert not os.path.exists(f"{path}.old")
    with db.transaction() as conn:
        assert conn.root()["x"] == 2
        conn.root()["x"] = 3
    db.pack()
    db.close()
    db = DB(AlignedFileStorage(path))
    with db.transaction() as conn:
        assert conn.root()["x"] == 3
    db.close()


KILLED = """
    import os, shutil, sys
    from ZODB.DB import DB
    from wendelin.lib.storage import fsindex, fspack
    from wendelin.lib.storage.filestorage import AlignedFileStorage

    path, align, keep = sys.argv[1], sys.argv[2] == "1", sys.argv[3] == "1"
    want = eval(sys.argv[4])
    os.fsync = lambda fd: None      # a kill does not need it, and it takes time
    names = "fsync", "unlink", "link", "rename", "replace", "remove"

    def packed(path, step):
        # pack, and end at that step
        db = DB(AlignedFileStorage(path, align=align, pack_keep_old=keep))
        done = 0
        def stepped(name):
            call = getattr(os, name)
            def at_step(*args):
                nonlocal done
                done += 1
                if done == step:
                    os._exit(9)
                return call(*args)
            return at_step
        for name in names:
            setattr(os, name, stepped(name))
        db.pack()
        os._exit(0)

    step = 0
    while True:
        step += 1
        copy = f"{path}-{step}"
        shutil.copy(path, copy)
        AlignedFileStorage(copy).close()    # its index
        child = os.fork()
        if child == 0:
            packed(copy, step)
        _, status = os.waitpid(child, 0)
        for read_only in True, False:
            db = DB(AlignedFileStorage(copy, read_only=read_only, align=align))
            with db.transaction() as conn:
                assert dict(conn.root()["a"]) == want and len(conn.root()["b"]) == 65536, step
            db.close()
        if status == 0:
            break
        assert status == 9 << 8, status
    print(step)
"""


@pytest.mark.parametrize(("align", "keep"), [(True, True), (False, False)])
def test_a_pack_that_is_killed_at_each_step(path, align, keep):
    """The old index is not taken for that of the packed file, which may have the same end."""
    db = DB(AlignedFileStorage(path))
    with db.transaction() as conn:
        conn.root()["a"] = PersistentMapping(i=0)
    for i in 1, 2:
        with db.transaction() as conn:
            conn.root()["a"]["i"] = i
    with db.transaction() as conn:
        conn.root()["b"] = b"x" * 65536
    db.close()
    steps = int(check_child(KILLED, path, f"{align:d}", f"{keep:d}", "{'i': 2}", timeout=120))
    assert steps > 8


def test_order_of_the_steps_of_a_pack(path, monkeypatch):
    """A power failure leaves the old file or the packed one, and never the other one's index."""
    db = DB(AlignedFileStorage(path))
    for i in 1, 2:
        with db.transaction() as conn:
            conn.root()["x"] = i
    db.close()
    db = DB(AlignedFileStorage(path))
    done = []

    def noted(name):
        call = getattr(os, name)

        def note(what, *args):
            named = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what
            if named.startswith(os.path.dirname(path)):
                done.append(f"{name} {named.removeprefix(path)}")
            return call(what, *args)

        monkeypatch.setattr(os, name, note)

    for name in "fsync", "unlink", "link", "rename", "replace":
        noted(name)
    release = db.storage._commit_lock.release
    storage = db.storage

    class Lock:
        def __getattr__(self, name):
            return getattr(lock, name)

        def release(self):
            done.append("others may commit")
            release()

    lock, storage._commit_lock = storage._commit_lock, Lock()
    db.pack()
    storage._commit_lock = lock
    folder = os.path.dirname(path)
    start = done.index("fsync .pack")
    assert done[start:] == [
        "fsync .pack",
        "unlink .index",
        f"fsync {folder}",
        "link ",
        "rename .pack",
        f"fsync {folder}",
        "others may commit",
        "fsync .index.index_tmp",
        "replace .index.index_tmp",
    ]
    db.close()


@pytest.mark.parametrize("fails", ["fsync .pack", "fsync folder", "rename"])
def test_a_pack_that_fails_changes_nothing(path, monkeypatch, fails):
    db = DB(AlignedFileStorage(path))
    for i in 1, 2:
        with db.transaction() as conn:
            conn.root()["x"] = i
    before = Path(path).read_bytes()
    fsync = os.fsync

    def failing(what, *args):
        if fails == "rename":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        named = os.readlink(f"/proc/self/fd/{what}")
        if named.endswith(".pack") if fails == "fsync .pack" else os.path.isdir(named):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return fsync(what)

    monkeypatch.setattr(os, "rename" if fails == "rename" else "fsync", failing)
    with pytest.raises(OSError, match=r"Input/output error|busy"):
        db.pack()
    monkeypatch.undo()
    assert Path(path).read_bytes() == before
    assert not os.path.exists(f"{path}.pack")
    with db.transaction() as conn:
        conn.root()["x"] = 3
    db.pack()
    db.close()
    db = DB(AlignedFileStorage(path))
    with db.transaction() as conn:
        assert conn.root()["x"] == 3
    db.close()


def test_a_pack_of_a_relative_name(tmp_path, monkeypatch):
    """The name is of the folder where the file was opened, also after a chdir()."""
    for folder in "mine", "other":
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        db = DB(dbstoropen("x.fs"))
        for i in 1, 2:
            with db.transaction() as conn:
                conn.root()[folder] = i
        if folder == "other":
            db.close()
        else:
            mine = db
    mine.pack()
    mine.close()
    db = DB(AlignedFileStorage(str(tmp_path / "mine" / "x.fs")))
    with db.transaction() as conn:
        assert dict(conn.root()) == {"mine": 2}
    db.close()


@pytest.mark.parametrize("fails", ["copying", "fsync", None])
def test_what_an_earlier_pack_has_kept(path, tmp_path, monkeypatch, fails):
    """It stays until the next pack has another file to keep: that pack may fail."""
    blobs = tmp_path / "blobs"
    db = DB(AlignedFileStorage(path, blob_dir=str(blobs)))
    for i in 1, 2:
        with db.transaction() as conn:
            conn.root()["blob"] = Blob(b"%d" % i)
    db.pack()

    def found():
        places = [Path(f"{path}.old"), *Path(f"{blobs}.old").rglob("*.blob")]
        return {place: place.read_bytes() for place in places}

    kept = found()
    assert set(kept.values()) >= {b"1", b"2"}
    with db.transaction() as conn:
        conn.root()["blob"] = Blob(b"3")

    def failing(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if fails is not None:
        what = (os, "fsync") if fails == "fsync" else (fspack, "_aligned")
        monkeypatch.setattr(*what, failing)
        with pytest.raises(OSError, match="Input/output error"):
            db.pack()
        assert found() == kept
    else:
        db.pack()
        assert {b"2", b"3"} <= set(found().values())
        assert b"1" not in found().values()
        assert found()[Path(f"{path}.old")] != kept[Path(f"{path}.old")]
    monkeypatch.undo()
    db.close()


def test_a_folder_that_cannot_be_synced_after_the_rename(path, monkeypatch):
    """Later commits could be lost with the new name: the storage refuses them."""
    db = DB(AlignedFileStorage(path))
    for i in 1, 2:
        with db.transaction() as conn:
            conn.root()["x"] = i
    fsync = os.fsync

    def failing(fd):
        if os.path.isdir(f"/proc/self/fd/{fd}") and not os.path.exists(f"{path}.pack"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        db.pack()
    with pytest.raises(ValueError, match="closed"), db.transaction() as conn:
        conn.root()["x"] = 3
    monkeypatch.undo()
    db = DB(AlignedFileStorage(path))
    with db.transaction() as conn:
        assert conn.root()["x"] == 2
    db.close()


@pytest.mark.parametrize("storage", [AlignedFileStorage, StockFileStorage])
def test_what_frees_no_bytes_is_packed_as_well(path, tmp_path, storage):
    """The pad of a later record takes the room that the pack frees."""
    db = DB(storage(path, blob_dir=str(tmp_path / "blobs"), pack_keep_old=False))
    root = db.open().root()
    root["b"] = Blob(b"old")
    transaction.commit()
    with root["b"].open("w") as file:
        file.write(b"new")
    transaction.commit()
    root["x"] = Bytes(data_of(0))
    transaction.commit()
    oid = root["b"]._p_oid
    size = os.path.getsize(path)
    assert len(db.storage.history(oid, 10)) == 2
    db.pack()
    if storage is AlignedFileStorage:
        assert os.path.getsize(path) == size
    assert len(db.storage.history(oid, 10)) == 1
    blobs = [name for _, _, names in os.walk(tmp_path / "blobs") for name in names]
    assert len([name for name in blobs if name.endswith(".blob")]) == 1
    inode = os.stat(path).st_ino
    db.pack()  # there is nothing to do
    assert os.stat(path).st_ino == inode
    db.close()


@pytest.mark.parametrize("changes", ["file", "memory", "by hand"])
def test_a_demostorage_packs_its_changes(path, changes):
    """Objects that only the base refers to stay."""
    root = dbopen(path)
    root["x"] = PersistentMapping(y=PersistentMapping(n=0))
    root["z"] = 0
    transaction.commit()
    dbclose(root)
    over = "memory://" if changes == "memory" else f"file://{path}2"
    if changes == "by hand":
        base = AlignedFileStorage(path, read_only=True)
        root = DB(DemoStorage(base=base, changes=AlignedFileStorage(f"{path}2"))).open().root()
    else:
        root = dbopen(f"demo:(file://{path})/({over})")
    for n in range(5):
        root["x"]["y"]["n"] = n
        transaction.commit()
    storage = root._p_jar.db().storage
    oid = root["x"]["y"]._p_oid
    assert len(storage.changes.history(oid, 10)) == 5
    root._p_jar.db().pack()
    assert len(storage.changes.history(oid, 10)) == 1
    root._p_jar.cacheMinimize()
    assert root["x"]["y"]["n"] == 4
    with pytest.raises(TypeError, match="Garbage collection isn't supported"):
        storage.pack(time.time(), None, gc=True)
    dbclose(root)


def test_pack_while_others_commit(path, monkeypatch):
    db, root = write(path, data_of(0), data_of(1))
    root[0].data = data_of(2)
    root[0]._p_changed = True
    transaction.commit()
    from wendelin.lib.storage import fspack

    other = db.open(tm := transaction.TransactionManager()).root()
    copied = []

    def to_packtime(self):
        result = copy_to_packtime(self)
        other[1].data = data_of(3)
        other[1]._p_changed = True
        tm.commit()
        copied.append(1)
        return result

    copy_to_packtime = fspack.Packer.copyToPacktime
    monkeypatch.setattr(fspack.Packer, "copyToPacktime", to_packtime)
    db.pack(time.time())
    assert copied
    transaction.begin()
    assert located(db.storage, root[1]) == root[1].data
    assert root[1].data.endswith(b" 3")
    db.close()


@pytest.mark.parametrize("kinds", [("a", "a"), ("a", "s"), ("s", "a")])
def test_copy_into_another_storage(path, tmp_path, kinds):
    """As zodbconvert and fs copies do it: the record of an undo stays a reference."""
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


@pytest.mark.parametrize("root", [["a list"], {"a": "mapping"}, PersistentMapping(a=1)])
def test_a_root_that_no_connection_has_written(path, root):
    """It has no tags for a pack to keep; a damaged root may have some."""
    storage = AlignedFileStorage(str(path))
    record = pickle.dumps(root, 3) + pickle.dumps(None, 3)
    for _ in range(2):
        store(storage, z64, record)
    storage.pack(time.time(), referencesf)
    assert storage.load(z64)[0] == record
    store(storage, z64, record[:5])
    with pytest.raises(RecordError, match="damaged record"):
        storage.pack(time.time(), referencesf)
    storage.close()


def store(storage, oid, data):
    txn = TransactionMetaData()
    storage.tpc_begin(txn)
    serial = storage.load(oid)[1] if len(storage) else z64
    storage.store(oid, serial, data, "", txn)
    storage.tpc_vote(txn)
    storage.tpc_finish(txn)
