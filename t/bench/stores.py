"""Ways to keep an array on disk: ours, and a plain file that is mapped by numpy.memmap.

Each is one class with the few methods that works are made of. Libraries are imported by the
methods, so that a process has in memory only what it measures.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

MIB = 1 << 20
BLKSIZE = 2 * MIB  # of our blocks, and of the chunks of others [bytes]
ITEMS = BLKSIZE // 8  # elements of a block
STEP = 64 * MIB  # what is written at once, and is on disk before the next [bytes]

Mode = Literal["r", "r+"]


def steps(size: int, step: int = STEP) -> Iterator[np.ndarray]:
    """Yield 0, 1, 2, ... as float64, `step` bytes at a time: no two blocks are alike."""
    for start in range(0, size // 8, step // 8):
        yield np.arange(start, min(start + step // 8, size // 8), dtype="f8")


class Store(ABC):
    """An array of float64 on disk.

    Parameters
    ----------
    path : Path
        Where it is, or will be, without the suffix.
    size : int
        Of the array [bytes].
    """

    suffix: ClassVar[str]
    a: Any  # open: what is indexed

    def __init__(self, path: Path, size: int) -> None:
        self.path = Path(f"{path}{self.suffix}")
        self.size = size

    def _tops(self) -> Iterable[Path]:
        return self.path.parent.glob(f"{self.path.name}*")

    def files(self) -> list[Path]:
        """Return all files that it is made of."""
        return [p for top in self._tops() for p in (top, *top.rglob("*")) if p.is_file()]

    def stored(self) -> int:
        """Return the size of all files [bytes]."""
        return sum(path.stat().st_size for path in self.files())

    def remove(self) -> None:
        """Remove all of it."""
        for top in self._tops():
            if top.is_dir():
                shutil.rmtree(top)
            else:
                top.unlink()

    @abstractmethod
    def create(self) -> None:
        """Make a new one, to be filled by append()."""

    @abstractmethod
    def append(self, values: np.ndarray) -> None:
        """Write what comes next. It is on disk when this returns."""

    @abstractmethod
    def open(self, mode: Mode) -> None:
        """Open what is there."""

    def sum(self) -> float:
        """Read everything in order, and return the sum."""
        return float(np.sum(self.a))

    def get(self, i: int) -> Any:
        """Read one element."""
        return self.a[i]

    def change(self, indices: Iterable[int]) -> None:
        """Add 1 to elements. They are on disk when this returns."""
        for i in indices:
            self.a[i] += 1
        self.flush()

    @abstractmethod
    def flush(self) -> None:
        """Bring changes to disk."""

    @abstractmethod
    def close(self) -> None:
        """Close what create() or open() has opened."""


class MappedStore(Store):
    """A store whose array is memory."""

    @abstractmethod
    def view(self) -> np.ndarray:
        """Return a new view of the open array."""

    @abstractmethod
    def map_block(self, blk: int) -> np.ndarray:
        """Return a block of the open array, in a mapping of its own, which has no page yet."""


class Wendelin(MappedStore):
    """wendelin.core: a ZBigArray in a database that is a local file."""

    suffix = ".fs"
    zblk_fmt: ClassVar[str] = "ZBlk0"
    blksize: ClassVar[int] = BLKSIZE

    def create(self) -> None:
        import transaction

        from wendelin.bigarray.array_zodb import ZBigArray

        self.root = self._new()
        self.array = ZBigArray((0,), "f8", blksize=self.blksize, zblk_fmt=self.zblk_fmt)
        self.root["A"] = self.array
        transaction.commit()

    def _new(self) -> Any:
        from wendelin.lib.zodb import dbopen

        return dbopen(self.path)

    def append(self, values: np.ndarray) -> None:
        self.array.append(values)
        self.flush()

    def open(self, mode: Mode) -> None:
        from wendelin.lib.zodb import dbopen

        self.root = dbopen(f"file://{self.path}?read_only=true" if mode == "r" else self.path)
        self.array = self.root["A"]
        self.a = self.array[:]

    def view(self) -> np.ndarray:
        return self.array[:]

    def map_block(self, blk: int) -> np.ndarray:
        return np.frombuffer(self.array._fileh().mmap(blk, 1))

    def flush(self) -> None:
        import transaction

        transaction.commit()

    def close(self) -> None:
        from wendelin.lib.zodb import dbclose

        dbclose(self.root)


class ZBlk1(Wendelin):
    """The same, with blocks in chunks."""

    suffix = ".zblk1.fs"
    zblk_fmt = "ZBlk1"


class Auto(Wendelin):
    """The same; how a block is changed decides on its format."""

    suffix = ".auto.fs"
    zblk_fmt = "auto"


class Old(Wendelin):
    """wendelin.core over a database that another FileStorage wrote: blocks are not aligned."""

    suffix = ".old.fs"

    def _new(self) -> Any:
        from ZODB.DB import DB
        from ZODB.FileStorage import FileStorage

        return DB(FileStorage(str(self.path))).open().root()


class Activate(Old):
    """The block objects of the same database, as a program of ZODB loads any object."""

    def open(self, mode: Mode) -> None:
        self.root = self._new()
        self.array = self.root["A"]

    def sum(self) -> float:
        """Load the blocks, one at a time. They are not even summed, which is in their favour."""
        for zblk in self.array.zfile.blktab.values():
            zblk._p_activate()
            zblk._p_deactivate()
        return float("nan")


class Memmap(MappedStore):
    """A plain file: written by write(2) and fsync(2), mapped by numpy.memmap."""

    suffix = ".raw"
    fd = -1  # of the file that create() has made

    def create(self) -> None:
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def append(self, values: np.ndarray) -> None:
        rest = values.data.cast("B")
        while rest:
            rest = rest[os.write(self.fd, rest) :]
        os.fsync(self.fd)

    def open(self, mode: Mode) -> None:
        self.a = np.memmap(self.path, "f8", mode)

    def view(self) -> np.ndarray:
        return np.memmap(self.path, "f8", "r")

    def map_block(self, blk: int) -> np.ndarray:
        return np.memmap(self.path, "f8", "r", blk * BLKSIZE, (ITEMS,))

    def flush(self) -> None:
        self.a.flush()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
