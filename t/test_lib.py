"""Helpers: wendelin.lib."""

import numpy as np
import pytest
import transaction
from BTrees.LOBTree import LOBTree
from persistent import Persistent
from ZODB.utils import u64

from wendelin.lib.calc import mul
from wendelin.lib.mem import bzero, memcpy, memdelta, memset
from wendelin.lib.memlimit import memory_limit, parse_size, ram_limit
from wendelin.lib.utils import inttuple
from wendelin.lib.xnumpy import structured
from wendelin.lib.zodb import LivePersistent, dbclose, dbopen, deactivate_btree, zconn_at

# ---- numbers and memory ----


def test_inttuple():
    assert inttuple(3) == (3,)
    assert inttuple(np.int8(3)) == (3,)
    assert inttuple([2, np.uint64(1 << 63)]) == (2, 1 << 63)
    assert all(type(i) is int for i in inttuple(np.array([1, 2])))
    assert inttuple(()) == ()
    for bad in (1.5, "12", None, [1, 2.0], [[1]]):
        with pytest.raises(TypeError):
            inttuple(bad)


def test_mul_is_exact():
    assert mul([]) == 1
    assert mul([1 << 40, 1 << 40], 3) == 3 << 80


def test_memory_is_filled_copied_and_compared():
    a = np.arange(10, dtype="i4")
    memset(a, 0x11)
    assert (a == 0x11111111).all()
    bzero(a[:5])
    assert a[:5].sum() == 0
    assert a[5] == 0x11111111
    b = bytearray(40)
    memcpy(b, a)
    assert memdelta(a, b) == 0
    b[39] = 5
    assert memdelta(a, b) == 1
    assert memdelta(a, b[:30]) == 10
    with pytest.raises(ValueError, match="40 bytes do not fit into 30"):
        memcpy(bytearray(30), a)
    with pytest.raises(ValueError, match="256"):
        memset(a, 256)


def test_structured():
    a = np.arange(12, dtype="u2").reshape(3, 4)
    dtype = np.dtype([("x", "u2"), ("y", "u2"), ("z", "u4")])
    s = structured(a, dtype)
    assert s.shape == (3,)
    assert s["y"].tolist() == [1, 5, 9]
    s["x"] = 77
    assert a[:, 0].tolist() == [77] * 3
    for bad, what in ((a[:, ::2], "not contiguous"), (a[:, :3], "6 bytes"), (a.T, "bytes")):
        with pytest.raises(ValueError, match=what):
            structured(bad, dtype if what != "not contiguous" else "u4")


# ---- memory limits ----


