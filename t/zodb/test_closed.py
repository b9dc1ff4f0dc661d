"""Arrays of a database that was closed meanwhile, as in a notebook: what messages say."""

import gc
import os
import pickle

import numpy as np
import pytest
import transaction
from support.child import run_child
from ZODB.POSException import ConnectionStateError

from wendelin.bigarray import ArrayRef
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, DoomedError, ram_reclaim
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.lib.storage import dburl
from wendelin.lib.storage.shared import share, zconn_now
from wendelin.lib.zodb import dbclose, dbopen, zstor_2zurl


@pytest.fixture
def url(tmp_path):
    """Return the URL of a file with an array of two blocks."""
    root = dbopen(tmp_path / "a.fs")
    root["A"] = A = ZBigArray((2048,), "i4", blksize=4096)
    transaction.commit()
    A[:] = np.arange(2048)
    transaction.commit()
    url = zstor_2zurl(root._p_jar.db().storage)
    dbclose(root)
    return url


@pytest.fixture(params=[dbclose, lambda root: root._p_jar.db().close()], ids=["dbclose", "DB"])
def closed(url, request):
    """Return an array of a closed database, and a view of it with the first block loaded."""
    root = dbopen(url + "?align=false")  # otherwise a touch maps the blocks around it
    A = root["A"]
    view = A[...]
    assert view[5] == 5
    request.param(root)
    return A, view


def test_the_repr_says_closed(closed):
    A, _ = closed
    assert repr(A) == "<closed ZBigArray(shape=(2048,), dtype=int32, order='C')>"
    assert A._repr_html_() is None


def test_the_repr_of_a_ghost_says_closed(url):
    root = dbopen(url)
    A = root["A"]
    A._p_deactivate()
    dbclose(root)
    assert repr(A) == "<closed ZBigArray 0x01>"


def test_the_repr_after_the_connection_is_opened_again(url):
    db = dbopen(url)._p_jar.db()
    conn = db.open()
    A = conn.root()["A"]
    A.shape  # loads its state
    conn.close()
    assert "closed" in repr(A)
    assert db.open() is conn
    assert "closed" not in repr(A)
    assert A[7] == 7
    db.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda A: A[...],
        lambda A: A[5],
        lambda A: A.read(),
        lambda A: A.resize((5,)),
        lambda A: A.append([5]),
        pickle.dumps,
        lambda A: pickle.dumps(ArrayRef(A)),
        lambda A: zstor_2zurl(A._p_jar.db().storage),
    ],
)
def test_every_use_says_what_to_do(closed, use):
    A, _ = closed
    with pytest.raises(ConnectionStateError, match=r"is closed: open .* again.*dbopen\("):
        use(A)


def test_what_is_in_memory_can_be_seen_and_what_is_not_says_why(closed):
    _, view = closed
    assert view[7] == 7
    with pytest.raises(BlockLoadError, match="is closed: open the database again") as e:
        view[1024]
        for _ in range(1000):
            pass
    assert isinstance(e.value.__cause__, ConnectionStateError)


def test_a_traceback_names_the_path_in_few_lines(url):
    """The user of a program sees a short traceback that names the path of the database."""
    program = """
    import sys
    from wendelin.lib.zodb import dbclose, dbopen
    root = dbopen(sys.argv[1])
    view = root["A"][...]
    dbclose(root)
    view.sum()
    """
    done = run_child(program, url, WENDELIN_CORE_READY="0")  # mapped blocks could still be read
    path = url.removeprefix("file://")
    assert done.returncode == 1
    assert f"in {path!r}> cannot be loaded" in done.stderr
    assert f"{path!r} is closed: open the database again" in done.stderr
    assert "unnamed" not in done.stderr
    assert "could not be informed" not in done.stderr
    assert len(done.stderr.splitlines()) < 32, done.stderr


def test_a_write_says_closed_too(closed):
    _, view = closed
    with pytest.raises(DoomedError, match="is closed: open the database again"):
        view[5] = 7
        for _ in range(1000):
            pass


@pytest.mark.parametrize("options", ["", "?align=false"])
def test_no_resources_of_a_closed_database_are_kept(url, options):
    """Descriptors and page memory are freed, also if the program still has the array."""
    gc.collect()
    ram_reclaim()
    path = url.removeprefix("file://")
    folder = path.rpartition("/")[0]

    def has():
        fds = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return [fd for fd in fds if fd.startswith(folder)], ram_stat()[1:]

    before = has()
    root = dbopen(url + options)
    A = root["A"]
    assert A[:].sum() == sum(range(2048))
    A[5] = 6
    transaction.commit()
    root["B"] = ZBigArray((10,), "i4")
    transaction.commit()
    assert has() != before
    dbclose(root)
    assert has() == before
    assert "closed" in repr(A)


def test_another_connection_of_a_closed_database(url):
    """db.close() closes open Connections, and those that were closed before."""
    root = dbopen(url + "?align=false")
    db = root._p_jar.db()
    conn = db.open(transaction.TransactionManager())
    before = ram_stat()[1:]
    assert conn.root()["A"][:].sum() == sum(range(2048))
    conn.close()
    dbclose(root)
    assert ram_stat()[1:] == before


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgres://me:secret@host:1/db?x=1", "postgres://me@host:1/db"),
        ("neo://name@host:1,host:2", "neo://name@host:1,host:2"),
        ("sqlite://localhost/?data_dir=/a", "sqlite://localhost/"),
    ],
)
def test_names_of_other_storages(url, name):
    class Storage:
        pass

    assert dburl.shown_name(dburl._remembered(Storage, url)()) == name
    assert dburl.shown_name(Storage()) == "Storage"


def test_a_later_writer_opens_the_database_again(url):
    root = dbopen(url)
    share(root._p_jar.db())
    db = root._p_jar.db()  # the DB object is kept alive
    dbclose(root)
    with zconn_now(url) as conn:
        assert conn.db() is not db
        assert conn.root()["A"][7] == 7
