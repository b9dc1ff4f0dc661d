"""Measure over ZEO and over a NEO cluster, next to a loop of load() or store() on the connection.

    python t/bench/network.py [--size MIB] [--runs N] [--only zeo,neo,nodes] [--json FILE]
        [--svg FILE] [--into PAGE]

The loop is what a program does without us: one request after the other, to ZEO's own ClientStorage.
Each of several fresh processes measures both, and they take turns in going first; the ratio is the
median of those of the processes. The same loop on our connection is measured as well. It is faster,
as large objects are received and decoded in another way (zeoreceive). `nodes` reads from NEO
clusters of one, two and three storage nodes, each node behind a proxy that limits its bandwidth.
Servers are started for this, on this machine.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from textwrap import fill
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
import transaction
from machine import describe
from persistent.mapping import PersistentMapping
from support.neocluster import Gateway, NeoCluster
from support.pagetables import put_between
from support.proxy import Proxy
from support.servers import HOST, ZeoServer, free_ports
from tqdm import tqdm
from workload import Table
from ZEO.ClientStorage import ClientStorage
from ZODB.utils import maxtid

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.storage.zeoclient import ZEOClient
from wendelin.lib.zodb import dbclose, dbopen

MIB = 1 << 20
LATENCY = 5  # that is added each way, as netem on loopback does [ms]
BANDWIDTH = 8 * MIB  # of a storage node [bytes/s]
COMMIT = 64  # of one commit [MiB]
NETWORK_TABLE = Table("network", ())

#: work -> what it is called, and what issue 5 asks for
WORKS = {
    "ZBlk0": ("first pass", 1.5),
    "ZBlk1": ("first pass of ZBlk1", 5),
    "commit": (f"commit of {COMMIT} MiB", None),
}
SLOW_TARGET = 4  # with added latency


def random(seed, size):
    """Return `size` random bytes, as numbers whose sum is exact: it wraps."""
    return np.random.default_rng(seed).integers(-(2**63), 2**63, size // 8, np.int64)


# ---- a client: a fresh process ----


def objects(array):
    """Return the oids that an array's bytes are in."""
    oids = []
    for zblk in array.zfile.blktab.values():
        chunks = [zblk] if type(zblk).__name__ == "ZBlk0" else zblk.chunktab.values()
        oids += [chunk._p_oid for chunk in chunks]
    return oids


def loop(storage, oids, part):
    """Load every part-th object, as all take too long, one after the other; return MiB/s."""
    start = perf_counter()
    size = sum(len(storage.loadBefore(oid, maxtid)[0]) for oid in oids[::part])
    return size / MIB / (perf_counter() - start)


def first_pass(root, name):
    """Compute the sum of an array; return MiB/s."""
    array = root[name]
    start = perf_counter()
    total = int(np.sum(array[:]))
    seconds = perf_counter() - start
    assert total == root["sums"][name]
    return array.nbytes / MIB / seconds


