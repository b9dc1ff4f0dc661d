"""wendelin ls, info, cat, head, verify: through the program, and in rare cases."""

import gc
import shutil
import subprocess

import numpy as np
import pytest
import transaction
from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from support import DATA, storages
from support.child import check_child
from support.cli import PROGRAM, wendelin
from support.clidata import BLK, PATHS, Thing, database, filled, stock
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.utils import load_current

from wendelin.bigfile.file_zodb import ZBlk0, ZBlk1, ZData
from wendelin.bigfile.zodb.inspect import stored_numbers
from wendelin.cli.database import opened
from wendelin.cli.tree import walk
from wendelin.lib.storage.inert import Pairs
from wendelin.lib.storage.record import find_payload
from wendelin.lib.zodb import dbstoropen

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo")]


class Shelf(PersistentMapping):
    """A mapping that may have attributes as well."""


@pytest.fixture
def url(testdb):
    """Return the URL of a database with arrays in all kinds of places."""
    stock(testdb.url)
    return testdb.url


# ---- ls ----


def test_ls(call, url, testdb):
    rows = wendelin("ls", "--json", url).json
    assert [row["path"] for row in rows] == PATHS
    found = {row["path"]: row for row in rows}
    A = found["A"]
    assert (A["shape"], A["dtype"], A["order"]) == ([4 * BLK], "<f8", "C")
    assert (A["blocks"], A["formats"]) == (8, {"ZBlk0": 8})
    assert 8 * BLK <= A["bytes"] < 8 * (BLK + 8192)
    assert found["mixed"]["formats"] == {"ZBlk0": 2, "ZBlk1": 4}
    B = found[PATHS[-1]]
    assert (B["shape"], B["dtype"], B["order"], B["blocks"]) == ([100, 30], ">i4", "F", 1)
    assert 12000 < B["bytes"] < 20000  # there may be pads
    assert found["file"]["shape"] is None
    with database(testdb.url) as root:
        assert found["mixed"]["changed"]["tid"] == root._p_jar.db().lastTransaction().hex()
        tid = root["A"].zfile.blktab[0]
        tid._p_activate()
        assert A["changed"]["tid"] == tid._p_serial.hex()
    lines = call("ls", url).stdout.splitlines()
    assert " ".join(lines[0].split()) == "path kind shape dtype order blocks stored formats changed"
    assert [line.split()[0] for line in lines[1:]] == PATHS
    assert "66.7%" in lines[4]
    assert [row["path"] for row in call("ls", "--json", f"{url}#list").json] == ["list/1/k/0"]


@pytest.mark.parametrize("under", ["list", "list/1", "list/1/k", "list/1/k/0"])
def test_ls_and_verify_under_what_is_not_an_object_of_the_database(call, url, under):
    assert [row["path"] for row in call("ls", "--json", f"{url}#{under}").json] == ["list/1/k/0"]
    assert call("verify", f"{url}#{under}").stdout.startswith("1 array,")
    assert call("ls", "--json", f"{url}#list/0").json == []  # a number


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_ls_tells_are_taken(call, url, path):
    if path == "file":
        error = call("info", f"{url}#{path}", code=1).stderr
        assert "is not an array: it is a wendelin.bigfile.file_zodb.ZBigFile" in error
    else:
        assert call("info", "--json", f"{url}#{path}").json["path"] == path


def test_names_that_stand_for_more_than_one(call, testdb):
    """ls lists them, and info refuses them; an empty key has a name, too."""
    with database(testdb.url) as root:
        root["both"] = PersistentMapping({5: filled((1,)), "5": filled((2,)), "6": filled((3,))})
        root["named"] = named = Shelf()
        named["x"], named.x = filled((4,)), filled((5,))
        named["y"] = named.y = filled((6,))
        root[""] = filled((7,))
        root["d"] = {"": {"": filled((8,))}}
        transaction.commit()
    paths = ["''", "both/5", "both/5", "both/6", "d/''/''", "named/x", "named/x", "named/y"]
    assert [row["path"] for row in call("ls", "--json", testdb.url).json] == paths
    for path, which in ("both/5", "key '5', key 5"), ("named/x", "key 'x', attribute 'x'"):
        error = call("info", f"{testdb.url}#{path}", code=1).stderr
        assert f"has more than one {path[-1]}: {which}. A path cannot" in error
    for path, n in ("both/6", 3), ("named/y", 6), ("''", 7), ("d/''/''", 8):
        assert call("info", "--json", f"{testdb.url}#{path}").json["shape"] == [n]


