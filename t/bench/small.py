"""Measure many small arrays: what each costs to view, to write and to commit, and its memory.

    python t/bench/small.py [--counts 10,100,1000,10000] [--into docs/performance.md]

Each array has 100 numbers. The first element of each is written, and all are committed. Times are
CPU time of the process for each array. Memory is what memory files have allocated before the
commit. Each count is a fresh process, in a temporary folder. docs/draw_charts.py draws curves from
the table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import tables

COUNTS = (10, 100, 1000, 10_000)


def measure(n):
    """Return what n arrays cost."""
    import transaction
    from BTrees.IOBTree import IOBTree

    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.lib.zodb import dbclose, dbopen

    root = dbopen("small.fs")
    root["arrays"] = arrays = IOBTree()
    for i in range(n):
        arrays[i] = ZBigArray((100,), "f8")
    transaction.commit()
    arrays[0][:]  # the first view of the process
    marks = [time.process_time()]
    views = [arrays[i][:] for i in range(n)]
    marks.append(time.process_time())
    for view in views:
        view[0] = 1
    marks.append(time.process_time())
    fds = list(Path("/proc/self/fd").iterdir())
    allocated = 0
    for fd in fds:
        with suppress(FileNotFoundError):  # the descriptor by which they were listed
            allocated += fd.stat().st_blocks * 512 if "memfd" in str(fd.readlink()) else 0
    before = time.process_time(), time.perf_counter()
    transaction.commit()
    commit, wall = time.process_time() - before[0], time.perf_counter() - before[1]
    del views, view
    dbclose(root)
    steps = [b - a for a, b in pairwise(marks)]
    return {"times": [*steps, commit], "allocated": allocated, "fds": len(fds), "wall": wall}


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    tables.add_option(parser)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    rows = []
    for n in map(int, args.counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, os.path.abspath(__file__), "--one", str(n)]
            out = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout
        r = json.loads(out)
        view, write, commit = (1e3 * t / n for t in r["times"])
        print(
            f"{n:,} arrays: view {view:.2f} ms, write {write:.2f} ms, commit {commit:.2f} ms, "
            f"{r['allocated'] / n / 1024:,.0f} KiB of page memory each; {r['fds']} descriptors; "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        figures = view, write, commit, r["wall"] * 1e3 / n, r["allocated"] / n / 1024
        rows.append([f"{n:,}", *map(tables.shown, figures)])
    head = [
        "arrays",
        "view [ms of CPU an array]",
        "write [ms of CPU an array]",
        "commit [ms of CPU an array]",
        "commit [ms an array]",
        "page memory [KiB an array]",
    ]
    tables.publish(args, "small", head, rows)


if __name__ == "__main__":
    main()
