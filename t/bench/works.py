"""The works that are measured: each in a fresh process, by us and by numpy.memmap.

    python t/bench/works.py WORK SIDE FOLDER SIZE

prints one JSON object {figure: value}. SIDE is `wendelin` or `memmap`; SIZE is in MiB; FOLDER
has what prepare() made. Seconds are wall clock, without imports and without opening.
"""

import json
import os
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

MIB = 1 << 20
BLKSIZE = 2 * MIB
STEP = 32 * MIB  # one transaction of an ingest [bytes]
TOUCHES = 500  # blocks
CHANGES = 64  # blocks


def wendelin_open(path: Path):
    from wendelin.lib.zodb import dbopen

    return dbopen(str(path))


def pattern(size: int) -> np.ndarray:
    """Return size bytes as float64, no two blocks alike, nothing to compress."""
    return np.random.default_rng(1).random(size // 8)


def prepare(folder: Path, size: int) -> None:
    """Write the same bytes as an array in a database, and as a plain file."""
    ingest("wendelin", folder / "data.fs", size)
    ingest("memmap", folder / "data.raw", size)


def ingest(side: str, path: Path, size: int) -> float:
    """Write size bytes in steps, each safe on disk before the next. Return seconds."""
    values = pattern(STEP)
    if side == "memmap":
        start = perf_counter()
        with open(path, "wb") as file:
            file.truncate(size)
        a = np.memmap(path, "f8", "r+")
        for i in range(0, len(a), len(values)):
            a[i : i + len(values)] = values
            a.flush()
        return perf_counter() - start
    import transaction

    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.lib.zodb import dbclose

    start = perf_counter()
    root = wendelin_open(path)
    root["A"] = array = ZBigArray((0,), "f8")
    transaction.commit()
    for _ in range(0, size // 8, len(values)):
        array.append(values)
        transaction.commit()
    dbclose(root)
    return perf_counter() - start


def view(side: str, folder: Path, write: bool = False) -> np.ndarray:
    """Return all of the prepared data as an ndarray."""
    if side == "memmap":
        return np.memmap(folder / "data.raw", "f8", "r+" if write else "r")
    return wendelin_open(folder / "data.fs")["A"][:]


def work_read(side: str, folder: Path, size: int) -> dict[str, float]:
    """Sum everything, twice."""
    a = view(side, folder)
    times = [perf_counter()]
    for _ in range(2):
        np.sum(a)
        times.append(perf_counter())
    return {
        "first pass, GB/s": size / (times[1] - times[0]) / 1e9,
        "second pass, GB/s": size / (times[2] - times[1]) / 1e9,
    }


def work_touch(side: str, folder: Path, size: int) -> dict[str, float]:
    """Read one element in each of some blocks, in random order."""
    a = view(side, folder)
    order = np.random.default_rng(2).permutation(size // BLKSIZE)[:TOUCHES].tolist()
    times = []
    for blk in order:
        start = perf_counter()
        a[blk * BLKSIZE // 8 + 17]
        times.append(perf_counter() - start)
    return {"random touch, us": float(np.median(times)) * 1e6}


def work_ingest(side: str, folder: Path, size: int) -> dict[str, float]:
    """Write new data, committed (flushed) every 32 MiB."""
    path = folder / f"ingest.{'fs' if side == 'wendelin' else 'raw'}"
    seconds = ingest(side, path, size // 2)
    for p in folder.glob(path.name + "*"):
        p.unlink()
    return {"ingest, GB/s": size // 2 / seconds / 1e9}


def work_change(side: str, folder: Path, size: int) -> dict[str, float]:
    """Change one element in each of some blocks, and commit (flush)."""
    a = view(side, folder, write=True)
    start = perf_counter()
    for blk in range(min(CHANGES, size // BLKSIZE)):
        a[blk * BLKSIZE // 8 + 17] += 1
    if side == "memmap":
        a.flush()  # type: ignore[attr-defined]
    else:
        import transaction

        transaction.commit()
    return {f"change {CHANGES} blocks and commit, ms": (perf_counter() - start) * 1e3}


WORKS = {"read": work_read, "touch": work_touch, "ingest": work_ingest, "change": work_change}


def main() -> None:
    """Run one work."""
    work, side, folder, size = sys.argv[1:]
    if work == "prepare":
        prepare(Path(folder), int(size) * MIB)
        result = {}
    else:
        result = WORKS[work](side, Path(folder), int(size) * MIB)
    print(json.dumps(result), flush=True)
    os._exit(0)  # what is measured is over


if __name__ == "__main__":
    main()
