"""wendelin copy: of databases and of arrays, into storages of all kinds, and after a kill."""

import numpy as np
import pytest
import transaction
from support import storages
from support.cli import killed_at, wendelin
from support.clidata import BLK, PATHS, database, filled, stock
from ZODB.blob import Blob

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.storage.pad import without_pad
from wendelin.lib.zodb import dbstoropen

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo", "neo")]

MIB = 1 << 20


@pytest.fixture
def url(testdb):
    """Return the URL of a database with arrays in all kinds of places."""
    stock(testdb.url)
    return testdb.url


def transactions(url):
    """Return what a storage has: (tid, description, [(oid, data)])."""
    storage = dbstoropen(url)
    iterator = storage.iterator()
    result = [
        (t.tid, t.description, [(r.oid, r.data and without_pad(r.data)) for r in t])
        for t in iterator
    ]
    if hasattr(iterator, "close"):
        iterator.close()
    storage.close()
    return result


@pytest.mark.only("fs", "zeo")  # a NEO cluster has what previous tests have left
def test_copy_of_a_database(call, url, tmp_path):
    """Out of the storage that is tested, into a file, and back into another of its kind."""
    with database(url) as root:  # records without data, and with data of others
        root["A"][:] = 3
        transaction.commit()
        root._p_jar.db().undo(root._p_jar.db().undoLog(0, 1)[0]["id"])
        transaction.commit()
    path = tmp_path / "copy.fs"
    told = wendelin("copy", "--json", url, path).json
    have = transactions(url)
    assert told["transactions"] == len(have)
    assert told["last"]["tid"] == have[-1][0].hex()
    assert transactions(path) == have
    back = storages.kind()(tmp_path)
    target = f"{tmp_path}/back.fs" if back.url == url else back.url
    done = wendelin("copy", path, target)
    assert f"{target}: {len(have)} transactions, " in done.stdout
    assert call("verify", target).stdout == "7 arrays, 15 blocks, 15 with a checksum: all good\n"
    assert [t[2] for t in transactions(target)] == [t[2] for t in have]
    assert transactions(target) == have
    back.stop()


def test_a_copy_is_aligned_and_follows_its_source(call, tmp_path):
    old, new = tmp_path / "old.fs", tmp_path / "new.fs"
    with database(f"file://{old}?align=false") as root:
        root["x"] = A = filled((6 * BLK,), "u1")
        transaction.commit()
        A[:] = 1
        transaction.commit()
    call("copy", old, new)
    assert call("info", "--json", f"{new}#x").json["blocks"] == {"ZBlk0, mapped": 6}
    assert call("copy", "--json", old, new).json["transactions"] == 0
    with database(old) as root:
        root["x"][:] = 2
        transaction.commit()
    assert call("copy", "--json", old, new).json["transactions"] == 1
    assert transactions(old) == transactions(new)
    with database(new) as root:
        root["y"] = 1
        transaction.commit()
    assert "neither empty nor an unfinished copy" in call("copy", old, new, code=1).stderr
    assert "is in memory" in call("copy", old, "memory://", code=1).stderr
    assert "are the same file" in call("copy", old, old, code=2).stderr
    assert "for both, or for neither" in call("copy", old, f"{new}#x", code=2).stderr


