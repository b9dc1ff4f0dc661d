"""xarray: datasets that are saved to groups and opened again, against those in memory."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support.child import check_child

import wendelin
from wendelin.lib.zodb import dbclose
from wendelin.tree.group import Group

pytest.importorskip("xarray", reason="xarray is not installed: tox -e docs")

import pandas as pd
import xarray as xr

import wendelin.xarray as ours

DIMENSIONS = ours.DIMENSIONS


def dataset(days=range(1, 4)):
    """Return a dataset of some days: all kinds of variables and coordinates."""
    time = np.array([f"2026-01-{day:02}" for day in days], "datetime64[ns]")
    return xr.Dataset(
        {
            "temp": (("time", "city"), np.outer(days, [1.0, 2.0]), {"unit": "K", "gain": [1, 2]}),
            "rain": (("city", "time"), np.outer([1, 2], days).astype("i2")),
            "name": ("city", np.array(["Ulm", "Köln"])),
            "wet": ("time", np.array(days) % 2 == 0),
            "total": ((), 3 + 4j),
        },
        coords={
            "time": time,
            "city": ["a", "bc"],
            "height": ("city", [478, 53]),
            "lag": ("time", np.array(days, "m8[s]")),
            "run": 7,
        },
        attrs={"title": "weather", "limits": np.array([0, 5])},
    )


def opened(address, **kw):
    return xr.open_dataset(address, engine="wendelin", **kw)


@pytest.fixture
def url(testdb):
    return f"{testdb.url}#run/7"


@pytest.fixture
def address(tmp_path):
    return f"file://{tmp_path}/x.fs#run/7"  # xarray before 2026.7 wants a URL for chunks=


def test_round_trip_and_append(url, testdb):
    root = testdb.open()
    before = root._p_jar.db().lastTransaction()  # a NEO cluster has transactions of other tests
    dbclose(root)
    dataset().wendelin.save(url)
    xr.testing.assert_identical(opened(url).load(), dataset())
    dataset(range(4, 9)).wendelin.save(url, append_dim="time")
    xr.testing.assert_identical(opened(url).load(), dataset(range(1, 9)))
    with wendelin.open(testdb.url) as g:
        saved = [entry for entry in g.log() if entry.changes and entry.tid > before]
        assert len(saved) in (2, 3)  # each save is one; the first of a database makes the root, too
        A = g["run/7/temp"]
        assert dict(A.attrs) == {
            "unit": "K",
            "gain": [1, 2],
            "coordinates": "height lag run",  # as in the CF conventions
            DIMENSIONS: ["time", "city"],
        }
        assert g["run/7/time"].dtype == "M8[ns]"
        xr.testing.assert_identical(opened(g["run/7"]), dataset(range(1, 9)))


def test_a_dataset_is_lazy_and_shows_one_moment(address):
    dataset().wendelin.save(address)
    before = opened(address)
    url, _, path = address.partition("#")
    with wendelin.open(url) as g:
        g.tag("first", g.log()[0].tid)
        g[path]["temp"][:] = 0
    assert float(before.temp.sum()) == 18
    assert float(opened(address).temp.sum()) == 0
    assert float(opened(address, at="first").temp.sum()) == 18
    view = before.temp.sel(time="2026-01-02", city="bc")
    assert float(view) == 4
    values = before.temp.sel(city="bc").values
    assert not values.flags.writeable
    assert not values.flags.owndata  # memory of the database
    changed = opened(address).load().copy(deep=True)
    changed.temp[0] = 5
    assert float(changed.temp.sum()) == 10


def test_a_dataset_goes_to_another_process_as_a_reference(address, tmp_path):
    dataset().wendelin.save(address)
    text = pickle.dumps(opened(address))
    big = xr.Dataset({"x": ("t", np.zeros(1 << 20))})
    big.wendelin.save(f"{tmp_path}/big.fs")
    assert len(pickle.dumps(opened(f"{tmp_path}/big.fs"))) < 10_000
    (tmp_path / "ds").write_bytes(text)
    program = (
        f"import pickle; ds = pickle.load(open({str(tmp_path / 'ds')!r}, 'rb'))\n"
        f"print(float(ds.temp.sum()))"
    )
    assert check_child(program).strip() == "18.0"


def test_only_what_is_touched_is_loaded(tmp_path):
    """The variable is larger than all memory, and few of its rows are stored."""
    with wendelin.open(tmp_path / "x.fs") as g:
        A = g.create_array("x", (1 << 40, 4), "f8", attrs={DIMENSIONS: ["t", "c"]})
        A[5] = 1
    ds = opened(f"{tmp_path}/x.fs")
    assert float(ds.x[:100].sum()) == 4
    assert float(ds.x.isel(t=slice(5, None, 1 << 39), c=slice(0, 3, 2)).sum()) == 2


def test_dask(address):
    pytest.importorskip("dask", reason="Dask is not installed: tox -e docs")
    dataset().wendelin.save(address)
    before = opened(address, chunks={"time": 2})
    assert before.temp.chunks == ((2, 1), (2,))
    xr.testing.assert_identical(before.compute(), dataset())
    url, _, path = address.partition("#")
    with wendelin.open(url) as g:
        g[path]["temp"][:] = 0
    # the same address, another state: Dask must not take them for the same
    after = opened(address, chunks={"time": 2})
    assert float((before.temp - after.temp).sum().compute()) == 18
    assert after.temp.data[:1].compute().flags.owndata
    (before[["temp", "rain"]] * 2).wendelin.save(f"{url}#twice")
    assert np.array_equal(opened(f"{url}#twice").temp, dataset().temp * 2)
    assert opened(address, chunks={}).temp.chunks == ((3,), (2,))


def test_chunks_are_whole_blocks(tmp_path):
    with wendelin.open(tmp_path / "x.fs") as g:
        g.create_array("x", (10_000, 5000), "f8")
    chunks = opened(f"{tmp_path}/x.fs").x.encoding["preferred_chunks"]
    assert list(chunks.values()) == [52]


def test_chunks_have_room_in_workers(tmp_path, monkeypatch):
    pytest.importorskip("dask", reason="Dask is not installed: tox -e docs")
    from wendelin.bigarray import dask

    monkeypatch.setattr(dask, "chunk_limit", lambda: 9 << 20)
    with wendelin.open(tmp_path / "x.fs") as g:
        A = g.create_array("x", (10_000, 5000), "f8", attrs={DIMENSIONS: ["t", "c"]})
        g.create_array("y", (10_000,), "f4", attrs={DIMENSIONS: ["t"]})
        transaction.commit()
        chosen = dask.from_array(A).chunks
    ds = opened(f"{tmp_path}/x.fs")
    assert chosen[0][0] == 4 * 52
    for chunks in "auto", {"t": "auto", "c": -1}, {"t": "auto"}:
        assert ds.chunk(chunks).x.chunks == chosen
    assert ds.chunk("auto").y.chunks == ((10_000,),)
    assert ds.chunk({"c": 1000}).x.chunks == ((10_000,), (1000,) * 5)
    with dask.dask.config.set({"array.chunk-size": "4MiB"}):  # the caller wants less
        assert ds.chunk("auto").x.chunks[0][0] == 2 * 52


def test_groups_that_others_made(tmp_path):
    """Dimensions without names are told apart by their lengths; other objects are left out."""
    with wendelin.open(tmp_path / "x.fs") as g:
        g["a"], g["b"] = np.zeros((3, 4)), np.ones((4, 3, 3))
        g.create_group("c")
        g["a"].attrs["coordinates"] = "t"
    ds = opened(f"{tmp_path}/x.fs")
    assert ds.a.dims == ("phony_dim_0", "phony_dim_1")
    assert ds.b.dims == ("phony_dim_1", "phony_dim_0", "phony_dim_0_2")
    assert dict(opened(f"{tmp_path}/x.fs#c")) == {}
    assert xr.open_dataset(f"{tmp_path}/x.fs").sizes == ds.sizes  # finds the engine by the name


def test_netcdf_that_was_imported(tmp_path):
    """As an import writes it: coded values, attributes of one element and those of netCDF."""
    with wendelin.open(tmp_path / "x.fs") as g:
        for name, data, attrs in (
            ("time", np.arange(3), {"units": "hours since 2026-01-01", "NAME": "time"}),
            ("t", np.array([10, -1, 30], "i2"), {"_FillValue": np.array([-1], "i2"),
             "scale_factor": np.array([0.5])}),
            ("x", np.zeros(3), {"NAME": "This is a netCDF dimension but not a netCDF variable. 3"}),
        ):  # fmt: skip
            g.create_array(name, data=data, attrs={**attrs, DIMENSIONS: ["time"]})
        g.attrs["_NCProperties"] = "version=2"
    address = f"{tmp_path}/x.fs"
    expected = xr.Dataset(
        {"t": ("time", [5, np.nan, 15])},
        {"time": pd.date_range("2026-01-01", periods=3, freq="h")},
    )
    xr.testing.assert_equal(opened(address), expected)
    more = expected.assign_coords(time=expected.time + np.timedelta64(1, "D"))
    more.wendelin.save(address, append_dim="time")
    xr.testing.assert_equal(opened(address), xr.concat([expected, more], "time"))
    assert opened(address).attrs == {}
    with wendelin.open(address, "r") as g:
        assert g["t"][:].tolist() == [10, -1, 30] * 2
        assert g["time"][:].tolist() == [0, 1, 2, 24, 25, 26]


def test_files_that_were_imported(call, tmp_path, monkeypatch):
    """`wendelin import` keeps dimensions and coding: xarray reads the same as from the file."""
    pytest.importorskip("netCDF4", reason="netCDF4 is not installed: tox -e docs")
    monkeypatch.chdir(tmp_path)
    ds = dataset().drop_vars(("total", "lag")).assign_attrs(limits=5)
    coded = {"temp": {"scale_factor": 0.5, "dtype": "i2", "_FillValue": -1}}
    ds.to_netcdf("a.nc", encoding=coded, unlimited_dims="time", engine="netcdf4")
    ds.to_netcdf("b.nc", format="NETCDF3_64BIT", engine="netcdf4")
    ds.drop_vars(("name", "city")).to_zarr(
        "c.zarr", encoding={"temp": {"_FillValue": -9.5}}, consolidated=False
    )
    for file in "a.nc", "b.nc", "c.zarr":
        call("import", file, f"x.fs#{file[0]}")
        with xr.open_dataset(file, **({"consolidated": False} if "zarr" in file else {})) as of:
            xr.testing.assert_equal(opened(f"x.fs#{file[0]}"), of)
    more = dataset(range(4, 6))[["temp", "rain", "wet"]].reset_coords(drop=True)
    for group in "a", "c":
        fits = more if group == "a" else more.drop_vars("city")
        fits.wendelin.save(f"x.fs#{group}", append_dim="time")
        assert opened(f"x.fs#{group}").temp.values.tolist() == [[n, 2 * n] for n in range(1, 6)]


def test_what_cannot_be_saved(tmp_path, address):
    ds = dataset()
    ds.wendelin.save(address)

    def refused(error, text, ds, to=address, **kw):
        with pytest.raises(error, match=text):
            ds.wendelin.save(to, **kw)

    refused(ValueError, "has 'temp' already: append_dim= appends", ds)
    refused(ValueError, "other values than the database", ds.assign(name=("city", ["x", "y"])),
            append_dim="time")  # fmt: skip
    refused(ValueError, "the dataset has no 'wet'", ds.drop_vars("wet"), append_dim="time")
    refused(ValueError, "no 'new' to append to", ds.assign(new=1), append_dim="time")
    refused(ValueError, "no dimension 'day'", ds, append_dim="day")
    refused(ValueError, r"'wet' is float64, which not all fits.*bool",
            ds.assign(wet=ds.wet * 0.5), append_dim="time")  # fmt: skip
    refused(ValueError, "exclude each other", ds, append_dim="time", replace=True)
    refused(ValueError, "'time' is 3 long.*drop_variables|'time' is .* long in array",
            ds[["temp"]].isel(time=[0]), replace=True)  # fmt: skip
    to = f"{tmp_path}/y.fs"
    refused(TypeError, "1 is not a name", xr.Dataset({1: ("x", [1])}), to)
    refused(ValueError, "'a/b' is not a name", xr.Dataset({"a/b": ("x", [1])}), to)
    refused(TypeError, r"'x' has objects \(float, str\).*fillna",
            xr.Dataset({"x": ("y", np.array(["a", np.nan], object))}), to)  # fmt: skip
    several = ds[["temp"]].stack(both=("time", "city"))
    refused(TypeError, r"ds.reset_index\('both'\)", several, to)
    several.reset_index("both").wendelin.save(to)
    assert opened(to).temp.shape == (6,)
    assert opened(address).sizes == ds.sizes
    with pytest.raises(TypeError, match="is a ZBigArray, and a dataset is a group"):
        opened(f"{address}/temp")
    with pytest.raises(KeyError, match=r"did you mean '7'|it has '7'"):
        opened(address.replace("run/7", "run/77"))
    with pytest.raises(FileNotFoundError, match="there is no database"):
        opened(f"{tmp_path}/none.fs")


def test_a_group_takes_part_in_its_transaction(tmp_path):
    with wendelin.open(tmp_path / "x.fs") as g:
        dataset().wendelin.save(g.create_group("a"))
        with pytest.raises(pickle.PicklingError, match="not committed"):
            opened(g["a"])
        transaction.abort()
        assert "a" not in g
        dataset().wendelin.save(g)
        transaction.commit()
        with pytest.raises(TypeError, match=r"g\.at"):
            opened(g, at="now")
        dataset().wendelin.save(g, replace=True)
    assert isinstance(g, Group)


def test_texts_as_objects_and_as_bytes(tmp_path):
    to = f"{tmp_path}/x.fs"
    ds = xr.Dataset(
        {"o": ("x", np.array(["a", "bcd"], object)), "b": ("x", np.array([b"a", b""], "S1"))},
        {"x": [1, 2]},
    )
    ds.wendelin.save(to)
    assert opened(to).o.dtype.kind in "UT"
    xr.testing.assert_equal(opened(to), ds)
    with pytest.raises(ValueError, match="'o' is <U4, which not all fits"):
        ds.assign(o=("x", ["long", "e"])).wendelin.save(to, append_dim="x")


def test_without_xarray():
    program = "import sys; sys.modules['xarray'] = None; import wendelin.xarray"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert (
        "needs xarray, which is not installed: pip install 'wendelin.core[xarray]'" in done.stderr
    )


DTYPES = st.one_of(
    npst.integer_dtypes(endianness="?"),
    npst.floating_dtypes(),
    npst.complex_number_dtypes(),
    npst.boolean_dtypes(),
    st.sampled_from(["M8[ns]", "m8[ns]", "U3", "S3"]).map(np.dtype),
)


@st.composite
def datasets(draw):
    """Return a dataset of a few variables over some of three dimensions."""
    lengths = {dim: draw(st.integers(0, 4)) for dim in "xyz"}
    variables = {}
    for name in draw(st.sets(st.sampled_from(["a", "b", "é", "x", "y"]))):
        dims = [name] if name in "xy" else draw(st.permutations("xyz"))[: draw(st.integers(0, 3))]
        shape = tuple(lengths[dim] for dim in dims)
        dtype = draw(DTYPES)
        if name in "xy":
            dtype = np.dtype("i8")
        attrs = draw(
            st.dictionaries(st.sampled_from(["p", "q"]), st.integers(-9, 9) | st.text("ab%/é"))
        )
        variables[name] = dims, draw(npst.arrays(dtype, shape)), attrs
    ds = xr.Dataset(variables)
    return ds.set_coords(draw(st.sets(st.sampled_from(sorted(variables)))) if variables else [])


@settings(
    max_examples=25, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(datasets(), st.booleans())
def test_any_dataset(tmp_path, ds, append):
    with wendelin.open(tmp_path / "any.fs") as g:
        name = f"{len(g)}"
        group = g.create_group(name)
        ds.wendelin.save(group)
        if append and "x" in ds.dims:
            ds.wendelin.save(group, append_dim="x")
        transaction.commit()
        found = opened(group)
        expected = ds
        if append and "x" in ds.dims:
            with_x = [n for n in ds.variables if "x" in ds[n].dims]
            both = xr.concat([ds[with_x], ds[with_x]], "x")
            expected = ds.drop_vars(with_x).assign(both.variables).set_coords(list(ds.coords))
        xr.testing.assert_identical(found.load(), expected)
