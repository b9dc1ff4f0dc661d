"""Measure what a process pays before it works: imports, the first view, `wendelin --help`.

    python t/bench/start.py [--runs N]

Figures are medians of fresh processes, in a temporary folder: CPU time, and for views wall time.
The import of ours is what wendelin.bigarray.array_zodb takes after NumPy and ZODB; their imports
are beside it. The first view is that of a process which has just opened a database; its array is
loaded already. The view of a second array is beside it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

PROGRAM = """
import time
marks = [time.process_time()]
mark = lambda: marks.append(time.process_time())
import numpy
mark()
import transaction, ZODB, ZODB.DB, ZODB.Connection, ZODB.FileStorage, BTrees.LOBTree
mark()
from wendelin.bigarray.array_zodb import ZBigArray
mark()
from wendelin.lib.zodb import dbopen
root = dbopen("start.fs")
if "A" not in root:
    root["A"], root["B"] = (ZBigArray((1 << 20,), "f8") for _ in range(2))
    transaction.commit()
A, B = root["A"], root["B"]
A.shape, B.shape
marks.append(time.perf_counter())
A[:]
marks.append(time.perf_counter())
B[:]
marks.append(time.perf_counter())
steps = [b - a for a, b in zip(marks, marks[1:])]
print(*steps[:3], *steps[4:])
"""


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.runs + 1):
            command = [sys.executable, "-P", "-c", PROGRAM]
            out = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout
            before = os.times()
            subprocess.run(
                [sys.executable, "-P", "-m", "wendelin.cli.program", "--help"],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            after = os.times()
            cpu = after.children_user + after.children_system
            cpu -= before.children_user + before.children_system
            found.append([*map(float, out.split()), cpu])
            time.sleep(0.1)
    names = "import numpy", "import ZODB", "import ours", "first view", "second view", "--help"
    for name, values in zip(names, zip(*found[1:], strict=True), strict=True):
        print(f"{name:14} {statistics.median(values) * 1e3:8.2f} ms (best {min(values) * 1e3:.2f})")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
