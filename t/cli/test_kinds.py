"""What commands say of a ZarrGroup and of a ZRagged, and what they do with them."""

import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import transaction
from support.cli import killed_at
from support.clidata import database, filled

from wendelin.cli import copyobjects
from wendelin.cli.errors import Failure
from wendelin.ragged import ZRagged
from wendelin.zarr import ZarrGroup

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo")]

DATA = np.arange(600, dtype="f4").reshape(20, 30)


class Own(ZarrGroup):
    """A group of an application."""


class OwnRagged(ZRagged):
    """Pieces of an application."""


def document(**facts):
    found = {"zarr_format": 3, "node_type": "array", "shape": [20, 30], "data_type": "float32"}
    grid = {"name": "regular", "configuration": {"chunk_shape": [5, 30]}}
    encoding = {"name": "default", "configuration": {"separator": "/"}}
    return json.dumps(
        found
        | {"chunk_grid": grid, "chunk_key_encoding": encoding, "fill_value": 0}
        | {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}], "attributes": {}}
        | facts
    ).encode()


def values(prefix=""):
    """Return the values of a Zarr array; the package zarr is not needed."""
    rows = {f"{prefix}c/{i}/0": DATA[5 * i : 5 * i + 5].tobytes() for i in range(4)}
    return {f"{prefix}zarr.json": document(), **rows}


def stock(url, group=ZarrGroup, ragged=ZRagged):
    with database(url) as root:
        root["A"] = filled((3,))
        root["g"] = g = group()
        g.extra = filled((2,))
        g.live_table().change(
            {"zarr.json": b'{"zarr_format": 3, "node_type": "group"}', **values("a/")}
        )
        g.live_table().change(
            {"s/zarr.json": document(codecs=[{"name": "sharding_indexed"}]), "s/c/0/0": b"x" * 9}
        )
        root["R"] = R = ragged("i4", (2,))
        transaction.commit()
        R.put("first", [[1, 2], [3, 4]])
        R.put(5, np.zeros((0, 2)))
        R.writer("p").put("second", [[5, 6]])
        R.writer("p").put("first", [[7, 8]])
        transaction.commit()


