"""Tries the same faults with wendelin.core, numpy.memmap, h5py and zarr.

    python t/support faults FAULT SIDE FOLDER TRIES

An array of blocks is written in generations: each block is filled with the generation's number.
Then a fault comes. What is found after it is the outcome, in a word or a few. Counts of outcomes
are printed as JSON. Each try is a fork of this process, so that a crash or a hang is an outcome.
"""

import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

BLOCKS, ITEMS = 32, 8192  # of f8: 64 KiB a block
SECONDS = 20  # for a try


# ---- sides ----


class Side:
    """An array that a library has in a file, or in a folder of files."""

    name: str

    def create(self, path: Path) -> None:
        """Make the array, generation 1, and close it."""

    def writer(self, path: Path) -> Callable[[int], None]:
        """Return a function that writes a generation, and returns when it is on disk."""
        raise NotImplementedError

    def reader(self, path: Path) -> Any:
        """Open the array; return an object that is indexed like one."""
        raise NotImplementedError

    def structure(self, path: Path) -> list[tuple[Path, int, int]]:
        """Return (file, start, stop) of all bytes that are not numbers of the array."""
        raise NotImplementedError

    def cut(self, path: Path) -> None:
        """Cut the file, or the files, that have the last blocks."""
        os.truncate(path, path.stat().st_size // 2)


FILL = re.compile(rb"\0{64,}")  # taken for unused room, not for structure


def outside(path: Path, ranges: list[tuple[int, int]]) -> list[tuple[Path, int, int]]:
    """Return (file, start, stop) of bytes that are neither in the ranges nor unused room."""
    fill = [match.span() for match in FILL.finditer(path.read_bytes())]
    result, at = [], 0
    for start, stop in [*sorted(ranges + fill), (path.stat().st_size,) * 2]:
        if start > at:
            result.append((path, at, start))
        at = max(at, stop)
    return result


class Ours(Side):
    name = "wendelin.core"

    def _open(self, path):
        from wendelin.lib.zodb import dbopen

        return dbopen(path)

    def create(self, path):
        import transaction

        from wendelin.bigarray.array_zodb import ZBigArray
        from wendelin.lib.zodb import dbclose

        root = self._open(path)
        root["A"] = A = ZBigArray((BLOCKS, ITEMS), "f8", blksize=ITEMS * 8)
        root["n"] = 1
        transaction.commit()
        A[:] = 1
        transaction.commit()
        dbclose(root)

    def writer(self, path):
        import transaction

        root = self._open(path)

        def write(n):
            try:
                root["A"][:] = root["n"] = n
                transaction.commit()
            except BaseException:
                transaction.abort()
                raise

        write.root = root
        return write

    def reader(self, path):
        return self._open(path)["A"]

    def structure(self, path):
        raw = path.read_bytes()
        payload = np.ones(ITEMS).tobytes()
        ranges, at = [], raw.find(payload)
        while at >= 0:
            ranges.append((at, at + len(payload)))
            at = raw.find(payload, at + len(payload))
        return outside(path, ranges)


class Memmap(Side):
    """A .npy file: its header is the only structure."""

    name = "numpy.memmap"

    def create(self, path):
        a = np.lib.format.open_memmap(path, "w+", "f8", (BLOCKS, ITEMS))
        a[:] = 1
        a.flush()

    def writer(self, path):
        a = np.load(path, mmap_mode="r+")

        def write(n):
            a[:] = n
            a.flush()

        return write

    def reader(self, path):
        return np.load(path, mmap_mode="r")

    def structure(self, path):
        return [(path, 0, path.stat().st_size - BLOCKS * ITEMS * 8)]


class H5py(Side):
    name = "h5py"

    def create(self, path):
        import h5py

        with h5py.File(path, "w") as file:
            file.create_dataset("A", chunks=(1, ITEMS), data=np.ones((BLOCKS, ITEMS)))

    def writer(self, path):
        import h5py

        file = h5py.File(path, "r+")

        def write(n):
            # also write other chunks, as an append does, so that structure changes
            if "B" in file:
                del file["B"]
            file.create_dataset("B", chunks=(1,), data=np.full(n % 50 + 1, n))
            file["A"][:] = n
            file.flush()
            os.fsync(file.id.get_vfd_handle())

        return write

    def reader(self, path):
        import h5py

        return h5py.File(path, "r")["A"]

    def structure(self, path):
        import h5py

        with h5py.File(path, "r") as file:
            ids = file["A"].id
            chunks = [ids.get_chunk_info(i) for i in range(ids.get_num_chunks())]
        return outside(path, [(c.byte_offset, c.byte_offset + c.size) for c in chunks])


class Zarr(Side):
    name = "zarr"

    def create(self, path):
        import zarr

        a = zarr.create_array(
            path, shape=(BLOCKS, ITEMS), chunks=(1, ITEMS), dtype="f8", compressors=None
        )
        a[:] = 1

    def writer(self, path):
        import zarr

        a = zarr.open_array(path, mode="r+")

        def write(n):
            a[:] = n

        return write

    def reader(self, path):
        import zarr

        return zarr.open_array(path, mode="r")

    def structure(self, path):
        return [(f, 0, f.stat().st_size) for f in path.rglob("zarr.json")]

    def cut(self, path):
        for n in range(BLOCKS // 2, BLOCKS):
            os.truncate(path / "c" / str(n) / "0", 100)


SIDES: dict[str, Side] = {side.name: side for side in (Ours(), Memmap(), H5py(), Zarr())}


# ---- faults ----


def look(side: Side, path: Path, least: int = 1, newest: int = 1) -> str:
    """Read the array; return the outcome.

    Generation `least` was said to be on disk, and none after `newest` was begun.
    """
    try:
        data = np.array(side.reader(path)[:])
    except Exception as e:
        return f"exception: {type(e).__name__}"
    return judge(data, least, newest)


def judge(data, least=1, newest=1):
    if data.shape not in ((BLOCKS, ITEMS), (2 * BLOCKS, ITEMS)):  # see grow()
        return "wrong numbers"
    generations = set(data.ravel().tolist()) if data.dtype == float else {None}
    if len(generations) > 1:
        known = generations <= {float(i) for i in range(min(newest, 100_000) + 1)}
        return "torn" if known and newest > 1 else "wrong numbers"
    (n,) = generations
    if n == 0 and least == 1:
        return "an earlier moment, whole"
    if n is None or n != int(n) or n < 0:
        return "wrong numbers"
    return "right" if n >= least else "lost"


def flipped(side: Side, folder: Path, rng: random.Random) -> str:
    """One bit of structure is flipped; then the array is read."""
    path = folder / "copy"
    source = folder / "made"
    copy = shutil.copytree if source.is_dir() else shutil.copy
    copy(source, path)
    spots = side.structure(path)
    sizes = [stop - start for _, start, stop in spots]
    file, start, stop = rng.choices(spots, sizes)[0]
    raw = bytearray(file.read_bytes())
    raw[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
    file.write_bytes(raw)
    return look(side, path)


def killed(side: Side, folder: Path, rng: random.Random) -> str:
    """A process that writes generations is killed; then the array is read."""
    path, notes = folder / "copy", folder / "notes"
    side.create(path)
    pid = os.fork()
    if pid == 0:
        try:
            write, n = side.writer(path), 1
            fd = os.open(notes, os.O_WRONLY | os.O_CREAT)
            while True:
                n += 1
                write(n)
                os.pwrite(fd, b"%20d" % n, 0)
        finally:
            os._exit(1)
    until = time.monotonic() + 10
    while not notes.exists() and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return look(side, path, int(notes.read_text() or 1), 1_000_000)


def full(side: Side, folder: Path, rng: random.Random) -> str:
    """The disk gets full while a larger generation is written; then the array is read."""
    side.create(folder / "copy")
    with open(folder / "filler", "wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
    # room for a part of it
    os.truncate(
        folder / "filler", os.path.getsize(folder / "filler") - rng.randrange(2, 200) * 4096
    )
    path = folder / "copy"
    said = "no exception"
    try:
        grow(side, path)
    except Exception as e:
        said = f"exception: {type(e).__name__}"
    os.truncate(folder / "filler", 0)
    return f"{said}, then {look(side, path, newest=2)}"


def grow(side: Side, path: Path) -> None:
    """Write generation 2 so that the library needs more room for it."""
    if side.name == "numpy.memmap":  # the second half of the file becomes a hole
        os.truncate(path, path.stat().st_size * 2)
        a = np.memmap(path, "u1", "r+")
        a[len(a) // 2 :] = 2
        a.flush()
    elif side.name == "h5py":
        import h5py

        with h5py.File(path, "r+") as file:
            file.create_dataset("B", chunks=(1, ITEMS), data=np.full((BLOCKS, ITEMS), 2.0))
            file["A"][:] = 2
    elif side.name == "zarr":
        import zarr

        a = zarr.open_array(path, mode="r+")
        a.resize((2 * BLOCKS, ITEMS))
        a[:] = 2
    else:
        from wendelin.lib.zodb import dbclose

        write = side.writer(path)
        try:
            write(2)
        finally:
            dbclose(write.root)


def cut(side: Side, folder: Path, rng: random.Random) -> str:
    """Another program cuts the file while a reader has it open; then the reader reads it."""
    path = folder / "copy"
    side.create(path)
    try:
        a = side.reader(path)
        a[0]
        side.cut(path)
        data = np.array(a[:])
        if side.name == "wendelin.core":
            a.read()
    except Exception as e:
        return f"exception: {type(e).__name__}"
    return judge(data)


FAULTS = {"flipped": flipped, "killed": killed, "full": full, "cut": cut}


# ---- the program ----


def attempt(fault: Any, side: Side, folder: Path, seed: int) -> str:
    """Try once, in a fork; return the outcome."""
    for name in "copy", "copy.index", "copy.lock", "copy.tmp", "copy.old", "notes", "filler":
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    out = folder.parent / f"{folder.name}.outcome"
    out.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        with suppress(BaseException):
            out.write_text(fault(side, folder, random.Random(seed)))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return "hang"
    if code < 0:
        return f"crash: {signal.Signals(-code).name}"
    return out.read_text() if out.exists() else "the experiment failed"


def main() -> None:
    name, side, folder, tries = sys.argv[1], SIDES[sys.argv[2]], Path(sys.argv[3]), int(sys.argv[4])
    logging.getLogger().addHandler(logging.NullHandler())
    side.create(folder / "made")  # also so that forks have imported everything
    for suffix in "index", "lock":
        (folder / f"made.{suffix}").unlink(missing_ok=True)
    fault = FAULTS[name]
    print(json.dumps(Counter(attempt(fault, side, folder, seed) for seed in range(tries))))


if __name__ == "__main__":
    main()
