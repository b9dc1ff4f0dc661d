"""lib/zodb.py: databases by path and URL, objects that are never ghosts, states that are seen."""

import os
import threading
from importlib.metadata import entry_points

import pytest
import transaction
from BTrees.LOBTree import LOBTree, LOBTreePy
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.mapping import PersistentMapping
from support.stateload import StateLoadError
from transaction import TransactionManager
from zc.lockfile import LockError
from ZODB.DB import DB
from ZODB.FileStorage.FileStorage import FileStorageFormatError
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ConnectionStateError, ReadOnlyError
from ZODB.utils import p64, u64

from wendelin.lib.storage import storlimits
from wendelin.lib.zodb import (
    LivePersistent,
    dbclose,
    dbopen,
    dbstoropen,
    deactivate_btree,
    zconn_at,
    zconn_stat,
)

pytestmark = pytest.mark.formats

# ---- dbopen, dbclose, dbstoropen ----


@pytest.mark.usefixtures("no_leaks")
def test_what_is_committed_is_there_again(testdb):
    root = testdb.open()
    root["x"] = 1
    transaction.commit()
    testdb.close(root)
    root = testdb.open()
    assert root["x"] == 1


@pytest.mark.parametrize(
    "url",
    [
        "{}/a.fs",
        "file://{}/a.fs",
        "file://{}/a.fs?connection_cache_size=77",
        "demo:(memory://)/(file://{}/a.fs)",
        "demo:(file://{}/a.fs)/(memory://)",
        "memory://",
    ],
)
@pytest.mark.usefixtures("no_leaks")
def test_urls(url, tmp_path):
    root = dbopen(url.format(tmp_path))
    root["x"] = 1
    transaction.commit()
    assert root["x"] == 1
    if "cache_size" in url:
        assert root._p_jar.db().getCacheSize() == 77
    dbclose(root)


def test_zconfig(tmp_path):
    config = tmp_path / "zodb.conf"
    config.write_text("<zodb>\ncache-size 77\n<mappingstorage>\n</mappingstorage>\n</zodb>\n")
    root = dbopen(f"zconfig://{config}")
    assert root._p_jar.db().getCacheSize() == 77
    dbclose(root)


def test_path_objects(tmp_path):
    root = dbopen(tmp_path / "a.fs")
    dbclose(root)
    assert (tmp_path / "a.fs").is_file()


def test_a_path_may_have_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dbclose(dbopen("run:1.fs"))
    assert (tmp_path / "run:1.fs").is_file()