@pytest.fixture
def url(testdb, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    stock(testdb.url)
    return testdb.url


def test_ls_and_du_count_all(call, url):
    rows = {row["path"]: row for row in call("ls", "--json", url).json}
    assert list(rows) == ["A", "R", "g", "g/a", "g/extra", "g/s"]
    assert [row["kind"] for row in rows.values()] == [
        *("array", "ragged", "zarr group", "zarr array", "array", "zarr array")
    ]
    assert (rows["g/a"]["shape"], rows["g/a"]["chunks"]) == ([20, 30], [5, 30])
    assert (rows["g/a"]["dtype"], rows["g/a"]["codecs"]) == ("float32", ["bytes"])
    assert rows["g/a"]["blocks"] == 5
    assert rows["g/a"]["bytes"] > DATA.nbytes
    assert rows["g"]["blocks"] == 8
    assert rows["g"]["bytes"] > rows["g/a"]["bytes"] + rows["g/s"]["bytes"]
    assert (rows["R"]["shape"], rows["R"]["pieces"]) == ([2, 2], 3)
    assert rows["R"]["writers"] == ["", "p"]
    text = call("ls", url).stdout
    assert re.search(r"g/a +zarr array +\(20,30\) +float32 +- +5 .* bytes ", text)
    sizes = {row["path"]: row for row in call("du", "--json", "--depth", 2, url).json}
    assert sizes["g"]["bytes"] == rows["g"]["bytes"] + rows["g/extra"]["bytes"]
    assert (sizes["g"]["arrays"], sizes[""]["arrays"]) == (3, 5)
    assert sizes["g/a"]["bytes"] == rows["g/a"]["bytes"]
    assert [row["path"] for row in call("ls", "--json", f"{url}#g/a").json] == ["g/a"]
    assert "it has a, s, extra" in call("ls", f"{url}#g/b", code=1).stderr
    assert [row["shape"] for row in call("ls", "--json", f"{url}#R/5").json] == [[0, 2]]


@pytest.mark.only("fs")
def test_subclasses_that_cannot_be_imported(call, testdb, monkeypatch):
    stock(testdb.url, Own, OwnRagged)
    monkeypatch.setattr("wendelin.cli.stored._imported", lambda cls: None)
    from wendelin.cli import stored

    stored._kind_of.cache_clear()
    kinds = [row["kind"] for row in call("ls", "--json", testdb.url).json]
    assert kinds == ["array", "ragged", "zarr group", "zarr array", "array", "zarr array"]
    assert "5 arrays, " in call("verify", testdb.url).stdout


def test_info_cat_head(call, url):
    found = call("info", "--json", f"{url}#g").json
    assert [array["path"] for array in found["arrays"]] == ["g/a", "g/s"]
    assert re.search(
        r"g/a +\(20,30\) +float32 +\(5,30\) +bytes +5 ", call("info", f"{url}#g").stdout
    )
    assert "chunks     (5,30)\n" in call("info", f"{url}#g/a").stdout
    found = call("info", "--json", f"{url}#R").json
    assert [(w["name"], w["pieces"], w["rows"]) for w in found["writers"]] == [
        ("", 2, 2),
        ("p", 2, 2),
    ]
    assert "pieces     3\n" in call("info", f"{url}#R").stdout
    assert "rows       [1, 2) of the writer\n" in call("info", f"{url}#R/first").stdout
    assert call("cat", f"{url}#R/first").stdout == "7\t8\n"
    assert call("cat", f"{url}#R").stdout == "# 5\n\n# second\n5\t6\n\n# first\n7\t8\n"
    assert json.loads(call("head", "-n", 2, "--json", f"{url}#R").stdout) == {
        "5": [],
        "second": [[5, 6]],
    }
    assert "one piece" in call("cat", f"{url}#R[0]", code=1).stderr
    pytest.importorskip("zarr")
    assert call("head", "-n", 1, f"{url}#g/a[3:, :2]").stdout == "90.0\t91.0\n"
    assert "it has a, s" in call("cat", f"{url}#g", code=1).stderr


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "between"])
def test_cp_of_a_group_copies_all_kinds(call, url, tmp_path, monkeypatch, inside):
    """The group has arrays, Zarr and pieces; an interrupted copy goes on."""
    for at, to in ("g", "run/g"), ("R", "run/deep/R"), ("A", "run/deep/A"):
        call("mv", f"{url}#{at}", f"#{to}")
    call("attrs", f"{url}#run/deep", "title=a run")
    new = url if inside else f"{tmp_path}/new.fs"
    args = "cp", "--json", f"{url}#run", f"{new}#copy"
    real, copied = copyobjects._copy_alone, []

    def copy(here, obj, source, *rest):
        if len(copied) == 2:
            raise Failure("the cable is cut")
        copied.append(source.path)
        return real(here, obj, source, *rest)

    with monkeypatch.context() as m:
        m.setattr(copyobjects, "_copy_alone", copy)
        assert "the cable is cut" in call(*args, code=1).stderr
    with database(new) as root:
        assert "copy" not in root
    monkeypatch.setattr(
        copyobjects, "_copy_alone", lambda *a: (copied.append(a[2].path), real(*a))[1]
    )
    facts = call(*args).json
    assert sorted(copied) == [("run", "deep", "A"), ("run", "deep", "R"), ("run", "g")]  # each once
    assert facts["arrays"] == 3
    assert facts["left"] == []
    assert facts["attributes_left"] == ["g: extra"]
    with database(url) as root, nullcontext(root) if inside else database(new) as there:
        mine, copy = root["run"], there["copy"]
        g, R = copy["g"], copy["deep"]["R"]
        assert type(g) is ZarrGroup
        keys = [(key, None) for key in (*values("a/"), "s/zarr.json", "s/c/0/0", "zarr.json")]
        assert [*map(bytes, g.live_table().read(keys))] == [
            *map(bytes, mine["g"].live_table().read(keys))
        ]
        assert R.writers() == ["", "p"]
        assert {key: R[key].tolist() for key in R} == {
            key: piece.tolist() for key, piece in mine["deep"]["R"].items()
        }
        assert np.array_equal(copy["deep"]["A"][:], mine["deep"]["A"][:])
        R.put("first", [[9, 9]])  # the copy is apart from the original
        transaction.commit()
        assert mine["deep"]["R"]["first"].tolist() == [[7, 8]]
    assert call("attrs", "--json", f"{new}#copy/deep").json == {"title": "a run"}
    assert call("verify", f"{new}#copy").returncode == 0


