"""wendelin import of a whole file, and export of a group, next to the libraries' reading."""

import os

import numpy as np
import pytest
import transaction
from support.clidata import database

import wendelin
from wendelin.cli.files.contents import DIMS, ENUM

h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")

pytestmark = [pytest.mark.formats, pytest.mark.once]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def arrays_of(url, start=""):
    """Return all arrays of a group, in memory, and all attributes."""
    with wendelin.open(url, "r") as g:
        top = g[start] if start else g
        arrays = {p: np.array(v[...]) for p, v in top.walk() if hasattr(v, "dtype")}
        attrs = {p: dict(v.attrs) for p, v in top.walk() if hasattr(v, "attrs")}
        return arrays, attrs | {"": dict(top.attrs)}


def make_hdf5(name):
    """Write a file with one of each; return what h5py reads, as arrays should have it."""
    with h5py.File(name, "w") as f:
        f.attrs["title"] = "a file"
        f["raw/a:b"] = np.arange(12, dtype=">i2").reshape(3, 4)
        f["raw/a:b"].attrs["unit"] = "mV"
        f["raw"].attrs["n"] = 5
        f["raw/text"] = ["a", "µV", "long text"]
        f["raw/not utf-8"] = np.array([b"\xff", b"ab"], h5py.string_dtype("ascii"))
        f.create_dataset("state", data=[0, 2, 0], dtype=h5py.enum_dtype({"OFF": 0, "ON": 2}, "i1"))
        f["flags"] = np.array([True, False])
        f["scalar"] = 5.5
        f["time"], f["x"] = np.arange(3.0), np.arange(4, dtype="i4")
        f["time"].make_scale("seconds")
        f["x"].make_scale()
        f["raw/a:b"].dims[0].attach_scale(f["time"])
        f["raw/a:b"].dims[1].attach_scale(f["x"])
        f["labelled"] = np.zeros((2, 3))
        f["labelled"].dims[1].label = "y"
        f["xx"], f["soft"] = f["x"], h5py.SoftLink("/raw/a:b")
        f["nowhere"], f["else"] = h5py.SoftLink("/no"), h5py.ExternalLink("secret.h5", "/x")
        f["no shape"] = h5py.Empty("f4")
        f.create_group("empty")
        f.create_dataset("rows", (2,), dtype=h5py.vlen_dtype("f4"))
        f.create_dataset("refs", (2,), dtype=h5py.ref_dtype)
        f.create_dataset("raw/x~import", data=1)
        f.create_dataset("many", (1000, 10), dtype="f4", chunks=(100, 10))[200:300] = 1
        want = {p: f[p][...] for p in ("raw/a:b", "state", "flags", "scalar", "time", "x", "many")}
        want |= {"raw/text": f["raw/text"].asstr()[...].astype("U9"), "labelled": np.zeros((2, 3))}
        want["raw/not utf-8"] = np.array([b"\xff", b"ab"])
        return want | {"xx": want["x"], "soft": want["raw/a:b"]}


def check_hdf5(want, arrays, attrs):
    assert arrays.keys() == want.keys()
    for path, values in want.items():
        assert arrays[path].dtype == values.dtype, path
        assert np.array_equal(arrays[path], values), path
    assert attrs["raw"] == {"n": 5}
    assert attrs[""] == {"title": "a file"}
    assert attrs["raw/a:b"] == {"unit": "mV", DIMS: ["time", "x"]}
    assert attrs["x"] == {DIMS: ["x"]}
    assert attrs["labelled"] == {DIMS: ["", "y"]}
    assert attrs["state"] == {ENUM: {"OFF": 0, "ON": 2}}
    assert attrs["empty"] == {}


@pytest.mark.parametrize("name", ["x.h5", "x", "data.nc", "x.mat"])
def test_a_whole_hdf5_file_and_back(call, path, name):
    want = make_hdf5(name)
    done = call("import", "--dry-run", name, path)
    assert "left out: rows of variable length" in done.stdout
    listed = {row["path"]: row for row in call("import", "--dry-run", "--json", name, path).json}
    assert listed["raw/a:b"]["shape"] == [3, 4]
    assert listed["soft"]["same"] == "raw/a:b"
    assert not os.path.exists(path)
    done = call("import", name, path)
    for left in "rows", "refs", "no shape", "nowhere", "else", "raw/x~import":
        assert f"{name}:{left}: " in done.stderr
    assert done.stderr.count("\n") == 6
    check_hdf5(want, *arrays_of(path))
    call("export", path, "y.h5")
    with h5py.File("y.h5") as f:
        assert f["soft"] == f["raw/a:b"]
        assert f["raw/text"].asstr()[1] == "µV"
        assert h5py.check_enum_dtype(f["state"].dtype) == {"OFF": 0, "ON": 2}
        assert f["raw/a:b"].dims[1][0] == f["x"]
        assert f["labelled"].dims[1].label == "y"
    call("import", "y.h5", f"{path}#again/here")
    check_hdf5(want, *arrays_of(path, "again/here"))
    # the database has these names now
    assert "already" in call("import", name, path, code=1).stderr
    with database(path) as root:
        root["x"][:] = 7
        transaction.commit()
    call("import", "--replace", name, path)
    check_hdf5(want, *(part_of(part) for part in arrays_of(path)))


