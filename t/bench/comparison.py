"""The works that compare us with numpy.memmap and others; the processes in which all works run.

    python t/bench/comparison.py make|run|hold|sum WORK SIDE FOLDER SIZE [PROCS]

`run` prints what was measured, as JSON. `make` writes the data that the work reads. `hold` is a
process of the work `readers`; `sum` is a process that reads what a work has written. SIZE is in
MiB; PROCS is the cgroup.procs of a cgroup to enter. Seconds are wall clock, without imports and
without opening.
"""

import json
import signal
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import formats  # noqa: F401  # its works
import machine
import numpy as np
from peers import PEERS
from stores import BLKSIZE, ITEMS, MIB, Activate, MappedStore, Memmap, Old, Store, Wendelin, steps
from workload import CHANGES, WORKS, Row, again, check_sum, timed_sum, work

TOUCHES = 500  # blocks
READERS = 4  # processes

MAPPED: dict[str, type[Store]] = {"wendelin": Wendelin, "memmap": Memmap}
ALL: dict[str, type[Store]] = {**MAPPED, **PEERS}


def speed(store: Store) -> float:
    """Sum everything; return GB/s."""
    total, seconds = timed_sum(store)
    check_sum(store, total)
    return store.size / seconds / 1e9


def random_blocks(store: Store) -> list[int]:
    """Return TOUCHES blocks, or all there are, in random order."""
    return np.random.default_rng(2).permutation(store.size // BLKSIZE)[:TOUCHES].tolist()


@work(
    Row("first pass, page cache warm, GB/s", "0.85"),
    Row("second pass, GB/s", "0.97"),
    sides=ALL,
)
def read(store: Store) -> Iterable[float]:
    """np.sum of everything, twice, by a process that has just opened it.

    All bytes are in the page cache. The first pass shows what it costs to give a program its
    memory: to map a block, or to copy it. The second one shows what is left of that when all has
    been touched: nothing, if all of it is still mapped. Libraries that copy are read chunk by
    chunk, and copy again.
    """
    machine.warm(store.files())
    store.open("r")
    return speed(store), speed(store)


@work(Row("first pass, page cache cold, GB/s", "0.9"), sides=ALL)
def cold(store: Store) -> Iterable[float]:
    """The first pass when no byte is in the page cache: what the disk gives, if we let it.

    The cache is emptied by posix_fadvise(DONTNEED), and that it is empty is checked by mincore.
    What lies below, as the host of a virtual machine, may still have it.
    """
    machine.make_cold(store.files())
    store.open("r")
    return [speed(store)]


@work(
    Row("first pass of an old database, GB/s", "0.3"),
    Row("first pass of an old database, GB/s", "4", peer="_p_activate"),
    sides={"wendelin": Old, "memmap": Memmap, "_p_activate": Activate},
)
def old(store: Store) -> Iterable[float]:
    """The first pass, page cache warm, over a database that ZODB's own FileStorage wrote.

    Its blocks lie at any offset in the file, cannot be mapped, and are copied. memmap reads a
    plain file of the same bytes. `_p_activate` is how ZODB loads an object: of each block in turn,
    without summing it.
    """
    machine.warm(store.files())
    store.open("r")
    return [speed(store)]


@work(
    Row("touch one element in each of 500 blocks, median, us", "0.33"),
    Row("touch one element in each of 500 blocks, all of them, ms", "reported"),
    sides=ALL,
)
def touch(store: Store) -> Iterable[float]:
    """Read one element in each of 500 blocks, in random order, page cache warm.

    The median is of single touches. The first touches learn where many other blocks are, and map
    these too; so the sum of all is a figure of its own. Other libraries read a chunk, or the
    element. With less than 1000 MiB there are less than 500 blocks.
    """
    machine.warm(store.files())
    store.open("r")
    times = []
    for blk in random_blocks(store):
        start = perf_counter()
        store.get(blk * ITEMS + 17)
        times.append(perf_counter() - start)
    return float(np.median(times)) * 1e6, sum(times) * 1e3


@work(
    Row("ingest in steps of 64 MiB, GB/s", "0.5", peer="file"),
    sides={"wendelin": Wendelin, "file": Memmap, **PEERS},
    data="new",
)
def ingest(store: Store) -> Iterable[float]:
    """Write new data, 64 MiB at a time, each on disk before the next.

    We do A.append(values) and transaction.commit(). The peer is a plain file: write(2) and
    fsync(2) of the same bytes. h5py is flushed and synced, tensorstore syncs every chunk itself,
    and zarr cannot. What they are given is made outside the time that is measured, and so is the
    empty array.
    """
    store.create()
    seconds = 0.0
    for values in steps(store.size):
        start = perf_counter()
        store.append(values)
        seconds += perf_counter() - start
    store.close()
    store.remove()
    return [store.size / seconds / 1e9]


@work(
    Row("change 64 blocks and commit, ms", "reported"),
    Row("change 64 blocks and commit, growth of the file, MiB", "reported"),
    sides=ALL,
    data="blocks",
)
def change(store: Store) -> Iterable[float]:
    """Change one element in each of 64 blocks, and commit.

    memmap changes the page in place and flushes: nothing grows, and after a crash some of the
    changes may be there and others not. A database keeps the old blocks until it is packed.
    """
    machine.warm(store.files())
    before = store.stored()
    store.open("r+")
    start = perf_counter()
    store.change(blk * ITEMS + 17 for blk in range(CHANGES))
    seconds = perf_counter() - start
    store.close()
    grown = store.stored() - before
    return seconds * 1e3, grown / MIB


@work(
    Row("first pass in a cgroup with memory for a quarter, GB/s", "0.85"),
    sides=MAPPED,
    data="large",
    limited=True,
)
def limited(store: Store) -> Iterable[float]:
    """np.sum of four times as much as a memory cgroup allows the process, page cache included.

    2 GiB in 512 MiB if `--size` is 1024, and never less than 512 MiB in 128 MiB. Page cache cold:
    the cgroup pays for what it reads, not for what others have read.
    """
    machine.make_cold(store.files())
    store.open("r")
    return [speed(store)]


@work(Row("four readers, PSS of all, MiB", "under 1229, for 1024"), sides=MAPPED)
def readers(store: Store) -> Iterable[float]:
    """The memory of four processes that have read all of one database, and hold their views.

    It is the sum of their proportional set sizes (PSS): a page that four processes share counts a
    quarter for each. So data that is mapped counts once, and data that is copied four times. Their
    interpreters count, too.
    """
    machine.warm(store.files())
    with ExitStack() as stack:
        children = [stack.enter_context(again("hold")) for _ in range(READERS)]
        for child in children:
            if child.stdout is None or child.stdout.read(1) != b".":
                raise RuntimeError("a reader did not read")
        return [sum(machine.pss(child.pid) for child in children) / MIB]


def hold(store: Store) -> None:
    """Read everything, say so, and keep it until stdin ends."""
    store.open("r")
    speed(store)
    sys.stdout.write(".")
    sys.stdout.flush()
    sys.stdin.read()
    store.close()


@work(Row("one fault on a mapped block, us", "under 15"), sides=MAPPED)
def fault(store: MappedStore) -> Iterable[float]:
    """One touch of a block that nobody has to look for, and whose bytes are in the page cache.

    Median over blocks. Everything has been summed before, so it is known where all blocks are;
    then each block is mapped anew, alone, and one element is read: SIGSEGV, look-up, mmap, back,
    and the kernel's own page fault. For memmap it is the latter alone.
    """
    machine.warm(store.files())
    store.open("r")
    speed(store)
    times = []
    for blk in random_blocks(store):
        block = store.map_block(blk)
        start = perf_counter()
        block[17]
        times.append(perf_counter() - start)
    return [float(np.median(times)) * 1e6]


def make(store: Store) -> None:
    """Write the data."""
    store.create()
    for values in steps(store.size):
        store.append(values)
    store.close()


def main() -> None:
    """Run one work, or a part of it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # run.py cleans up
    command, name, side, folder, size, *groups = sys.argv[1:]
    for procs in groups:
        Path(procs).write_text("0")
    work = WORKS[name]
    store = work.store(side, Path(folder), int(size) * MIB)
    if command == "make":
        make(store)
    elif command == "hold":
        hold(store)
    elif command == "sum":
        machine.warm(store.files())
        store.open("r")
        print(json.dumps(timed_sum(store)))
    else:
        try:
            values = work.run(store)
            print(json.dumps({"values": dict(zip(work.figures, values, strict=True))}))
        except machine.Skip as e:
            print(json.dumps({"skipped": str(e)}))


if __name__ == "__main__":
    main()
