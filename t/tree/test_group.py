"""Groups: a tree of arrays, by paths."""

import json
import os

import numpy as np
import pytest
import transaction
from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping
from support.child import check_child
from support.clients import Client
from zc.lockfile import LockError
from ZODB.POSException import ConflictError, ConnectionStateError, ReadOnlyError

import wendelin
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigarray.plain import PlainContainerWarning
from wendelin.lib.zodb import dbclose, dbopen
from wendelin.tree.filling import fill

pytestmark = pytest.mark.formats


@pytest.fixture
def g(testdb):
    return wendelin.Group(testdb.open())


DATA = np.arange(24, dtype="f4").reshape(6, 4)


def test_with_commits_and_closes(testdb):
    with wendelin.open(testdb.url) as g:
        A = g.create_array("run/7/signal", data=DATA, attrs={"unit": "mV"})
        A[0] = 5  # before any commit
        g.attrs["title"] = "a run"
    assert repr(g) == "<closed Group ''>"
    with pytest.raises(ConnectionStateError, match="is closed: open the database again"):
        g["run"]
    g.close()
    with wendelin.open(testdb.url, "r") as g:
        A = g["run/7/signal"]
        assert type(A) is ZBigArray
        assert np.array_equal(A[1:], DATA[1:])
        assert (A[0] == 5).all()
        assert (A.dtype, A.attrs, g.attrs) == (DATA.dtype, {"unit": "mV"}, {"title": "a run"})


def test_with_aborts_when_an_exception_ends_it(testdb):
    with wendelin.open(testdb.url) as g:
        g["x"] = DATA
    with pytest.raises(ZeroDivisionError), wendelin.open(testdb.url) as g:
        g["x"][0] = 9
        g["y"] = DATA
        raise ZeroDivisionError
    with wendelin.open(testdb.url) as g:
        assert list(g) == ["x"]
        assert np.array_equal(g["x"], DATA)


def test_with_on_a_group_below_does_not_close(g):
    with g.create_group("run") as run:
        run["x"] = DATA
    with pytest.raises(KeyError), g["run"] as run:
        del run["y"]
    assert np.array_equal(g["run/x"], DATA)


def test_a_group_is_a_mapping(g):
    for path in "b/x", "a", "b/c/d/e":
        g[path] = DATA
    assert list(g) == ["b", "a"]  # names of the root are in the order of creation
    assert bool(g.create_group("empty"))
    assert (len(g), len(g["b"])) == (3, 2)
    assert "b/c/d/e" in g
    assert "/b/c//d/e/" in g
    assert "b/c/x" not in g
    assert "a/x" not in g
    assert "" not in g
    assert g["b"]["c"] == g["b/c"]
    assert g["b"] != g["b/c"]
    assert {g["b"]: 1}[g["b"]] == 1
    assert (g["b/c"].path, g["b/c"].name, g.path) == ("b/c", "c", "")
    assert g.get("nothing") is None
    assert [name for name, value in g["b"].items()] == ["c", "x"]
    assert isinstance(g["b/c"].obj, OOBTree)
    assert [path for path, _ in g.walk()] == ["b", "a", "empty", "b/c", "b/x", "b/c/d", "b/c/d/e"]
    del g["b/c/d"]
    assert list(g["b/c"]) == []
    g["a"] = DATA[:2]  # replaces
    assert g["a"].shape == (2, 4)
    assert g.pop("a").shape == (2, 4)


def test_messages_for_what_is_not_there(g):
    g["run/signal"] = DATA
    with pytest.raises(KeyError, match=r"did you mean 'signal'\? It has 'signal'"):
        g["run/singal"]
    with pytest.raises(KeyError, match=r"the root group of .* has no 'x': it has 'run'"):
        g["x"]
    with pytest.raises(KeyError, match=r"signal is a ZBigArray, which has no 'x'.*not a group"):
        g["run/signal/x"]
    with pytest.raises(KeyError, match="there is nothing in it"):
        g.create_group("none")["x"]
    with pytest.raises(KeyError):
        del g["run/x"]


