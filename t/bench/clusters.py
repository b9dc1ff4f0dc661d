"""Measure a job of Dask on 4 workers of one machine: over ZEO, over PostgreSQL, and on zarr.

    python t/bench/clusters.py [--size MIB] [--workers N] [--runs N] [--into docs/performance.md]

The job computes the means and the standard deviations of the columns of a matrix of f8, from new
worker processes: two passes over all of it. Where its blocks come from:

    zeo            a ZEO server with a stock FileStorage
    postgres       RelStorage on PostgreSQL, if that is installed
    zarr           chunks of the size of a block, not compressed, in a folder that all share

The servers are asked through a proxy, in a process of its own, that counts their bytes to clients.
With a cache, WENDELIN_CORE_CACHE is a folder that is empty at first, and all workers share it.
Memory is what all workers have at most (PSS, each page divided by how many processes have it),
sampled, less what they have before the job, which is in the table, too. The kernel's page cache
that no process maps is not in it. Figures are medians of runs; ways take turns.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from textwrap import fill as wrapped

sys.path.insert(0, str(Path(__file__).parents[1]))

import dask.array as da
import numpy as np
import tables
import transaction
import zarr
from distributed import Client, LocalCluster
from machine import describe
from support import postgres
from support.proxy import TO_CLIENT, Proxy
from support.servers import HOST, ZeoServer

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigarray.dask import from_array
from wendelin.lib.zodb import dbclose, dbopen

MIB = 1 << 20
COLUMNS = 1 << 10
MEMORY = 512 * MIB  # of each worker
HEAD = [
    "blocks come from",
    "s",
    "CPU of the workers [s]",
    "bytes on the wire, of the data",
    "memory of the workers, before [MiB]",
    "and for the job [MiB]",
]


# ---- the network ----


def _proxy_process(pipe, port):
    with Proxy(port) as proxy:
        pipe.send(proxy.port)
        while pipe.recv() == "count":
            pipe.send(proxy.passed[TO_CLIENT])


@contextmanager
def counted(port):
    """Give (port of a proxy, function that returns how many bytes went to clients)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_proxy_process, args=(theirs, port))
    process.start()

    def count():
        ours.send("count")
        return ours.recv()

    try:
        yield ours.recv(), count
    finally:
        ours.send("end")
        process.join()


# ---- sources ----


def fill(size, put):
    """Store a matrix of `size` MiB by put(first row, rows)."""
    rows = size * MIB // 8 // COLUMNS
    step = 16 * MIB // 8 // COLUMNS
    for start in range(0, rows, step):
        values = np.random.default_rng(start).random((min(step, rows - start), COLUMNS))
        put(start, values)
    return rows


def fill_array(url, size):
    """Store it as an array of a database."""
    root = dbopen(url)
    rows = size * MIB // 8 // COLUMNS
    root["A"] = A = ZBigArray((rows, COLUMNS), np.float64, zblk_fmt="ZBlk0")
    transaction.commit()

    def put(start, values):
        A[start : start + len(values)] = values
        transaction.commit()

    fill(size, put)
    dbclose(root)


