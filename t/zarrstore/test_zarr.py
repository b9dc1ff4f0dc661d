"""ZarrGroup in transactions: zarr, xarray and Dask over it, past states, failures."""

import gc
import os
import pickle
from datetime import UTC, datetime

import numpy as np
import pytest
import transaction
from support import storages
from support.child import run_child
from support.clients import Client
from ZODB.POSException import ConnectionStateError, ReadOnlyError

zarr = pytest.importorskip("zarr")

from support.zarrarrays import DATA, KINDS, make, opened  # noqa: E402
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest  # noqa: E402

from wendelin.bigarray.array_zodb import ZBigArray  # noqa: E402
from wendelin.lib.storage import fsrecord  # noqa: E402
from wendelin.lib.storage.record import ChecksumError, digest_of  # noqa: E402
from wendelin.lib.zodb import dbclose, dbopen, zconn_at  # noqa: E402
from wendelin.zarr import ZarrGroup, ZarrParts, ZarrValue  # noqa: E402
from wendelin.zarr.spool import AREA, LARGE, Spool  # noqa: E402
from wendelin.zarr.writing import PART_SIZE  # noqa: E402

pytestmark = [pytest.mark.database, pytest.mark.formats]


# ---- transactions ----


@pytest.mark.parametrize("kind", KINDS)
def test_commit_and_abort(testdb, root, g, kind):
    a = make(g, kind=kind)
    assert np.array_equal(a[:], DATA)
    transaction.commit()
    assert np.array_equal(a[:], DATA)
    a[3:30, 5] = -1
    assert (a[3:30, 5] == -1).all()
    transaction.abort()
    assert np.array_equal(a[:], DATA)
    a[3:30, 5] = -2
    transaction.commit()
    testdb.close(root)
    b = opened(testdb.open()["g"], read_only=True)
    changed = DATA.copy()
    changed[3:30, 5] = -2
    assert np.array_equal(b[:], changed)
    assert np.array_equal(b[17, 3:11], changed[17, 3:11])


def test_group_that_is_new(testdb, root):
    # before a commit the group does not belong to a Connection
    root["n"] = g = ZarrGroup()
    group = zarr.open_group(g.store())
    group.create_array("a", data=DATA, chunks=(10, 10))
    group.attrs["unit"] = "m"
    assert np.array_equal(group["a"][:], DATA)
    transaction.savepoint()
    group["a"][0] = 7
    transaction.commit()
    group["a"][1] = 8
    transaction.commit()
    assert (group["a"][0] == 7).all()
    testdb.close(root)
    group = zarr.open_group(testdb.open()["n"].store(read_only=True), mode="r")
    assert group.attrs["unit"] == "m"
    assert (group["a"][0] == 7).all()
    assert (group["a"][1] == 8).all()
    assert np.array_equal(group["a"][2:], DATA[2:])


@pytest.mark.parametrize("point", [False, True])
def test_new_group_of_an_aborted_transaction(testdb, root, point):
    root["n"] = g = ZarrGroup()
    make(g)
    if point:
        transaction.savepoint()
    transaction.abort()
    assert "n" not in root
    root["n"] = g
    transaction.commit()
    testdb.close(root)
    assert np.array_equal(opened(testdb.open()["n"])[:], DATA)


def test_one_transaction_with_all_else(root, g):
    root["A"] = A = ZBigArray((4096,), "u1", blksize=4096)
    transaction.commit()
    a = make(g)
    A[:] = 1
    root["x"] = 1
    transaction.abort()
    assert not A[:].any()
    assert g.store().get_sync("a/zarr.json") is None
    a = make(g)
    A[:] = 1
    with pytest.raises(ZeroDivisionError), transaction.manager:
        a[:] = 0
        A[:] = 2
        raise ZeroDivisionError
    assert "a/zarr.json" not in g.table


def test_savepoints(root, g):
    a = make(g)
    transaction.commit()
    a[0] = 1
    point = transaction.savepoint()
    a[0] = 2
    a[59] = 2
    b = make(g, "b")
    inner = transaction.savepoint()
    a[0] = 3
    inner.rollback()
    assert (a[0] == 2).all()
    assert np.array_equal(b[:], DATA)
    point.rollback()
    assert (a[0] == 1).all()
    assert np.array_equal(a[59], DATA[59])
    assert not [key for key in g.live_table().listed("") if key.startswith("b")]
    transaction.commit()
    assert (opened(g)[0] == 1).all()