def part_of(found):
    return {name: value for name, value in found.items() if not name.startswith("again")}


def test_a_group_of_a_file_and_a_name_with_colons(call, path):
    make_hdf5("x.h5")
    call("import", "x.h5:raw", f"{path}#r")
    assert set(arrays_of(path, "r")[0]) == {"a:b", "text", "not utf-8"}
    call("import", "x.h5:raw/a:b", f"{path}#one")
    call("export", f"{path}#one", "z.h5:p/c:d:e")
    with h5py.File("z.h5") as f:
        assert f["p/c:d:e"].shape == (3, 4)
        assert f["p/c:d:e"].dims[0].label == "time"
    done = call("import", "x.h5:no", f"{path}#no", code=1)
    assert "has no array 'no': it has" in done.stderr


def test_a_hierarchy_of_zarr_and_back(call, path):
    for version in 2, 3:
        name = f"x{version}.zarr"
        # no group has metadata
        for inner, dtype in ("a/b/x", "f4"), ("a/y", "i8"), ("z", "?"):
            made = zarr.create_array(f"{name}/{inner}", shape=(5, 3), dtype=dtype,
                                     chunks=(2, 2), zarr_format=version)  # fmt: skip
            made[:] = np.arange(15).reshape(5, 3)
            made.attrs["unit"] = "mV"
        call("import", name, f"{path}#v{version}")
        arrays, attrs = arrays_of(path, f"v{version}")
        assert arrays.keys() == {"a/b/x", "a/y", "z"}
        assert arrays["a/b/x"].dtype == "f4"
        assert np.array_equal(arrays["a/y"], np.arange(15).reshape(5, 3))
        assert attrs["a/y"] == {"unit": "mV"}
    with wendelin.open(path) as g:
        g["v3/a/y"].attrs[DIMS] = ["r", "c"]
        g["v3/a"].attrs["who"] = "Ada"
    call("export", f"{path}#v3", "back.zarr")
    group = zarr.open_group("back.zarr", mode="r")
    assert group["a"].attrs.asdict() == {"who": "Ada"}
    assert group["a/y"].metadata.dimension_names == ("r", "c")
    assert group["a/y"].attrs.asdict() == {"unit": "mV"}
    call("import", "back.zarr", f"{path}#again")
    assert arrays_of(path, "again")[1]["a/y"] == {"unit": "mV", DIMS: ["r", "c"]}
    with wendelin.open(path) as g:  # version 3 has no settled types for these
        g["v3/text"] = np.array(["a", "bc"])
        g["v3/other order"] = np.arange(3, dtype=">i2")
    call("export", "--force", f"{path}#v3", "back.zarr")
    call("import", "back.zarr", f"{path}#text")
    arrays, attrs = arrays_of(path, "text")
    assert arrays["text"].tolist() == ["a", "bc"]
    assert arrays["other order"].dtype == ">i2"
    assert attrs["a/y"][DIMS] == ["r", "c"]


def test_texts_of_zarr(call, path):
    made = zarr.create_array("t.zarr", shape=(3,), dtype=str, chunks=(2,), zarr_format=2)
    made[:] = np.array(["a", "", "µV"])
    call("import", "t.zarr", f"{path}#t")
    assert arrays_of(path)[0]["t"].tolist() == ["a", "", "µV"]


def test_texts_of_very_different_lengths_are_left_out(call, path):
    with h5py.File("x.h5", "w") as f:
        f["texts"] = ["a"] * 5000 + ["b" * 50_000]
        f["x"] = 1
    assert "very different lengths" in call("import", "x.h5", path).stderr
    done = call("import", "x.h5:texts", f"{path}#t", code=1)
    assert "very different lengths" in done.stderr


