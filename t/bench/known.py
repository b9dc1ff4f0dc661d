"""Measure begin(), memory and opening against the number of blocks that a client knows.

    python t/bench/known.py [--counts 1000,10000,...] [--into docs/performance.md]

A reader follows a writer, and knows a number of blocks of an array. Half of these have 8 bytes
each; the others are holes. The writer changes one block, or appends one. Then the reader begins its
next transaction: this begin() is measured, as the median of many, in CPU time of the thread and by
the clock. Memory is how much the process (RSS) grows for each block while it learns where all of
them are. Then a fresh process opens the database, and reads an element of the array: this is the
time to open, without imports. Each count is a fresh process, in a temporary folder.
docs/draw_charts.py draws curves from the table.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import tables
import transaction

BLKSIZE = 2 << 20  # bytes
COUNTS = (1000, 10_000, 100_000, 500_000, 1_000_000)
TURNS = 31
OPENINGS = 5
BATCH = 20_000  # blocks that are stored together


def rss():
    """Return the memory of this process [bytes]."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def fill(A, n):
    """Store a short block as every second one of n blocks."""
    from wendelin.bigfile.file_zodb import ZBlk0

    for start in range(0, n, BATCH):
        for blk in range(start, min(start + BATCH, n), 2):
            block = A.zfile.blktab[blk] = ZBlk0()
            block.__setstate__(b"\1" * 8)
        transaction.commit()
        A._p_jar.cacheMinimize()


def boundaries(change, other):
    """Return medians of what begin() takes after another client's change [s of CPU, s]."""
    cpu, wall = [], []
    for turn in range(TURNS):
        change(turn)
        other.commit()
        clocks = time.thread_time(), time.perf_counter()
        transaction.begin()
        cpu.append(time.thread_time() - clocks[0])
        wall.append(time.perf_counter() - clocks[1])
    return statistics.median(cpu), statistics.median(wall)


def measure(n):
    """Return what n known blocks cost."""
    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.bigfile.virtmem.located import epoch, set_located
    from wendelin.lib.zodb import dbclose, dbopen

    root = dbopen("known.fs")
    root["A"] = A = ZBigArray((n * BLKSIZE,), "u1", blksize=BLKSIZE)
    transaction.commit()
    fill(A, n)
    other = transaction.TransactionManager()
    B = root._p_jar.db().open(other).root()["A"]
    B[:1][0] = 1
    other.commit()
    transaction.begin()
    view = A[:]
    handle = A._fileh()
    before = rss()
    for start in range(0, n, 1024):
        now = epoch(handle)
        set_located(handle, handle.file.mapahead(start, min(start + 1024, n)), now)
    memory = rss() - before
    pages = [view[i * BLKSIZE] for i in range(0, 2 * TURNS, 2)]
    assert all(pages)

    def change(turn):
        B[:][2 * turn * BLKSIZE] += 1

    def append(turn):
        B.append([turn] * BLKSIZE)

    result = {
        "known": n,
        "bytes": memory / n,
        "change": boundaries(change, other),
        "append": boundaries(append, other),
        "load": os.getloadavg()[0],
    }
    assert view[0] == 2
    dbclose(root)
    return result


def opening():
    """Return what it takes to open the database, and to touch one block [s of CPU, s]."""
    import wendelin.bigarray.array_zodb  # noqa: F401, imports are not counted
    from wendelin.lib.zodb import dbclose, dbopen

    clocks = time.process_time(), time.perf_counter()
    root = dbopen("known.fs")
    assert root["A"][0]
    took = time.process_time() - clocks[0], time.perf_counter() - clocks[1]
    dbclose(root)
    return took


def call(folder, *args):
    """Return what a fresh process of this program prints, from JSON."""
    command = [sys.executable, os.path.abspath(__file__), *args]
    out = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(out)


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    tables.add_option(parser)
    args = parser.parse_args()
    if args.one or args.open:
        print(json.dumps(opening() if args.open else measure(args.one)))
        return
    rows = []
    for n in map(int, args.counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            r = call(folder, "--one", str(n))
            opened = [call(folder, "--open") for _ in range(OPENINGS)]
        cpu, wall = (statistics.median(clock) for clock in zip(*opened, strict=True))
        print(
            f"{n:9,} known: begin() after a change {r['change'][0] * 1e3:6.2f} ms of CPU "
            f"({r['change'][1] * 1e3:.2f} ms), after an append {r['append'][0] * 1e3:6.2f} "
            f"({r['append'][1] * 1e3:.2f}); {r['bytes']:.0f} bytes a block; "
            f"to open {cpu * 1e3:.1f} ms of CPU ({wall * 1e3:.1f}); load {r['load']:.1f}",
            flush=True,
        )
        figures = r["change"][0] * 1e3, r["append"][0] * 1e3, r["bytes"], cpu * 1e3
        rows.append([f"{n:,}", *map(tables.shown, figures)])
    head = [
        "known blocks",
        "after one block changed [ms of CPU]",
        "after an append [ms of CPU]",
        "memory a known block [bytes]",
        "to open, and touch a block [ms of CPU]",
    ]
    tables.publish(args, "known", head, rows)


if __name__ == "__main__":
    main()