def test_a_relative_path_stays_what_it_was(tmp_path, monkeypatch):
    """The index is saved at close, next to the database, also if the process is elsewhere then."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    root = dbopen("a.fs")
    root["x"] = 1
    transaction.commit()
    monkeypatch.chdir("other")
    dbclose(root)
    assert os.listdir(tmp_path / "other") == []
    assert (tmp_path / "a.fs.index").is_file()


def test_dbstoropen(tmp_path):
    storage = dbstoropen(f"file://{tmp_path}/a.fs")
    assert storage.getName() == str(tmp_path / "a.fs")
    storage.close()


def test_unknown_scheme():
    with pytest.raises(ValueError, match="gopher://x") as e:
        dbopen("gopher://x")
    for scheme in ("file", "zeo", "demo", "memory", "zconfig"):
        assert scheme in str(e.value)


@pytest.mark.parametrize("url", ["file:a.fs", "memory:", "demo:a.fs", "file://a.fs?bogus=1"])
def test_wrong_urls(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as e:
        dbopen(url)
    assert url in str(e.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("no_leaks")
def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        dbopen(tmp_path / "nowhere" / "a.fs")


@pytest.mark.usefixtures("no_leaks")
def test_a_folder_is_not_a_database(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        dbopen(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_read_only(tmp_path):
    url = f"file://{tmp_path}/a.fs?read_only=1"
    with pytest.raises(FileNotFoundError):
        dbopen(url)
    dbclose(dbopen(str(tmp_path / "a.fs")))
    root = dbopen(url)
    assert list(root) == []
    dbclose(root)


def test_opened_read_only(testdb, tmp_path):
    root = testdb.open()
    root["x"] = 1
    transaction.commit()
    again = dbopen(testdb.url, read_only=True)  # a file that is in use can be read
    assert again["x"] == 1
    again["x"] = 2
    with pytest.raises(ReadOnlyError):
        transaction.commit()
    transaction.abort()
    dbclose(again)
    with pytest.raises(FileNotFoundError):
        dbopen(tmp_path / "nowhere.fs", read_only=True)
    assert not (tmp_path / "nowhere.fs").exists()


def test_close_refuses_to_lose_changes(testdb):
    root = testdb.open()
    root["x"] = 1
    with pytest.raises(ConnectionStateError):
        dbclose(root)
    transaction.commit()  # all is still open
    testdb.close(root)
    assert testdb.open()["x"] == 1


def test_close_again_does_nothing(testdb):
    root = testdb.open()
    dbclose(root)
    dbclose(root)  # and the fixture closes it once more


@pytest.mark.usefixtures("no_leaks")
def test_database_in_use(tmp_path):
    """A refused call leaves nothing behind."""
    root = dbopen(tmp_path / "a.fs")
    with pytest.raises(LockError, match=r"a\.fs'.*dbclose\(\).*read_only=True.*ZEO"):
        dbopen(tmp_path / "a.fs")
    root["x"] = 1
    with pytest.raises(ConnectionStateError, match=r"a\.fs' has changes.*abort\(\) first"):
        dbclose(root)
    transaction.abort()
    dbclose(root)


@pytest.mark.parametrize("begin", [b"\x93NUMPY", b"FS99", b"x"])
def test_a_file_that_is_not_a_database_is_left_as_it_is(begin, tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(begin)
    with pytest.raises(FileStorageFormatError, match=r"x\.npy' is not a database: it begins"):
        dbopen(path)
    assert os.listdir(tmp_path) == ["x.npy"]
    assert path.read_bytes() == begin


@pytest.mark.parametrize("begin", [b"", b"FS30", b"FS", b"\0" * 4])
def test_a_file_that_was_begun_is_a_database(begin, tmp_path):
    path = tmp_path / "x.fs"
    path.write_bytes(begin)
    dbclose(dbopen(path))


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("zeo://", "names no server"),
        ("zeo:///", "names no server"),
        ("zeo://host:port", "Port could not be cast"),
        ("zeo://host:1/storage", r"'/storage' follows the address.*storage=storage"),
        ("zeo://host:1?wait_timeout=soon", "wait_timeout is 'soon'"),
        ("zeo://host:1?waiting=1", "waiting.*wait_timeout"),
        ("zeo://host:1?key=k.pem", "needs cert="),
    ],
)
def test_urls_of_servers_that_are_wrong(url, what):
    with pytest.raises(ValueError, match=what) as e:
        dbopen(url)
    assert repr(url)[:-1] in str(e.value)


@pytest.mark.parametrize("scheme", ["neo", "neos"])
def test_neo_without_a_client_of_neo(scheme):
    if scheme in {ep.name for ep in entry_points(group="zodburi.resolvers")}:
        pytest.skip("a client of NEO is installed")
    with pytest.raises(ValueError, match=r"neoppod that runs on Python 3.*gateway.*zeo://") as e:
        dbopen(f"{scheme}://name@127.0.0.1:1")
    assert f"{scheme}://name@127.0.0.1:1" in str(e.value)


def test_a_storage_that_does_not_answer_is_a_timeout():
    """A client of NEO waits this way for a master of another protocol."""
    go, closed = threading.Event(), threading.Event()

    class Storage:
        def close(self):
            closed.set()

    def factory():
        assert go.wait(30)
        return Storage()

    with pytest.raises(TimeoutError, match=r"neo://name@master did not answer within 0.1 s"):
        storlimits.opened_within(0.1, factory, "neo://name@master")
    go.set()
    assert closed.wait(30)  # the storage came too late
    with pytest.raises(ZeroDivisionError):
        storlimits.opened_within(30, lambda: 1 // 0, "neo://name@master")
    assert isinstance(storlimits.opened_within(30, Storage, "neo://name@master"), Storage)


def test_keywords_of_0_x(tmp_path):
    dbclose(dbopen(uri=f"{tmp_path}/a.fs"))
    storage = dbstoropen(uri=f"{tmp_path}/a.fs")
    assert storage.getName() == f"{tmp_path}/a.fs"
    storage.close()
    with pytest.raises(TypeError, match="'uri' and 'url' are the same: give one"):
        dbopen(uri="a.fs", url="b.fs")


# ---- LivePersistent ----


class Live(LivePersistent):
    """A live object with state that is kept in the database, and state that is not."""

    def __init__(self, x: int) -> None:
        self.x = x


class LiveHandle(LivePersistent):
    """A live object with a __setstate__ of its own, as files and arrays have."""

    def __init__(self, x: int) -> None:
        self.__setstate__(x)

    def __getstate__(self):
        return self.x

    def __setstate__(self, state):
        self.x = state


@pytest.fixture(params=[Live, LiveHandle])
def live(testdb, request):
    """Return a live object in a database."""
    root = testdb.open()
    root["live"] = obj = request.param(1)
    transaction.commit()
    obj._v_handle = handle = object()
    yield obj
    if obj._p_jar is not None:
        assert obj._v_handle is handle


def test_live_is_not_a_ghost_under_pressure(live):
    conn = live._p_jar
    live._p_deactivate()
    conn.cacheMinimize()
    conn._cache.cache_size = 0
    conn.cacheGC()
    live._p_changed = None
    assert live._p_state == 0
    assert live.__dict__["x"] == 1


@pytest.mark.parametrize("how", ["_p_invalidate", "cache", "abort"])
def test_live_reads_its_state_anew(live, how):
    live.x = 2
    if how == "_p_invalidate":
        live._p_invalidate()
    elif how == "cache":
        live._p_jar._cache.invalidate(live._p_oid)
    else:
        transaction.abort()
    assert live._p_state == 0
    assert live.__dict__["x"] == 1


def test_live_sees_what_others_commit(live):
    with live._p_jar.db().transaction() as conn:
        conn.root()["live"].x = 2
    assert live.x == 1
    transaction.begin()
    assert live._p_state == 0
    assert live.__dict__["x"] == 2


def test_live_savepoint_rollback(live):
    live.x = 2
    savepoint = transaction.savepoint()
    live.x = 3
    savepoint.rollback()
    assert live.__dict__["x"] == 2


def test_live_before_it_has_a_connection():
    obj = Live(1)
    obj._v_handle = 2
    obj._p_deactivate()
    obj._p_invalidate()
    assert (obj.x, obj._v_handle) == (1, 2)


def test_live_ghost_is_loaded_at_first_use(testdb):
    root = testdb.open()
    root["live"] = Live(1)
    transaction.commit()
    testdb.close(root)
    obj = testdb.open()["live"]
    assert obj._p_state == -1
    obj._p_deactivate()
    assert obj.x == 1


class Failing(LivePersistent):
    """A live object whose state may fail to load."""

    failing = False

    def __init__(self) -> None:
        self.x = 1

    def __setstate__(self, state):
        if type(self).failing:
            raise RuntimeError("no state today")
        super().__setstate__(state)


def test_live_that_cannot_be_read_does_not_stop_the_boundary(testdb, monkeypatch):
    """Objects after it in the list of changed objects must be invalidated, too.

    The user of the object gets the error, and may try again.
    """
    root = testdb.open()
    root["live"] = obj = Failing()
    for i in range(8):
        root[i] = PersistentMapping(x=1)
    transaction.commit()
    with root._p_jar.db().transaction() as conn:
        conn.root()["live"].x = 2
        for i in range(8):
            conn.root()[i]["x"] = 2
    monkeypatch.setattr(Failing, "failing", True)
    transaction.begin()
    assert [root[i]["x"] for i in range(8)] == [2] * 8
    with pytest.raises(StateLoadError):
        _ = obj.x
    monkeypatch.setattr(Failing, "failing", False)
    assert obj.x == 2


# ---- deactivate_btree ----


class Value(Persistent):
    """A value of a tree."""


def nodes_of(conn) -> list[Persistent]:
    """Return the nodes of trees that are in the cache of a Connection."""
    return [obj for _, obj in conn._cache.items() if type(obj).__module__.startswith("BTrees")]


@pytest.fixture(params=[0, 1, 40, 5000])
def tree(testdb, request):
    """Return a tree in a database, wholly loaded: it has 0, 1, 2 or 3 levels of nodes."""
    root = testdb.open()
    root["tree"] = tree = LOBTree()
    for i in range(request.param):
        tree[i] = Value() if i == 0 else i
    transaction.commit()
    list(tree.items())
    return tree


def test_deactivate_btree(tree):
    conn = tree._p_jar
    value = tree.get(0)
    if value is not None:
        value._p_activate()
    deactivate_btree(tree)
    assert {node._p_state for node in nodes_of(conn)} == {-1}
    assert value is None or value._p_state == -1
    assert tree.get(0) is value


def test_deactivate_btree_makes_ghosts_of_values(testdb):
    root = testdb.open()
    for cls in LOBTree, OOBTree, LOBTreePy:
        for n in 1, 40, 500:  # in the tree itself, in buckets, in buckets of nodes
            root["tree"] = tree = cls({i: Value() for i in range(n)})
            tree[n], tree[n + 1] = live, plain = Live(1), 7
            transaction.commit()
            values = list(tree.values())[:n]
            for value in values:
                value._p_activate()
            values[0].x = 1  # changed
            deactivate_btree(tree)
            assert {node._p_state for node in nodes_of(root._p_jar)} == {-1}
            assert [value._p_state for value in values] == [1] + [-1] * (n - 1)
            assert live._p_state == 0  # a live object is never a ghost
            assert list(tree.values()) == [*values, live, plain]
            transaction.commit()
            root._p_jar.cacheMinimize()


def test_deactivate_btree_loads_nothing(tree, monkeypatch):
    conn = tree._p_jar
    conn.cacheMinimize()
    deactivate_btree(tree)
    list(tree.keys(max=100))  # some of it is in memory now
    loads = []
    setstate = type(conn).setstate
    monkeypatch.setattr(
        type(conn), "setstate", lambda self, obj: (loads.append(obj), setstate(self, obj))
    )
    deactivate_btree(tree)
    assert loads == []
    assert {node._p_state for node in nodes_of(conn)} == {-1}


def test_deactivate_btree_keeps_changes(tree):
    n = len(tree)
    tree[n] = "new"
    deactivate_btree(tree)
    changed = [node for node in nodes_of(tree._p_jar) if node._p_state == 1]
    assert changed
    assert tree[n] == "new"
    transaction.commit()
    tree._p_jar.cacheMinimize()
    assert tree[n] == "new"
    assert len(tree) == n + 1


def test_deactivate_btree_that_is_in_no_database():
    tree = LOBTree({i: i for i in range(1000)})
    deactivate_btree(tree)
    assert len(tree) == 1000


# ---- zconn_at ----


@pytest.mark.only("fs", "fscopy", "zeo", "neo")  # by db.lastTransaction(): see zdb_last()
def test_zconn_at(testdb):
    root = testdb.open()
    conn = root._p_jar
    db = conn.db()
    assert zconn_at(conn) == db.lastTransaction()
    root["x"] = 1
    transaction.commit()
    first = db.lastTransaction()
    assert zconn_at(conn) == first == root._p_serial

    with db.transaction() as other:
        other.root()["x"] = 2
    assert db.lastTransaction() > first
    assert zconn_at(conn) == first
    transaction.begin()
    assert zconn_at(conn) == db.lastTransaction() == p64(u64(conn._storage._start) - 1)


def test_zconn_stat(testdb):
    root = testdb.open()
    root["a"] = a = PersistentMapping({"x": "x" * 1000})
    transaction.commit()
    first = a._p_serial
    a["y"] = "y" * 1000
    transaction.commit()
    conn = root._p_jar
    gone, stat = zconn_stat(conn, [p64(1 << 60), a._p_oid])
    assert gone is None
    data, tid = conn._normal_storage.load(a._p_oid)
    assert (stat.tid, stat.size) == (tid, len(data))
    past = conn.db().open(TransactionManager(), at=first)
    (stat,) = zconn_stat(past, [a._p_oid])
    # storages that are not files give the newest revision
    assert stat.tid in (first, tid)
    if "file://" in testdb.url:
        assert stat.tid == first
        assert 1000 < stat.size < len(data)
    past.close()


def test_zconn_stat_of_what_an_undo_brought_back(tmp_path):
    root = dbopen(tmp_path / "x.fs")
    root["a"] = a = PersistentMapping({"x": "x" * 1000})
    transaction.commit()
    a["x"] = "y"
    transaction.commit()
    db = root._p_jar.db()
    db.undo(db.undoLog(0, 1)[0]["id"])
    transaction.commit()
    (stat,) = zconn_stat(root._p_jar, [a._p_oid])
    assert stat == (db.lastTransaction(), 8)
    dbclose(root)


def test_zconn_at_within_a_savepoint(testdb):
    root = testdb.open()
    root["x"] = 1
    transaction.commit()
    at = zconn_at(root._p_jar)
    root["x"] = 2
    transaction.savepoint()
    assert zconn_at(root._p_jar) == at


@pytest.mark.only("fs", "fscopy", "zeo", "neo")  # by db.lastTransaction(): see zdb_last()
def test_zconn_at_historical(testdb):
    root = testdb.open()
    db = root._p_jar.db()
    tids = []
    for i in range(3):
        root["x"] = i
        transaction.commit()
        tids.append(db.lastTransaction())
    conn = db.open(transaction.TransactionManager(), at=tids[1])
    assert zconn_at(conn) == tids[1]
    assert conn.root()["x"] == 1
    conn.close()


def test_zconn_at_closed(testdb):
    db = testdb.open()._p_jar.db()
    conn = db.open(transaction.TransactionManager())
    conn.close()
    with pytest.raises(ConnectionStateError, match="closed"):
        zconn_at(conn)


def test_zconn_at_unknown_storage():
    db = DB(MappingStorage())
    with db.transaction() as conn:
        conn._normal_storage = object()
        with pytest.raises(TypeError, match="object"):
            zconn_at(conn)
        conn._normal_storage = conn._storage
    db.close()
