"""Attributes of arrays go with them: from and to HDF5 and Zarr, and between databases."""

import numpy as np
import pytest

import wendelin

pytestmark = [pytest.mark.formats, pytest.mark.once]

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

VALUES = {
    "none": None,
    "flag": True,
    "n": -5,
    "large": 1 << 70,
    "x": 0.5,
    "z": 1 + 2j,
    "text": "µV",
    "bytes": b"\0\xff",
    "numbers": [1.5, 2.5],
    "texts": ["a", "bcd"],
    "deep": [1, {"a": [None, "b"]}],
    "empty": [],
    "scalar": np.float32(1.5),
    "when": np.datetime64("2026-01-01T00:00", "s"),
    "array": np.arange(6, dtype="i2").reshape(2, 3),
    "struct": np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
}


@pytest.fixture
def url(path):
    with wendelin.open(path) as g:
        g.create_array("run/x", data=np.arange(5), attrs=VALUES)
        g.create_array("plain", data=np.arange(5))
    return path


def attrs_of(url, name):
    with wendelin.open(url, "r") as g:
        return {key: g[name].attrs[key] for key in g[name].attrs}


def equal(a, b):
    return np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype


def test_to_hdf5_and_back(call, url, tmp_path):
    file = tmp_path / "x.h5"
    done = call("export", f"{url}#run/x", f"{file}:x")
    assert "left out" not in done.stderr
    with h5py.File(file) as f:
        attrs = f["x"].attrs
        assert attrs.keys() == VALUES.keys()
        for name in "flag", "n", "x", "z", "scalar", "array", "struct", "text":
            assert np.array_equal(attrs[name], VALUES[name]), name
        assert attrs["numbers"].tolist() == [1.5, 2.5]
        assert attrs["texts"].tolist() == ["a", "bcd"]
        assert attrs["when"] == VALUES["when"]
        assert attrs["deep"] == '[1, {"a": [null, "b"]}]'
        assert attrs["large"] == str(1 << 70)
        assert isinstance(attrs["none"], h5py.Empty)
    call("import", f"{file}:x", f"{url}#again")
    found = attrs_of(url, "again")
    text = {"deep": '[1, {"a": [null, "b"]}]', "large": str(1 << 70), "empty": "[]"}
    for name, value in VALUES.items():
        assert equal(found[name], text.get(name, value)), name


def test_to_zarr_and_back(call, url, tmp_path):
    folder = tmp_path / "x.zarr"
    done = call("export", f"{url}#run/x", folder)
    assert "left out, attributes that" in done.stderr
    assert done.stderr.strip().endswith("cannot have: bytes, z")
    attrs = zarr.open_array(folder, mode="r").attrs.asdict()
    assert attrs["array"] == [[0, 1, 2], [3, 4, 5]]
    assert attrs["when"] == "2026-01-01T00:00:00"
    assert attrs["deep"] == VALUES["deep"]
    assert attrs["struct"] == [[1, 2.5]]
    call("import", folder, f"{url}#again")
    assert attrs_of(url, "again") == attrs


def test_attributes_that_other_programs_write_to_hdf5(call, url, tmp_path):
    file = tmp_path / "x.h5"
    with h5py.File(file, "w") as f:
        x = f.create_dataset("x", data=np.zeros((3, 2)))
        f["t"] = np.arange(3)
        f["t"].make_scale("time")
        x.dims[0].attach_scale(f["t"])
        x.attrs["units"] = "mV"
        x.attrs["ref"] = f["t"].ref
        x.attrs["huge"] = np.zeros(7)
        x.attrs["enum"] = np.array([1, 0], h5py.enum_dtype({"OFF": 0, "ON": 1}, "i1"))
        x.attrs["vlen"] = np.array(["a", "bc"], h5py.string_dtype())
        x.attrs["fixed"] = np.bytes_(b"abc")
    done = call("import", f"{file}:x", f"{url}#x")
    assert f"left out, attributes of {file}: ref" in done.stderr
    assert attrs_of(url, "x") == {
        "units": "mV",
        "_ARRAY_DIMENSIONS": ["t", ""],
        "huge": pytest.approx(np.zeros(7)),
        "enum": pytest.approx(np.array([1, 0])),
        "vlen": ["a", "bc"],
        "fixed": "abc",
    }


def test_files_that_have_no_attributes(call, url, tmp_path):
    done = call("export", f"{url}#run/x", tmp_path / "x.npy")
    assert "left out, attributes that" in done.stderr
    assert "left out" not in call("export", f"{url}#plain", tmp_path / "y.npy").stderr


def test_between_databases(call, url, tmp_path):
    other = f"{tmp_path}/other.fs"
    call("copy", f"{url}#run/x", f"{other}#y")
    found = attrs_of(other, "y")
    assert found.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert equal(found[name], value), name


def test_an_import_that_goes_on_keeps_attributes(call, url, tmp_path, monkeypatch):
    from wendelin.cli.files.datasets import DatasetSource

    file = tmp_path / "x.h5"
    with h5py.File(file, "w") as f:
        f["x"] = np.arange(100_000)
        f["x"].attrs["unit"] = "mV"
    read = DatasetSource._read

    def fails(self, start, stop):
        if start:
            raise OSError("gone")
        return read(self, start, stop)

    monkeypatch.setattr(DatasetSource, "_read", fails)
    step = ("--step", "64K", "--blksize", "64K")
    call("import", *step, f"{file}:x", f"{url}#x", code=1)
    monkeypatch.undo()
    call("import", *step, f"{file}:x", f"{url}#x")
    assert attrs_of(url, "x") == {"unit": "mV"}