def test_deleted(testdb, root, g):
    make(g)
    make(g, "b")
    transaction.commit()
    group = zarr.open_group(g.store())
    del group["a"]
    assert list(group) == ["b"]
    transaction.abort()
    assert sorted(group) == ["a", "b"]
    del group["a"]
    transaction.commit()
    assert list(group) == ["b"]
    assert not [key for key in g.table if key.startswith("a/")]
    transaction.begin()
    assert np.array_equal(group["b"][:], DATA)


def test_shrink_and_grow_reads_fill(g):
    a = make(g)
    transaction.commit()
    a.resize((10, 40))
    transaction.commit()
    a.resize((60, 40))
    transaction.commit()
    assert np.array_equal(a[:10], DATA[:10])
    assert not a[10:].any()


@pytest.mark.only("fs")
def test_equal_values_are_not_stored_again(root, g):
    a = make(g, "s", "sharded", np.zeros((60, 40), "i4") + 5)
    z = make(g, "z")
    transaction.commit()
    before = {key: value._p_oid for key, value in g.table.items()}
    a[:] = 5
    z[:] = DATA
    transaction.commit()
    assert {key: value._p_oid for key, value in g.table.items()} == before


@pytest.mark.only("fs")
@pytest.mark.slow
def test_no_descriptor_is_left_behind(root, g):
    before = 0
    for i in range(3):
        a = make(g, f"a{i}", "raw", np.zeros((200, 400)))
        transaction.commit()
        assert not a[:].any()
        a[:] = 1
        transaction.abort()
        assert not a[:].any()
        g.store(at=zconn_at(g._p_jar)).get_sync("zarr.json")
        del a
        gc.collect()
        now = len(os.listdir("/proc/self/fd"))
        assert not before or now <= before
        before = now


def test_attributes_of_the_group(testdb, root, g):
    g.title = "t"
    transaction.commit()
    make(g)
    transaction.commit()
    testdb.close(root)
    g = testdb.open()["g"]
    assert g.title == "t"
    assert np.array_equal(opened(g)[:], DATA)


# ---- what is read ----


def test_byte_ranges(g):
    s = g.store()
    data = bytes(range(256)) * 40
    for key, size in ("short", 10), ("long", len(data)):
        s.set_sync(key, zarr.core.buffer.cpu.Buffer.from_bytes(data[:size]))
    for commit in False, True:
        if commit:
            transaction.commit()
        for key, size in ("short", 10), ("long", len(data)):
            whole = data[:size]
            for r, part in [
                (RangeByteRequest(2, 7), whole[2:7]),
                (RangeByteRequest(5, 1 << 20), whole[5:]),
                (RangeByteRequest(1 << 20, 1 << 21), b""),
                (OffsetByteRequest(4), whole[4:]),
                (SuffixByteRequest(3), whole[-3:]),
                (SuffixByteRequest(0), b""),
                (SuffixByteRequest(1 << 20), whole),
            ]:
                assert s.get_sync(key, byte_range=r).to_bytes() == part, (key, r)


