"""The cache of blocks of a machine: every reader sees what the database has, whatever the cache is.

Processes are real ones, and share a folder. See wendelin.bigfile.zodb.cached.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import transaction
from support import storages
from support.child import check_child, start_child
from support.clients import Client
from support.smalldisk import NoDisk, small_disk

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.virtmem.stats import stats_of
from wendelin.bigfile.zodb import cached
from wendelin.bigfile.zodb.handle import handles_of
from wendelin.lib.storage import blockcache
from wendelin.lib.zodb import dbclose, dbopen, zconn_at

BLK = 1 << 17  # [bytes]: more chunks of ZBlk1 than are mapped in pieces
N = 6

READER = """
    import json, os, sys
    import numpy as np
    from wendelin.bigfile import stats
    from wendelin.lib.zodb import dbclose, dbopen

    root = dbopen(sys.argv[1], read_only=True)
    A = root["A"]
    before = len(os.listdir("/proc/self/fd"))
    data = A[:].copy()
    handle = stats().handles[-1]
    print(json.dumps({
        "sum": data.astype("u8").dot(np.arange(len(data), dtype="u8")).item(),
        "hits": handle.hits, "misses": handle.misses, "mapped": handle.mapped,
        "resident": handle.resident, "fds": len(os.listdir("/proc/self/fd")) - before,
    }))
    dbclose(root)
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Threads of this process keep what they load, though the disk may be slow."""
    monkeypatch.setattr(blockcache, "LOCK_WAIT", 5)


def values(seed=0, n=N):
    return np.random.default_rng(seed).integers(1, 255, n * BLK, "u1")


def sum_of(data):
    return data.astype("u8").dot(np.arange(len(data), dtype="u8")).item()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the folder of a cache, which is on."""
    path = tmp_path / "cache"
    monkeypatch.setenv("WENDELIN_CORE_CACHE", f"{path}:100M")
    return path


def create(root, fmt, data):
    root["A"] = A = ZBigArray(data.shape, "u1", blksize=BLK, zblk_fmt=fmt)
    transaction.commit()
    A[:] = data
    transaction.commit()
    data[1::BLK] = A[1::BLK] = 7  # a small change in each block: "auto" stores chunks
    transaction.commit()
    return A


def read(url, folder):
    return json.loads(check_child(READER, url, WENDELIN_CORE_CACHE=f"{folder}:100M"))