@pytest.mark.slow
def test_a_copy_of_a_database_goes_on_after_a_kill(tmp_path):
    old, new = tmp_path / "old.fs", tmp_path / "new.fs"
    with database(old) as root:
        root["x"] = A = filled((64 * MIB // 8,))
        transaction.commit()
        for i in range(32):
            A[i * (2 * MIB // 8) : (i + 1) * (2 * MIB // 8)] = i + 1
            transaction.commit()
    args = ("copy", old, new)
    assert killed_at(args, lambda: new.exists() and new.stat().st_size > 5 * MIB, tmp_path)
    done = wendelin(*args, "--json").json["transactions"]
    assert 0 < done < 34
    assert transactions(old) == transactions(new)


def test_copy_of_blobs(call, tmp_path):
    old = f"file://{tmp_path}/old.fs?blobstorage_dir={tmp_path}/old"
    new = f"file://{tmp_path}/new.fs?blobstorage_dir={tmp_path}/new"
    with database(old) as root:
        root["b"] = Blob(b"bytes of a blob")
        transaction.commit()
    error = call("copy", tmp_path / "old.fs", tmp_path / "x.fs", code=1).stderr
    assert "its URL must say where" in error
    error = call("copy", old, tmp_path / "y.fs", code=1).stderr
    assert "which the destination does not take" in error
    call("copy", old, new)
    with database(new) as root, root["b"].open() as file:
        assert file.read() == b"bytes of a blob"


class NoRestore:
    """A storage that cannot restore: it gives records its own tids."""

    def __init__(self, storage):
        self._storage = storage

    def __getattr__(self, name):
        if name in ("restore", "restoreBlob"):
            raise AttributeError(name)
        return getattr(self._storage, name)


@pytest.mark.parametrize("at_vote", [False, True])
def test_a_storage_that_does_not_restore(tmp_path, call, at_vote):
    """Its transactions get its own tids, as it takes no others; objects are the same."""
    from wendelin.cli.copying import Copy

    with database(tmp_path / "old.fs") as root:
        root["x"] = A = filled((2 * BLK,), "u1")
        transaction.commit()
        for i in range(3):
            A[:] = i
            transaction.commit()
    old, new = dbstoropen(tmp_path / "old.fs"), dbstoropen(tmp_path / "new.fs")
    if at_vote:  # as a server says it

        def refuse(*args):
            raise AttributeError("'Storage' object has no attribute 'restore'")

        new.restore = refuse
    else:
        new = NoRestore(new)
    Copy(old, new).run(lambda n: None)
    old.close()
    new.close()
    a, b = transactions(tmp_path / "old.fs"), transactions(tmp_path / "new.fs")
    assert [t[1:] for t in a] == [t[1:] for t in b]
    with database(tmp_path / "new.fs") as root:
        assert root["x"][-1] == 2


def test_copy_of_an_array(call, url, tmp_path):
    """An array goes into another database, and back beside itself."""
    other = f"{tmp_path}/other.fs"
    done = wendelin("copy", f"{url}#{PATHS[-1]}", f"{other}#deep/er/B")
    assert done.stdout.startswith(f"{other}#deep/er/B: 11.7 KiB")
    call("copy", f"{other}#deep/er/B", f"{url}#tree/B")
    with database(url) as root, database(other) as there:
        A, B, C = root["tree"]["a/b#c[%]"], root["tree"]["B"], there["deep"]["er"]["B"]
        for array in B, C:
            assert (array.shape, array.dtype, array._order) == (A.shape, A.dtype, "F")
            assert (array.zfile.blksize, array._zblk_fmt) == (BLK, "ZBlk1")
            assert np.array_equal(A[:], array[:])
    assert "exists already" in call("copy", f"{url}#A", f"{url}#tree/B", code=1).stderr
    call("copy", "--replace", f"{url}#A", f"{url}#tree/B")
    with database(url) as root:
        assert np.array_equal(root["A"][:], root["tree"]["B"][:])


def test_copy_of_an_array_says_what_it_leaves(call, testdb, tmp_path):
    root = testdb.open()
    root["A"] = A = ZBigArray((3,), "f8", blksize=BLK)
    A.unit, A.tags = "mV", ["x"]
    transaction.commit()
    testdb.close(root)
    done = call("copy", f"{testdb.url}#A", f"{tmp_path}/other.fs#A")
    assert done.stderr == "wendelin copy: attributes are not copied: 'tags', 'unit'\n"
    done = call("copy", "--json", f"{testdb.url}#A", f"{tmp_path}/other.fs#B")
    assert done.json["attributes_left"] == ["tags", "unit"]
    assert done.stderr == ""


def test_copy_of_an_array_of_holes(call, testdb, tmp_path):
    """The array has 2**50 bytes, and two blocks."""
    with database(testdb.url) as root:
        root["x"] = A = filled((1 << 50,), "u1", blksize=2 * MIB)
        transaction.commit()
        A[1 << 49] = 1
        A[3 << 40] = 2
        transaction.commit()
    call("copy", f"{testdb.url}#x", f"{tmp_path}/y.fs#x")
    with database(tmp_path / "y.fs") as root:
        assert list(root["x"].zfile.blktab) == [(3 << 40) // (2 * MIB), (1 << 49) // (2 * MIB)]
        assert root["x"][1 << 49] == 1