def fill_zarr(folder, size):
    """Store it as an array of zarr, of which a chunk has as much as a block."""
    rows = size * MIB // 8 // COLUMNS
    z = zarr.create_array(
        folder,
        shape=(rows, COLUMNS),
        chunks=(2 * MIB // 8 // COLUMNS, COLUMNS),
        dtype="f8",
        compressors=None,
    )

    def put(start, values):
        z[start : start + len(values)] = values

    fill(size, put)


# ---- workers ----


def pss(pids):
    """Return the memory of processes [bytes], each page divided by how many have it."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
    return total


class Highest(threading.Thread):
    """Samples the memory of processes until stop(), which returns the most that they had."""

    def __init__(self, pids):
        super().__init__(daemon=True)
        self.pids, self.most, self.ended = pids, 0, threading.Event()
        self.start()

    def run(self):
        while not self.ended.wait(0.1):
            self.most = max(self.most, pss(self.pids))

    def stop(self):
        self.ended.set()
        self.join()
        return max(self.most, pss(self.pids))


def cpu():
    """Return the CPU time of this process [s]."""
    return sum(os.times()[:2])


def job(x):
    """Compute on all of x, twice."""
    return x.mean(axis=0).compute(), x.std(axis=0).compute()


def measure(workers, cache, source, count):
    """Return (s, CPU s, bytes, memory before, memory of the job) of the job on new workers.

    Parameters
    ----------
    source : ()
        Returns (Dask array, function that is called at the end).
    count : ()
        Returns how many bytes the server has sent.
    """
    os.environ["WENDELIN_CORE_CACHE"] = cache  # workers inherit it
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=MEMORY, dashboard_address=None
        ) as c,
        Client(c) as client,
    ):
        client.wait_for_workers(workers)
        pids = sorted(client.run(os.getpid).values())
        x, end = source()
        used, sent, before = sum(client.run(cpu).values()), count(), pss(pids)
        highest, start = Highest(pids), time.monotonic()
        means, deviations = job(x)
        seconds = time.monotonic() - start
        memory = highest.stop() - before
        used = sum(client.run(cpu).values()) - used
        assert sorted(client.run(os.getpid).values()) == pids, "a worker was ended"
        assert abs(means.mean() - 0.5) < 0.01
        assert abs(deviations.mean() - 12**-0.5) < 0.01
        end()
        return seconds, used, count() - sent, before, memory


def of_database(url):
    """Return a source, for measure()."""

    def source():
        root = dbopen(url, read_only=True)
        return from_array(root["A"]), lambda: dbclose(root)

    return source


def of_zarr(folder, like):
    """Return a source, for measure(): chunks as those of an array."""

    def source():
        root = dbopen(like, read_only=True)
        chunks = from_array(root["A"]).chunks
        dbclose(root)
        return da.from_zarr(folder, chunks=tuple(c[0] for c in chunks)), lambda: None

    return source


# ---- all ----


def ways(stack, folder, size):
    """Return {name of a way: (source, count, has a cache)}, with all stored."""
    made = {}
    (folder / "zeo").mkdir()
    zeo = ZeoServer(folder / "zeo")
    zeo.start()
    stack.callback(zeo.stop)
    fill_array(zeo.url, size)
    port, count = stack.enter_context(counted(zeo.port))
    of_zeo = of_database(f"zeo://{HOST}:{port}")
    made["ZEO"] = of_zeo, count, False
    made["ZEO, cache"] = of_zeo, count, True
    if postgres.missing() is None:
        (folder / "postgres").mkdir(mode=0o755)
        server = postgres.PostgresServer(folder / "postgres")
        server.create()
        stack.callback(server.stop)
        server.execute("CREATE DATABASE arrays TEMPLATE empty")
        fill_array(server.url("arrays"), size)
        port, count = stack.enter_context(counted(server.port))
        url = f"postgres://postgres@{HOST}:{port}/arrays"
        made["PostgreSQL"] = of_database(url), count, False
        made["PostgreSQL, cache"] = of_database(url), count, True
    else:
        print(postgres.missing(), file=sys.stderr)
    fill_zarr(str(folder / "zarr"), size)
    made["zarr, a shared folder"] = of_zarr(str(folder / "zarr"), zeo.url), lambda: 0, False
    return made


def main():
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, metavar="MIB")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    tables.add_option(parser)
    args = parser.parse_args()
    found = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clusters-")))
        folder.chmod(0o755)  # PostgreSQL may be another user
        made = ways(stack, folder, args.size)
        for run in range(args.runs):
            for number, (way, (source, count, cached)) in enumerate(made.items()):
                cache = f"{folder}/cache-{run}-{number}:{4 * args.size}M" if cached else "off"
                result = measure(args.workers, cache, source, count)
                print(
                    f"{way}: {result}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True
                )
                found.setdefault(way, []).append(result)
        machine = describe(folder)
    rows = []
    for way, results in found.items():
        seconds, used, sent, before, memory = map(statistics.median, zip(*results, strict=True))
        wire = f"{sent / args.size / MIB:.3f}" if sent else "-"
        figures = [tables.shown(seconds), tables.shown(used), wire]
        rows.append([way, *figures, f"{before / MIB:.0f}", f"{memory / MIB:.0f}"])
    runs = f"medians of {args.runs} runs" if args.runs > 1 else "one run of each"
    title = (
        f"{args.size} MiB, {args.workers} workers, {runs}, load average "
        f"{os.getloadavg()[0]:.1f}. {machine}."
    )
    print(text := f"{wrapped(title, 100)}\n\n{tables.markdown(HEAD, rows)}")
    if args.into:
        tables.replace(args.into, "clusters", text)


if __name__ == "__main__":
    main()
