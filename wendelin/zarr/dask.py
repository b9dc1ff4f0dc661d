"""Dask arrays into arrays of a ZarrGroup, also from workers that are other processes.

A ZODBStore that comes to another process reads one state, and does not write: it would have to join
a transaction that is not there. So a task gets the URL of the database and the path of the array.
It takes a Connection of its own, opens the array, and commits what it writes; see
wendelin.bigarray.dask, which does so for arrays.

It needs `pip install wendelin.core[dask,zarr]`, and no other module imports it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import dask.array
import numpy as np
import zarr

from wendelin.bigarray.dask import BATCH, Slices, in_transaction, store_in_batches
from wendelin.bigarray.workers import limit_memory
from wendelin.lib.storage.shared import zconn_now
from wendelin.zarr.store import ZODBStore

__all__ = ["to_zarr"]


def to_zarr(darr: dask.array.Array, z: Any, compute: bool = True, batch: int = BATCH) -> Any:
    """Store a Dask array in an array of a ZarrGroup, chunk by chunk, on the workers.

    Each task stores one chunk, or consecutive chunks of a batch, in a transaction of its own.
    It is tried again after a conflict: two tasks that write one chunk of the array have one. So the
    whole is not atomic: readers see some parts earlier than others, and after a failure, stored
    parts stay. It does no harm to store them again. The caller sees the result in its next
    transaction, by an array that it opens then.

    Chunks of whole chunks of the array, or of whole shards, are best: each is written once.

    Parameters
    ----------
    darr : dask.array.Array
    z : zarr.Array
        Of the same shape, opened from ZarrGroup.store(). Without changes that are not committed.
    compute : bool
        False: return a Delayed that does it.
    batch : int
        Size of consecutive chunks that a task stores in a transaction: 32 MiB [bytes].

    Raises
    ------
    TypeError
        The array is not in a ZarrGroup.
    ValueError
        The shape is another; or the store is of a past state, or read-only.
    pickle.PicklingError
        There are changes that are not committed.
    NotImplementedError
        No URL names the database: see wendelin.lib.zodb.zstor_2zurl().
    zc.lockfile.LockError
        The database is a file that is open here, but the workers are other processes: use a server.
    ZODB.POSException.ConflictError
        After a hundred tries.
    """
    store = z.store if isinstance(z, zarr.Array) else None
    if not isinstance(store, ZODBStore):
        raise TypeError(f"{z!r:.100} is not an array of zarr in a ZarrGroup")
    if darr.shape != z.shape:
        raise ValueError(f"shape {darr.shape} cannot be stored in an array of shape {z.shape}")
    store.check_writable()
    _, (url, oid, *_) = store.__reduce__()
    store.share()
    store_chunks = partial(_store, url, oid, z.path, z.shape)
    return store_in_batches(store_chunks, darr, "C", compute, batch)


def _store(
    url: str,
    oid: bytes,
    path: str,
    shape: tuple[int, ...],
    places: list[Slices],
    blocks: list[Any],
) -> None:
    """Store chunks, in a transaction."""
    limit_memory()
    with zconn_now(url) as conn:
        in_transaction(conn, partial(_assign, conn, oid, path, shape, places, blocks))


def _assign(
    conn: Any,
    oid: bytes,
    path: str,
    shape: tuple[int, ...],
    places: list[Slices],
    blocks: list[Any],
) -> None:
    z = zarr.open_array(conn.get(oid).store(), path=path, mode="r+")
    if z.shape != shape:
        raise ValueError(f"array {path!r} has shape {z.shape} now, and had {shape}")
    for place, block in zip(places, blocks, strict=True):
        z[place] = np.asanyarray(block)
