"""Works, in their tables, and what they are made of: each runs in a fresh process."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from stores import BLKSIZE, MIB, Store

CHANGES = 64  # blocks


@dataclass(frozen=True)
class Table:
    """A table of the report, between the markers of its name in a page."""

    name: str
    columns: tuple[str, ...]  # sides; empty: ours, a peer and the ratio to it

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}: begin -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}: end -->"


PEER_TABLE = Table("bench", ())
FORMAT_TABLE = Table("formats", ("ZBlk0", "ZBlk1", "auto"))
TABLES = (PEER_TABLE, FORMAT_TABLE)


def limit(size: int) -> int:
    """Return the limit of the cgroup [bytes]; a process does not start in less than 128 MiB."""
    return max(size // 2, 128 * MIB)


#: data that a work has -> its size [bytes] for --size [bytes]
DATA: dict[str, Callable[[int], int]] = {
    "data": lambda size: size,
    "blocks": lambda size: CHANGES * BLKSIZE,
    "large": lambda size: 4 * limit(size),
    # these are made in the work
    "new": lambda size: size,
    "new quarter": lambda size: max(size // 4, BLKSIZE),
    "new stream": lambda size: max(size // 32, BLKSIZE),
}


@dataclass(frozen=True)
class Row:
    """A row of a table: a figure, beside that of a peer if the table has peers."""

    figure: str  # ends in its unit; of GB/s more is better, of all others less
    at_least: str = ""  # what issue 3 asks for: a ratio, or in its own words
    peer: str = "memmap"


@dataclass(frozen=True)
class Work:
    """What is measured, and on which sides."""

    run: Callable[..., Iterable[float]]  # (store) -> values of the figures
    rows: tuple[Row, ...]
    sides: dict[str, type[Store]]
    data: str
    limited: bool
    table: Table

    @property
    def figures(self) -> list[str]:
        return list(dict.fromkeys(row.figure for row in self.rows))

    @property
    def makes_data(self) -> bool:
        """Whether the work finds no data, and makes what it needs itself."""
        return self.data.startswith("new")

    def store(self, side: str, folder: Path, size: int) -> Store:
        """Return a side's store; size is that of --size [bytes]."""
        return self.sides[side](folder / self.data, DATA[self.data](size))


WORKS: dict[str, Work] = {}
_Run = Callable[..., Iterable[float]]


def work(
    *rows: Row,
    sides: dict[str, type[Store]],
    data: str = "data",
    limited: bool = False,
    table: Table = PEER_TABLE,
) -> Callable[[_Run], _Run]:
    """Make a work of a function that takes a store, and returns a value for each figure."""

    def add(function: _Run) -> _Run:
        WORKS[function.__name__] = Work(function, rows, sides, data, limited, table)
        return function

    return add


# ---- what works are made of ----


def again(command: str) -> subprocess.Popen[bytes]:
    """Start a process that does `command` of comparison.py with the store that this one is for."""
    arguments = [sys.executable, sys.argv[0], command, *sys.argv[2:]]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def timed_sum(store: Store) -> tuple[float, float]:
    """Sum everything; return (the sum, seconds)."""
    start = perf_counter()
    total = store.sum()
    return total, perf_counter() - start


def check_sum(store: Store, total: float, more: float = 0) -> None:
    """Check that a sum is that of what steps() yields, plus `more`.

    Raises
    ------
    RuntimeError
        It is not.
    """
    n = store.size // 8
    if abs(total - more - n * (n - 1) / 2) > 1e-9 * n * n:
        raise RuntimeError(f"{store.path}: the sum is {total}: this is not what was written")