@pytest.mark.parametrize("name", ["", "/", "~attrs", "a/~tags/b", "..", "x~import"])
def test_names_that_cannot_be(g, name):
    with pytest.raises(ValueError, match="name"):
        g.create_group(name)
    with pytest.raises(ValueError, match="name"):
        g[name] = DATA
    assert list(g) == []


def test_what_is_not_saved_is_refused(g):
    for value in {"a": 1}, [1], "text", 5, None:
        with pytest.raises(TypeError, match="is not saved when it changes: put an array"):
            g["x"] = value
    with pytest.raises(TypeError, match="must be a str"):
        g[5] = DATA
    with pytest.raises(TypeError, match="is a ZBigArray, not a group"):
        g["a"] = DATA
        g["a/b"] = DATA


def test_create_array(g):
    A = g.create_array("zeros", (3, 2), "i2", order="F", blksize=8192, zblk_fmt="ZBlk1")
    assert (A.shape, A.dtype, A._order, A.zfile.blksize, A._zblk_fmt) == (
        (3, 2),
        np.dtype("i2"),
        "F",
        8192,
        "ZBlk1",
    )
    assert g.create_array("float", 5).dtype == float
    assert g.create_array("scalar", data=7)[()] == 7
    assert g.create_array("list", data=[[1, 2], [3, 4]]).shape == (2, 2)
    assert g.create_array("cast", data=DATA, dtype="f8").dtype == "f8"
    assert g.create_array("empty", data=np.zeros((0, 3))).shape == (0, 3)
    S = g.create_array("s", data=np.array([(1, 2.5)], "i4,f8"))
    S.append([(3, 4.5)])
    assert S["f1"].tolist() == [2.5, 4.5]
    with pytest.raises(ValueError, match="has 'zeros' already"):
        g.create_array("zeros", 5)
    with pytest.raises(ValueError, match=r"shape is \(5,\), and the data has \(6, 4\)"):
        g.create_array("x", 5, data=DATA)
    with pytest.raises(TypeError, match="neither shape nor data"):
        g.create_array("x")
    with pytest.raises(TypeError, match="holds objects"):
        g.create_array("x", data=np.array([None]))
    assert "x" not in g


