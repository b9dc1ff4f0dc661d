"""Dask arrays are stored in a ZarrGroup by threads and by other processes."""

import numpy as np
import pytest
import transaction

from wendelin.zarr import ZarrGroup

zarr = pytest.importorskip("zarr")
dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

pytestmark = [pytest.mark.once, pytest.mark.only("fs", "zeo")]

DATA = np.arange(60 * 40, dtype="i4").reshape(60, 40)


def made(root):
    root["g"] = g = ZarrGroup()
    z = zarr.create_array(g.store(), name="d/z", shape=DATA.shape, chunks=(10, 20), dtype="i4")
    transaction.commit()
    return z


@pytest.fixture
def root(testdb):
    root = testdb.open()
    yield root
    transaction.abort()
    testdb.close(root)


def stored(root):
    transaction.begin()
    return zarr.open_array(root["g"].store(), path="d/z", mode="r")[:]


def test_threads_that_share_chunks(root):
    """Chunks of 7 rows: tasks write the same chunks of the array, conflict, and try again."""
    from wendelin.zarr import dask as ours

    z = made(root)
    with dask.config.set(scheduler="threads", num_workers=4):
        # a task for each chunk
        assert ours.to_zarr(da.from_array(DATA, chunks=(7, 40)), z, batch=1) is None
    assert np.array_equal(stored(root), DATA)


def test_what_is_refused(root):
    from wendelin.zarr.dask import to_zarr

    x = da.from_array(DATA, chunks=(10, 40))
    z = made(root)
    with pytest.raises(ValueError, match=r"shape \(60, 20\) cannot be stored"):
        to_zarr(x[:, :20], z)
    with pytest.raises(TypeError, match="not an array of zarr in a ZarrGroup"):
        to_zarr(x, zarr.create_array({}, shape=DATA.shape, dtype="i4"))
    with pytest.raises(TypeError, match="not an array of zarr in a ZarrGroup"):
        to_zarr(x, DATA)
    past = zarr.open_array(root["g"].store(read_only=True), path="d/z", mode="r")
    with pytest.raises(ValueError, match="read-only"):
        to_zarr(x, past)


@pytest.mark.only("zeo")
def test_processes(root):
    from wendelin.zarr.dask import to_zarr

    z = made(root)
    with dask.config.set(scheduler="processes", num_workers=2):
        to_zarr(da.from_array(DATA, chunks=(15, 40)), z, batch=4000)
        assert np.array_equal(stored(root), DATA)
        with pytest.raises(ValueError, match=r"wendelin\.zarr\.dask\.to_zarr"):  # not in silence
            da.to_zarr(da.from_array(DATA, chunks=(10, 20)), z)
