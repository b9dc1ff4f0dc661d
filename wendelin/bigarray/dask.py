"""Dask arrays of arrays in a database, and back: what goes between processes are references.

from_array() makes a Dask array of one moment of an array. Whichever worker needs a chunk reads it
from the database. to_array() lets workers store chunks, in transactions of their own.

    client: A ── from_array ──► [URL, oid, tid] ── tasks ──► worker: opens the database once
            A ◄── to_array ──── [URL, oid] ─────── tasks ──►         reads, or writes

It is made with `pip install wendelin.core[dask]`, and imported by nobody else.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import dask
import dask.array
import numpy as np
from dask.delayed import Delayed
from numpy.typing import NDArray
from transaction.interfaces import TransientError

from wendelin.bigarray.array import BigArray
from wendelin.bigarray.array_zodb import ZBigArray, array_at
from wendelin.bigfile import ram_set_limit
from wendelin.bigfile.virtmem import ram_stat
from wendelin.lib.zonce import share, zconn_now

__all__ = ["from_array", "to_array"]

log = logging.getLogger(__name__)

PIECE = 16 << 20  # that is loaded and copied at a time [bytes]
BATCH = 32 << 20  # that is changed in a transaction, unless a chunk is larger [bytes]
MOST_TRIES = 100  # of a transaction that has a conflict

Slices = tuple[slice, ...]


def from_array(A: ZBigArray, chunks: Any = "auto") -> dask.array.Array:
    """Return a Dask array of an array, as it is now.

    Whatever is committed later, and whenever and wherever a chunk is read, it is of this moment.
    Workers need nothing but the database: its URL has to mean the same to them.

    Parameters
    ----------
    A : ZBigArray
        Without changes that are not committed.
    chunks : int, tuple, 'auto', ...
        See dask.array.from_array(). By default as large as Dask wants them, in whole blocks.

    Raises
    ------
    pickle.PicklingError
        There are changes that are not committed.
    NotImplementedError
        No URL names the database: see wendelin.lib.zodb.zstor_2zurl().
    """
    source = _Source(A)
    meta = np.empty((0,) * A.ndim, A.dtype)
    return dask.array.from_array(
        source, chunks, name=f"ZBigArray-{source.token}", asarray=False, fancy=False, meta=meta
    )


class _Source:
    """An array at a moment, as Dask takes it: read by slices, in any process."""

    def __init__(self, A: ZBigArray) -> None:
        if not isinstance(A, ZBigArray):
            raise TypeError(f"{type(A).__name__} is in no database: it must be a ZBigArray")
        _, self._where = A.__reduce__()
        self.shape, self.dtype, self.ndim = A.shape, A.dtype, A.ndim
        self.token = dask.base.tokenize(*self._where)
        # what Dask takes multiples of
        self.chunks = _blocks(A)

    def __getitem__(self, idx: Slices) -> NDArray[Any]:
        """Return a copy: what Dask has is sent, which what is not in memory cannot be."""
        _limit_memory()
        A = array_at(*self._where)
        rows = [range(*i.indices(n)) for i, n in zip(idx, self.shape, strict=True)]
        result = np.empty([len(r) for r in rows], self.dtype, A._order)
        for to, of in _pieces(A, idx, result):
            result[to] = A.read(of)
        return result


def _blocks(A: BigArray) -> tuple[int, ...]:
    """Return the shape of what is in one block, or some of them."""
    shape = [max(1, n) for n in A.shape]
    if shape:
        row = A.nbytes // shape[A._major]
        shape[A._major] = min(shape[A._major], max(1, A._fileh().blksize // max(1, row)))
    return tuple(shape)


def _pieces(A: BigArray, idx: Slices, part: NDArray[Any]) -> Iterator[tuple[Slices, Slices]]:
    """Yield (where in a part of an array, where in the array) in pieces along the major axis."""
    if part.size == 0:
        return
    if not idx:
        yield (), ()
        return
    axis = A._major
    rows = range(*idx[axis].indices(A.shape[axis]))
    step = max(1, PIECE // (part.nbytes // len(rows)))
    for i in range(0, len(rows), step):
        some = rows[i : i + step]
        stop = some.stop if some.stop >= 0 else None
        to, of = [slice(None)] * part.ndim, list(idx)
        to[axis], of[axis] = slice(i, i + step), slice(some.start, stop, some.step)
        yield tuple(to), tuple(of)


_limited = False


def _limit_memory() -> None:
    """Let pages of a worker with a process of its own have a quarter of its memory.

    They are a cache: what is in a chunk was copied. Otherwise they may have half of the machine's,
    and so may those of every other worker.
    """
    global _limited
    if _limited or "WENDELIN_CORE_RAM" in os.environ:
        return
    _limited = True
    try:
        from distributed import get_worker

        worker = get_worker()
    except (ImportError, ValueError):
        return
    limit = worker.memory_manager.memory_limit
    if worker.nanny is not None and limit:
        ram_set_limit(min(ram_stat()[0], limit // 4))


# ---- back ----


def to_array(darr: dask.array.Array, A: ZBigArray, compute: bool = True) -> Any:
    """Store a Dask array in an array, chunk by chunk, by whichever workers have the chunks.

    Each stores some chunks that follow each other, 32 MiB or one, in a transaction, and tries again
    if that has a conflict with another one. So it is not atomic: others see some chunks before
    others, and if it fails, what was stored is there. It is no harm to store it again. The caller
    sees it in his next transaction.

    Chunks of whole blocks have no conflicts: `darr.rechunk(from_array(A).chunks)`.

    Parameters
    ----------
    darr : dask.array.Array
        Converted to the dtype of A as by assignment.
    A : ZBigArray
        Of the same shape. Without changes that are not committed.
    compute : bool
        False: return a Delayed that does it.

    Raises
    ------
    ValueError
        The shape is another.
    pickle.PicklingError
        There are changes that are not committed.
    NotImplementedError
        No URL names the database: see wendelin.lib.zodb.zstor_2zurl().
    ZODB.POSException.ConflictError
        After a hundred tries.
    """
    if not isinstance(A, ZBigArray):
        raise TypeError(f"{type(A).__name__} is in no database: it must be a ZBigArray")
    if darr.shape != A.shape:
        raise ValueError(f"shape {darr.shape} cannot be stored in an array of shape {A.shape}")
    _, (url, oid, _) = A.__reduce__()
    share(A._p_jar.db())
    tasks = [
        dask.delayed(_store, pure=False)(url, oid, places, blocks)
        for places, blocks in _batches(darr, A._order)
    ]
    done = dask.delayed(_all_done)(tasks)
    return done.compute() if compute else done


def _batches(darr: dask.array.Array, order: str) -> Iterator[tuple[list[Slices], list[Delayed]]]:
    """Yield (where, chunks) of chunks that are stored together, in the order of an array."""
    starts = [np.cumsum([0, *sizes]).tolist() for sizes in darr.chunks]
    delayed = darr.to_delayed()
    places: list[Slices] = []
    blocks: list[Delayed] = []
    size = 0
    counts = darr.numblocks if order == "C" else darr.numblocks[::-1]
    for index in np.ndindex(*counts):
        at = index if order == "C" else index[::-1]
        place = tuple(slice(s[i], s[i + 1]) for s, i in zip(starts, at, strict=True))
        nbytes = darr.dtype.itemsize
        for s in place:
            nbytes *= s.stop - s.start
        if places and size + nbytes > BATCH:
            yield places, blocks
            places, blocks, size = [], [], 0
        places.append(place)
        blocks.append(delayed[at])
        size += nbytes
    if places:
        yield places, blocks


def _store(url: str, oid: bytes, places: list[Slices], blocks: list[Any]) -> None:
    """Store chunks in one transaction."""
    _limit_memory()
    with zconn_now(url) as conn:
        manager = conn.transaction_manager
        for tried in range(MOST_TRIES):
            manager.begin()
            try:
                A = conn.get(oid)
                for place, block in zip(places, blocks, strict=True):
                    A[place] = block
                manager.commit()
                return
            except TransientError as e:
                manager.abort()
                if tried == MOST_TRIES - 1:
                    raise
                log.info("storing %s again: %s", places, e)
                # others try again, too, and each at another moment
                time.sleep(random.uniform(0, min(1, 0.01 * 2**tried)))


def _all_done(results: list[None]) -> None:
    """Be what waits for all tasks."""
