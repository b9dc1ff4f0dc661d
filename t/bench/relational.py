"""Measure over RelStorage on PostgreSQL, next to a loop of load() or store() on an instance of it.

    python t/bench/relational.py [--size MIB] [--runs N] [--compression lz4|pglz|none]

The loop is what a program does without us. Each of several fresh processes measures both, and they
take turns in going first. For each side it prints MiB/s, and seconds of CPU for each GiB, of the
client and of the server; the ratios are medians of those of the processes. A server is started for
this, on this machine, without fsync.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
import transaction
from persistent.mapping import PersistentMapping
from support.postgres import PostgresServer
from ZODB.Connection import TransactionMetaData

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen

MIB = 1 << 20
COMMIT = 64  # of one commit [MiB]
WORKS = {"commit": "commit", "ZBlk0": "first pass", "ZBlk1": "first pass of ZBlk1"}
NAMES = "MiB/s", "client, s/GiB", "server, s/GiB"


def random(seed, size):
    """Return `size` random bytes, as numbers whose sum is exact: it wraps."""
    return np.random.default_rng(seed).integers(-(2**63), 2**63, size // 8, np.int64)


def oids_of(array):
    """Return the oids that an array's bytes are in."""
    zblks = array.zfile.blktab.values()
    return [
        chunk._p_oid
        for zblk in zblks
        for chunk in ([zblk] if type(zblk).__name__ == "ZBlk0" else zblk.chunktab.values())
    ]


class Measured:
    """What a piece of work takes: seconds, and CPU seconds of this process and of the server.

    Parameters
    ----------
    servers : int
        Processes of the server, which may have children.
    """

    def __init__(self, *servers):
        self.servers = [psutil.Process(pid) for pid in servers]

    def _of_servers(self):
        """Return {process: CPU seconds}; PostgreSQL has some that end now and then."""
        found = {}
        for server in self.servers:
            for process in [server, *server.children()]:
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    found[process] = times.user + times.system
        return found

    def __enter__(self):
        self.before = self._of_servers()
        self.at = perf_counter(), process_time()
        return self

    def __exit__(self, *exc):
        now = perf_counter(), process_time()
        after = self._of_servers()
        servers = sum(seconds - self.before.get(p, 0) for p, seconds in after.items())
        self.taken = [*(b - a for a, b in zip(self.at, now, strict=True)), servers]

    def of(self, size):
        seconds, client, server = self.taken
        gib = size / MIB / 1024
        return size / MIB / seconds, client / gib, server / gib


def loop(url, work, oids, server):
    """Load, or store, one object after the other."""
    storage = dbstoropen(url)
    instance = storage.new_instance()
    instance.poll_invalidations()
    try:
        if work != "commit":
            with Measured(server) as m:
                size = sum(len(instance.load(oid)[0]) for oid in oids)
            return m.of(size)
        record = instance.load(oids[0])[0]
        txn = TransactionMetaData()
        with Measured(server) as m:
            instance.tpc_begin(txn)
            for _ in range(COMMIT * MIB // len(record)):
                instance.store(instance.new_oid(), b"\0" * 8, record, "", txn)
            instance.tpc_vote(txn)
            instance.tpc_finish(txn)
        return m.of(COMMIT * MIB)
    finally:
        instance.release()
        storage.close()


def ours(url, work, server):
    """Compute the sum of an array, or commit one."""
    root = dbopen(url)
    try:
        if work == "commit":
            root["new"] = array = ZBigArray((COMMIT * MIB // 8,), np.int64)
            transaction.commit()
            array[:] = random(1, COMMIT * MIB)
            with Measured(server) as m:
                transaction.commit()
            return m.of(COMMIT * MIB)
        array = root[work]
        with Measured(server) as m:
            total = int(np.sum(array[:]))
        assert total == root["sums"][work]
        return m.of(array.nbytes)
    finally:
        dbclose(root)


def child(url, server, work, ours_first):
    """Print what both sides take."""
    root = dbopen(url)
    oids = oids_of(root["ZBlk0" if work == "commit" else work])
    dbclose(root)
    results = {}
    for side in ("ours", "loop") if ours_first else ("loop", "ours"):
        if side == "loop":
            results[side] = loop(url, work, oids, server)
        else:
            results[side] = ours(url, work, server)
    print(json.dumps([results["loop"], results["ours"]]))


def fill(url, size):
    """Write the arrays."""
    root = dbopen(url)
    root["sums"] = PersistentMapping()
    for name, n in (("ZBlk0", size * MIB), ("ZBlk1", size // 8 * MIB)):
        values = random(1, n)
        root[name] = array = ZBigArray(values.shape, np.int64, zblk_fmt=name)
        transaction.commit()
        array[:] = values
        root["sums"][name] = int(values.sum())
        transaction.commit()
    dbclose(root)


def main():
    """Start a server, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="of the array [MiB]")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compression", choices=["lz4", "pglz", "none"], default="lz4")
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="bench-postgres-")
    server = PostgresServer(folder)
    try:
        server.create()
        url = server.url("empty")
        if args.compression == "none":  # but of RelStorage's temporary table, by lz4
            server.execute("ALTER TABLE object_state ALTER state SET STORAGE EXTERNAL", "empty")
        else:
            server.execute(
                f"ALTER DATABASE empty SET default_toast_compression = '{args.compression}'"
            )
        fill(url, args.size)
        print(f"| work | {' | '.join(f'{n}: loop | ours | ratio' for n in NAMES)} |")
        print("| --- " + "| ---: " * 9 + "|")
        for work, what in WORKS.items():
            pairs = []
            for number in range(args.runs):
                command = [sys.executable, __file__, "child", url, str(server.pid), work]
                command.append(str(number % 2))
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                pairs.append(json.loads(done.stdout))
            cells = []
            for i in range(3):
                a, b = (statistics.median(pair[side][i] for pair in pairs) for side in (0, 1))
                ratio = statistics.median(pair[1][i] / max(pair[0][i], 1e-9) for pair in pairs)
                cells.append(f"{a:.3g} | {b:.3g} | {ratio:.2f}")
            print(f"| {what} | {' | '.join(cells)} |", flush=True)
    finally:
        server.stop()
        server.log.unlink()
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5] == "1")
    else:
        main()
