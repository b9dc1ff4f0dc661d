"""Small Zarr arrays in the store of a ZarrGroup, of each kind of chunks. Needs zarr."""

import numpy as np
import zarr

DATA = np.arange(60 * 40, dtype="i4").reshape(60, 40)
KINDS = {
    "raw": {"chunks": (10, 8), "compressors": None},
    "zstd": {"chunks": (10, 8)},
    "sharded": {"chunks": (5, 4), "shards": (20, 20)},
    "v2": {"chunks": (10, 8), "zarr_format": 2},
}


def make(group, name="a", kind="zstd", data=DATA):
    """Return an array in a group's store."""
    array = zarr.create_array(
        group.store(), name=name, shape=data.shape, dtype=data.dtype, **KINDS[kind]
    )
    array[:] = data
    return array


def opened(group, name="a", **kw):
    return zarr.open_array(group.store(**kw), path=name)