def blocks(folder):
    """Return the files of blocks."""
    return [p for p in folder.glob("*/*-*") if re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{16}", p.name)]


def in_place(fmt):
    """Say whether blocks are mapped where they are, so that the cache gets none of them."""
    return storages.kind() is storages.FileStorageDatabase and fmt != "ZBlk1"


@contextmanager
def opened(url):
    """Open a database as another process would: no page and no object is known."""
    root = dbopen(url, read_only=True)
    try:
        yield root
    finally:
        dbclose(root)


def counts(A):
    """Return (hits, misses) of an array's file."""
    (handle,) = handles_of(A.zfile)
    found = stats_of(handle)
    return found.hits, found.misses


# ---- one copy a machine ----


def test_the_second_reader_loads_nothing(testdb, fmt, folder, call):
    data = values()
    create(testdb.open(), fmt, data)
    call("cache", "--empty")  # the writer has read as well
    with opened(testdb.url) as reader:
        np.testing.assert_array_equal(reader["A"][:], data)
        if in_place(fmt):
            assert counts(reader["A"]) == (0, 0)
            return
        assert counts(reader["A"]) == (0, N)
    second = read(testdb.url, folder)
    assert second["sum"] == sum_of(data)
    assert (second["hits"], second["misses"]) == (N, 0)
    # it has no copy in page memory, nor a descriptor for each block
    assert (second["mapped"], second["resident"]) == (len(data), 0)
    assert second["fds"] < N
    assert len(blocks(folder)) == N
    assert {p.stat().st_mode & 0o777 for p in folder.glob("*/*")} == {0o600}
    assert {p.stat().st_mode & 0o777 for p in (folder, *folder.glob("*/"))} <= {0o700, 0o600}


HOLDER = """
    import os, sys, time
    from wendelin.lib.zodb import dbopen
    A = dbopen(sys.argv[1], read_only=True)["A"]
    view = A[:]
    view.sum()
    print("ready", flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    pss, ours = 0, False
    for line in open("/proc/self/smaps"):
        first = line.split()[0]
        if not first.endswith(":"):
            ours = sys.argv[3] in line
        elif first == "Pss:" and ours:
            pss += int(line.split()[1]) << 10
    print(pss, flush=True)
    while os.path.exists(sys.argv[2]):
        time.sleep(0.01)
"""


@pytest.mark.once
def test_four_processes_hold_one_copy(testdb, tmp_path):
    data = values(n=32)
    create(testdb.open(), "ZBlk1", data)
    go = tmp_path / "go"
    # all of its path: RelStorage has compiled modules in a folder of this name
    folder = f"{tmp_path}/cache"
    env = {"WENDELIN_CORE_CACHE": f"{folder}:100M"}
    args = testdb.url, str(go), f"{folder}/"
    children = [start_child(HOLDER, *args, stdout=subprocess.PIPE, **env) for _ in range(4)]
    try:
        assert [child.stdout.readline() for child in children] == ["ready\n"] * 4
        go.touch()
        held = [int(child.stdout.readline()) for child in children]
        go.unlink()
    finally:
        for child in children:
            child.kill() if go.exists() else None
            child.communicate(timeout=60)
    assert abs(sum(held) - len(data)) <= len(data) // 50, held


def test_revisions_of_a_window_are_one_request(testdb, folder, monkeypatch):
    data = values()
    create(testdb.open(), "ZBlk1", data)
    with opened(testdb.url) as reader:
        A = reader["A"]
        assert A[0] == data[0]
        oids = {blk: zblk._p_oid for blk, zblk in A.zfile.blktab.items()}
        asked = []
        ask = cached.zconn_revisions
        monkeypatch.setattr(
            cached, "zconn_revisions", lambda conn, oids: asked.append(oids) or ask(conn, oids)
        )
        A._fileh().file.find(1, N)  # as a thread that loads ahead does
        assert [set(some) for some in asked] == [{oids[blk] for blk in range(1, N)}]
        np.testing.assert_array_equal(A[:], data)
        assert not any(oids[blk] in some for some in asked[1:] for blk in range(1, N))


def test_a_past_state(testdb, fmt, folder):
    root = testdb.open()
    old = values()
    A = create(root, fmt, old)
    at = zconn_at(root._p_jar)
    A[:] = new = values(1)
    transaction.commit()
    for i in range(2):
        with opened(testdb.url) as now:
            past = now._p_jar.db().open(at=at)
            np.testing.assert_array_equal(past.root()["A"][:], old)
            if not in_place(fmt):
                assert counts(past.root()["A"]) == ((0, N) if i == 0 else (N, 0))
            past.close()
    np.testing.assert_array_equal(A[:], new)


def test_a_change_is_not_a_change_of_the_cache(testdb, fmt, folder):
    root = testdb.open()
    data = values()
    create(root, fmt, data)
    client, other = Client(root), Client(root)
    np.testing.assert_array_equal(client["A"][:], data)
    before = {p: p.read_bytes() for p in blocks(folder)}
    view, shown = client["A"][:], other["A"][:]
    view[5] = 1
    view[BLK + 5] = data[BLK + 5]
    assert shown[5] == data[5]
    client.tm.commit()
    data[5] = 1
    assert {p: p.read_bytes() for p in before} == before
    for reader in client, other:
        reader.tm.begin()
        np.testing.assert_array_equal(reader["A"][:], data)
        reader.close()


# ---- blocks that are removed ----


@pytest.mark.parametrize("when", ["mapped", "known", "written"])
def test_a_block_is_removed(testdb, fmt, folder, when, on_touch):
    data = values()
    create(testdb.open(), fmt, data)
    read(testdb.url, folder)
    with open_again(testdb) as root:
        A = root["A"]
        view = A[:]
        assert view[0] == data[0]  # from here on, the places of all are known
        if when != "known":
            np.testing.assert_array_equal(view, data)
        for path in blocks(folder):
            path.unlink()
        if when == "written":
            view[3::BLK] = 9
            data[3::BLK] = 9
        np.testing.assert_array_equal(view, data)
        np.testing.assert_array_equal(A[:], data)
        transaction.commit()
        np.testing.assert_array_equal(A[:], data)


def test_the_folder_of_a_database_is_removed(testdb, folder):
    """Another process has found no block there for a while."""
    data = values()
    create(testdb.open(), "ZBlk1", data)
    with opened(testdb.url) as reader:
        assert reader["A"][0] == data[0]
        shutil.rmtree(blocks(folder)[0].parent)
        np.testing.assert_array_equal(reader["A"][:], data)
    assert len(blocks(folder)) >= N - 1


@contextmanager
def open_again(testdb):
    """Open a database anew, to write."""
    while testdb.roots:
        testdb.close(testdb.roots[0])
    yield testdb.open()


def test_the_limit_is_kept(testdb, fmt, tmp_path, monkeypatch):
    data = values(n=12)
    create(testdb.open(), fmt, data)
    folder, limit = tmp_path / "small", 4 * BLK
    monkeypatch.setenv("WENDELIN_CORE_CACHE", f"{folder}:{limit}")
    for _ in range(2):
        with opened(testdb.url) as reader:
            np.testing.assert_array_equal(reader["A"][:], data)
            assert sum(p.stat().st_size for p in blocks(folder)) <= limit
    if not in_place(fmt):
        assert len(blocks(folder)) >= 2


# ---- damage ----


@pytest.fixture
def boot(monkeypatch):
    """Return a function after which the machine has booted again, as this process sees it."""

    def again():
        monkeypatch.setattr(blockcache, "_folders", {})
        monkeypatch.setattr(blockcache, "_boot", lambda: os.urandom(16))

    return again


@pytest.mark.parametrize("damage", ["block", "zeros", "end", "cut", "empty"])
def test_damage_by_a_crash_of_the_machine(testdb, folder, boot, damage):
    data = values()
    data[-100:] = 0
    create(testdb.open(), "ZBlk1", data)
    with opened(testdb.url) as reader:
        np.testing.assert_array_equal(reader["A"][:], data)
    paths = blocks(folder)
    assert len(paths) == N
    for path in paths[1:]:
        with path.open("r+b") as f:
            size = path.stat().st_size
            at = {"block": 77, "zeros": BLK - 1, "end": size - 60, "cut": size - 8, "empty": 0}
            if damage in ("cut", "empty"):
                f.truncate(at[damage])
            else:
                f.seek(at[damage])
                f.write(b"\xff")
    # the good one is used, the others are loaded again
    for expected in (1, N - 1), (N, 0):
        boot()
        with opened(testdb.url) as reader:
            np.testing.assert_array_equal(reader["A"][:], data)
            assert counts(reader["A"]) == expected


def test_each_block_is_compared_if_that_is_wanted(testdb, folder, monkeypatch, call):
    monkeypatch.setenv("WENDELIN_CORE_VERIFY", "1")
    data = values()
    create(testdb.open(), "ZBlk1", data)
    with opened(testdb.url) as reader:
        np.testing.assert_array_equal(reader["A"][:], data)
    first, second = sorted(blocks(folder))[:2]
    for path in first, second:
        with path.open("r+b") as f:
            f.write(b"\0\0")
    second.rename(aside := folder / "aside")
    with opened(testdb.url) as reader:
        np.testing.assert_array_equal(reader["A"][:], data)
        assert counts(reader["A"]) == (N - 2, 2)
    # and by the command
    aside.rename(second)
    found = call("cache", "--verify", code=1)
    assert f"{N} blocks, 1 damaged" in found.stdout
    assert "1 damaged blocks were thrown away" in found.stderr
    assert f"{N - 1} blocks, 0 damaged" in call("cache", "--verify").stdout


def test_the_command(testdb, folder, call, monkeypatch):
    create(testdb.open(), "ZBlk1", values())
    with opened(testdb.url) as reader:
        assert reader["A"][:].any()
    found = call("cache", "--json").json
    assert found["folder"] == str(folder)
    assert found["limit"] == 100 << 20
    (database,) = found["databases"]
    assert database["blocks"] == N
    assert N * BLK < found["size"] == database["size"] < 2 * N * BLK
    assert f"{N} " in call("cache").stdout
    assert "removed" in call("cache", "--empty", str(folder)).stdout
    assert not blocks(folder)
    monkeypatch.setenv("WENDELIN_CORE_CACHE", "off")
    assert "the cache is off" in call("cache", code=1).stderr
    assert "no such folder" in call("cache", "/nowhere", code=1).stderr


@pytest.mark.formats
@pytest.mark.parametrize("taken", ["the folder", "its database", "state"])
def test_permissions_that_are_taken_away(taken):
    """Nothing is kept, a warning says so once, and what is there is still used."""
    with tempfile.TemporaryDirectory() as path:  # another user may look into it, unlike tmp_path
        os.chmod(path, 0o755)
        os.mkdir(cache := f"{path}/cache", 0o700)
        child = start_child(PERMISSIONS, cache, taken, stderr=subprocess.PIPE)
        _, said = child.communicate(timeout=60)
        assert child.returncode == 0, said
        assert said.count("Permission denied") == 1


PERMISSIONS = """
    import encodings.ascii, os, sys
    from ZODB.utils import p64
    from wendelin.lib.storage.blockcache import Folder, Lineage

    if os.geteuid() == 0:  # which may do anything
        os.chown(sys.argv[1], 65534, 65534)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    root = {"where": "x", "name": "x", "root_tid": p64(1), "root": b"r", "last": p64(9)}
    lineage = Lineage(**root, root_at=lambda tid: (b"r", tid))
    folder = Folder(sys.argv[1], 1 << 30)
    database = folder.database(lineage, lambda _: True)
    assert database.store(p64(1), p64(1), b"x" * 65536, 65536)
    path, mode = {
        "the folder": ("", 0o500), "its database": (folder.databases()[0], 0o500),
        "state": ("state", 0),
    }[sys.argv[2]]
    if sys.argv[2] == "the folder":
        os.unlink(f"{sys.argv[1]}/state")
    os.chmod(f"{sys.argv[1]}/{path}", mode)
    fds = len(os.listdir("/proc/self/fd"))
    for i in range(2, 5):
        assert database.store(p64(i), p64(1), b"x" * 65536, 65536) is None
        assert database.find(p64(1), p64(1), 65536) is not None
    assert len(os.listdir("/proc/self/fd")) == fds
"""


# ---- other databases ----


def frozen(monkeypatch):
    """Let transactions have the same tids in each database that is made from now on."""
    clock = SimpleNamespace(time=lambda: 1.6e9, gmtime=time.gmtime)
    monkeypatch.setattr("ZODB.BaseStorage.time", clock)


@pytest.mark.only("fs")
@pytest.mark.parametrize("replaced", ["by another one", "by a copy that went its own way"])
def test_a_database_with_the_same_oids_and_tids(path, folder, fmt, replaced, monkeypatch):
    url = f"file://{path}?align=false"
    frozen(monkeypatch)
    tids = []
    for run in range(2):
        if run == 0 or replaced == "by another one":
            for name in Path(path).parent.glob("x.fs*"):
                name.unlink()
            root = dbopen(url)
            create(root, fmt, values(run))
            dbclose(root)
            shutil.copy(path, Path(path).with_name("copy"))
        else:
            shutil.copy(Path(path).with_name("copy"), path)
        root = dbopen(url)
        root["A"][:] = data = values(10 + run)
        transaction.commit()
        tids.append(zconn_at(root._p_jar))
        dbclose(root)
        with opened(url) as reader:
            np.testing.assert_array_equal(reader["A"][:], data)
            assert counts(reader["A"]) == (0, N)
    assert tids[0] == tids[1]  # else this tests nothing
    assert len(list(folder.glob("*/about"))) == 2


@pytest.mark.only("fs", "zeo")
def test_a_reader_that_begun_before_a_commit_finds_what_others_keep(testdb, folder):
    root = testdb.open()
    create(root, "ZBlk1", values())
    writer = Client(root)
    with opened(testdb.url) as early:
        writer["A"][:] = data = values(1)
        writer.tm.commit()
        assert read(testdb.url, folder)["sum"] == sum_of(data)
        early["A"][:]
    writer.close()
    assert len(list(folder.glob("*/about"))) == 1


# ---- folders that are refused ----


@pytest.mark.formats
def test_a_folder_that_others_may_see(tmp_path, path, monkeypatch):
    root = dbopen(path)
    A = root["A"] = ZBigArray((BLK,), "u1", blksize=BLK)
    transaction.commit()

    def refused(value, error, text):
        monkeypatch.setenv("WENDELIN_CORE_CACHE", value)
        with pytest.raises(error, match=text):
            A[:]

    open_one = tmp_path / "open"
    open_one.mkdir(mode=0o755)
    refused(str(open_one), PermissionError, r"other users may look into .*open, .*mode 755.*chmod")
    if os.geteuid() == 0:
        theirs = tmp_path / "theirs"
        theirs.mkdir(mode=0o700)
        os.chown(theirs, 4711, 4711)
        refused(str(theirs), PermissionError, "belongs to user 4711, and not to 0")
    (tmp_path / "link").symlink_to(tmp_path)
    refused(str(tmp_path / "link"), NotADirectoryError, "is not a folder")
    refused("here", ValueError, "'here': it must be off, or DIR or DIR:SIZE with an absolute path")
    refused("/x:much", ValueError, "'/x:much': 'much' is not a size")
    monkeypatch.setenv("WENDELIN_CORE_CACHE", "off")
    assert not A[:].any()
    dbclose(root)


def test_a_full_disk(testdb, tmp_path, monkeypatch, caplog):
    data = values()
    create(testdb.open(), "ZBlk1", data)
    try:
        with small_disk(tmp_path / "disk", 3 * BLK) as disk:
            monkeypatch.setenv("WENDELIN_CORE_CACHE", f"{disk}/cache:100M")
            for _ in range(2):
                with opened(testdb.url) as reader:
                    np.testing.assert_array_equal(reader["A"][:], data)
            said = [r.getMessage() for r in caplog.records if r.name == "wendelin.cache"]
            assert len(said) == 1
            assert "the disk is full" in said[0]
            assert not list(Path(disk).glob("cache/*/~*"))
    except NoDisk as e:
        pytest.skip(str(e))


# ---- all at once ----

CHECKER = """
    import sys, time
    import numpy as np, transaction
    from wendelin.lib.zodb import dbopen

    root = dbopen(sys.argv[1], read_only=True)
    A, until = root["A"], time.monotonic() + float(sys.argv[2])
    blk, n = A.zfile.blksize, 0
    rng = np.random.default_rng(int(sys.argv[3]))
    while time.monotonic() < until:
        transaction.begin()
        # all blocks of a state are of the version that their first 8 bytes say, and of a sum
        view = A[:] if rng.random() < 0.5 else A[rng.integers(0, 3) * blk :]
        for i in range(0, len(view), blk):
            head = view[i : i + 8].view("u8")[0]
            block = view[i + 8 : i + blk]
            want = np.random.default_rng(int(head)).integers(0, 255, len(block), "u1")
            assert (block == want).all(), (i, head)
        versions = [int(view[i : i + 8].view("u8")[0]) for i in range(0, len(view), blk)]
        assert versions == list(root["versions"])[-len(versions):], (versions, root["versions"])
        n += 1
    print(n)
"""


@pytest.mark.slow
def test_processes_and_a_model(testdb, tmp_path):
    """Readers compare each state with a plain ndarray, while blocks change, and are removed."""
    seconds = float(os.environ.get("WENDELIN_CORE_TEST_SECONDS", "3"))
    seed = int(os.environ.get("WENDELIN_CORE_TEST_SEED", random.randrange(1 << 30)))
    rng = random.Random(seed)
    root = testdb.open()
    data = np.zeros(N * BLK, "u1")

    def change(i, version):
        data[i * BLK : i * BLK + 8].view("u8")[0] = version
        data[i * BLK + 8 : (i + 1) * BLK] = np.random.default_rng(version).integers(
            0, 255, BLK - 8, "u1"
        )
        root["A"][i * BLK : (i + 1) * BLK] = data[i * BLK : (i + 1) * BLK]
        versions[i] = version
        root["versions"] = tuple(versions)

    versions = [0] * N
    root["A"] = ZBigArray(data.shape, "u1", blksize=BLK, zblk_fmt="auto")
    transaction.commit()
    for i in range(N):
        change(i, i + 1)
    transaction.commit()
    env = {"WENDELIN_CORE_CACHE": f"{tmp_path}/cache:{4 * BLK}"}
    start = lambda left: start_child(  # noqa: E731
        CHECKER, testdb.url, str(left), str(rng.randrange(1000)), stdout=subprocess.PIPE, **env
    )
    children = [start(seconds) for _ in range(3)]
    until = time.monotonic() + seconds
    killed = []
    while time.monotonic() < until:
        change(rng.randrange(N), rng.randrange(1, 1 << 40))
        transaction.commit()
        if rng.random() < 0.3:
            for path in rng.sample(found := blocks(tmp_path / "cache"), len(found) // 2):
                path.unlink(missing_ok=True)
        if rng.random() < 0.1:
            children[0].send_signal(signal.SIGKILL)
            killed.append(children.pop(0))
            children.append(start(max(0.1, until - time.monotonic())))
        time.sleep(rng.random() * 0.1)
    for child in killed:
        child.communicate()
    for child in children:
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0, f"WENDELIN_CORE_TEST_SEED={seed}"
        assert int(out) >= 0
    np.testing.assert_array_equal(root["A"][:], data)
