"""Time to write and read pieces of different lengths: ZRagged, h5py, bigarray.

    python t/bench/ragged.py [--pieces 100000] [--runs 3] [--folder DIR]
                            [--into docs/neighbours.md]

100,000 pieces of 10 to 1,000 numbers (i4) are written, read in the order of writing, and read at
random. Each figure is the median of fresh processes, which take turns. h5py has a variable-length
dataset. bigarray, where it is installed, has an array that PointerArrayWriter writes. CPU time has
rows of its own. docs/draw_charts.py draws a chart from the table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import tables

#: the name of each in the table
STORES = {"ours": "ZRagged", "h5py": "h5py", "bigarray": "bigarray"}
WORKS = ["write", "read in order", "read at random"]

COMMON = """
import json, os, sys, time
import numpy as np
folder, pieces = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
lengths = rng.integers(10, 1001, pieces)
numbers = np.arange(1000, dtype="i4")
order = rng.integers(0, pieces, pieces)
path = os.path.join(folder, "x")
def timed(f):
    wall, cpu = time.perf_counter(), time.process_time()
    f()
    return time.perf_counter() - wall, time.process_time() - cpu
def print_all(write, get):

    def read(some):
        total = 0
        for i in some:
            total += int(get(i)[-1])
        assert total == int(lengths[some].sum()) - len(some)
    print(json.dumps([write, timed(lambda: read(np.arange(pieces))), timed(lambda: read(order))]))
"""

PROGRAMS = {
    "ours": """
import transaction
from wendelin import ZRagged
from wendelin.lib.zodb import dbopen, dbclose
root = dbopen(path)
root["R"] = ZRagged("i4")
transaction.commit()
def write():
    root["R"].update((f"name{i}", numbers[:n]) for i, n in enumerate(lengths))
    transaction.commit()
took = timed(write)
dbclose(root)
root = dbopen(path)
R = root["R"]
print_all(took, lambda i: R[f"name{i}"])
""",
    "h5py": """
import h5py
def write():
    with h5py.File(path, "w") as f:
        d = f.create_dataset("x", (pieces,), dtype=h5py.vlen_dtype("i4"))
        for i, n in enumerate(lengths):
            d[i] = numbers[:n]
        f.flush()
        os.fsync(f.id.get_vfd_handle())
took = timed(write)
f = h5py.File(path)
d = f["x"]
print_all(took, lambda i: d[i])
""",
    "bigarray": """
from bigarray import PointerArray, PointerArrayWriter
def write():
    w = PointerArrayWriter(path, shape=(int(lengths.sum()),), dtype="int32", remove_exist=True)
    at = 0
    for first in range(0, pieces, 1000):
        some = lengths[first:first + 1000]
        w.write({f"name{first + i}": numbers[:n] for i, n in enumerate(some)}, start_position=at)
        at += int(some.sum())
    w.flush()
    w.close()
took = timed(write)
x = PointerArray(path)
print_all(took, lambda i: x[f"name{i}"])
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pieces", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    tables.add_option(parser)
    options = parser.parse_args()
    results: dict[str, list[list[list[float]]]] = {store: [] for store in STORES}
    for _ in range(options.runs):
        for store in STORES:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                done = subprocess.run(
                    [
                        sys.executable,
                        "-P",
                        "-c",
                        COMMON + PROGRAMS[store],
                        folder,
                        str(options.pieces),
                    ],
                    capture_output=True,
                    text=True,
                    cwd=folder,
                    env=os.environ,
                )
            if done.returncode == 0:
                results[store].append(json.loads(done.stdout.splitlines()[-1]))
            elif not results[store]:
                print(f"{store}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    print(f"{options.pieces} pieces, medians of {options.runs}")
    found = {store: runs for store, runs in results.items() if runs}
    rows = []
    for i, work in enumerate(WORKS):
        for unit, clock in (("s", 0), ("s of CPU", 1)):
            cells = (statistics.median(r[i][clock] for r in runs) for runs in found.values())
            rows.append([f"{work}, {unit}", *map(tables.shown, cells)])
    tables.publish(options, "ragged", ["", *(STORES[store] for store in found)], rows)


if __name__ == "__main__":
    main()
