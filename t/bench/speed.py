"""Our speed beside numpy.memmap, or a plain file, on both CPUs and on one, on several file systems.

    python t/bench/speed.py [--folder DIR] [--xfs] [--only WORK,...] [--size MIB] [--runs N]

Each work runs in fresh processes: ours and the peer's take turns, on all CPUs and on the first one,
and form pairs. A figure is the median over the runs; the ratio is the median of the ratios of
pairs. CPU time (user and system, of all processes of the work) stands beside wall time: on a busy
machine, or where a second CPU is idle, it says more. A view of the array is taken inside of the
time, as a program that was just started does. --xfs repeats all on an XFS in a file of the folder,
mounted by a loop device: for root, with mkfs.xfs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from textwrap import fill
from time import perf_counter
from typing import Any

import machine
import numpy as np
from comparison import random_blocks
from stores import ITEMS, MIB, MappedStore, Memmap, Mode, Wendelin, steps
from tables import add_only, add_option, markdown, replace, shown
from tqdm import tqdm
from workload import check_sum, limit

READERS = 4  # processes
LARGE = 32 * MIB  # [bytes]


class Ours(Wendelin):
    """A database; to take a view is a part of the work."""

    def open(self, mode: Mode) -> None:
        from wendelin.lib.zodb import dbopen

        self.root = dbopen(f"file://{self.path}?read_only=true" if mode == "r" else self.path)
        self.array = self.root["A"]


class LargeBlocks(Ours):
    """A database with blocks of 32 MiB."""

    suffix = ".large.fs"
    blksize = LARGE


SIDES: dict[str, type[MappedStore]] = {
    "wendelin": Ours,
    "large": LargeBlocks,
    "memmap": Memmap,
}

Times = tuple[float, float]  # [s] wall, CPU of this process and its children


def cpu() -> float:
    """Return the CPU time of this process and of children that have ended [s]."""
    used = (getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def timed(work: Callable[[], Any]) -> Times:
    """Do it, and return the times."""
    before, start = cpu(), perf_counter()
    work()
    return perf_counter() - start, cpu() - before


def sum_all(store: MappedStore) -> None:
    """Take a view of everything, and sum it."""
    check_sum(store, float(np.sum(store.view())))


# ---- works: (store) -> Times, in a fresh process ----


def first_pass(store: MappedStore) -> Times:
    machine.warm(store.files())
    store.open("r")
    return timed(lambda: sum_all(store))


def written(store: MappedStore) -> Times:
    """The page cache has what a program has just written, and was not read from the disk."""
    store.create()
    try:
        for values in steps(store.size):
            store.append(values)
        store.close()
        store.open("r")
        return timed(lambda: sum_all(store))
    finally:
        store.close()
        store.remove()


def cold(store: MappedStore) -> Times:
    machine.make_cold(store.files())
    store.open("r")
    return timed(lambda: sum_all(store))


def readers(store: MappedStore) -> Times:
    machine.warm(store.files())
    command = [sys.executable, *sys.argv[:1], "reader", *sys.argv[2:]]
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(READERS)
        ]
        outputs = [child.stdout for child in children if child.stdout is not None]
        assert [out.read(1) for out in outputs] == ["."] * READERS
        start = perf_counter()
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        used = [json.loads(out.readline()) for out in outputs]
        return perf_counter() - start, sum(used)


def reader(store: MappedStore) -> None:
    """A process of readers(): print "." when it has opened the array, and its CPU time at last."""
    store.open("r")
    print(".", end="", flush=True)
    sys.stdin.read()
    print(timed(lambda: sum_all(store))[1], flush=True)


def element(store: MappedStore) -> Times:
    machine.warm(store.files())
    store.open("r")
    view, blocks, times = store.view(), random_blocks(store), []
    before = cpu()
    for blk in blocks:
        start = perf_counter()
        view[blk * ITEMS + 17]
        times.append(perf_counter() - start)
    used = (cpu() - before) / len(times)
    return statistics.median(times), used


def ingest(store: MappedStore) -> Times:
    store.create()
    try:
        times = []
        for values in steps(store.size):
            start, before = perf_counter(), cpu()
            store.append(values)
            times.append((perf_counter() - start, cpu() - before))
    finally:
        store.close()
        store.remove()
    wall, used = zip(*times, strict=True)
    return statistics.median(wall), statistics.median(used)


@dataclass(frozen=True)
class Work:
    """A row for each file system, and for both CPUs and one."""

    text: str
    run: Callable[[MappedStore], Times]
    at_least: str
    side: str = "wendelin"
    part: float = 1  # of --size
    unit: str = "ms"
    limited: bool = False

    def size(self, size: int) -> int:
        """Return the size of its array [bytes] for --size [bytes]."""
        return 4 * limit(size) if self.limited else max(int(size * self.part), LARGE)


WORKS = {
    "first": Work("first pass, warm", first_pass, "0.7"),
    "written": Work("first pass, just written", written, "0.7"),
    "large": Work("first pass, warm, blocks of 32 MiB", first_pass, "0.9", "large"),
    "half": Work("first pass, warm, half of it", first_pass, "0.75", part=0.5),
    "readers": Work("four readers at once", readers, "0.7"),
    "cold": Work("first pass, cold", cold, "0.95"),
    "limited": Work("first pass, memory for a quarter", cold, "0.85", limited=True),
    "element": Work("random element, median", element, "3 us", unit="us"),
    "ingest": Work("ingest, 64 MiB a commit", ingest, "0.6; XFS: 0.9"),
}

#: works that make their data themselves
NEW = "written", "ingest"


# ---- processes ----


def store_of(name: str, side: str, folder: str, size: str) -> MappedStore:
    n = WORKS[name].size(int(size) * MIB)
    data = "new" if name in NEW else f"data{n // MIB}"
    return SIDES[side](Path(folder) / data, n)


def child(command: str, name: str, side: str, folder: str, size: str, *groups: str) -> None:
    """Make the data of a work, run it, or be one of its readers."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent cleans up
    for procs in groups:
        Path(procs).write_text("0")
    store = store_of(name, side, folder, size)
    if command == "reader":
        reader(store)
    elif command == "make":
        if not store.path.exists():
            store.create()
            for values in steps(store.size):
                store.append(values)
            store.close()
    else:
        try:
            print(json.dumps(WORKS[name].run(store)))
        except machine.Skip as e:
            print(json.dumps(str(e)))


