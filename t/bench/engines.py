"""Measure the storages that docs/cluster.md chooses from, side by side, each with its own server.

    python t/bench/engines.py [--size MIB] [--runs N] [--only file,zeo,...] [--into docs/cluster.md]

    file        a file of this machine
    zeo         a ZEO server with a stock FileStorage
    zeo-file    a ZEO server with our FileStorage, whose file the client maps
    neo         a gateway before a NEO cluster: two storage nodes with SQLite, two copies
    postgres    RelStorage on PostgreSQL, which keeps history, and compresses by lz4
    postgres-free   the same without history
    sqlite      RelStorage on SQLite

A run is a fresh client process for each work: the sum of an array in blocks of 2 MiB, which the
server has in memory; a commit of new blocks; appends of 100 numbers, one commit each. Engines take
turns. Figures are medians. CPU time is that of the client, and of all processes of the server. The
storages sync what they commit, but RelStorage on SQLite does not. The store is what files take on
the disk after the array was written, without PostgreSQL's log.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import fill as wrapped
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import transaction
from machine import describe
from network import zeo
from relational import COMMIT, MIB, Measured, random
from support.neocluster import Gateway, NeoCluster
from support.pagetables import put_between
from support.postgres import PostgresServer, program
from support.servers import ZeoServer
from tqdm import tqdm
from workload import Table

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

TABLE = Table("engines", ())
APPENDS = 20
NUMBERS = 100  # of an append
STEP = 32 * MIB  # of a commit of the array [bytes]


@dataclass
class Engine:
    """A storage that runs."""

    url: str
    pids: list[int]  # of its server; their children belong to it, too
    stored: Callable[[], int]  # bytes on the disk


# ---- engines ----


def on_disk(folder):
    """Return what the files of a folder take on the disk [bytes]; a FileStorage reuses its .tmp."""
    return sum(
        p.lstat().st_blocks * 512
        for p in Path(folder).rglob("*")
        if p.is_file() and p.suffix != ".tmp"
    )


def of_file(folder, stack):
    return Engine(f"file://{folder}/x.fs", [], lambda: on_disk(folder))


def of_zeo(folder, stack):
    server = stack.enter_context(zeo(folder))
    return Engine(server.url, [server.pid], lambda: on_disk(folder))


def of_zeo_file(folder, stack):
    section = "<alignedfilestorage {n}>\n  path {path}\n</alignedfilestorage>\n"
    server = ZeoServer(folder, section=section)
    server.start()
    stack.callback(server.stop)
    return Engine(server.url, [server.pid], lambda: on_disk(folder))


def of_neo(folder, stack):
    cluster = NeoCluster(folder, storages=2, replicas=1)
    cluster.start()
    stack.callback(cluster.stop)
    gateway = Gateway(folder, cluster.masters)
    gateway.start()
    stack.callback(gateway.stop)
    pids = [gateway.pid, *(p.pid for p in cluster.processes)]
    return Engine(gateway.url, pids, lambda: on_disk(folder))


def of_postgres(folder, stack, history=True):
    server = PostgresServer(folder, fsync=True)
    server.create()
    stack.callback(server.stop)
    server.execute("CREATE DATABASE x")
    url = server.url("x") + ("" if history else "?keep_history=false")
    return Engine(url, [server.pid], lambda: on_disk(server.data / "base"))


def of_postgres_free(folder, stack):
    return of_postgres(folder, stack, history=False)


def of_sqlite(folder, stack):
    return Engine(f"sqlite://localhost/?data_dir={folder}", [], lambda: on_disk(folder))


ENGINES = {
    "file": ("a file", of_file),
    "zeo": ("ZEO", of_zeo),
    "zeo-file": ("ZEO, with the server's file", of_zeo_file),
    "neo": ("NEO, two copies, by a gateway", of_neo),
    "postgres": ("RelStorage, PostgreSQL", of_postgres),
    "postgres-free": ("the same, without history", of_postgres_free),
    "sqlite": ("RelStorage, SQLite", of_sqlite),
}


# ---- a client: a fresh process ----


def write(url, size):
    """Write the arrays."""
    root = dbopen(url)
    root["A"] = A = ZBigArray((size * MIB // 8,), np.int64)
    root["log"] = ZBigArray((0,), np.int64)
    transaction.commit()
    total = 0
    for start in range(0, A.nbytes, STEP):
        values = random(start, min(STEP, A.nbytes - start))
        A[start // 8 : start // 8 + len(values)] = values
        total = int(np.sum([total, values.sum()]))
        transaction.commit()
    root["sum"] = total
    transaction.commit()
    dbclose(root)


def first_pass(root, pids):
    A = root["A"]
    with Measured(*pids) as m:
        total = int(np.sum(A[:]))
    assert total == root["sum"]
    return m.of(A.nbytes)


def commit(root, pids):
    root["new"] = A = ZBigArray((COMMIT * MIB // 8,), np.int64)
    transaction.commit()
    A[:] = random(1, A.nbytes)
    with Measured(*pids) as m:
        transaction.commit()
    return m.of(A.nbytes)


def append(root, pids):
    """Return medians of an append: time, CPU time of client and of server [ms]."""
    log = root["log"]
    values = np.arange(NUMBERS)
    log.append(values)  # loads what there is
    transaction.commit()
    times = []
    with Measured(*pids) as m:
        for _ in range(APPENDS):
            start = perf_counter()
            log.append(values)
            transaction.commit()
            times.append(perf_counter() - start)
    _, client, server = m.taken
    return [1000 * t for t in (statistics.median(times), client / APPENDS, server / APPENDS)]


WORKS = {"first pass": first_pass, "commit": commit, "append": append}


def child(url, work, pids):
    """Do a work, or "write SIZE"; print its figures."""
    if work.startswith("write "):
        write(url, int(work[6:]))
        return
    root = dbopen(url)
    print(json.dumps(WORKS[work](root, pids)))
    dbclose(root)


def run(engine, work):
    command = [sys.executable, __file__, "child", engine.url, work, *map(str, engine.pids)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


# ---- report ----


def figure(value):
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"


def servers():
    """Return the versions of servers."""
    said = subprocess.run([program("postgres"), "--version"], capture_output=True, text=True)
    postgres = said.stdout.replace("(PostgreSQL)", "").split()[1]
    return (
        f"ZEO {version('ZEO')}, NEO 1.12, RelStorage {version('RelStorage')}, PostgreSQL {postgres}"
    )


def row(name, stored, results):
    """Return a line of the table."""
    cells = []
    for work in WORKS:
        speed, client, server = map(statistics.median, zip(*results[work], strict=True))
        cells += [figure(speed), f"{figure(client)} + {figure(server)}"]
    return f"| {name} | {' | '.join(cells)} | {stored:.2f} |"


HEAD = (
    "| engine | first pass, MiB/s | CPU, client + server, s/GiB | "
    f"commit of {COMMIT} MiB, MiB/s | CPU, s/GiB | small commit, ms | CPU, ms | "
    "store, of the data |\n" + "| --- " + "| ---: " * 7 + "|"
)


def main():
    """Measure, print the table, write it where it was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="of the array [MiB]")
    parser.add_argument("--runs", type=int, default=3, help="fresh processes a figure")
    parser.add_argument("--only", default=",".join(ENGINES), help="which engines")
    parser.add_argument("--into", type=Path, help="put the table into this page of the docs")
    args = parser.parse_args()
    only = args.only.split(",")
    if unknown := set(only) - set(ENGINES):
        parser.error(f"--only {args.only}: there is no {', '.join(unknown)}")
    folder = Path(tempfile.mkdtemp(prefix="engines-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user
    results = {name: {work: [] for work in WORKS} for name in only}
    load, stored = [], {}
    try:
        with ExitStack() as stack:
            engines = {}
            for name in tqdm(only, unit="engine"):
                (folder / name).mkdir()
                engines[name] = engine = ENGINES[name][1](folder / name, stack)
                empty = engine.stored()
                run(engine, f"write {args.size}")
                os.sync()
                stored[name] = (engine.stored() - empty) / (args.size * MIB)
            with tqdm(total=args.runs * len(WORKS) * len(only), unit="process") as bar:
                for _ in range(args.runs):
                    for work in WORKS:
                        for name in only:
                            load.append(os.getloadavg()[0])
                            results[name][work].append(json.loads(run(engines[name], work)))
                            bar.update()
    finally:
        shutil.rmtree(folder)
    title = wrapped(
        f"{args.size} MiB of random numbers, medians of {args.runs} processes. "
        f"{describe(Path(tempfile.gettempdir()))}, {servers()}. The load of the machine was "
        f"{min(load):.1f} to {max(load):.1f}.",
        118,
    )
    rows = [row(ENGINES[name][0], stored[name], results[name]) for name in only]
    text = "\n".join([title, "", HEAD, *rows])
    print(f"\n{text}")
    if args.into:
        put_between(args.into, TABLE.begin, TABLE.end, text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3], [int(pid) for pid in sys.argv[4:]])
    else:
        main()