def store_loop(storage, block):
    """Commit blocks as a plain program does: store() after store(); return MiB/s."""
    record = storage.loadBefore(block, maxtid)[0]
    txn = transaction.TransactionManager().get()
    start = perf_counter()
    storage.tpc_begin(txn)
    for _ in range(COMMIT * MIB // len(record)):
        storage.store(storage.new_oid(), b"\0" * 8, record, "", txn)
    storage.tpc_vote(txn)
    storage.tpc_finish(txn)
    return COMMIT / (perf_counter() - start)


def commit(root):
    """Write an array, and commit it; return MiB/s, of the commit alone."""
    root["new"] = array = ZBigArray((COMMIT * MIB // 8,), np.int64)
    transaction.commit()
    array[:] = random(1, COMMIT * MIB)
    start = perf_counter()
    transaction.commit()
    return COMMIT / (perf_counter() - start)


def plain(client, port, work, part, oids, block):
    """Return MiB/s of a loop; `client` is ClientStorage, or a class like it."""
    storage = client((HOST, port))
    try:
        return store_loop(storage, block) if work == "commit" else loop(storage, oids, part)
    finally:
        storage.close()


def child(url, work, part, ours_first):
    """Print MiB/s of the loop, of ours, and of the loop on a connection of ours."""
    root = dbopen(url)
    oids = [] if work == "commit" else objects(root[work])
    block = root["block"]._p_oid
    dbclose(root)  # and with it the cache of what objects() has loaded
    port = int(url.rpartition(":")[2])
    results = {}
    for side in ("ours", "loop") if ours_first else ("loop", "ours"):
        if side == "loop":
            results["loop"] = plain(ClientStorage, port, work, part, oids, block)
            results["same"] = plain(ZEOClient, port, work, part, oids, block)
        else:
            root = dbopen(url)
            results["ours"] = commit(root) if work == "commit" else first_pass(root, work)
            dbclose(root)
    print(json.dumps([results["loop"], results["ours"], results["same"]]))


# ---- servers ----


def _proxy_process(pipe, port, latency, bandwidth):
    proxy = Proxy(port, latency, bandwidth)
    pipe.send(proxy.port)
    pipe.recv()
    proxy.close()


@contextmanager
def proxied(port, latency=0, bandwidth=None):
    """Give the port of a proxy in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_proxy_process, args=(theirs, port, latency, bandwidth))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("end")
        process.join()


def fill_database(url, size):
    """Write the arrays."""
    root = dbopen(url)
    root["sums"] = PersistentMapping()
    for name, n in (("ZBlk0", size * MIB), ("ZBlk1", size // 8 * MIB)):
        root[name] = array = ZBigArray((0,), np.int64, zblk_fmt=name)
        transaction.commit()
        total = 0
        for start in range(0, n, 32 * MIB):
            values = random(start, min(32 * MIB, n - start))
            array.append(values)
            total = int(np.sum([total, values.sum()]))
            root["sums"][name] = total
            transaction.commit()
    root["block"] = root["ZBlk0"].zfile.blktab[0]
    transaction.commit()
    dbclose(root)


@contextmanager
def zeo(folder):
    """Give a ZEO server with a FileStorage."""
    server = ZeoServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def neo(folder, storages=2, replicas=1, ports=(), proxies=None):
    """Give a gateway before a NEO cluster, whose nodes are at ports, behind proxies."""
    cluster = NeoCluster(folder, storages, replicas, proxies)
    for process, port in zip(cluster.storages, ports, strict=bool(ports)):
        # `python neostorage.py PORT ARGUMENTS...` for `neostorage ARGUMENTS...`
        wrapper = Path(__file__).with_name("neostorage.py")
        process.command[:1] = [str(cluster.bin / "python"), str(wrapper), str(port)]
    gateway = Gateway(folder, cluster.masters)
    try:
        cluster.start()
        gateway.start()
        yield gateway
    finally:
        gateway.stop()
        cluster.stop()


# ---- measuring ----


def cpu_seconds():
    """Return the CPU time of all processes of this machine [s], idle time left out."""
    times = psutil.cpu_times()
    return times.user + times.system


def run_child(url, work, part, number):
    """Run a client; return what child() prints, and the part of the machine's CPU in use."""
    before, start = cpu_seconds(), perf_counter()
    command = [sys.executable, __file__, "child", url, work, str(part), str(number % 2)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
    busy = (cpu_seconds() - before) / (perf_counter() - start) / os.cpu_count()
    return *json.loads(done.stdout), busy


def measure(kind, size, runs, bar):
    """Return {figure: [(loop, ours, same, busy), ...]} of a kind of server."""
    results = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="net-")))
        server = stack.enter_context((zeo if kind == "zeo" else neo)(folder))
        slow = stack.enter_context(proxied(server.port, LATENCY / 1000))
        fill_database(server.url, size)
        for where, at, part in (("", server.port, 1), (f", {LATENCY} ms", slow, 4)):
            for work, (what, _) in WORKS.items():
                figure = f"{kind}{where}: {what}, MiB/s"
                for number in range(runs):
                    some = part * part if work == "ZBlk1" else part
                    result = run_child(f"zeo://{HOST}:{at}", work, some, number)
                    results.setdefault(figure, []).append(result)
                    bar.update()
    return results


def measure_nodes(size, runs, bar):
    """Return {number of storage nodes: [(loop, ours, same, busy), ...]}."""
    results = {}
    for n in 1, 2, 3:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="net-")))
            ports = free_ports(n)
            proxies = [stack.enter_context(proxied(p, 0, BANDWIDTH)) for p in ports]
            server = stack.enter_context(neo(folder, n, 0, ports, proxies))
            fill_database(server.url, size)
            for number in range(runs):
                results.setdefault(n, []).append(run_child(server.url, "ZBlk0", 1, number))
                bar.update()
    return results