class Bench:
    """The processes of a run on one file system."""

    def __init__(self, folder: Path, size: int, works: list[str], label: str) -> None:
        self.folder, self.size, self.works, self.label = folder, size, works, label
        #: (work, CPUs, side) -> times of the runs
        self.times: dict[tuple[str, str, str], list[Times]] = {}

    def process(self, command: str, name: str, side: str, one: bool = False) -> Any:
        """Run a process; return what it printed, as JSON."""
        arguments = [command, name, side, str(self.folder), str(self.size)]
        with ExitStack() as stack:
            if WORKS[name].limited and command == "run":
                n = limit(self.size * MIB)
                arguments.append(str(stack.enter_context(machine.memory_cgroup(n))))
            taskset = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if one else []
            printed = subprocess.run(
                [*taskset, sys.executable, __file__, *arguments],
                stdout=subprocess.PIPE,
                text=True,
                timeout=1800,
                check=True,
            ).stdout
        return json.loads(printed) if printed else None

    def measure(self, runs: int) -> None:
        """Make the data, and do all works, in turn."""
        for name in tqdm(self.works, desc=f"{self.label}: data", unit="work"):
            if name not in NEW:
                for side in (WORKS[name].side, "memmap"):
                    self.process("make", name, side)
        rounds = [(run, name, cpus) for run in range(runs) for name in self.works for cpus in CPUS]
        for run, name, cpus in tqdm(rounds, desc=self.label, unit="pair"):
            # so that no side always runs after the same other side
            for side in (WORKS[name].side, "memmap")[:: -1 if run % 2 else 1]:
                result = self.process("run", name, side, cpus == "one")
                if isinstance(result, str):
                    tqdm.write(f"{self.label}: {WORKS[name].text}: skipped: {result}")
                else:
                    self.times.setdefault((name, cpus, side), []).append(tuple(result))

    def rows(self) -> Iterator[list[str]]:
        """Yield the rows of the table."""
        for name in self.works:
            for cpus in CPUS:
                work = WORKS[name]
                ours = self.times.get((name, cpus, work.side), [])
                peer = self.times.get((name, cpus, "memmap"), [])
                if not ours:
                    continue
                scale = 1e6 if work.unit == "us" else 1e3
                cells = []
                for k in (0, 1):
                    cells += [
                        shown(statistics.median(t[k] for t in s) * scale) for s in (ours, peer)
                    ]
                    # the clock of CPU time has no such fraction of a second
                    pairs = [p[k] / o[k] for o, p in zip(ours, peer, strict=True) if o[k] > 0]
                    cells.append(f"{statistics.median(pairs):.2f}" if pairs else "")
                yield [f"{work.text} [{work.unit}]", self.label, cpus, *cells, work.at_least]


CPUS = ("all", "one")
HEAD = ["work", "file system", "CPUs", "ours", "peer", "ratio"]
HEAD += ["ours, CPU", "peer, CPU", "ratio", "goal"]


@contextmanager
def loop_xfs(folder: Path, size: int) -> Iterator[Path]:
    """Make an XFS in a file of the folder, and mount it; size is in bytes."""
    image, mounted = folder / "xfs.image", folder / "xfs"
    with open(image, "wb") as file:
        file.truncate(size)
    mounted.mkdir()
    subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
        image.unlink()


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data is written")
    parser.add_argument("--xfs", action="store_true", help="also on an XFS in a file of the folder")
    parser.add_argument("--size", type=int, default=1024, help="size of the array [MiB]")
    parser.add_argument("--runs", type=int, default=5, help="pairs of processes for each row")
    add_only(parser, WORKS)
    add_option(parser)
    options = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="wendelin-speed-", dir=options.folder) as name:
        folder = Path(name)
        about = f"{options.size} MiB, {options.runs} pairs. {machine.describe(folder)}."
        bench = Bench(folder, options.size, options.only, machine.file_system(folder))
        bench.measure(options.runs)
        rows += bench.rows()
        for path in folder.iterdir():
            path.unlink()
        if options.xfs:
            with loop_xfs(folder, (12 * options.size + 1024) * MIB) as mounted:
                bench = Bench(mounted, options.size, options.only, machine.file_system(mounted))
                bench.measure(options.runs)
                rows += bench.rows()
    text = f"{fill(about, 100)}\n\n{markdown(HEAD, rows)}"
    print(text)
    if options.into:
        replace(options.into, "speed", text)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("make", "run", "reader"):
        child(*sys.argv[1:])
    else:
        try:
            main()
        except KeyboardInterrupt:
            sys.exit("interrupted")
