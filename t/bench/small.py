"""Measure many small arrays: what each costs to view, to write and to commit, and its memory.

    python t/bench/small.py [--counts 100,250,500]

Each array has 100 numbers. The first element of each is written, and all are committed. Times are
CPU time of the process for each array. Memory is what memory files have allocated before the
commit. Each count is a fresh process, in a temporary folder.
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

COUNTS = (100, 250, 500)


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
    before = time.process_time()
    transaction.commit()
    commit = time.process_time() - before
    del views, view
    dbclose(root)
    steps = [b - a for a, b in pairwise(marks)]
    return {"times": [*steps, commit], "allocated": allocated, "fds": len(fds)}


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
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


if __name__ == "__main__":
    main()