def test_a_matlab_7_3_file(call, path):
    with h5py.File("x.mat", "w", userblock_size=512) as f:
        f["m"] = np.arange(6.0).reshape(3, 2)  # a matrix of 2 rows
        f["z"] = np.array([[(1, 2)]], [("real", "f8"), ("imag", "f8")])
        f["none"] = np.array([0, 3], "u8")
        f["none"].attrs["MATLAB_empty"] = 1
        f["cells"] = np.array([f["m"].ref], h5py.ref_dtype)
        f["#refs#/a"] = 1
    with open("x.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, by a test".ljust(512))
    assert "x.mat:cells: references" in call("import", "x.mat", path).stderr
    arrays, _ = arrays_of(path)
    assert arrays.keys() == {"m", "z", "none"}
    assert arrays["m"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert arrays["z"].tolist() == [[1 + 2j]]
    assert arrays["none"].shape == (0, 3)
    call("import", "x.mat:m", f"{path}#one")
    assert arrays_of(path)[0]["one"].tolist() == [[0, 2, 4], [1, 3, 5]]


def test_an_interrupted_import_of_a_file_goes_on(path, monkeypatch, capsys):
    from wendelin.cli.program import main

    rng = np.random.default_rng(1)
    values = {f"g{i % 3}/a{i:02}": rng.random(50 * (i + 1)) for i in range(9)}
    values["g1/large"] = rng.random((300, 10))
    with h5py.File("x.h5", "w") as f:
        for name, data in values.items():
            f[name] = data
    args = ["import", "--blksize", "4K", "--step", "16K", "x.h5", f"{path}#new/run"]
    commit, count = transaction.commit, 0

    def commit_or_fail():
        nonlocal count
        count += 1
        if count % 3 == 0:
            raise KeyboardInterrupt
        commit()

    monkeypatch.setattr(transaction, "commit", commit_or_fail)
    seen = []
    for _ in range(40):
        code = main(args)
        out, err = capsys.readouterr()
        if code == 0:
            break
        assert "the same command goes on" in err
        with database(path) as root:
            assert "run" not in root.get("new", {})
            if "new" in root:
                seen.append(len(list(root["new"]["run~import"])))
    assert code == 0
    assert len(seen) > 1
    assert ", from " in out
    monkeypatch.undo()
    monkeypatch.chdir(os.path.dirname(path))
    arrays, _ = arrays_of(path, "new/run")
    assert arrays.keys() == values.keys()
    assert all(np.array_equal(arrays[name], data) for name, data in values.items())
    with database(path) as root:
        assert list(root["new"]) == ["run"]  # and no run~import


def test_another_source_is_refused(call, path, monkeypatch):
    with h5py.File("x.h5", "w") as f:
        f["a"], f["b"] = np.arange(5000.0), np.arange(5000.0)
    args = ["import", "--blksize", "4K", "--step", "8K", "x.h5", path]
    commit = transaction.commit
    calls = iter(range(100))
    monkeypatch.setattr(transaction, "commit", lambda: commit() if next(calls) < 3 else 1 / 0)
    call(*args, code=1)
    monkeypatch.undo()
    monkeypatch.chdir(os.path.dirname(path))
    with h5py.File("x.h5", "a") as f:
        f["c"] = 1
    assert "another source" in call(*args, code=1).stderr
    call(*args, "--replace")
    assert arrays_of(path)[0].keys() == {"a", "b", "c"}


def test_an_export_to_zarr_goes_on(call, path, monkeypatch):
    from wendelin.cli.files import treesinks

    with wendelin.open(path) as g:
        for i in range(6):
            g[f"g/{i}"] = np.full(10, i)
    made = treesinks.array_sink
    count = 0

    def fails(*args):
        nonlocal count
        count += 1
        if count == 4:
            raise OSError(28, "No space left on device")
        return made(*args)

    monkeypatch.setattr(treesinks, "array_sink", fails)
    assert "the same command goes on" in call("export", f"{path}#g", "x.zarr", code=1).stderr
    with wendelin.open(path) as g:
        g["g/5"][:] = 77  # the export goes on with the group as it was
    assert "resumed" in call("export", f"{path}#g", "x.zarr").stdout
    assert count == 7
    group = zarr.open_group("x.zarr", mode="r")
    assert all((group[str(i)][:] == i).all() for i in range(6))


def test_what_is_not_an_array_is_named(call, path):
    with database(path) as root:
        root["x"] = wendelin.bigarray.array_zodb.ZBigArray((3,), "f8")
        root["list"], root[5] = [1, 2], wendelin.bigarray.array_zodb.ZBigArray((2,), "i4")
        root["again"] = root["x"]
        transaction.commit()
    done = call("export", path, "x.zarr")
    assert "left out, list" in done.stderr
    assert "another name of" in done.stderr
    assert set(zarr.open_group("x.zarr", mode="r")) < {"x", "5", "again"}
    assert "is exported as .h5" in call("export", path, "x.npy", code=1).stderr


@pytest.mark.parametrize("name", ["x.npy", "x.csv"])
def test_one_array_needs_a_path(call, path, name):
    np.save("x.npy", np.arange(3))
    np.savetxt("x.csv", np.arange(3))
    assert "does not name an array" in call("import", name, path, code=2).stderr
