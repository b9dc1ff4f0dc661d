"""Works that compare the formats of our blocks: growth of a database, and time."""

import json
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

import numpy as np
from stores import BLKSIZE, ITEMS, MIB, STEP, Auto, Store, Wendelin, ZBlk1, steps
from workload import CHANGES, FORMAT_TABLE, Row, again, check_sum, work

APPEND = 64 << 10  # bytes
COMMITS = 4  # of scattered changes

SIDES: dict[str, type[Store]] = {"ZBlk0": Wendelin, "ZBlk1": ZBlk1, "auto": Auto}


def _rows(what: str) -> tuple[Row, ...]:
    return (
        Row(f"{what}: growth of the database, MiB"),
        Row(f"{what}: growth for each byte written, bytes"),
        Row(f"{what}: a commit, ms"),
        Row(f"{what}: to read it then, us a block"),
    )


def _measured(
    store: Store, writes: Iterable[Callable[[], None]], written: int, more: float = 0
) -> Iterable[float]:
    """Write to an open store, close it, and have it read; return a value for each of _rows().

    Parameters
    ----------
    store : Store
    writes : iterable of functions
        Each ends in a commit. The iterator's own time does not count.
    written : int
        How much they write [bytes].
    more : float
        How much larger the sum of the array is then than that of steps().
    """
    before = store.stored()
    times = []
    for write in writes:
        start = perf_counter()
        write()
        times.append(perf_counter() - start)
    store.close()
    grown = store.stored() - before
    with again("sum") as child:
        total, seconds = json.loads(child.communicate()[0])
    check_sum(store, total, more)
    store.remove()
    blocks = -(-store.size // BLKSIZE)
    return grown / MIB, grown / written, np.mean(times) * 1e3, seconds / blocks * 1e6


def _appended(store: Store, step: int) -> Iterable[float]:
    """Append to a new array, `step` bytes a commit."""
    store.create()
    writes = (lambda values=values: store.append(values) for values in steps(store.size, step))
    return _measured(store, writes, store.size)


@work(*_rows("stream of appends"), sides=SIDES, data="new stream", table=FORMAT_TABLE)
def appends(store: Store) -> Iterable[float]:
    """A stream of small appends: 64 KiB each, and a commit, until there are 32 MiB.

    With `--size` other than 1024, a 32nd of it. A block of 2 MiB takes 32 commits to be full.
    """
    return _appended(store, APPEND)


@work(*_rows("scattered changes"), sides=SIDES, data="new quarter", table=FORMAT_TABLE)
def scattered(store: Store) -> Iterable[float]:
    """Scattered small changes over a full array: one element in each of 64 random blocks.

    The array has 256 MiB; with `--size` other than 1024, a quarter of it, and half of its blocks
    are changed. There are 4 such commits, so a block is changed about twice. 8 bytes are written a
    change. The array was written in steps of 64 MiB, in the same format; that is not counted.
    """
    store.create()
    for values in steps(store.size):
        store.append(values)
    store.close()
    store.open("r+")
    blocks = store.size // BLKSIZE
    changes = min(CHANGES, -(-blocks // 2))

    def writes() -> Iterator[Callable[[], None]]:
        random = np.random.default_rng(3)
        for _ in range(COMMITS):
            chosen = random.choice(blocks, changes, replace=False) * ITEMS
            indices = (chosen + random.integers(ITEMS, size=changes)).tolist()
            yield lambda indices=indices: store.change(indices)

    n = COMMITS * changes
    return _measured(store, writes(), 8 * n, n)


@work(*_rows("bulk writes"), sides=SIDES, data="new quarter", table=FORMAT_TABLE)
def bulk(store: Store) -> Iterable[float]:
    """Bulk writes: 64 MiB are appended a commit, until there are 256 MiB.

    With `--size` other than 1024, a quarter of it.
    """
    return _appended(store, STEP)