def cgroup(root, text, **limits):
    """Lay out /proc/self/cgroup and limits; names are paths with `__` for the slash."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(text)
    for name, value in limits.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("memory_", "memory.", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)


def test_memory_limit_is_the_least_of_all_levels(tmp_path):
    machine = memory_limit(str(tmp_path))
    assert machine > 1 << 20
    root = tmp_path / "v2"
    (root / "sys/fs/cgroup/a/b").mkdir(parents=True)
    cgroup(root, "0::/a/b\n")
    assert memory_limit(str(root)) == machine
    (root / "sys/fs/cgroup/a/b/memory.max").write_text("max\n")
    (root / "sys/fs/cgroup/a/memory.max").write_text("1000000\n")
    assert memory_limit(str(root)) == 1000000
    root = tmp_path / "v1"
    cgroup(root, "4:memory:/x\n3:cpu:/y\n")
    (root / "sys/fs/cgroup/memory").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("2000000\n")
    assert memory_limit(str(root)) == 2000000
    (root / "sys/fs/cgroup/memory/x").mkdir()
    (root / "sys/fs/cgroup/memory/x/memory.limit_in_bytes").write_text("900000\n")
    assert memory_limit(str(root)) == 900000


def test_sizes(monkeypatch):
    assert parse_size("1000000") == 1000000
    assert parse_size("512M") == parse_size("512 MiB") == 512 << 20
    assert parse_size("1.5g") == 3 << 29
    assert parse_size("25%") == memory_limit() // 4
    for bad in ("", "0", "-1", "x", "101%", "5Q", "1e9"):
        with pytest.raises(ValueError, match="no size"):
            parse_size(bad)
    monkeypatch.setenv("WENDELIN_CORE_RAM", "3M")
    assert ram_limit() == 3 << 20
    monkeypatch.setenv("WENDELIN_CORE_RAM", "much")
    with pytest.raises(ValueError, match=r"WENDELIN_CORE_RAM: 'much'"):
        ram_limit()
    monkeypatch.delenv("WENDELIN_CORE_RAM")
    assert ram_limit() == memory_limit() // 2


# ---- ZODB ----


class Live(LivePersistent):
    """Has state, and something that lives."""


class Plain(Persistent):
    """Has state."""


def test_a_database_is_opened_by_path_and_by_url(tmp_path):
    path = str(tmp_path / "x.fs")
    for url in (path, tmp_path / "x.fs", f"file://{path}", f"demo:(file://{path})/(memory://)"):
        root = dbopen(url)
        root["n"] = root.get("n", 0) + 1
        transaction.commit()
        dbclose(root)
    root = dbopen(path)
    assert root["n"] == 3
    dbclose(root)
    root = dbopen("memory://test?connection_cache_size=77")
    assert root._p_jar._cache.cache_size == 77
    dbclose(root)


def test_a_wrong_url_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"'foo://x'.*demo, file, memory"):
        dbopen("foo://x")
    with pytest.raises(ValueError, match="memory://x"):
        dbopen("memory://x?wrong=1")
    with pytest.raises(OSError, match="nowhere"):
        dbopen(str(tmp_path / "nowhere" / "x.fs"))


def test_dbclose_refuses_to_lose_changes(testdb):
    from ZODB.POSException import ConnectionStateError

    root = testdb.open()
    root["x"] = 1
    with pytest.raises(ConnectionStateError):
        dbclose(root)


def test_a_live_object_is_never_a_ghost(testdb):
    root = testdb.open()
    conn = root._p_jar
    root["live"] = live = Live()
    root["plain"] = plain = Plain()
    live.x = plain.x = 1
    live._v_alive = "yes"
    transaction.commit()
    conn.cacheMinimize()
    live._p_deactivate()
    assert plain._p_changed is None
    assert live._p_changed is False
    # abort reads the committed state, at once
    live.x = 2
    transaction.abort()
    assert live._p_changed is False
    assert live.__dict__["x"] == 1
    # and so does another client's commit
    tm = transaction.TransactionManager()
    other = conn.db().open(tm)
    other.root()["live"].x = 3
    tm.commit()
    transaction.begin()
    assert live._p_changed is False
    assert live.__dict__["x"] == 3
    assert live._v_alive == "yes"
    # one that was never committed
    root["new"] = new = Live()
    conn.add(new)
    transaction.abort()
    assert new._p_jar is None
    other.close()


def test_deactivate_btree(testdb):
    root = testdb.open()
    conn = root._p_jar
    root["tree"] = tree = LOBTree({i: Plain() for i in range(1000)})
    transaction.commit()
    conn.cacheMinimize()
    assert len(list(tree.keys())) == 1000
    before = len(conn._cache)
    assert before > 20
    changed = LOBTree({1: 2})
    root["tree2"] = changed
    deactivate_btree(tree)
    assert all(o._p_changed is None for _, o in conn._cache.lru_items() if "LO" in str(type(o)))
    tree[5] = 6
    deactivate_btree(tree)
    assert tree[5] == 6
    deactivate_btree(changed)
    assert changed[1] == 2


def test_zconn_at(testdb):
    root = testdb.open()
    conn = root._p_jar
    root["a"] = 1
    transaction.commit()
    at = zconn_at(conn)
    assert at == conn.db().lastTransaction()
    root["a"] = 2
    transaction.commit()
    assert u64(zconn_at(conn)) > u64(at)
    tm = transaction.TransactionManager()
    old = conn.db().open(tm, at=at)
    assert old.root()["a"] == 1
    assert zconn_at(old) == at
    old.close()
