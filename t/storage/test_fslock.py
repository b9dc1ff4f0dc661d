"""lib/storage/fslock.py: a file has one writer, by whatever name it is opened."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transaction
from support.child import check_child
from support.fsbytes import write
from zc.lockfile import LockError
from ZODB.DB import DB
from ZODB.FileStorage.FileStorage import FileStorageFormatError

from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsholder import lock_holder
from wendelin.lib.zodb import dbclose, dbopen


def linked(link, path):
    link(path, f"{path}2")
    return f"{path}2"


def no_lock(path):
    os.unlink(f"{path}.lock")
    return path


NAMES = {
    "symbolic link": lambda path: linked(os.symlink, path),
    "hard link": lambda path: linked(os.link, path),
    "a removed .lock": no_lock,
}


@pytest.mark.parametrize(("other", "align"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("name", NAMES)
def test_there_is_one_writer(path, name, other, align):
    """Another writer is refused, in the same process and in another one."""
    db, root = write(path, b"x")
    name = NAMES[name](path)
    root["x"] = 1
    transaction.savepoint()
    if other:
        code = """
            import sys
            from zc.lockfile import LockError
            from wendelin.lib.zodb import dbopen
            try:
                dbopen(sys.argv[1])
            except LockError as e:
                print(e)
        """
        said = check_child(code, f"file://{name}?align={align}")
    else:
        with pytest.raises(LockError) as e:
            AlignedFileStorage(name, align=align)
        said = str(e.value)
    assert "this file" in said
    assert "open to write" in said
    reader = AlignedFileStorage(name, read_only=True)  # takes no lock
    assert len(reader) == 2
    reader.close()
    transaction.commit()  # its temporary files are as they were
    assert root["x"] == 1
    root._p_jar.close()
    db.close()
    db = DB(AlignedFileStorage(name, align=align))
    with db.transaction() as conn:
        assert conn.root()["x"] == 1
    db.close()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="root may mount")
def test_a_bind_mount_is_the_same_file(path):
    db, _ = write(path, b"x")
    Path(f"{path}2").touch()
    code = (
        "from zc.lockfile import LockError\n"
        "from wendelin.lib.storage.filestorage import AlignedFileStorage\n"
        f"try: AlignedFileStorage({path + '2'!r})\n"
        "except LockError as e: print(e)"
    )
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", f'mount --bind {path} {path}2 && exec "$0" -P -c "$1"'),
            *(sys.executable, code),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    db.close()
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr)
    assert "open to write" in done.stdout, done.stderr


def test_a_symbolic_link_is_kept_by_a_pack(path):
    """The packed file takes the place of the file that the link names."""
    db, root = write(path, b"x")
    for i in range(3):
        root["x"] = i
        transaction.commit()
    db.close()
    os.symlink(path, f"{path}2")
    db = DB(AlignedFileStorage(f"{path}2"))
    db.pack()
    with pytest.raises(LockError):
        AlignedFileStorage(path)  # the packed file is locked
    AlignedFileStorage(f"{path}.old").close()  # and the other one is not any more
    with db.transaction() as conn:
        conn.root()["x"] = 7
    db.close()
    assert os.path.islink(f"{path}2")
    assert not os.path.exists(f"{path}2.index")
    db = DB(AlignedFileStorage(path))
    with db.transaction() as conn:
        assert conn.root()["x"] == 7
    db.close()


def test_a_link_to_a_file_that_is_to_be_made(path):
    os.symlink(path, f"{path}2")
    root = dbopen(f"{path}2")
    for name in path, f"{path}2":
        with pytest.raises(LockError):
            dbopen(name)
    dbclose(root)
    assert os.path.exists(path)


@pytest.mark.usefixtures("no_leaks")
def test_what_is_refused_leaves_nothing_open(path):
    db, _ = write(path, b"x")
    os.link(path, f"{path}2")
    before = sorted(os.listdir(Path(path).parent))
    for _ in range(3):
        with pytest.raises(LockError):
            AlignedFileStorage(f"{path}2")
    assert sorted(os.listdir(Path(path).parent)) == before
    db.close()


def test_a_reader_that_comes_too_early_takes_no_file_of_the_writer(tmp_path):
    """It fails while the writer makes the database, and once it removed the lock of the writer."""
    check_child(
        """
    import os, sys
    from wendelin.lib.storage.filestorage import AlignedFileStorage
    paths = [f"{sys.argv[1]}/{i}.fs" for i in range(60)]
    pid = os.fork()
    if pid == 0:
        parent = os.getppid()
        for path in paths:
            while os.getppid() == parent:   # until there is a database
                try:
                    AlignedFileStorage(path, read_only=True).close()
                    break
                except Exception:
                    pass
        os._exit(0)
    storages = []
    for path in paths:
        storages.append(AlignedFileStorage(path, align=False))
    assert os.waitpid(pid, 0)[1] == 0
    missing = [f"{path}{suffix}" for path in paths for suffix in (".lock", ".tmp")
               if not os.path.exists(f"{path}{suffix}")]
    assert not missing, missing
    """,
        str(tmp_path),
    )


def test_a_child_that_lives_on_keeps_no_lock(path):
    """When the parent closes the file, it is free, though a child of a fork has it open."""
    code = f"""
        import os, time
        from wendelin.lib.storage.filestorage import AlignedFileStorage
        storage = AlignedFileStorage({path!r})
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)            # until the parent is ready
            storage.file_lock.release()      # as its close() does: not the parent's lock
            os._exit(0)
        storage.close()
        storage = AlignedFileStorage({path!r})
        os.close(write)
        os.waitpid(child, 0)
        try:
            AlignedFileStorage({path!r} + "2")
        except Exception as e:
            print(type(e).__name__)
        storage.close()
    """
    os.symlink(path, f"{path}2")
    assert check_child(code) == "LockError\n"


def test_what_cannot_be_opened_gets_nothing_beside_it(tmp_path):
    path = tmp_path / "x.fs"
    path.write_bytes(b"\x93NUMPY" + bytes(100))
    for align in True, False:
        with pytest.raises(FileStorageFormatError):
            AlignedFileStorage(str(path), align=align)
        assert os.listdir(tmp_path) == ["x.fs"]
    path.unlink()
    (tmp_path / "x.fs.lock").touch()  # of another program
    path.write_bytes(b"FS99" + bytes(100))
    with pytest.raises(FileStorageFormatError):
        AlignedFileStorage(str(path))
    assert sorted(os.listdir(tmp_path)) == ["x.fs", "x.fs.lock"]


def test_the_process_that_has_the_lock_is_named(tmp_path):
    path = str(tmp_path / "x.fs")
    assert lock_holder(path) == ""
    storage = AlignedFileStorage(path)
    assert lock_holder(path) == f"process {os.getpid()}, this one"
    os.link(path, f"{path}2")
    code = """
        import sys
        from zc.lockfile import LockError
        from wendelin.lib.zodb import dbopen
        for name in sys.argv[1:]:
            try:
                dbopen(name)
            except LockError as e:
                print(e)
    """
    said = check_child(code, path, f"{path}2").splitlines()
    assert len(said) == 2
    for line in said:
        assert f"open to write already by process {os.getpid()} (" in line
        assert "read_only=True" in line
    storage.close()
    assert lock_holder(path) == ""