# ---- report ----


def target(figure):
    """Return what the issue asks of a figure: a ratio, or None."""
    for what, at_least in WORKS.values():
        if f": {what}, " in figure:
            return SLOW_TARGET if f"{LATENCY} ms" in figure and at_least else at_least
    return None


def three(number):
    """Return a number with three digits, or more before the point."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def markdown(title, results, nodes):
    """Return the tables."""
    lines = [
        "| work | loop | wendelin.core | ratio | target | loop on our connection | CPUs in use |",
        "| --- " + "| ---: " * 6 + "|",
    ]
    for figure, values in results.items():
        loops, ours, same, busy = (statistics.median(v) for v in zip(*values, strict=True))
        ratio = statistics.median(o / a for a, o, *_ in values)
        asked = target(figure)
        lines.append(
            f"| {figure} | {three(loops)} | {three(ours)} | {ratio:.2f} | "
            f"{asked if asked else 'reported'} | {three(same)} | {busy:.0%} |"
        )
    text = f"{fill(title, 100)}\n\n" + "\n".join(lines)
    if nodes:
        text += (
            f"\n\nNEO storage nodes of {BANDWIDTH // MIB} MiB/s each, a first pass:\n\n"
            "| storage nodes | loop, MiB/s | wendelin.core, MiB/s |\n| ---: | ---: | ---: |\n"
        )
        text += "\n".join(
            f"| {n} | {statistics.median(v[0] for v in values):.3g} "
            f"| {statistics.median(v[1] for v in values):.3g} |"
            for n, values in nodes.items()
        )
    return text


def draw(path, title, nodes):
    """Draw the throughput against the number of storage nodes."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ns = sorted(nodes)
    for side, label in enumerate(("load() after load()", "wendelin.core")):
        ax.plot(ns, [statistics.median(v[side] for v in nodes[n]) for n in ns], "o-", label=label)
    ax.plot(ns, [n * BANDWIDTH / MIB for n in ns], "k:", label="what the nodes have together")
    ax.set_xticks(ns)
    ax.set_ylim(0)
    ax.set_xlabel(f"NEO storage nodes, {BANDWIDTH // MIB} MiB/s each")
    ax.set_ylabel("first pass, MiB/s")
    ax.set_title(title, fontsize=9)
    ax.legend()
    fig.savefig(path)


def main():
    """Measure, print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="size of the array [MiB]")
    parser.add_argument("--runs", type=int, default=5, help="fresh processes a figure")
    parser.add_argument("--only", default="zeo,neo,nodes", help="which servers")
    parser.add_argument("--json", type=Path, help="write all values to this file")
    parser.add_argument("--svg", type=Path, help="draw the throughput of nodes into this file")
    parser.add_argument("--into", type=Path, help="put the tables into this page of the docs")
    args = parser.parse_args()
    kinds = args.only.split(",")
    if unknown := set(kinds) - {"zeo", "neo", "nodes"}:
        parser.error(f"--only {args.only}: there is no {', '.join(unknown)}")
    results, nodes = {}, {}
    total = sum(3 if kind == "nodes" else 2 * len(WORKS) for kind in kinds) * args.runs
    with tqdm(total=total, unit="process") as bar:
        for kind in kinds:
            if kind == "nodes":
                nodes = measure_nodes(args.size // 4, args.runs, bar)
            else:
                results |= measure(kind, args.size, args.runs, bar)
    title = f"{args.size} MiB, medians of {args.runs} processes. {describe(Path('.'))}."
    text = markdown(title, results, nodes)
    print(f"\n{text}")
    if args.json:
        args.json.write_text(json.dumps({"results": results, "nodes": nodes}, indent=1))
    if args.svg and nodes:
        draw(args.svg, title.partition(".")[0], nodes)
    if args.into:
        put_between(args.into, NETWORK_TABLE.begin, NETWORK_TABLE.end, text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "1")
    else:
        try:
            main()
        except KeyboardInterrupt:
            sys.exit("interrupted")
