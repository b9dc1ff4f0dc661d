"""Time to read a row, a column and a tile: ZBigArray, memmap, h5py, Zarr, Zarr in it.

    python t/bench/which.py [--side 15000] [--runs 5] [--folder DIR] [--into docs/which-array.md]

One array of side x side f4, in each of them, in chunks of 500 x 500 where there are chunks: h5py's
are not compressed, Zarr's are (zstd). Each figure is the median of fresh processes, which take
turns: cold, its files are out of the page cache; warm, it was read just before. The table is that
of docs/which-array.md, from which docs/draw_charts.py draws a chart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import tables

#: the name of each in the table
STORES = {
    "memmap": "memmap",
    "ours": "ZBigArray",
    "h5py": "h5py",
    "zarr": "Zarr",
    "zarr in ours": "Zarr in the database",
}
PARTS = ["row", "column", "tile"]

COMMON = """
import json, os, sys, time
import numpy as np
store, folder, side, what = sys.argv[1:]
side = int(side)
path = os.path.join(folder, store.replace(" ", "-"))
"""

MAKE = (
    COMMON
    + """
rng = np.random.default_rng(0)
def rows(i, n):
    return np.cumsum(rng.integers(-3, 4, (n, side)), axis=1).astype("f4")
def fill(a, done=lambda: None):
    for i in range(0, side, 500):
        n = min(500, side - i)
        a[i : i + n] = rows(i, n)
        done()
if store == "memmap":
    a = np.memmap(path, "f4", "w+", shape=(side, side))
    fill(a)
    a.flush()
elif store == "h5py":
    import h5py
    with h5py.File(path, "w") as f:
        fill(f.create_dataset("a", (side, side), "f4", chunks=(500, 500)))
else:
    import transaction, zarr
    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.lib.zodb import dbopen, dbclose
    if store == "ours":
        root = dbopen(path)
        root["a"] = a = ZBigArray((side, side), "f4")
        transaction.commit()
        fill(a, transaction.commit)
        dbclose(root)
    else:
        spec = dict(shape=(side, side), dtype="f4", chunks=(500, 500))
        if store == "zarr":
            fill(zarr.create_array(zarr.storage.LocalStore(path), name="a", **spec))
        else:
            from wendelin.zarr import ZarrGroup
            root = dbopen(path)
            root["a"] = ZarrGroup()
            transaction.commit()
            fill(zarr.create_array(root["a"].store(), name="a", **spec), transaction.commit)
            dbclose(root)
os.sync()
"""
)

READ = (
    COMMON
    + """
part, state = what.split()
def files():
    if os.path.isfile(path):
        yield path
    for top, _, names in os.walk(path):
        yield from (os.path.join(top, name) for name in names)
if state == "cold":
    for name in files():
        fd = os.open(name, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
if store == "memmap":
    a = np.memmap(path, "f4", "r", shape=(side, side))
elif store == "h5py":
    import h5py
    a = h5py.File(path)["a"]
else:
    import zarr
    from wendelin.lib.zodb import dbopen
    if store == "zarr":
        a = zarr.open_array(zarr.storage.LocalStore(path), path="a", mode="r")
    else:
        a = dbopen(path, read_only=True)["a"]
        if store == "ours":
            a = a[:]  # a view, as a program has it
        else:
            a = zarr.open_array(a.store(read_only=True), path="a", mode="r")
i = side // 3 + 11
index = {"row": (i, slice(None)), "column": (slice(None), i),
         "tile": (slice(i, i + 700), slice(i, i + 700))}[part]
def read():
    t = time.perf_counter()
    np.asarray(a[index]).sum()
    return time.perf_counter() - t
first = read()
print(json.dumps(first if state == "cold" else min(read() for _ in range(3))))
"""
)


def call(code: str, *args: object) -> str:
    """Run code in a fresh process; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, args)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=15000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder")
    tables.add_option(parser)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="which-", dir=options.folder))
    try:
        for store in STORES:
            call(MAKE, store, folder, options.side, "-")
        print(f"{options.side} x {options.side} f4, {options.runs} runs; CPUs: {os.cpu_count()}")
        rows = []
        for state in "cold", "warm":
            for part in PARTS:
                times: dict[str, list[float]] = {store: [] for store in STORES}
                for _ in range(options.runs):
                    for store in STORES:
                        times[store].append(
                            json.loads(call(READ, store, folder, options.side, f"{part} {state}"))
                        )
                medians = (statistics.median(times[s]) * 1e3 for s in STORES)
                rows.append([f"{part}, {state}", *map(tables.shown, medians)])
        tables.publish(options, "which", ["", *(f"{name} [ms]" for name in STORES.values())], rows)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
