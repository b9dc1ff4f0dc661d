"""fsblob: blobs in a folder beside a Data.fs. Power failures are in test_powerfail.py."""

import os
from pathlib import Path

import pytest
import transaction
from ZODB.blob import Blob
from ZODB.DB import DB

from wendelin.lib.storage.filestorage import AlignedFileStorage


def write(path, n=1):
    """Commit n blobs; return their folder."""
    db = DB(AlignedFileStorage(path, blob_dir=f"{path}.blobs"))
    root = db.open().root()
    for i in range(n):
        root[i] = Blob(b"blob %d" % i)
        transaction.commit()
    db.close()
    return Path(f"{path}.blobs")


def read(path, **options):
    """Return what the blobs have."""
    db = DB(AlignedFileStorage(path, blob_dir=f"{path}.blobs", **options))
    conn = db.open()
    found = []
    for blob in conn.root().values():
        with blob.open("r") as file:
            found.append(file.read())
    conn.close()
    db.close()
    return found


@pytest.fixture
def synced(monkeypatch):
    """Return a list, to which each sync adds the name of its file."""
    names = []
    fsync = os.fsync

    def note(fd):
        names.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    return names


def test_a_folder_of_blobs_is_on_disk_with_all_above_it(tmp_path, synced):
    folder = tmp_path / "a" / "b" / "blobs"
    AlignedFileStorage(str(tmp_path / "x.fs"), blob_dir=str(folder)).close()
    assert {str(folder / ".layout"), *map(str, [folder, *folder.parents[:3]])} <= set(synced)


def test_a_blob_is_synced_and_all_folders_above_it(path, synced):
    db = DB(AlignedFileStorage(path, blob_dir=f"{path}.blobs"))
    root = db.open().root()
    root[0] = blob = Blob(b"x")
    del synced[:]
    transaction.commit()
    (name,) = (n for n in synced if n.endswith(".blob"))
    assert name == db.storage.loadBlob(blob._p_oid, db.storage.lastTransaction())
    folders = [str(p) for p in Path(name).parents if str(p).startswith(f"{path}.blobs")]
    assert len(folders) == 9  # a folder a byte of the oid, and that of all blobs
    assert synced[0] == name
    assert sorted(synced[1:]) == sorted(folders)
    db.close()


def test_a_blob_that_cannot_be_synced_is_not_committed(path, monkeypatch):
    db = DB(AlignedFileStorage(path, blob_dir=f"{path}.blobs"))
    root = db.open().root()
    size = os.path.getsize(path)
    fsync = os.fsync

    def fails(fd):
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".blob"):
            raise OSError(5, "Input/output error")
        fsync(fd)

    root[0] = Blob(b"x")
    with monkeypatch.context() as m, pytest.raises(OSError, match="Input/output error"):
        m.setattr(os, "fsync", fails)
        transaction.commit()
    transaction.abort()
    assert os.path.getsize(path) == size
    assert not list(Path(f"{path}.blobs").rglob("*.blob"))
    root[0] = Blob(b"y")
    transaction.commit()
    db.close()
    assert read(path) == [b"y"]


@pytest.mark.parametrize("marker", [b"", b"\0" * 5, None], ids=["empty", "zeros", "missing"])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_marker_of_the_layout_that_is_blank_is_mended(path, marker, read_only):
    folder = write(path, 3)
    (folder / ".layout").unlink()
    if marker is not None:
        (folder / ".layout").write_bytes(marker)
    assert read(path, read_only=read_only) == [b"blob 0", b"blob 1", b"blob 2"]
    if not read_only:
        assert (folder / ".layout").read_text().strip() == "bushy"
        assert read(path) == [b"blob 0", b"blob 1", b"blob 2"]
    elif marker is not None:
        assert (folder / ".layout").read_bytes() == marker  # reading changes nothing


@pytest.mark.parametrize("blank", [False, True])
def test_the_other_layout_stays_what_it_is(path, blank):
    """The other one has a folder an oid: ZODB warns of it, but reads and writes it."""
    AlignedFileStorage(path).close()  # in a new file, ZODB begins with a new folder
    folder = Path(f"{path}.blobs")
    folder.mkdir()
    (folder / ".layout").write_text("lawn")
    write(path, 2)
    assert len(list(folder.glob("*/*.blob"))) == 2
    if blank:
        (folder / ".layout").write_bytes(b"\0" * 4)
    assert read(path, read_only=True) == [b"blob 0", b"blob 1"]
    assert read(path) == [b"blob 0", b"blob 1"]
    assert (folder / ".layout").read_text().strip() == "lawn"


def test_a_new_folder_whose_marker_is_blank_is_new(path):
    AlignedFileStorage(path).close()
    folder = Path(f"{path}.blobs")
    (folder / "tmp").mkdir(parents=True)
    (folder / ".layout").touch()
    write(path)
    assert (folder / ".layout").read_text().strip() == "bushy"
    assert read(path) == [b"blob 0"]