def test_an_array_is_made_of_a_dataset_in_steps(g, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["x"] = data = np.arange(1000).reshape(50, 20)
        x = g.create_array("x", data=f["x"])
        assert np.array_equal(x, data)
        y = g.create_array("y", shape=data.shape, dtype=data.dtype)
        fill(y, f["x"], step=100)
    assert np.array_equal(y, data)


def test_move(g):
    g["a/x"] = DATA
    A = g["a/x"]
    g.move("a/x", "b/c/y")
    assert g["b/c/y"] is A
    assert list(g["a"]) == []
    g.move("b", "a/b")
    assert g["a/b/c/y"] is A
    g.move("a/b/c/y", "a/b/c/y")
    with pytest.raises(ValueError, match="cannot be moved to 'a/b/d', which is in it"):
        g.move("a", "a/b/d")
    with pytest.raises(ValueError, match="has 'a' already"):
        g.move("a/b/c/y", "a")
    with pytest.raises(KeyError):
        g.move("x", "y")
    transaction.commit()
    assert [path for path, _ in g.walk()] == ["a", "a/b", "a/b/c", "a/b/c/y"]


def test_require_group(g):
    assert g.require_group("a/b") == g.require_group("a/b")
    g["x"] = DATA
    with pytest.raises(TypeError, match=r"'x' of the root group of .* is a ZBigArray"):
        g.require_group("x")
    with pytest.raises(ValueError, match="has 'a' already"):
        g.create_group("a")


def test_a_group_may_be_linked_and_a_circle_ends(g):
    g["a/b/x"] = DATA
    g["also"] = g["a/b"]
    g["a/b/up"] = g["a"]
    transaction.commit()
    assert g["also/up/b/x"] is g["a/b/x"]
    assert len(list(g.walk())) == 5
    assert str(g.tree()).count("x") == 2  # under a/b and under also: circles are not followed
    assert len(g.log(1)[0].changes)


# ---- databases that others have made ----


class Old(PersistentMapping):
    """A mapping of a program."""


def test_databases_of_dbopen_are_groups(testdb):
    root = testdb.open()
    root["x"] = ZBigArray((3,), "i4")
    root["map"] = PersistentMapping({5: ZBigArray((2,), "u1"), "a/b": ZBigArray((1,), "u1")})
    root["tree"] = LOBTree({1: ZBigArray((4,), "u1")})
    root["own"] = Old(y=ZBigArray((5,), "u1"))
    root["list"] = PersistentList([1])
    root["n"] = 5
    transaction.commit()
    testdb.close(root)
    with wendelin.open(testdb.url) as g:
        assert list(g) == ["x", "map", "tree", "own", "list", "n"]
        assert (g["x"].shape, g["n"], g["list"]) == ((3,), 5, [1])
        assert list(g["map"]) == [5, "a/b"]
        assert (g["map"][5].shape, g["map"]["a/b"].shape, g["map/a/b"].shape) == ((2,), (1,), (1,))
        assert (g["tree"][1].shape, 1 in g["tree"], "1" in g["tree"]) == ((4,), True, False)
        assert g["own/y"].shape == (5,)
        with pytest.raises(TypeError, match="is a LOBTree and has no names for keys"):
            g["tree/x"] = DATA
        with pytest.raises(TypeError, match="no names for keys"):
            g["tree"].attrs["a"] = 1
        assert g["tree"].attrs == {}
        g["own"].attrs["a"] = 1
        g["own/z"] = DATA
    root = testdb.open()
    assert list(root) == ["x", "map", "tree", "own", "list", "n"]  # and no attributes
    assert type(root["own"]) is Old
    assert np.array_equal(root["own"]["z"], DATA)


@pytest.mark.parametrize("value", [5, "x", None, {}, PersistentList(), ZBigArray((1,), "u1")])
def test_what_is_not_a_group(value):
    with pytest.raises(TypeError, match="is not a group: it must be a BTree"):
        wendelin.Group(value)


def test_stock_zodb_reads_a_tree(tmp_path):
    """ZODB without wendelin reads all but arrays: it needs their classes."""
    path = str(tmp_path / "x.fs")
    with wendelin.open(path) as g:
        g.create_group("other", attrs={"n": 5, "unit": "mV", "cal": np.arange(3.0)})
        g.create_array("run/x", data=DATA, attrs={"unit": "V"})
        g.tag("first")
    program = """
        import json, sys
        from ZODB.FileStorage import FileStorage
        from ZODB.DB import DB
        db = DB(FileStorage(sys.argv[1], read_only=True))
        root = db.open().root()
        attrs = root["other"]["~attrs"]
        assert not any(name.startswith("wendelin") for name in sys.modules)
        run = root["run"]
        A = run["x"]
        print(json.dumps([
            type(run).__name__, sorted(run), dict(attrs, cal=0), attrs["cal"].tolist(),
            A[:].tolist(), dict(A._attrs), sorted(root), sorted(root["~tags"]),
        ]))
        db.close()
    """
    found = json.loads(check_child(program, path))
    assert found == [
        "OOBTree",
        ["x"],
        {"n": 5, "unit": "mV", "cal": 0},
        [0, 1, 2],
        DATA.tolist(),
        {"unit": "V"},
        ["other", "run", "~tags"],
        ["first"],
    ]


# ---- modes ----


def test_modes(path):
    for mode in "r", "r+":
        with pytest.raises(FileNotFoundError, match=r"there is no database .*mode 'a' makes one"):
            wendelin.open(path, mode)
    with pytest.raises(FileNotFoundError):
        wendelin.open(path, at="now")
    assert not os.path.exists(path)
    with wendelin.open(path, "x") as g:
        g["x"] = DATA
    with pytest.raises(FileExistsError, match="mode 'a' or 'r\\+' opens it"):
        wendelin.open(path, "x")
    with pytest.raises(ValueError, match=r"mode is 'w'.*to begin again, remove the file"):
        wendelin.open(path, "w")
    with pytest.raises(ValueError, match=r"the past, at='now', can only be read"):
        wendelin.open(path, "r+", at="now")
    with wendelin.open(path, "r+") as g, wendelin.open(f"file://{path}", "r") as h:
        g["x"][0] = 7
        transaction.commit()
        for change in (
            lambda: h.__setitem__("y", DATA),
            lambda: h.__delitem__("x"),
            lambda: h.create_group("y"),
            lambda: h.move("x", "y"),
            lambda: h.attrs.update(a=1),
            lambda: h.tag("v1"),
            lambda: h.undo(h.log()[0].tid),
        ):
            with pytest.raises(ReadOnlyError, match="it is opened read-only"):
                change()
        h.obj._p_jar.sync()
        assert (h["x"][0] == 7).all()


def test_an_empty_database_cannot_be_read(path):
    dbclose(dbopen(path))
    os.truncate(path, 4)
    os.unlink(f"{path}.index")
    with pytest.raises(ValueError, match="is empty: there is nothing to read"):
        wendelin.open(path, "r")


def test_what_is_open_already(path):
    with wendelin.open(path), pytest.raises(LockError, match=rf"process {os.getpid()}, this one"):
        wendelin.open(path)


# ---- shown ----


def test_tree(g):
    g["run/7/signal"] = DATA
    g["run/8"] = np.zeros(3, "u1")
    g.create_group("\x1b[1mevil<b>")
    g.attrs["<i>"] = "<script>"
    assert str(g.tree()) == (
        "/\n"
        "├── run/\n"
        "│   ├── 7/\n"
        "│   │   └── signal  6 × 4 float32, 96 B\n"
        "│   └── 8  3 uint8, 3 B\n"
        "└── \\x1b[1mevil<b>/"
    )
    assert str(g["run"].tree(1)) == "run\n├── 7/\n└── 8  3 uint8, 3 B"
    html = g._repr_html_()
    assert "6 × 4 float32" in html
    assert "evil&lt;b&gt;" in html
    assert "<script>" not in html + g.tree()._repr_html_()
    assert "\x1b" not in html
    assert repr(g["run"]).startswith("<Group 'run' of '")
    assert repr(g["run"]).endswith(": 2 names>")


# ---- attributes ----

VALUES = {
    "none": None,
    "flag": True,
    "n": 5,
    "large": 1 << 70,
    "x": 0.5,
    "z": 1 + 2j,
    "text": "µV",
    "bytes": b"\xff",
    "list": [1, "a", [None, {"deep": (1, 2)}]],
    "scalar": np.float32(1.5),
    "when": np.datetime64("2026-01-01T00:00", "ns"),
    "array": np.arange(6, dtype=">i2").reshape(2, 3),
    "struct": np.array([(1, 2.5)], "i4,f8"),
    "names": np.array(["a", "bcd"]),
}


def same(a, b):
    if isinstance(b, np.ndarray | np.generic):
        return a.dtype == b.dtype.newbyteorder("=") and type(a) is type(b) and np.array_equal(a, b)
    return type(a) is type(b) and a == b


def test_attributes_of_arrays_and_groups(testdb):
    with wendelin.open(testdb.url) as g:
        g.create_array("A", 3, attrs=VALUES)
        g.create_group("G", attrs=VALUES)
        g.attrs.update(VALUES)
    with wendelin.open(testdb.url) as g:
        for obj in g, g["A"], g["G"]:
            assert list(obj.attrs) == sorted(VALUES)
            for name, value in VALUES.items():
                assert same(obj.attrs[name], value), name
            del obj.attrs["n"]
            assert len(obj.attrs) == len(VALUES) - 1
            with pytest.raises(KeyError, match="has no attribute 'n': it has 'array'"):
                obj.attrs["n"]
            with pytest.raises(KeyError):
                del obj.attrs["n"]
        g["A"].attrs["list"].append(5)  # changes a copy
        g["A"].attrs["array"][0] = 5
        assert g["A"].attrs["list"] == VALUES["list"]
        assert same(g["A"].attrs["array"], VALUES["array"])
        g["A"].attrs = {"only": np.array("text")}
        assert g["A"].attrs == {"only": "text"}
        assert list(g) == ["A", "G"]


def test_attributes_that_are_refused(g):
    attrs = g.create_array("A", 3).attrs
    for value in object(), {1: 2}, np.array([object()]), {"a": [set()]}:
        with pytest.raises(TypeError, match="'x'"):
            attrs["x"] = value
    with pytest.raises(ValueError, match=r"has 1600000 bytes, more than 1048576: make it"):
        attrs["x"] = np.zeros(200_000)
    with pytest.raises(TypeError, match="must be a str"):
        attrs[5] = 1
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested more than 32 deep"):
        attrs["x"] = endless
    assert len(attrs) == 0
    assert g["A"]._attrs is None  # without attributes there is no object for them


def test_attributes_take_part_in_transactions(g):
    A = g.create_array("A", 3, attrs={"a": 1})
    g.create_group("G", attrs={"a": 1})
    transaction.commit()
    for obj in A, g["G"]:
        obj.attrs["a"], obj.attrs["b"] = 2, 3
        transaction.abort()
        assert obj.attrs == {"a": 1}
    other = Client(g.obj)
    # an append here, attributes there: no conflict
    A.append([1.0])
    A.attrs["here"] = 1
    wendelin.Group(other.root)["A"].attrs["there"] = 2
    other.tm.commit()
    transaction.commit()
    assert A.attrs == {"a": 1, "here": 1, "there": 2}
    A.attrs["a"] = 5
    other.tm.begin()
    other["A"].attrs["a"] = 6
    other.tm.commit()
    with pytest.raises(ConflictError):
        transaction.commit()
    transaction.abort()
    assert A.attrs["a"] == 6
    other.close()


def test_what_a_program_has_kept_as_attrs_stays(testdb):
    root = testdb.open()
    root["A"] = A = ZBigArray((3,), "u1")
    A._p_activate()
    A.__dict__["attrs"] = {"theirs": 1}
    transaction.commit()
    testdb.close(root)
    root = testdb.open()
    A = root["A"]
    assert A.attrs == {"theirs": 1}
    A.attrs = {"theirs": 2}
    transaction.commit()
    assert root["A"].attrs == {"theirs": 2}


# ---- arrays in plain dicts ----


def test_an_array_in_a_plain_dict_is_warned_of(root):
    for name, value in {
        "dict": {"x": ZBigArray((3,), "u1")},
        "list": [[ZBigArray((3,), "u1")]],
        "new": PersistentMapping(inner={"x": [ZBigArray((3,), "u1")]}),
        "tree": OOBTree({"inner": {"x": ZBigArray((3,), "u1")}}),
    }.items():
        root[name] = value
        with pytest.warns(
            PlainContainerWarning, match=r"is a plain (dict|list) with an array inside"
        ):
            transaction.commit()
        del root[name]
    root["ok"] = PersistentMapping(
        tree=OOBTree({"x": ZBigArray((3,), "u1")}), list=PersistentList([ZBigArray((3,), "u1")])
    )
    root["unit"] = {"a": [1, 2]}
    transaction.commit()
    g = wendelin.Group(root)
    root["dict"] = {"x": root["ok"]["tree"]["x"]}
    with pytest.warns(PlainContainerWarning, match="'dict' is a plain dict"):
        g["dict"]
    assert g["unit"] == {"a": [1, 2]}