def test_copy_and_export(call, url, tmp_path):
    other = f"{tmp_path}/other.fs"
    done = call("copy", f"{url}#g", f"{other}#deep/g")
    assert done.stderr == "wendelin copy: attributes are not copied: 'extra'\n"
    call("copy", f"{url}#g/a", f"{other}#a")
    call("copy", f"{url}#R", f"{other}#R")
    assert "exists already" in call("copy", f"{url}#R", f"{other}#R", code=1).stderr
    call("copy", "--replace", f"{url}#R", f"{other}#R")
    assert "not a ZarrGroup" in call("copy", "--replace", f"{url}#g", f"{other}#R", code=1).stderr
    with database(url) as root, database(other) as there:
        for path, key in (root["g"], "a/c/1/0"), (there["deep"]["g"], "a/c/1/0"):
            assert bytes(path.live_table().read([(key, None)])[0]) == DATA[5:10].tobytes()
        assert bytes(there["a"].live_table().read([("c/3/0", None)])[0]) == DATA[15:].tobytes()
        for key in ("first", "second", 5):
            assert np.array_equal(root["R"][key], there["R"][key])
        assert there["R"].writers() == ["", "p"]
        assert len(there["R"][:]) == 2
    call("export", f"{url}#R", "R.npz")
    with np.load("R.npz") as found:
        assert {name: found[name].tolist() for name in found} == {
            "5": [],
            "second": [[5, 6]],
            "first": [[7, 8]],
        }
    call("export", f"{url}#R/first", "first.npy")
    assert np.load("first.npy").tolist() == [[7, 8]]
    assert "as .npz" in call("export", f"{url}#R", "R.npy", code=1).stderr
    pytest.importorskip("zarr")
    call("export", f"{url}#g/a", "a.npy")
    assert np.array_equal(np.load("a.npy"), DATA)


@pytest.mark.only("fs")
def test_verify_finds_what_is_damaged(call, url):
    path = url.removeprefix("file://").partition("?")[0]
    total = call("verify", "--json", url).json
    assert (total["arrays"], total["values"], total["bad"]) == (5, 8, [])
    assert total["checksums"] == total["values"] + total["blocks"]
    assert call("verify", f"{url}#R/first").stdout.startswith("1 array, ")
    with open(path, "r+b") as file:
        data = file.read()
        at = data.index(DATA[5:10].tobytes())
        file.seek(at + 100)
        file.write(bytes([data[at + 100] ^ 1]))
    bad = call("verify", "--json", url, code=1).json
    assert [(one["path"], one["written"] is not None) for one in bad["bad"]] == [
        ("g/a/c/1/0", True)
    ]
    assert bad["mismatches"] == 1
    assert "checksum" in call("copy", f"{url}#g", f"{path}.copy#g", code=1).stderr


@pytest.mark.only("fs")
def test_verify_finds_broken_structure(call, url):
    with database(url) as root:
        g, R = root["g"], root["R"]
        g.live_table().change({"a/zarr.json": b"no JSON"})
        del g.table["a/c/2/0"]
        g.table["a/c/2/0"] = filled((1,))
        own, p = R._segments[""], R._segments["p"]
        own.live += 1
        p.index[str]["second"] = (0, 2, 1)
        transaction.commit()
    bad = sorted(
        (one["path"], one["what"]) for one in call("verify", "--json", url, code=1).json["bad"]
    )
    for (path, what), expected in zip(
        bad,
        [
            ("R", "has pieces of 2 rows, and counts 3"),
            ("R", "piece 'first' overlaps another one"),
            ("g/a/c/2/0", "which is not a value"),
            ("g/a/zarr.json", "not JSON"),
        ],
        strict=True,
    ):
        assert path == expected[0]
        assert expected[1] in what
    with database(url) as root:
        root["R"]._segments["p"].index[str]["second"] = (0, 9, 1)
        transaction.commit()
    assert "rows [0, 9)" in call("verify", url, code=1).stdout
    assert "damaged index" in call("ls", f"{url}#R", code=1).stderr


@pytest.mark.only("fs")
@pytest.mark.slow
def test_a_copy_that_was_killed_goes_on(call, testdb, tmp_path):
    with database(testdb.url) as root:
        root["R"] = R = ZRagged("i4")
        transaction.commit()
        R.update((f"name{i}", np.full(500, i)) for i in range(2000))
        transaction.commit()
    new = tmp_path / "new.fs"
    args = "copy", "--step", "40K", f"{testdb.url}#R", f"{new}#R"
    assert killed_at(args, lambda: new.exists() and new.stat().st_size > 500_000)
    with database(new) as root:
        assert list(root) == ["R~import"]
    assert call(*args[:1], "--json", *args[1:]).json["resumed_at"] > 0
    with database(new) as root:
        assert len(root["R"]) == 2000
        assert all(int(root["R"][f"name{i}"].sum()) == 500 * i for i in range(2000))
