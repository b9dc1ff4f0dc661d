"""The benchmark of bigarray's README, with arrays of ours beside it: a row for each step.

    python t/bench/pointers.py [--size 1220] [--runs 3] [--folder DIR]
                              [--into docs/neighbours.md]

An array of f4, `--size` MiB, is created, written, opened ("load"), and its rows of 1 MiB are taken
one after the other, twice ("iterate", "iterate again"). The total is that of opening and the first
iteration. "Load again" opens it once more in one process; ours does so by another Connection of the
open database. Each program has a file of its own: numpy.save, h5py, MmapArray of bigarray where it
is installed, and ZBigArray. "Touch" then reads all numbers, which the README's benchmark does not.
Each figure is the median of fresh processes, which take turns; beside it is the ratio to bigarray.
The goal is at most 1.2 in each row but the write, which is atomic in ours. docs/draw_charts.py
draws a chart from the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import tables

#: the name of each in the table
STORES = {"ours": "ZBigArray", "bigarray": "bigarray", "h5py": "h5py", "numpy": "NumPy"}
WORKS = ["create", "write", "load", "load again", "iterate", "iterate again", "total", "touch"]
#: names of works in the table, where they differ
ROWS = {"total": "load and iterate", "touch": "touch all"}

COMMON = """
import json, os, sys, time
import numpy as np
folder, rows = sys.argv[1], int(sys.argv[2])
path, width, rows_at_once = os.path.join(folder, "x"), 1 << 18, 64
took = {}
def timed(name, f):
    start = time.perf_counter()
    found = f()
    took[name] = time.perf_counter() - start
    return found
def iterate(a):
    for i in range(rows):
        row = a[i]
    return row
def parts():
    for i in range(0, rows, rows_at_once):
        part = np.full((min(rows_at_once, rows - i), width), i, "f4")
        yield i, part
def finish(load, touch, again=None):
    x = timed("load", load)
    timed("load again", again or load)
    timed("iterate", lambda: iterate(x))
    timed("iterate again", lambda: iterate(x))
    took["total"] = took["load"] + took["iterate"]
    expected = sum(float(i) * len(part) * width for i, part in parts())
    assert abs(timed("touch", lambda: touch(x)) - expected) <= 1e-3 * expected
    print(json.dumps(took))
def total(x):
    return sum(float(x[i].sum(dtype="f8")) for i in range(rows))
"""

PROGRAMS = {
    "ours": """
import transaction
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbopen, dbclose
root = dbopen(path)
def create():
    root["A"] = ZBigArray((rows, width), "f4")
    transaction.commit()
timed("create", create)
def write():
    A = root["A"]
    for i, part in parts():
        A[i:i + len(part)] = part
        transaction.commit()
timed("write", write)
dbclose(root)
def load():
    global root
    root = dbopen(path)
    return root["A"][:]
finish(load, total, lambda: root._p_jar.db().open(transaction.TransactionManager()).root()["A"][:])
""",
    "bigarray": """
from bigarray import MmapArray, MmapArrayWriter
w = timed("create", lambda: MmapArrayWriter(path, shape=(None, width), dtype="f4"))
def write():
    for _, part in parts():
        w.write(part)
    w.flush()
    w.close()
timed("write", write)
finish(lambda: MmapArray(path), total)
""",
    "h5py": """
import h5py
f = h5py.File(path, "w")
d = timed("create", lambda: f.create_dataset("x", (rows, width), "f4"))
def write():
    for i, part in parts():
        d[i:i + len(part)] = part
    f.flush()
    f.close()
timed("write", write)
finish(lambda: h5py.File(path)["x"], total)
""",
    "numpy": """
took["create"] = 0.0
x = np.concatenate([part for _, part in parts()])
timed("write", lambda: np.save(path + ".npy", x))
del x
finish(lambda: np.load(path + ".npy"), total)
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1220, help="MiB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    tables.add_option(parser)
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {store: [] for store in STORES}
    for _ in range(options.runs):
        for store in STORES:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                code = COMMON + PROGRAMS[store]
                done = subprocess.run(
                    [sys.executable, "-P", "-c", code, folder, str(options.size)],
                    capture_output=True,
                    text=True,
                    cwd=folder,
                )
            if done.returncode == 0:
                results[store].append(json.loads(done.stdout.splitlines()[-1]))
            elif not results[store]:
                print(f"{store}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    medians = {
        store: {work: statistics.median(run[work] for run in runs) for work in WORKS}
        for store, runs in results.items()
        if runs
    }
    print(f"{options.size} MiB, medians of {options.runs}")
    rows = []
    for work in WORKS:
        cells = [tables.shown(found[work] * 1e3) for found in medians.values()]
        base = medians.get("bigarray", {}).get(work)
        cells.append(f"{medians['ours'][work] / base:.2f}" if base else "")
        rows.append([f"{ROWS.get(work, work)}, ms", *cells])
    head = ["", *(STORES[store] for store in medians), "ratio"]
    tables.publish(options, "pointers", head, rows)


if __name__ == "__main__":
    main()