def test_ls_loads_no_blocks(call, url, monkeypatch):
    def load(*args):
        raise AssertionError("a block was loaded")

    monkeypatch.setattr(ZBlk0, "__setstate__", load)
    monkeypatch.setattr(ZData, "__setstate__", load)
    from wendelin.bigfile.zodb import formats

    monkeypatch.setattr(formats, "load_block", load)
    assert len(call("ls", "--json", url).json) == len(PATHS)
    call("info", f"{url}#mixed")


def test_a_class_that_is_not_there(url, testdb):
    """The database of an application is read without its code."""
    done = wendelin("ls", "--json", f"{url}#thing")  # Thing is of these tests
    assert [row["path"] for row in done.json] == ["thing/again", "thing/part"]


def test_ls_of_what_does_not_load(call, url):
    with database(url) as root:
        lose(root, root["tree"]._p_oid)
        lose(root, root["numbers"][5].zfile._p_oid)
    done = call("ls", "--json", url, code=1)
    assert [r["path"] for r in done.json] == [
        p for p in PATHS if p != "numbers/5" and not p.startswith("tree")
    ]
    assert "#tree: " in done.stderr
    assert "#numbers/5: " in done.stderr


def lose(root, oid, data=b"this is not a record"):
    """Put something else in the place of a record."""
    storage = root._p_jar.db().storage
    txn = TransactionMetaData()
    storage.tpc_begin(txn)
    storage.store(oid, load_current(storage, oid)[1], data, "", txn)
    storage.tpc_vote(txn)
    storage.tpc_finish(txn)


def test_many_objects(call, testdb):
    """ls is tried on no objects, and on more than a cache has; it needs bounded memory."""
    with database(testdb.url) as root:
        assert root == {}
    assert call("ls", testdb.url).stdout == ""
    with database(testdb.url) as root:
        root["t"] = tree = OOBTree({f"{i:05}": Thing(n=[i] * 50) for i in range(3000)})
        tree["02000"].A = filled((5,))
        root["nodes"] = OOBTree({i: i for i in range(30_000)})
        transaction.commit()
    assert [r["path"] for r in call("ls", "--json", testdb.url).json] == ["t/02000/A"]
    counts = []
    seen = 0

    def tell(n):
        nonlocal seen
        seen += n
        if seen % 500 == 0:
            counts.append(sum(type(obj) is Pairs for obj in gc.get_objects()))

    with opened(testdb.url) as found:
        assert len(list(walk(found, found.root, tell=tell))) == 1
    assert seen > 3000
    assert max(counts) < 100


# ---- info ----


def test_info(call, url):
    told = call("info", "--json", f"{url}#mixed").json
    assert told["oid"]
    assert (told["shape"], told["dtype"], told["order"]) == ([8 * BLK], "|u1", "C")
    assert (told["nbytes"], told["blksize"], told["zblk_fmt"]) == (8 * BLK, BLK, "ZBlk0")
    mapped = storages.kind() is storages.FileStorageDatabase
    whole, short = ("ZBlk0, mapped" if mapped else "ZBlk0, copied"), "ZBlk0, copied"
    blocks = {"hole": 2, "ZBlk1": 4, whole: 1}
    blocks[short] = blocks.get(short, 0) + 1
    assert told["blocks"] == blocks
    cells = [{whole: 1}, {short: 1}, *[{"hole": 1}] * 2, *[{"ZBlk1": 1}] * 4]
    assert told["map"] == {"blocks_a_cell": 1, "cells": cells}
    text = wendelin("info", f"{url}#mixed").stdout
    assert f"{'█' if mapped else '▓'}▓··▒▒▒▒\n" in text
    assert "8 stored" not in text
    assert "6 stored, of 8" in text
    assert "· 2 hole" in text


