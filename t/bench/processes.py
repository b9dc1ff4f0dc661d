"""Measure processes of one machine that read one array of a ZEO server: throughput, and memory.

    python t/bench/processes.py [--size MIB] [--counts 1,2,4] [--runs N] [--svg FILE]

All processes of a run read all of the array, at the same time, in one pass. Ways:

    copies      each has a copy of its own: as it is without the two below
    first       with an empty cache of blocks (WENDELIN_CORE_CACHE): each block is fetched and kept
    cache       with a cache that has all blocks
    file        the server's file is mapped

Throughput is of all processes together, from the time when the first one begins until the last one
has ended. CPU is of the clients only, user and system. Memory is what they have of the array, in
page memory and in the kernel's cache, each page divided by how many have it (PSS). All is in the
page cache, and nothing waits for the disk. Medians of runs; ways take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import transaction
from machine import describe
from support.servers import ZeoServer

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

MIB = 1 << 20
STOCK = "<filestorage {n}>\n  path {path}\n</filestorage>\n"
OURS = "<alignedfilestorage {n}>\n  path {path}\n</alignedfilestorage>\n"
WAYS = ("copies", "first", "cache", "file")

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


def table(found, counts):
    """Return the table of the page."""
    names = {
        "copies": "a copy each",
        "first": "cache, empty at first",
        "cache": "cache that has the blocks",
        "file": "the server's file",
    }
    lines = [
        "| blocks come from | processes | all together, MiB/s | clients, s of CPU a GiB "
        "| memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for way in WAYS:
        for count in counts:
            speed, cpu, memory = found[way, count]
            lines.append(f"| {names[way]} | {count} | {speed:.0f} | {cpu:.2f} | {memory:.0f} |")
    return "\n".join(lines)


def draw(found, counts, path):
    """Draw throughput and memory against the number of processes."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "processes"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for way, text, style in (
        ("copies", "a copy each (before)", "o--"),
        ("cache", "cache that has the blocks", "o-"),
        ("file", "the server's file", "s-"),
    ):
        left.plot(counts, [found[way, n][0] for n in counts], style, label=text)
        right.plot(counts, [found[way, n][2] for n in counts], style, label=text)
    for ax, what in (left, "all together, MiB/s"), (right, "memory of all, MiB"):
        ax.set(xlabel="processes of one machine", ylabel=what, xticks=counts)
        ax.set_ylim(bottom=0)
    right.legend()
    figure.savefig(path, metadata={"Date": None, "Title": "Processes of one machine"})
    text = Path(path).read_text()
    Path(path).write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, metavar="MIB")
    parser.add_argument("--counts", default="1,2,4")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--svg", metavar="FILE")
    args = parser.parse_args()
    counts = [int(n) for n in args.counts.split(",")]
    with tempfile.TemporaryDirectory(prefix="processes-") as folder:
        found = results(Path(folder), args.size, counts, args.runs)
        print(describe(Path(folder)))
    print(f"load average {os.getloadavg()[0]:.1f}\n")
    print(table(found, counts))
    if args.svg:
        draw(found, counts, args.svg)


if __name__ == "__main__":
    main()
