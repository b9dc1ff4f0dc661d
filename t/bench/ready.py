"""How long it takes to get a view, and what a first touch of each block costs then.

    python t/bench/ready.py [--blocks 1,64,512,4096,500000] [--runs 5] [--folder DIR]

Each figure is the median of fresh processes, with the page cache warm. CPU time stands beside wall
time, on both CPUs and on one (taskset). The peer is numpy.memmap of a plain file of the same bytes
in the same run.

An array of more than MOST_WRITTEN blocks is not written: it has a short block in every 64th place,
and holes. 4,096 of its blocks are touched, and it is not summed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BLK = 2 << 20
MOST_WRITTEN = 1 << 13  # blocks
TOUCHED = 1 << 12

MAKE = """
import sys
import numpy as np, transaction
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbopen, dbclose
path, n = sys.argv[1], int(sys.argv[2])
root = dbopen(path + ".fs")
root["A"] = A = ZBigArray((n << 18,), np.int64)
transaction.commit()
step = 32 << 18
with open(path + ".bin", "wb") as f:
    for i in range(0, n << 18, step):
        data = np.arange(i, min(i + step, n << 18))
        A[i : i + len(data)] = data
        transaction.commit()
        data.tofile(f)
dbclose(root)
"""

MAKE_LONG = """
import sys
import transaction
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.file_zodb import ZBlk0
from wendelin.lib.zodb import dbopen, dbclose
path, n = sys.argv[1], int(sys.argv[2])
root = dbopen(path + ".fs")
root["A"] = A = ZBigArray((n << 18,), "i8")
transaction.commit()
for blk in range(0, n, 64):
    block = A.zfile.blktab[blk] = ZBlk0()
    block.__setstate__(bytes([1] + [0] * 7))
transaction.commit()
dbclose(root)
with open(path + ".bin", "wb") as f:
    f.truncate(n << 21)
"""

VIEW = """
import json, sys, time
import numpy as np
path, work, touched = sys.argv[1:]
def timed(f):
    t, c = time.perf_counter(), time.process_time()
    value = f()
    return value, (time.perf_counter() - t) * 1e3, (time.process_time() - c) * 1e3
if work.startswith("memmap"):
    take = lambda: np.memmap(path + ".bin", np.int64, "r")
else:
    from wendelin.lib.zodb import dbopen
    A = dbopen(path + ".fs", read_only=True)["A"]
    A[:1]  # what the first view of a process takes is not measured
    take = lambda: A[:]
a, view, view_cpu = timed(take)
if work.endswith("touch"):
    _, touch, touch_cpu = timed(lambda: int(a[:: int(touched) << 18].sum()))
else:
    _, touch, touch_cpu = timed(lambda: int(a.sum()))
print(json.dumps([view, view_cpu, touch, touch_cpu]))
"""


def run(path: str, work: str, runs: int, one_cpu: bool, step: int) -> list[float]:
    """Return medians of (view, its CPU, touch of every step-th block, its CPU) [ms]."""
    command = [sys.executable, "-P", "-c", VIEW, path, work, str(step)]
    if one_cpu:
        command = ["taskset", "-c", "1", *command]
    results = [
        json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        for _ in range(runs)
    ]
    return [statistics.median(column) for column in zip(*results, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", default="1,64,512,4096,500000")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-ready-", dir=options.folder))
    print(
        "| blocks | CPUs | A[:], ms (CPU) | first touch of each, us a block (CPU) | np.sum, first "
        "pass, GB/s (CPU s a GB) | memmap: touch | memmap: np.sum | ratio |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    try:
        for n in map(int, options.blocks.split(",")):
            path = str(folder / str(n))
            make = MAKE if n <= MOST_WRITTEN else MAKE_LONG
            subprocess.run([sys.executable, "-P", "-c", make, path, str(n)], check=True)
            for one_cpu in False, True:
                print_row(path, n, options.runs, one_cpu)
            for file in folder.iterdir():
                file.unlink()
    finally:
        shutil.rmtree(folder)


def print_row(path: str, n: int, runs: int, one_cpu: bool) -> None:
    step = 1 if n <= MOST_WRITTEN else n // TOUCHED
    view, view_cpu, touch, touch_cpu = run(path, "touch", runs, one_cpu, step)
    map_touch = run(path, "memmap-touch", runs, one_cpu, step)
    touched = -(-n // step)
    row = [
        f"{n} | {1 if one_cpu else 2} | {view:.2f} ({view_cpu:.2f})",
        f"{touch / touched * 1e3:.1f} ({touch_cpu / touched * 1e3:.1f})",
    ]
    sums = ["", "", ""]
    if n <= MOST_WRITTEN:
        ours = run(path, "sum", runs, one_cpu, 1)
        peer = run(path, "memmap-sum", runs, one_cpu, 1)
        gb = n * BLK / 1e9
        # the view is a part of the pass
        speed, peer_speed = (gb * 1e3 / (x[0] + x[2]) for x in (ours, peer))
        sums = [
            f"{speed:.2f} ({(ours[1] + ours[3]) / gb / 1e3:.3f})",
            f"{peer_speed:.2f} ({(peer[1] + peer[3]) / gb / 1e3:.3f})",
            f"{speed / peer_speed:.2f}",
        ]
    row += [sums[0], f"{map_touch[2] / touched * 1e3:.1f}", *sums[1:]]
    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
