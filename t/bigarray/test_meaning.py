"""Array-likes that mean more than their numbers: masks, units, missing values of pandas."""

import contextlib

import numpy as np
import pytest

import wendelin
from wendelin.bigarray.array_ram import RAMArray
from wendelin.bigarray.attrs import check_value
from wendelin.ragged import ZRagged
from wendelin.sparse import ZSparse

MASKED = np.ma.masked_array([[1.0, 2], [3, 4]], [[False, True], [False, False]])
CLEAN = np.ma.masked_array([[1.0, 2], [3, 4]], False)


class Quantity:
    """As pint has it."""

    magnitude = np.ones((2, 2))
    units = "metre"

    def __array__(self, dtype=None, copy=None):
        return self.magnitude


class Later:
    """An object with slices, which has a mask when it is loaded, as an array of Dask."""

    shape, dtype, ndim = MASKED.shape, MASKED.dtype, 2

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __getitem__(self, idx):
        return Later(self.values[idx])


def put_ragged(g, values):
    g["r"] = ZRagged("f8", (2,))
    g.obj._p_jar.add(g.obj["r"])
    g["r"].put(1, values)
    return g["r"][1]


def from_rows(g, values):
    g["s"] = ZSparse.csr((0, 2), "f8")
    g["s"].append_rows(values)
    return g["s"][:].toarray()


def created(g, values):
    return g.create_array("c", data=values)[:]


def assigned(g, values):
    g.create_array("a", (2, 2), float)[...] = values
    return g["a"][:]


def assigned_row(g, values):
    A = g.create_array("w", (2, 2), float)
    for i in range(2):
        A[i] = values[i] if isinstance(values, np.ndarray) else np.asanyarray(values)[i]
    return A[:]


def appended(g, values):
    A = g.create_array("b", (0, 2), float)
    A.append(values)
    return A[:]


def appended_rows(g, values):
    A = g.create_array("d", (0, 2), float)
    A.append([*np.asanyarray(values)])
    return A[:]


def in_memory(g, values):
    A = RAMArray((0, 2), float)
    A.append(values)
    return A[:]


def by_name(g, values):
    g["n"] = np.asanyarray(values)
    return g["n"][:]


ENTRANCES = [created, assigned, assigned_row, appended, appended_rows, in_memory, by_name]


@pytest.fixture
def group(tmp_path):
    with wendelin.open(str(tmp_path / "x.fs")) as g:
        yield g


@pytest.mark.parametrize("way", [*ENTRANCES, put_ragged, from_rows])
def test_masked_values_are_refused(group, way):
    if way is from_rows:
        pytest.importorskip("scipy")
    for values in MASKED, Later(MASKED):
        for name in list(group):
            del group[name]
        with pytest.raises(
            TypeError, match=r"masked, and an array has no mask: give x.filled\(v\)"
        ):
            way(group, values)
    for values in CLEAN, Later(CLEAN), MASKED.filled(9):
        expected = np.asarray(values if isinstance(values, np.ndarray) else values.values)
        for name in list(group):
            del group[name]
        assert np.array_equal(way(group, values), expected), way


@pytest.mark.parametrize("way", [created, assigned, appended, in_memory, put_ragged])
def test_units_are_refused(group, way):
    with pytest.raises(TypeError, match="the unit metre, and an array has none: give q"):
        way(group, Quantity())


def test_a_masked_constant_and_attributes(group):
    A = group.create_array("a", (3,), float)
    with pytest.raises(TypeError, match="1 of the values is masked"):
        A[1] = np.ma.masked
    with pytest.raises(TypeError, match="masked"):
        A[:] = [1, np.ma.masked, 2]
    with pytest.raises(TypeError, match="attribute 'limits': 1 of the values is masked"):
        A.attrs["limits"] = MASKED
    assert np.array_equal(check_value(CLEAN), CLEAN.data)
    assert not np.any(A[:])


def test_missing_values_of_pandas(group):
    pd = pytest.importorskip("pandas")
    whole = pd.Series([1, 2], dtype="Int64")
    missing = pd.Series([1, None], dtype="Int64")
    A = group.create_array("a", (2,), float)
    A[:] = pd.Series([1.5, 2.5])
    assert A[:].tolist() == [1.5, 2.5]
    group.create_array("c", data=whole.to_numpy("i8"))
    with contextlib.suppress(TypeError):  # pandas 3 gives NaN itself, and earlier versions objects
        A.append(missing)
        assert np.array_equal(A[:], [1.5, 2.5, 1, np.nan], equal_nan=True)
    texts = group.create_array("texts", data=np.array(["xyz", "u"]))
    texts[:] = pd.Series(["a", "b"])
    A[:2] = pd.Series([1, 2], dtype=object)
    for objects in pd.Series([1, None], dtype=object), pd.Series(["a", None]):
        with pytest.raises(
            TypeError, match=r"some values of the Series are missing.*na_value=np.nan"
        ):
            texts[:2] = objects
        with pytest.raises(TypeError):
            group.create_array("d", data=objects)
        assert "d" not in group
    times = pd.Series(pd.to_datetime(["2026-01-01", None]))
    assert str(group.create_array("t", data=times)[1]) == "NaT"
    with pytest.raises(TypeError):
        group.create_array("z", data=times.dt.tz_localize("UTC"))


def test_labels_of_xarray_are_kept(group):
    xr = pytest.importorskip("xarray")
    data = xr.DataArray(
        np.ones((2, 3)), dims=("t", "x"), attrs={"units": "K"}, coords={"x": [1, 2, 3]}
    )
    A = group.create_array("x", data=data)
    assert A.attrs == {"units": "K", "_ARRAY_DIMENSIONS": ["t", "x"]}
    assert group.create_array("y", data=data, attrs={"a": 1}).attrs == {"a": 1}
    A[:] = data * 2
    assert np.all(A[:] == 2)
