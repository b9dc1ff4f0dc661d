"""A ZRagged and a ZSparse in groups that are exported, and imported again."""

import os
import pickle

import numpy as np
import pytest
import transaction
from support.clidata import database

import wendelin
from wendelin.lib.zodb import dbclose, dbopen
from wendelin.ragged import ZRagged
from wendelin.sparse import ZSparse

h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
sparse = pytest.importorskip("scipy.sparse")

pytestmark = [pytest.mark.formats, pytest.mark.once]

M = sparse.random_array((30, 7), density=0.3, format="csr", rng=np.random.default_rng(1))
EMPTY = sparse.csr_array((3, 5), dtype="f4")
PIECES = {5: [[1, 2]], -3: np.empty((0, 2)), 7: np.arange(2_000).reshape(-1, 2)}
TEXTS = {"µ": [1], "a b": [1, 2, 3], "z": []}
BYTES = {b"\xff": [1, 2], b"k": [3]}


@pytest.fixture
def tree(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with wendelin.open(path) as g:
        g.create_group("g")
        g["g/m"], g["g/none"] = M, EMPTY
        for name, dtype, row, pieces in [
            ("r", ">f4", (2,), PIECES),
            ("texts", "i2", (), TEXTS),
            ("bytes", "f8", (), BYTES),
            ("nothing", "u1", (3,), {}),
        ]:
            g[f"g/{name}"] = R = ZRagged(dtype, row)
            transaction.commit()
            R.update(pieces)
        g["g/r"].writer("other").put(5, [[3, 4], [5, 6]])  # in another segment, and put later
        g["g/r"].attrs["unit"] = "mV"
        g["g/r"].attrs["limits"] = [0, 5]
        g["g/plain"] = np.arange(3)
        g["g/same"] = g["g/r"]
    return path


def check(path, at):
    with wendelin.open(path, "r") as g:
        g = g[at]
        assert isinstance(g["m"], ZSparse)
        assert (g["m"][:] != M).nnz == 0
        assert g["m"].dtype == M.dtype
        assert g["none"].shape == (3, 5)
        assert g["none"].dtype == "f4"
        for name, pieces in ("r", PIECES), ("texts", TEXTS), ("bytes", BYTES), ("nothing", {}):
            R = g[name]
            assert isinstance(R, ZRagged), name
            assert set(R.keys()) == set(pieces)
            for key, values in pieces.items():
                expected = [[3, 4], [5, 6]] if key == 5 else values
                assert np.array_equal(R[key], np.reshape(expected, (-1, *R.row))), key
        assert (g["r"].row, g["r"].dtype) == ((2,), np.dtype(">f4"))
        assert g["r"].attrs["unit"] == "mV"
        assert list(g["r"].attrs["limits"]) == [0, 5]
        assert set(g["r"].attrs) == {"unit", "limits"}
        assert np.array_equal(g["plain"][:], np.arange(3))


@pytest.mark.parametrize("name", ["x.h5", "x.zarr", "x.nc"])
def test_a_group_of_them_goes_into_a_file_and_back(call, tree, name):
    done = call("export", f"{tree}#g", name)
    assert ("left out, same: " in done.stderr) == (name == "x.zarr")  # another name of r
    assert done.stderr.count("left out") == (name == "x.zarr")
    call("import", name, f"{tree}#back")
    check(tree, "back")
    call("import", "--step", "4K", "--blksize", "4K", name, f"{tree}#steps")
    check(tree, "steps")
    with database(tree) as root:  # they are objects of the database, which take further pieces
        root["back"]["r"].put(5, [[9, 9]])
        root["back"]["m"].append_rows(M)
        transaction.commit()
        assert root["back"]["r"][5].tolist() == [[9, 9]]
        assert root["back"]["m"].shape == (60, 7)
        assert root["back"].get("same") is (root["back"]["r"] if name != "x.zarr" else None)
    assert call("verify", tree).returncode == 0
    if name == "x.h5":
        with h5py.File(name) as f:
            found = f["m/data"][:], f["m/indices"][:], f["m/indptr"][:]
            assert (sparse.csr_array(found, shape=f["m"].attrs["shape"]) != M).nnz == 0
            assert f["m"].attrs["encoding-type"] == "csr_matrix"
            assert f["texts/keys"].asstr()[:].tolist() == [*TEXTS]


@pytest.mark.parametrize(
    "wrong",
    [
        {"indptr": [0, 2, 1]},
        {"indptr": [0, 1, 3]},
        {"indptr": [0, 1]},
        {"indices": [0, 5]},
        {"indices": np.array([0, 1], "i4")},
        {"data": np.array(["a", "b"], "S1")},
        {"more": [1]},
    ],
    ids=str,
)
def test_a_wrong_description_stays_a_group(call, path, tmp_path, wrong):
    arrays = {"data": [1.0, 2.0], "indices": np.array([0, 1]), "indptr": np.array([0, 1, 2])}
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_group("m").attrs.update({"encoding-type": "csr_matrix", "shape": [2, 3]})
        for name, values in (arrays | wrong).items():
            f["m"][name] = values
    call("import", tmp_path / "x.h5", f"{path}#t")
    with wendelin.open(path, "r") as g:
        assert set(g["t/m"]) == set(arrays | wrong)
        assert g["t/m"].attrs["encoding-type"] == "csr_matrix"


def test_keys_that_a_file_cannot_have_are_named(call, path, tmp_path):
    with wendelin.open(path) as g:
        g.create_group("g")
        for name, keys in ("mixed", [1, "a"]), ("nul", [b"a\0"]):
            g[f"g/{name}"] = R = ZRagged("f4")
            transaction.commit()
            R.update({key: [1] for key in keys})
    done = call("export", f"{path}#g", tmp_path / "x.h5")
    assert "left out, mixed: a ZRagged with keys of several types" in done.stderr
    assert "left out, nul: a ZRagged with a key that is empty, or ends with a NUL" in done.stderr


def test_attributes_of_a_ragged(call, tree):
    assert call("attrs", f"{tree}#g/r", "--json").json == {"unit": "mV", "limits": [0, 5]}
    call("attrs", f"{tree}#g/r", "--delete", "limits", "n=5")
    call("copy", f"{tree}#g/r", f"{tree}#copy")
    call("copy", f"{tree}#g", f"{tree}#whole")
    for at in "copy", "whole/r":
        assert call("attrs", f"{tree}#{at}", "--json").json == {"unit": "mV", "n": 5}
    with wendelin.open(tree, "r") as g:
        assert g["copy"][5].tolist() == [[3, 4], [5, 6]]


def test_a_ragged_without_attributes_is_what_it_was(path):
    """An early one has no table of them, and gets none by reading."""
    root = dbopen(path)
    root["r"] = ZRagged("f4")
    transaction.commit()
    assert "_attrs" not in root["r"].__getstate__()
    assert dict(root["r"].attrs) == {}
    assert not root["r"]._p_changed
    root["r"].attrs = {"a": 1}
    root["r"].attrs = {"b": np.arange(3)}
    transaction.commit()
    assert list(root["r"].attrs) == ["b"]
    assert pickle.loads(pickle.dumps(root["r"])).attrs["b"].tolist() == [0, 1, 2]
    with pytest.raises(TypeError, match="attribute 'x'"):
        root["r"].attrs["x"] = object()
    dbclose(root)
    assert os.path.exists(path)