def test_info_of_a_large_array(call, testdb):
    with database(testdb.url) as root:
        root["x"] = A = filled((3000, BLK), "u1")
        root["s"] = filled((), "f8")
        root["e"] = filled((0,), "f8")
        transaction.commit()
        A[:30, 0] = 1
        transaction.commit()
    told = call("info", "--json", f"{testdb.url}#x").json
    assert told["map"]["blocks_a_cell"] == 3
    assert len(told["map"]["cells"]) == 1000
    assert sum(sum(cell.values()) for cell in told["map"]["cells"]) == 3000
    picture = call("info", f"{testdb.url}#x").stdout
    assert "blocks, 3 blocks a cell:\n▓▓▓▓▓▓▓▓▓▓····" in picture
    call("info", f"{testdb.url}#s")
    call("info", f"{testdb.url}#e")


def test_lost_alignment_is_told_and_pack_gets_it_back(call, tmp_path):
    """First as another program wrote the file, then after the pack that is advised."""
    path = tmp_path / "x.fs"
    with database(f"file://{path}?align=false") as root:
        root["x"] = A = filled((6 * BLK,), "u1", blksize=2 * BLK)
        transaction.commit()
        A[:] = 1
        transaction.commit()
    told = call("info", f"{path}#x").stdout
    assert "░░░\n" in told
    assert "3 blocks (384 KiB) are not aligned" in told
    assert "a third of the speed" in told
    advice = told[told.index("    from wendelin") :]
    check_child("\n".join(line for line in advice.splitlines() if line.startswith("    ")))
    told = call("info", f"{path}#x").stdout
    assert "███\n" in told
    assert "not aligned" not in told


def test_blocks_of_python_2_are_not_said_to_be_mended_by_pack(call, tmp_path):
    path = tmp_path / "x.fs"
    with database(f"file://{path}?align=false") as root:
        root["x"] = A = filled((2 * BLK,), "u1", blksize=2 * BLK)
        transaction.commit()
        A[:] = 1
        transaction.commit()
        oid = A.zfile.blktab[0]._p_oid
        record, _ = load_current(root._p_jar.db().storage, oid)
        op = find_payload(record).op
        lose(root, oid, record[:op] + b"T" + record[op + 1 :])
    assert call("info", "--json", f"{path}#x").json["blocks"] == {"ZBlk0, copied": 1}
    with database(path) as root:
        root._p_jar.db().pack()
    assert call("info", "--json", f"{path}#x").json["blocks"] == {"ZBlk0, copied": 1}
    assert call("cat", f"{path}#x[:2]").stdout == "1\n1\n"


@pytest.mark.parametrize("name", ["py37-0.13-1", "py310-2.0a4-1", "zblk-py2_pickle1", "3.0-auto"])
def test_old_databases(call, tmp_path, name):
    path = shutil.copy(DATA / f"{name}.fs", tmp_path / "x.fs")
    rows = call("ls", "--json", path).json
    assert sum(row["blocks"] for row in rows)
    for row in rows:
        if row["shape"] is not None:
            call("info", f"{path}#{row['path']}")
    assert call("verify", path).stdout.endswith("all good\n")


# ---- cat, head ----


def test_cat_and_head(call, url):
    B = PATHS[-1]
    assert wendelin("cat", f"{url}#{B}[1:3, :3]").stdout == "30\t31\t32\n60\t61\t62\n"
    assert wendelin("head", "-n", "2", f"{url}#A").stdout == "1.0\n2.0\n"
    assert call("cat", "--json", f"{url}#{B}[-1, ::-10]").json == [2999, 2989, 2979]


INDICES = ["", "[...]", "[:]", "[1]", "[1,2]", "[...,1]", "[0,...,1]", "[::-1]", "[2:0:-1,...]"]
INDICES += ["[1,::-2]", "[1,...,::-1]", "[-1:5]", "[:0]", "[...,0:2,::-1]", "[1,2,3]", "[-2:-1]"]