def test_a_range_of_a_shard_loads_its_parts_only(root, g, monkeypatch):
    data = np.random.default_rng(1).integers(0, 1 << 30, (1000, 2000), "i4")
    zarr.create_array(
        g.store(), name="a", data=data, chunks=(100, 200), shards=data.shape, compressors=None
    )
    transaction.commit()
    value = g.table["a/c/0/0"]
    assert isinstance(value, ZarrParts)
    assert len(value.values) == -(-value.size // PART_SIZE) == 8
    read = []
    table = g.live_table()
    monkeypatch.setattr(table.values, "read", spied(table.values.read, read))
    monkeypatch.setattr(table.values, "read_now", spied(table.values.read_now, read))
    a = opened(g)
    assert np.array_equal(a[500:600, 200:400], data[500:600, 200:400])
    parts = {value._p_oid for value in value.values}
    asked = parts.intersection(read)
    assert 1 <= len(asked) <= 3, asked  # the index at the end; a chunk in one or two parts
    assert np.array_equal(a[:], data)


def spied(act, seen):
    def run(first, *args):
        wanted = first if isinstance(first, list) else [(first, None)]
        seen.extend(ref.oid for ref, _ in wanted)
        return act(first, *args)

    return run


@pytest.mark.only("fs")
def test_a_shard_that_changed_stores_the_parts_that_did(root, g):
    data = np.random.default_rng(1).integers(0, 1 << 30, (1000, 2000), "i4")
    a = zarr.create_array(
        g.store(), name="a", data=data, chunks=(100, 200), shards=data.shape, compressors=None
    )
    transaction.commit()
    before = {value._p_oid for value in g.table["a/c/0/0"].values}
    a[0:100, 0:200] = 3
    transaction.commit()
    data[0:100, 0:200] = 3
    assert len({v._p_oid for v in g.table["a/c/0/0"].values} - before) in (1, 2, 3)
    assert np.array_equal(opened(g)[:], data)


def test_large_values_are_mapped(root, g):
    storage = g._p_jar.db().storage
    data = np.random.default_rng(2).random((200, 200))
    zarr.create_array(g.store(), name="a", data=data, chunks=(200, 200), compressors=None)
    transaction.commit()
    store = g.store()
    value = store.get_sync("a/c/0/0").as_numpy_array()
    assert np.array_equal(value.view("f8").reshape(data.shape), data)
    assert not value.flags.writeable
    if getattr(storage, "align", False):
        again = store.get_sync("a/c/0/0").as_numpy_array()
        assert np.shares_memory(value, again)


@pytest.mark.only("fs")
def test_values_that_are_in_memory_are_compared_where_they_are_asked_for(root, g, monkeypatch):
    data = np.random.default_rng(2).random((400, 200))
    zarr.create_array(g.store(), name="a", data=data, chunks=(200, 200), compressors=None)
    transaction.commit()
    a = opened(g)
    table = g.live_table()
    table.keys.find(table._root, ["a/c/0/0", "a/c/1/0"])
    asked = []
    monkeypatch.setattr(table.values, "read", spied(table.values.read, asked))
    assert np.array_equal(a[:], data)
    assert not asked  # by other threads


@pytest.mark.only("fs")
def test_checksums_are_compared_one_within_another(root, g, monkeypatch):
    """As by a handler of a signal, which interrupts one and touches an array."""
    data = np.random.default_rng(2).integers(0, 255, (2, 600_000), "u1")
    zarr.create_array(g.store(), name="a", data=data, chunks=(1, 600_000), compressors=None)
    transaction.commit()
    table = g.live_table()
    refs = table.keys.find(table._root, ["a/c/0/0", "a/c/1/0"]).values()
    one, other = map(table.values.place, refs)

    def interrupted(pieces):
        for i, piece in enumerate(pieces):
            if i == 0:
                monkeypatch.undo()
                other.check()
            yield piece

    monkeypatch.setattr(fsrecord, "digest_of", lambda pieces: digest_of(interrupted(pieces)))
    one.check()
    assert one.matches()
    assert other.matches()


def test_values_that_wait_are_copies():
    spool = Spool()
    rng = np.random.default_rng(5)
    kept = []
    for size in 0, 10, LARGE - 1, LARGE, LARGE + 7, AREA // 2, AREA // 2 + 1, AREA + 1, LARGE:
        given = rng.integers(0, 255, size, "u1")
        kept.append((spool.keep(memoryview(given)), given.copy()))
        given[:] = 0
    for found, expected in kept:
        assert found.readonly or not found
        assert np.array_equal(np.frombuffer(found, "u1"), expected)


@pytest.mark.only("fs", "fscopy")
def test_damaged_value(testdb, root, g):
    storage = g._p_jar.db().storage
    for name, size in ("small", 1000), ("large", 300_000):
        data = np.random.default_rng(3).integers(0, 255, size, "u1")
        zarr.create_array(g.store(), name=name, data=data, chunks=(size,), compressors=None)
        transaction.commit()
        with open(storage.getName(), "r+b") as file:
            at = file.read().rfind(data.tobytes())
            file.seek(at + 5)
            file.write(bytes([data[5] ^ 1]))
        root._p_jar.cacheMinimize()
        with pytest.raises(ChecksumError, match=f"{name}/c/0"):
            opened(g, name)[:]


def test_closed(testdb, root, g):
    a = make(g)
    transaction.commit()
    testdb.close(root)
    with pytest.raises(ConnectionStateError, match="open the database again"):
        a[:]
    with pytest.raises(ConnectionStateError):
        a[:] = 1


def test_read_only(testdb, root, g):
    make(g)
    transaction.commit()
    a = opened(g, read_only=True)
    with pytest.raises(ValueError, match="read-only"):
        a[:] = 1
    if storages.kind() is storages.FileStorageDatabase:
        testdb.close(root)

        root = dbopen(testdb.url, read_only=True)
        a = opened(root["g"])
        assert np.array_equal(a[:], DATA)
        with pytest.raises(ReadOnlyError):
            a[:] = 1
        dbclose(root)


# ---- past states ----


def test_past(root, g):
    a = make(g)
    transaction.commit()
    tid = zconn_at(g._p_jar)
    a[:] = 1
    a.resize((70, 40))
    transaction.commit()
    transaction.begin()
    store = g.store(at=tid)
    assert store.read_only
    past = zarr.open_array(store, path="a", mode="r")
    assert np.array_equal(past[:], DATA)
    a[:] = 2
    transaction.commit()
    assert np.array_equal(past[:], DATA)
    with pytest.raises(ValueError, match="past"):
        store.with_read_only(False)
    with pytest.raises(ValueError):
        past[:] = 1
    with pytest.raises(ValueError, match="no ZarrGroup"):
        g.store(at=datetime(2001, 1, 1, tzinfo=UTC))


def test_store_of_something_else(g):
    with pytest.raises(ValueError, match="not in a database"):
        ZarrGroup().store(at=b"\0" * 8)
    from wendelin.zarr import ZODBStore

    with pytest.raises(TypeError, match="not of a dict"):
        ZODBStore({})


def test_pickles(testdb, root, g):
    a = make(g)
    with pytest.raises(pickle.PicklingError, match="Commit first"):
        pickle.dumps(g.store())
    transaction.commit()
    data = pickle.dumps(a)
    a[:] = 1
    transaction.commit()
    code = """
        import pickle, sys
        a = pickle.loads(bytes.fromhex(sys.argv[1]))
        print(int(a[:].sum()))
        try:
            a[:] = 3
        except ValueError as e:
            print(e)
    """
    done = run_child(code, data.hex())
    assert done.returncode == 0, done.stderr
    total, why = done.stdout.splitlines()
    assert int(total) == DATA.sum()
    assert "came from another process" in why


# ---- libraries ----


def test_xarray(root, g, client):
    xr = pytest.importorskip("xarray")
    times = np.arange(6)
    ds = xr.Dataset(
        {"t2m": (("time", "x"), DATA[:6].astype("f4"))},
        coords={"time": times, "x": np.arange(40)},
    )
    ds.to_zarr(g.store(), consolidated=False)
    transaction.commit()
    tid = zconn_at(g._p_jar)
    more = ds.assign_coords(time=times + 6)
    more.to_zarr(g.store(), append_dim="time", consolidated=False)
    assert client["g"].store().get_sync("zarr.json") is None
    client.tm.begin()
    assert xr.open_zarr(client["g"].store(), consolidated=False).sizes["time"] == 6
    transaction.commit()
    client.tm.begin()
    found = xr.open_zarr(client["g"].store(), consolidated=False)
    assert found.sizes["time"] == 12
    assert np.array_equal(found.t2m.values[6:], ds.t2m.values)
    past = xr.open_zarr(g.store(at=tid), consolidated=False)
    xr.testing.assert_equal(past.load(), ds)
    more.isel(time=slice(0, 2)).drop_vars("x").to_zarr(
        g.store(), region={"time": slice(2, 4)}, consolidated=False
    )
    transaction.abort()
    xr.testing.assert_equal(
        xr.open_zarr(g.store(), consolidated=False).isel(time=slice(0, 6)).load(), ds
    )


def test_dask(root, g):
    da = pytest.importorskip("dask.array")
    data = da.from_array(DATA, chunks=(20, 20))
    a = zarr.create_array(g.store(), name="a", shape=DATA.shape, chunks=(10, 10), dtype="i4")
    da.to_zarr(data + 1, a)
    transaction.commit()
    assert np.array_equal(da.from_zarr(opened(g, read_only=True)).compute(), DATA + 1)


def test_consolidated(g):
    group = zarr.open_group(g.store(), zarr_format=2)
    group.create_array("a", data=DATA, chunks=(10, 10))
    zarr.consolidate_metadata(g.store(), zarr_format=2)
    transaction.commit()
    found = zarr.open_consolidated(g.store(), mode="r", zarr_format=2)
    assert np.array_equal(found["a"][:], DATA)


def test_without_zarr():
    code = """
        import sys
        sys.modules["zarr"] = None
        from wendelin.zarr import ZarrGroup
        try:
            ZarrGroup().store()
        except ImportError as e:
            print(e)
    """
    done = run_child(code)
    assert "pip install 'wendelin.core[zarr]'" in done.stdout, done.stderr


# ---- many values ----


def test_more_than_memory_may_take(g, set_page_memory):
    set_page_memory(1)
    a = make(g, kind="raw")
    assert np.array_equal(a[:], DATA)
    transaction.commit()
    assert np.array_equal(a[:], DATA)


def test_many_keys(testdb, root, g):
    rng = np.random.default_rng(4)
    names = {"/".join(rng.choice(list("abé"), rng.integers(1, 5))) for _ in range(300)}
    store = g.store()
    model = {}
    for n, name in enumerate(sorted(names, key=hash)):
        store.set_sync(name, zarr.core.buffer.cpu.Buffer.from_bytes(b"%d" % n))
        model[name] = b"%d" % n
        if n % 7 == 0:
            transaction.commit()
        if n % 5 == 0:
            gone = sorted(model)[int(rng.integers(len(model)))]
            store.delete_sync(gone)
            del model[gone]
    table = g.live_table()
    for commit in False, True:
        if commit:
            transaction.commit()
            testdb.close(root)
            root = testdb.open()
            table = root["g"].live_table()
        assert table.listed("") == sorted(model)
        assert [bytes(v) for v in table.read([(k, None) for k in sorted(model)])] == [
            model[k] for k in sorted(model)
        ]
        for folder in "", "a/", "a/b/", "é/", "nothing/":
            inside = [k[len(folder) :] for k in model if k.startswith(folder)]
            assert table.names(folder) == sorted({k.partition("/")[0] for k in inside}), folder


def test_objects_of_the_database(g):
    make(g)
    transaction.commit()
    assert {type(value) for value in g.table.values()} == {ZarrValue}
    assert ZarrValue.__module__ == ZarrGroup.__module__ == ZarrParts.__module__ == "wendelin.zarr"


# ---- other storages ----


@pytest.mark.only("fs", "fscopy", "zeo")
def test_pack(root, g):
    a = make(g)
    s = make(g, "s", "sharded")
    transaction.commit()
    for n in range(3):
        a[:], s[:] = n, n
        transaction.commit()
    before = a[:]
    g._p_jar.db().pack()
    assert np.array_equal(a[:], before)  # of the previous file
    transaction.begin()
    assert (a[:] == 2).all()
    assert (s[:] == 2).all()
    a[0] = 5
    transaction.commit()
    assert (opened(g)[0] == 5).all()


@pytest.mark.only("fs")
@pytest.mark.parametrize("url", ["memory://", "sqlite://localhost/?data_dir={}/db"])
def test_other_storages(tmp_path, url):
    if url.startswith("sqlite"):
        pytest.importorskip("relstorage")
    root = dbopen(url.format(tmp_path))
    root["g"] = ZarrGroup()
    group = zarr.open_group(root["g"].store())
    for kind, spec in KINDS.items():
        if kind != "v2":
            group.create_array(kind, shape=DATA.shape, dtype="i4", **spec)[:] = DATA
    transaction.commit()
    client = Client(root)
    for kind in group:
        assert np.array_equal(group[kind][:], DATA)
        assert np.array_equal(opened(client["g"], kind)[3:50, 7], DATA[3:50, 7])
        group[kind][5] = 1
        transaction.commit()
        client.tm.begin()
        assert (opened(client["g"], kind)[5] == 1).all()
    client.close()
    dbclose(root)
