"""Measure what it costs to give back the room of superseded blocks.

    python t/bench/pack.py [--size 1024] [--folder .] [--into docs/performance.md]

An array of so many MiB is written three times: two thirds of the file are garbage. It is trimmed,
packed by our storage, by stock FileStorage, and copied by cp, each time from a fresh copy. Each
step is a fresh process; wall time ends when its result is on the disk.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tables

MAKE = """
import sys
import numpy as np, transaction
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen
path, size = sys.argv[1], int(sys.argv[2]) << 20
root = dbopen(path)
A = root["A"] = ZBigArray((size // 8,), "i8")
transaction.commit()
some = np.random.default_rng(0).integers(1, 1 << 62, 4 << 20)
for turn in range(3):
    for start in range(0, len(A), len(some)):
        A[start : start + len(some)] = some[: len(A) - start] + turn
        transaction.commit()
dbclose(root)
"""
PACK = """
import sys, time
from wendelin.lib.storage.filestorage import AlignedFileStorage as Ours
from ZODB.FileStorage import FileStorage as Stock
from ZODB.serialize import referencesf
storage = (Ours if sys.argv[2] == "ours" else Stock)(sys.argv[1])
storage.pack(time.time(), referencesf)
storage.close()
"""
TRIM = """
import sys
from wendelin.lib.storage.filestorage import AlignedFileStorage
storage = AlignedFileStorage(sys.argv[1])
storage.trim(keep=1)
storage.close()
"""


def run(*command):
    """Run a command; return its CPU and wall seconds."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True)
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def room(path):
    """Return how much of the disk a file takes [MiB]."""
    return os.stat(path).st_blocks * 512 / (1 << 20)


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="of the array [MiB]")
    parser.add_argument("--folder", default=".")
    tables.add_option(parser)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        made, path = Path(folder, "made.fs"), Path(folder, "x.fs")
        run(sys.executable, "-P", "-c", MAKE, str(made), str(args.size))
        whole = room(made)
        steps = {
            "trim": (sys.executable, "-P", "-c", TRIM, str(path)),
            "pack": (sys.executable, "-P", "-c", PACK, str(path), "ours"),
            "pack of stock FileStorage": (sys.executable, "-P", "-c", PACK, str(path), "stock"),
            "cp of what is left": (
                "sh",
                "-c",
                'cp --reflink=never "$0" "$0.copy"; sync "$0.copy"',
                str(path),
            ),
            "cp of all": (
                "sh",
                "-c",
                'cp --reflink=never "$0" "$0.copy"; sync "$0.copy"',
                str(made),
            ),
        }
        for name, command in steps.items():
            if not name.startswith("cp"):
                for old in Path(folder).glob("x.fs*"):
                    old.unlink()
                run("sh", "-c", 'cp "$0" "$1"; cp "$0.index" "$1.index"; sync "$1"', made, path)
            cpu, wall = run(*command)
            left = whole if name == "cp of all" else room(path)
            rows.append([name, *map(tables.shown, (cpu, wall, left))])
            print(*rows[-1], f"load {os.getloadavg()[0]:.1f}", flush=True)
            for old in Path(folder).glob("*.copy"):
                old.unlink()
    head = [f"{whole:,.0f} MiB", "CPU [s]", "time [s]", "room afterwards [MiB]"]
    tables.publish(args, "pack", head, rows)


if __name__ == "__main__":
    main()