def test_head_is_the_first_of_what_cat_prints(call, testdb):
    values = np.arange(60).reshape(3, 4, 5)
    with database(testdb.url) as root:
        root["x"] = A = filled(values.shape, values.dtype)
        transaction.commit()
        A[...] = values
        transaction.commit()
    for index in INDICES:
        found = call("cat", "--json", f"{testdb.url}#x{index}").json
        for rows in 0, 1, 2, 100:
            told = call("head", "-n", rows, "--json", f"{testdb.url}#x{index}").json
            first = np.asarray(found)[:rows].tolist() if isinstance(found, list) else found
            assert told == first, (index, rows)


def test_head_of_what_is_larger_than_the_address_space(call, testdb):
    with database(testdb.url) as root:
        root["x"] = filled((1 << 70,), "u1")
        root["y"] = filled((1 << 70, 3), "u1", "C")
        transaction.commit()
    assert call("head", "-n", "3", f"{testdb.url}#x").stdout == "0\n0\n0\n"
    assert call("head", "-n", "1", f"{testdb.url}#x[5:]").stdout == "0\n"
    assert call("head", "-n", "2", f"{testdb.url}#y").stdout == "0\t0\t0\n" * 2
    for index in "[1,2]", "[...,...]", "[::0]":
        error = call("head", f"{testdb.url}#x{index}", code=1).stderr
        assert "has no such part" in error


def texts():
    """Yield (array, index, as text, as JSON)."""
    yield np.arange(6).reshape(2, 3), "", "0\t1\t2\n3\t4\t5\n", [[0, 1, 2], [3, 4, 5]]
    yield (
        np.arange(8.0).reshape(2, 2, 2),
        "[...]",
        "0.0\t1.0\n2.0\t3.0\n\n4.0\t5.0\n6.0\t7.0\n",
        None,
    )
    yield np.arange(3), "[1]", "1\n", 1
    yield np.arange(3), "[2:1]", "", []
    yield np.zeros((2, 0)), "", "", [[], []]
    yield np.array([0.1, np.nan, -np.inf], "f4"), "", "0.1\nnan\n-inf\n", [0.1, "nan", "-inf"]
    yield np.array([1 / 3, 1e300]), "", "0.3333333333333333\n1e+300\n", [1 / 3, 1e300]
    yield np.array([True, False]), "", "True\nFalse\n", [True, False]
    yield np.array([1 + 2j]), "", "(1+2j)\n", ["(1+2j)"]
    yield np.array([b"ab", b"\xff"]), "", "ab\n\\xff\n", ["ab", "\\xff"]
    yield np.array(["2026-01-02"], "M8[D]"), "", "2026-01-02\n", ["2026-01-02"]
    yield (
        np.array([(1, [2, 3])], [("a", "u1"), ("b", "i2", 2)]),
        "",
        "1\t2\t3\n",
        [{"a": 1, "b": [2, 3]}],
    )
    yield np.array(7, "u8"), "", "7\n", 7


@pytest.mark.parametrize(("values", "index", "text", "data"), list(texts()))
def test_what_is_printed(call, testdb, values, index, text, data):
    with database(testdb.url) as root:
        root["x"] = A = filled(values.shape, values.dtype)
        transaction.commit()
        A[...] = values
        transaction.commit()
    assert call("cat", f"{testdb.url}#x{index}").stdout == text
    told = call("cat", "--json", f"{testdb.url}#x{index}").json
    assert told == (values.tolist() if data is None else data)


