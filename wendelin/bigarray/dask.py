"""Dask arrays of arrays in a database, and back: processes send each other references.

from_array() makes a Dask array of one state of an array. A worker that needs a chunk reads it
from the database. to_array() lets workers store chunks, in transactions of their own.

    client: A ── from_array ──► [URL, oid, tid] ── tasks ──► worker: opens the database once
            A ◄── to_array ──── [URL, oid] ─────── tasks ──►         reads, or writes

It needs `pip install wendelin.core[dask]`. Other modules import it only where Dask is in use:
wendelin.zarr.dask and wendelin.xarray.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import dask
import dask.array
import numpy as np
from dask.array.core import normalize_chunks
from dask.delayed import Delayed
from numpy.typing import NDArray
from transaction.interfaces import TransientError
from ZODB.POSException import ReadOnlyError, ReadOnlyHistoryError

from wendelin.bigarray.array import BigArray
from wendelin.bigarray.array_zodb import ZBigArray, array_at
from wendelin.bigarray.workers import chunk_limit, limit_memory
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.bigfile.zodb.reserve import reserve
from wendelin.lib.storage.shared import share, zconn_now

__all__ = [
    "batches",
    "chosen_chunks",
    "from_array",
    "in_memory",
    "in_transaction",
    "store_in_batches",
    "to_array",
]

log = logging.getLogger(__name__)

PIECE = 16 << 20  # loaded and copied at a time [bytes]
BATCH = 32 << 20  # stored by a task, unless a chunk is larger; limit of a transaction [bytes]
MOST_TRIES = 100  # of a transaction with conflicts
RESERVED = 10_000  # blocks that a transaction puts into holes

Slices = tuple[slice, ...]
T = TypeVar("T")


def from_array(A: ZBigArray, chunks: Any = "auto") -> dask.array.Array:
    """Return a Dask array of an array, as it is now.

    Each chunk is of this state, whenever and wherever it is read. Workers need only the database:
    its URL must mean the same to them.

    Parameters
    ----------
    A : ZBigArray
        Without changes that are not committed.
    chunks : int, tuple, 'auto', ...
        See dask.array.from_array(). By default in whole blocks, of Dask's preferred size
        (array.chunk-size), or less: each thread of each worker of the current client has room for
        four of them.

    Raises
    ------
    pickle.PicklingError
        There are changes that are not committed.
    NotImplementedError
        No URL names the database: see wendelin.lib.zodb.zstor_2zurl().
    """
    source = _Source(A)
    sizes = chosen_chunks(chunks, A.shape, A.dtype, source.chunks, A._fileh().blksize)
    # to Dask, equal names mean equal arrays with equal chunks
    name = f"ZBigArray-{dask.base.tokenize(source.token, sizes)}"
    meta = np.empty((0,) * A.ndim, A.dtype)
    return dask.array.from_array(source, sizes, name=name, asarray=False, fancy=False, meta=meta)


def chosen_chunks(
    chunks: Any, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: tuple[int, ...], least: int
) -> tuple[tuple[int, ...], ...]:
    """Return the chunks of a Dask array, with a choice where the caller says "auto".

    Parameters
    ----------
    chunks : int, tuple, 'auto', ...
        See dask.array.from_array().
    shape, dtype
        Of the array.
    blocks : tuple of int
        Shape of a block: what is chosen is a multiple of it.
    least : int
        Chosen even if the workers have less room [bytes].
    """
    sizes: tuple[tuple[int, ...], ...]
    sizes = normalize_chunks(chunks, shape, _limit(chunks, least), dtype, blocks)
    return sizes


def _limit(chunks: Any, least: int) -> int | None:
    """Return the largest size of chunks that Dask chooses; None: the caller says it, as '64MiB'."""
    given = chunks.values() if isinstance(chunks, dict) else chunks
    for size in given if isinstance(given, Iterable) and not isinstance(given, str) else [given]:
        if isinstance(size, str) and size != "auto":
            return None
    preferred: int = dask.utils.parse_bytes(dask.config.get("array.chunk-size"))
    return min(preferred, max(chunk_limit(), least))


class _Source:
    """A state of an array, in the form that Dask takes: read by slices, in any process."""

    def __init__(self, A: ZBigArray) -> None:
        if not isinstance(A, ZBigArray):
            raise TypeError(f"{type(A).__name__} is in no database: it must be a ZBigArray")
        _, self._where = A.__reduce__()
        self.shape, self.dtype, self.ndim = A.shape, A.dtype, A.ndim
        self.token = dask.base.tokenize(*self._where)
        # Dask takes multiples of this
        self.chunks = _blocks(A)

    def __getitem__(self, idx: Slices) -> NDArray[Any]:
        """Return a copy: Dask sends chunks by system calls, which need them in memory."""
        limit_memory()
        A = array_at(*self._where)
        rows = [range(*i.indices(n)) for i, n in zip(idx, self.shape, strict=True)]
        result = np.empty([len(r) for r in rows], self.dtype, A._order)
        for to, of in _pieces(A, idx, result, min(PIECE, max(ram_stat()[0] // 4, 1))):
            result[to] = A.read(of)
        return result


def in_memory(chunk: NDArray[Any]) -> NDArray[Any]:
    """Return a chunk in memory of its own: Dask sends it by system calls, which need that."""
    limit_memory()
    return chunk if chunk.base is None else np.array(chunk)


def _blocks(A: BigArray) -> tuple[int, ...]:
    """Return the shape of one block, or of a few blocks."""
    shape = [max(1, n) for n in A.shape]
    if shape:
        row = A.nbytes // shape[A._major]
        shape[A._major] = min(shape[A._major], max(1, A._fileh().blksize // max(1, row)))
    return tuple(shape)


def _pieces(
    A: BigArray, idx: Slices, chunk: NDArray[Any], size: int
) -> Iterator[tuple[Slices, Slices]]:
    """Yield (where in a chunk of an array, where in the array): pieces of about `size` bytes.

    They are along the major axis.
    """
    if chunk.size == 0:
        return
    if not idx:
        yield (), ()
        return
    axis = A._major
    rows = range(*idx[axis].indices(A.shape[axis]))
    step = max(1, size // (chunk.nbytes // len(rows)))
    for i in range(0, len(rows), step):
        some = rows[i : i + step]
        stop = some.stop if some.stop >= 0 else None
        to, of = [slice(None)] * chunk.ndim, list(idx)
        to[axis], of[axis] = slice(i, i + step), slice(some.start, stop, some.step)
        yield tuple(to), tuple(of)


# ---- back ----


def to_array(darr: dask.array.Array, A: ZBigArray, compute: bool = True, batch: int = BATCH) -> Any:
    """Store a Dask array in an array, chunk by chunk, on the workers.

    Each task stores one chunk, or consecutive chunks of a batch, on a worker that has one of them;
    the others are sent there. A transaction changes at most a batch of the array, from its first
    change to its last, and is tried again after a conflict. So the whole is not atomic:
    readers see some parts earlier than others, and after a failure, stored parts stay. It does no
    harm to store them again. The caller sees the result in its next transaction.

    Chunks of whole blocks have no conflicts, and each block is stored once:
    `darr.rechunk(from_array(A).chunks)`. A narrow chunk, such as some columns of an array in C
    order, has a small part of many blocks, and each of these is stored for it.

    Parameters
    ----------
    darr : dask.array.Array
        Converted to the dtype of A as by assignment.
    A : ZBigArray
        Of the same shape. Without changes that are not committed.
    compute : bool
        False: return a Delayed that does it.
    batch : int
        Size of a batch: 32 MiB [bytes].

    Raises
    ------
    ValueError
        The shape is another.
    ZODB.POSException.ReadOnlyError, ZODB.POSException.ReadOnlyHistoryError
        A cannot be changed: its database was opened read-only, or it is a past state.
    pickle.PicklingError
        There are changes that are not committed.
    NotImplementedError
        No URL names the database: see wendelin.lib.zodb.zstor_2zurl().
    zc.lockfile.LockError
        The database is a file that is open here, but the workers are other processes: use a server.
    ZODB.POSException.ConflictError
        After a hundred tries.
    PageMemoryError
        Page memory is full of other changes.
    """
    if not isinstance(A, ZBigArray):
        raise TypeError(f"{type(A).__name__} is in no database: it must be a ZBigArray")
    if darr.shape != A.shape:
        raise ValueError(f"shape {darr.shape} cannot be stored in an array of shape {A.shape}")
    _, (url, oid, _) = A.__reduce__()
    _check_writable(A)
    share(A._p_jar.db())
    first = partial(_reserve, url, oid)
    store = partial(_store, url, oid, batch)
    return store_in_batches(store, darr, A._order, compute, batch, first)


def _check_writable(A: ZBigArray) -> None:
    """Raise if nothing can be stored in an array."""
    conn = A._p_jar
    if conn.before is not None:
        raise ReadOnlyHistoryError(
            f"{A!r} is a past state, which cannot be changed: take the array from its database, "
            f"as it is now"
        )
    if conn.db().storage.isReadOnly():
        raise ReadOnlyError(f"{A!r} cannot be changed: its database was opened read-only")


def store_in_batches(
    store: Callable[[list[Slices], list[Any]], None],
    darr: dask.array.Array,
    order: str,
    compute: bool,
    batch: int,
    first: Callable[[], None] | None = None,
) -> Any:
    """Have tasks store the chunks of a Dask array: at once, or by a Delayed that is returned.

    Parameters
    ----------
    store : (indices, chunks)
        Stores chunks, on a worker.
    darr : dask.array.Array
    order : {"C", "F"}
        Of the array that they are stored in.
    compute, batch
        See to_array().
    first : ()
        Called on a worker before all others, if there are several tasks.
    """
    groups = list(batches(darr, order, batch))
    before = None
    if first is not None and len(groups) > 1:
        before = dask.delayed(first, pure=False)()
    tasks = [
        dask.delayed(_after, pure=False)(before, store, places, blocks) for places, blocks in groups
    ]
    done = dask.delayed(_all_done)(tasks)
    return done.compute() if compute else done


def batches(
    darr: dask.array.Array, order: str, batch: int
) -> Iterator[tuple[list[Slices], list[Delayed]]]:
    """Yield (indices, chunks) of chunks that are stored together, in the order of an array."""
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
        if places and size + nbytes > batch:
            yield places, blocks
            places, blocks, size = [], [], 0
        places.append(place)
        blocks.append(delayed[at])
        size += nbytes
    if places:
        yield places, blocks


def _after(
    before: None,
    store: Callable[[list[Slices], list[Any]], None],
    places: list[Slices],
    blocks: list[Any],
) -> None:
    """Store chunks; `before` is what Dask waits for."""
    store(places, blocks)


def _reserve(url: str, oid: bytes) -> None:
    """Put blocks into all holes of an array, so that tasks do not change its table together."""
    with zconn_now(url) as conn:

        def some(start: int) -> int:
            A = conn.get(oid)
            end = -(-A.nbytes // A.zfile.blksize)
            stop = min(start + RESERVED, end)
            reserve(A.zfile, start, stop, A._zblk_fmt)
            return 0 if stop == end else stop

        start = in_transaction(conn, partial(some, 0))
        while start:
            start = in_transaction(conn, partial(some, start))


def _store(url: str, oid: bytes, batch: int, places: list[Slices], blocks: list[Any]) -> None:
    """Store chunks, in a transaction for each box of the array that is changed at a time."""
    limit_memory()
    with zconn_now(url) as conn:
        # from the first chunk to the last
        box = tuple(
            slice(min(s.start for s in along), max(s.stop for s in along))
            for along in zip(*places, strict=True)
        )
        # changes stay in memory until they are committed, and other tasks need memory, too
        size = min(batch, ram_stat()[0] // 8)
        for small in in_transaction(conn, lambda: list(_boxes(conn.get(oid), box, size))):
            common = [_common(place, small) for place in places]
            some = [
                (to, of, block)
                for (to, of), block in zip(common, blocks, strict=True)
                if all(s.start < s.stop for s in to)
            ]
            if some:
                in_transaction(conn, partial(_assign, conn, oid, some))


def _boxes(A: BigArray, box: Slices, size: int) -> Iterator[Slices]:
    """Yield smaller boxes of a box of an array, each of `size` bytes from its first to its last."""
    start, stop = A._span([(s.start, s.stop) for s in box])
    lengths = [s.stop - s.start for s in box]
    if stop - start <= size or max(lengths, default=1) == 1:
        yield box
        return
    axis = max(range(len(box)), key=lambda i: (lengths[i] > 1, A._stridev[i]))
    middle = box[axis].start + lengths[axis] // 2
    for half in slice(box[axis].start, middle), slice(middle, box[axis].stop):
        yield from _boxes(A, (*box[:axis], half, *box[axis + 1 :]), size)


def _common(place: Slices, box: Slices) -> tuple[Slices, Slices]:
    """Return the intersection of a chunk and a box: (index of the array, index of the chunk)."""
    both = list(zip(place, box, strict=True))
    to = tuple(slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in both)
    of = tuple(slice(s.start - t.start, s.stop - t.start) for s, t in zip(to, place, strict=True))
    return to, of


def _assign(conn: Any, oid: bytes, values: list[tuple[Slices, Slices, Any]]) -> None:
    A = conn.get(oid)
    for to, of, block in values:
        A[to] = np.asanyarray(block)[of]


def in_transaction(conn: Any, do: Callable[[], T], tries: int = MOST_TRIES) -> T:
    """Call a function in a transaction, and return its result; try again after a conflict."""
    manager = conn.transaction_manager
    for tried in range(tries):
        try:
            manager.begin()
            result = do()
            manager.commit()
            break
        except TransientError as e:
            manager.abort()
            if tried == tries - 1:
                raise
            log.info("storing again: %s", e)
            # at random, as other tasks try again, too
            time.sleep(random.uniform(0, min(1, 0.01 * 2**tried)))
    return result


def _all_done(results: list[None]) -> None:
    """Do nothing: Dask calls this when all tasks are done."""
