"""netCDF of all formats and MATLAB files, next to netCDF4's and scipy's own reading; xarray."""

import numpy as np
import pytest

import wendelin
from wendelin.cli.files.contents import DIMS

nc, scipy_io = pytest.importorskip("netCDF4"), pytest.importorskip("scipy.io")

pytestmark = [pytest.mark.formats, pytest.mark.once]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(name, form):
    with nc.Dataset(name, "w", format=form) as f:
        f.title = "a test"
        f.createDimension("time", None)
        f.createDimension("x", 3)
        f.createDimension("bare", 2)
        t = f.createVariable("time", "f8", ("time",))
        t.units = "days since 2026-01-01"
        t[:] = np.arange(4)
        v = f.createVariable("v", "f4", ("time", "x", "bare"), fill_value=-1)
        v[:] = np.arange(24).reshape(4, 3, 2)
        f.createVariable("x", "i2", ("x",))[:] = [1, 2, 3]
        f.createVariable("char", "S1", ("x",))[:] = np.array(list("abc"), "S1")
        f.createVariable("scalar", "i4", ())[...] = 7


@pytest.mark.parametrize(
    "form", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA", "NETCDF4"]
)
def test_all_formats_and_back(call, path, form):
    make("x.nc", form)
    call("import", "x.nc", path)
    call("import", "x.nc:v", f"{path}#one")
    with wendelin.open(path) as g:
        assert g.attrs["title"] == "a test"
        assert g["v"].attrs[DIMS] == ["time", "x", "bare"]
        assert g["v"].attrs["_FillValue"] == -1
        assert g["time"].attrs["units"] == "days since 2026-01-01"
        assert g["char"][:].tobytes() == b"abc"
        assert g["scalar"][()] == 7
        assert np.array_equal(g["v"][:], np.arange(24).reshape(4, 3, 2))
        assert np.array_equal(g["one"][:], g["v"][:])
        assert g["v"].dtype.newbyteorder("=") == "f4"
        del g["one"]
    call("export", path, "y.nc")
    with nc.Dataset("y.nc") as f:
        f.set_auto_maskandscale(False)
        assert f["v"].dimensions == ("time", "x", "bare")
        assert f["x"].dimensions == ("x",)
        assert {n: len(d) for n, d in f.dimensions.items()} == {"time": 4, "x": 3, "bare": 2}
        assert np.array_equal(f["v"][:], np.arange(24).reshape(4, 3, 2))
        assert f["v"].ncattrs() == ["_FillValue"]
        assert f.title == "a test"


def test_xarray_reads_what_is_exported(call, path):
    xr = pytest.importorskip("xarray")
    make("x.nc", "NETCDF3_CLASSIC")
    call("import", "x.nc", f"{path}#run")
    call("export", f"{path}#run", "y.nc")
    call("export", f"{path}#run", "y.zarr")
    want = xr.open_dataset("x.nc", engine="netcdf4").load()
    for found in xr.open_dataset("y.nc", engine="netcdf4"), xr.open_zarr("y.zarr", chunks=None):
        assert dict(found.sizes) == dict(want.sizes)
        for name in want.variables:
            assert found[name].dims == want[name].dims
            assert np.array_equal(found[name].values, want[name].values), name
        found.close()


def test_a_matlab_file_before_7_3(call, path):
    values = {"m": np.arange(6.0).reshape(2, 3), "s": {"a": np.array([1, 2], "i2"), "t": "text"}}
    scipy_io.savemat("x.mat", values | {"cells": np.array([1, "a"], object)})
    done = call("import", "x.mat", path)
    assert "x.mat:cells: cells" in done.stderr
    want = scipy_io.loadmat("x.mat")
    with wendelin.open(path, "r") as g:
        assert np.array_equal(g["m"][:], want["m"])
        assert np.array_equal(g["s/a"][:], want["s"][0, 0]["a"])
        assert g["s/t"][:].tolist() == ["text"]


@pytest.mark.parametrize("name", ["x.nc", "x.mat"])
def test_damaged_files_are_refused_by_a_line(call, path, name):
    head = {"x.nc": b"CDF\x01", "x.mat": b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"}[name]
    with open(name, "wb") as f:
        f.write(head + b"\xff" * 50)
    done = call("import", name, path, code=1)
    assert "is not a readable" in done.stderr
    assert done.stderr.count("\n") == 1