def test_a_reader_that_has_seen_enough(url, tmp_path):
    done = subprocess.run(
        f"{PROGRAM} cat '{url}#A' | head -n 2", shell=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("1.0\n2.0\n", "")


# ---- verify ----


def test_verify(call, url):
    done = wendelin("verify", url)
    assert done.stdout == "7 arrays, 15 blocks, 15 with a checksum: all good\n"
    assert call("verify", "--json", f"{url}#tree").json["bad"] == []


def damage(root):
    """Damage a database in all ways that formats know of; return (path, block, what is told)."""
    A = root["A"]
    bad = []

    def block(blk, obj, what):
        A.zfile.blktab[blk] = obj
        bad.append(("A", blk, what))
        return obj

    block(1, Thing(), "which is not a block format")
    long = block(2, ZBlk0(), f"has {BLK + 1} bytes, but a block has {BLK}")
    long._v_data = bytes(BLK + 1)
    lapped = block(3, ZBlk1(), "the previous one ends at 100")
    past = block(4, ZBlk1(), f"and the block at {BLK}")
    foreign = block(5, ZBlk1(), "in the place of a wendelin.bigfile.file_zodb.ZData")
    for zblk, start in (lapped, 0), (lapped, 50), (past, BLK - 1):
        chunk = zblk.chunktab[start] = ZData()
        chunk._v_data = bytes(100)
    foreign.chunktab[0] = Thing()
    root["deep"] = D = filled((200 * 4096,), "u1", blksize=4096)
    transaction.commit()
    D[:] = 1
    transaction.commit()
    lose(root, A.zfile.blktab[6]._p_oid)
    bad.append(("A", 6, "damaged record"))
    # a bucket of the table is gone, and another one has a key that is not its own
    buckets = D.zfile.blktab.__getstate__()[0][0::2]
    lose(root, buckets[1]._p_oid)
    bad.append(("deep", None, ""))
    state = buckets[2].__getstate__()
    buckets[2].__setstate__(((1000, *state[0][1:]), *state[1:]))
    buckets[2]._p_changed = True
    bad.append(("deep", None, "keys not in order"))
    transaction.commit()
    lose(root, root["thing"]._p_oid)
    bad.append(("thing", None, ""))
    return bad


def test_verify_tells_all_that_is_bad(call, url):
    with database(url) as root:
        expected = damage(root)
    done = call("verify", "--json", url, code=1)
    told = [(t["path"], t["block"], t["what"]) for t in done.json["bad"]]
    assert len(told) == len(expected)
    for path, blk, what in expected:
        assert any(t[:2] == (path, blk) and what in t[2] for t in told), (path, blk, what, told)
    text = call("verify", url, code=1).stdout
    assert f"{len(expected)} bad" in text
    assert "A " in text


def test_a_block_that_is_missing(call, tmp_path):
    """As after a pack that was not told of all references."""
    path = tmp_path / "x.fs"
    with database(path) as root:
        root["A"] = A = filled((2 * BLK,), "u1")
        transaction.commit()
        A[:] = 1
        transaction.commit()
        oid = A.zfile.blktab[1]._p_oid
    old, new = dbstoropen(path), FileStorage(str(tmp_path / "y.fs"))
    for txn in old.iterator():
        new.tpc_begin(txn, txn.tid, txn.status)
        for r in txn:
            if r.oid != oid:
                new.restore(r.oid, r.tid, r.data, "", r.data_txn, txn)
        new.tpc_vote(txn)
        new.tpc_finish(txn)
    old.close()
    new.close()
    (bad,) = call("verify", "--json", tmp_path / "y.fs", code=1).json["bad"]
    assert (bad["block"], bad["oid"]) == (1, oid.hex())
    assert "is missing" in bad["what"]
    error = call("cat", f"{tmp_path}/y.fs#A", code=1).stderr
    assert f"object 0x{oid.hex()} is missing in the database" in error
    assert "block 1" in error


def test_a_block_table_with_more_levels(call, testdb, monkeypatch):
    monkeypatch.setattr(LOBTree, "max_internal_size", 8)
    with database(testdb.url) as root:
        root["x"] = A = filled((1500 * 4096,), "u1", blksize=4096)
        transaction.commit()
        A[::4096] = 1
        transaction.commit()
        assert isinstance(A.zfile.blktab.__getstate__()[0][0], LOBTree)
        assert list(stored_numbers(A.zfile)) == list(range(1500))
    found = call("verify", "--json", testdb.url).json
    counts = {"arrays": 1, "blocks": 1500, "values": 0, "checksums": 1500, "mismatches": 0}
    assert found == counts | {"bad": []}
    assert call("ls", "--json", testdb.url).json[0]["blocks"] == 1500
