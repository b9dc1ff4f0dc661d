"""Measure processes of one machine that read one array of a ZEO server: throughput, and memory.

    python t/bench/processes.py [--size MIB] [--counts 1,2,4] [--runs N] [--into PAGE]

All processes of a run read all of the array, at the same time, in one pass. Ways:

    copies      each has a copy of its own: as it is without the two below
    first       with an empty cache of blocks (WENDELIN_CORE_CACHE): each block is fetched and kept
    cache       with a cache that has all blocks
    file        the server's file is mapped

Throughput is of all processes together, from the time when the first one begins until the last one
has ended. CPU is of the clients only, user and system. Memory is what they have of the array, in
page memory and in the kernel's cache, each page divided by how many have it (PSS). All is in the
page cache, and nothing waits for the disk. Medians of runs; ways take turns.

docs/draw_charts.py draws curves from the tables.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import fill as fill_text

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import tables
import transaction
from machine import describe
from support.servers import ZeoServer

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

MIB = 1 << 20
STOCK = "<filestorage {n}>\n  path {path}\n</filestorage>\n"
OURS = "<alignedfilestorage {n}>\n  path {path}\n</alignedfilestorage>\n"
WAYS = {
    "copies": "a copy each",
    "first": "cache, empty at first",
    "cache": "cache that has the blocks",
    "file": "the server's file",
}
#: marker in the page, unit, digits behind the point; of all processes together
TABLES = (
    ("processes-speed", "MiB/s", 0),
    ("processes-cpu", "s of CPU a GiB", 2),
    ("processes-memory", "MiB", 0),
)

READER = """
import os, sys, time
import numpy as np
from wendelin.lib.zodb import dbopen

A = dbopen(sys.argv[1], read_only=True)["A"]
print("ready", flush=True)
sys.stdin.readline()
begin, before = time.monotonic(), os.times()
view = A[:]
total = int(view.sum())
end, after = time.monotonic(), os.times()
cpu = sum(after[:2]) - sum(before[:2])
print("read", flush=True)
sys.stdin.readline()
pss = 0
first = view.__array_interface__["data"][0]
with open("/proc/self/smaps") as file:
    for line in file:
        name, *rest = line.split()
        if not name.endswith(":"):
            start = int(name.split("-")[0], 16)
        elif name == "Pss:" and first <= start < first + view.nbytes:
            pss += int(rest[0]) << 10
print(begin, end, cpu, pss, total, flush=True)
sys.stdin.readline()
"""


def fill(url, size):
    """Store an array of `size` MiB; return the sum of its numbers."""
    root = dbopen(url)
    values = np.random.default_rng(1).integers(0, 1 << 40, size * MIB // 8, np.int64)
    root["A"] = A = ZBigArray(values.shape, np.int64, zblk_fmt="ZBlk0")
    transaction.commit()
    for start in range(0, len(values), 4 * MIB):
        A[start : start + 4 * MIB] = values[start : start + 4 * MIB]
        transaction.commit()
    dbclose(root)
    return int(values.sum())


def ask(readers, text):
    """Let all readers go on; return what each says next."""
    for reader in readers:
        reader.stdin.write(f"{text}\n")
        reader.stdin.flush()
    return [reader.stdout.readline().split() for reader in readers]


def measure(url, count, env, total):
    """Return (s, CPU s of all clients, PSS of all [bytes]) of `count` processes that read."""
    readers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", READER, url],
            env=os.environ | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * count
        assert ask(readers, "go") == [["read"]] * count
        found = ask(readers, "memory")
    finally:
        for reader in readers:
            reader.communicate("\n")
    begins, ends, cpus, psss, totals = zip(*found, strict=True)
    assert set(totals) == {str(total)}
    seconds = max(map(float, ends)) - min(map(float, begins))
    return seconds, sum(map(float, cpus)), sum(map(int, psss))


def results(folder, size, counts, runs):
    """Return {(way, count): (MiB/s, CPU s a GiB, memory [MiB])}."""
    servers = {}
    for name, section in ("stock", STOCK), ("ours", OURS):
        (folder / name).mkdir()
        servers[name] = ZeoServer(folder / name, section=section)
        servers[name].start()
    try:
        total = {name: fill(server.url, size) for name, server in servers.items()}
        warm = {"WENDELIN_CORE_CACHE": f"{folder}/warm:{4 * size}M"}
        measure(servers["stock"].url, 1, warm, total["stock"])
        found = {}
        for run in range(runs):
            for count in counts:
                for way in WAYS:
                    env = {
                        "copies": {"WENDELIN_CORE_CACHE": "off"},
                        "first": {"WENDELIN_CORE_CACHE": f"{folder}/{run}-{count}:{4 * size}M"},
                        "cache": warm,
                        "file": {"WENDELIN_CORE_CACHE": "off"},
                    }[way]
                    server = "ours" if way == "file" else "stock"
                    found.setdefault((way, count), []).append(
                        measure(servers[server].url, count, env, total[server])
                    )
                subprocess.run(["rm", "-r", f"{folder}/{run}-{count}"], check=True)
    finally:
        for server in servers.values():
            server.stop()
    medians = {}
    for (way, count), tries in found.items():
        seconds, cpu, pss = (statistics.median(column) for column in zip(*tries, strict=True))
        data = count * size
        medians[way, count] = data / seconds, cpu / (data / 1024), pss / MIB
    return medians


def publish(args, found, counts):
    """Print the tables, and put them into a page."""
    for i, (marker, unit, digits) in enumerate(TABLES):
        head = ["processes", *(f"{name} [{unit}]" for name in WAYS.values())]
        rows = [[str(n), *(f"{found[way, n][i]:.{digits}f}" for way in WAYS)] for n in counts]
        tables.publish(args, marker, head, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, metavar="MIB")
    parser.add_argument("--counts", default="1,2,4")
    parser.add_argument("--runs", type=int, default=3)
    tables.add_option(parser)
    args = parser.parse_args()
    counts = [int(n) for n in args.counts.split(",")]
    with tempfile.TemporaryDirectory(prefix="processes-") as folder:
        found = results(Path(folder), args.size, counts, args.runs)
        where = f"{args.size} MiB, medians of {args.runs} runs. {describe(Path(folder))}"
    text = fill_text(f"{where}. Load average {os.getloadavg()[0]:.1f}.", 116)
    publish(args, found, counts)
    print(text)
    if args.into:
        tables.replace(args.into, "processes-machine", text)


if __name__ == "__main__":
    main()
