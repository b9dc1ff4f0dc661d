"""Works for a long time, with little memory, in several threads and clients, against a model.

    python t/support soak [--seconds N] [--threads N] [--clients N]

Each thread has an array of its own, and an ndarray as its model. All threads also change one shared
array, whose sum stays the same. WENDELIN_CORE_TEST_DB says which storage is used, as for tests;
with a server, there are several processes. At the end it prints what was done, what the pager did,
and what was not given back: that must be nothing, or as little as TOLERATED.
"""

import argparse
import gc
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import transaction
from transaction import TransactionManager
from ZODB.POSException import ConflictError

from support import TESTS, storages
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import ram_reclaim, stats
from wendelin.bigfile.virtmem.handle import handles
from wendelin.bigfile.virtmem.stats import HandleStats, stats_of
from wendelin.lib.zodb import dbclose, dbopen

BLK = 65536
LARGEST = 48 * BLK  # of an own array [bytes]
SHARED = 64 * BLK // 8  # elements of the shared one
RAM = "4M"  # WENDELIN_CORE_RAM: less than what one thread works on
PACK_EVERY = 10  # [s]
WARM = 2  # before the first count: caches, pools and arenas are made once [s]
# some mappings and memory are for arenas and stacks
TOLERATED = {"fds": 0, "threads": 0, "mappings": 60, "resident MiB": 60, "pages": 0, "handles": 0}


class Own:
    """An array that one thread changes, and its model."""

    def __init__(self, thread) -> None:
        self.thread = thread
        self.committed = self.model = np.zeros(4 * BLK, "u1")
        self.name = f"own {os.getpid()} {thread.n}"
        fmt = ("ZBlk0", "ZBlk1", "auto")[thread.n % 3]
        thread.root[self.name] = A = ZBigArray((len(self.model),), "u1", "C", BLK, fmt)
        thread.root._p_jar.add(A)

    @property
    def A(self):
        return self.thread.root[self.name]

    def span(self):
        rng = self.thread.rng
        start = rng.randrange(len(self.model))
        return slice(start, start + rng.choice([1, 100, BLK, 5 * BLK]))

    def write(self):
        span, value = self.span(), self.thread.rng.randrange(256)
        self.A[span] = value
        self.model = self.model.copy()
        self.model[span] = value

    def append(self):
        if len(self.model) < LARGEST:
            values = np.full(self.thread.rng.randrange(1, 4 * BLK), 9, "u1")
            self.A.append(values)
            self.model = np.append(self.model, values)

    def resize(self):
        n = self.thread.rng.randrange(BLK, LARGEST)
        self.A.resize(n)
        kept = self.model[:n]
        self.model = np.append(kept, np.zeros(n - len(kept), "u1"))

    def check(self):
        span = self.span()
        assert len(self.A) == len(self.model)
        assert np.array_equal(self.A[span], self.model[span]), f"{self.name} at {span}"

    def read(self):
        span = self.span()
        assert np.array_equal(self.A.read(span), self.model[span]), f"{self.name} at {span}"

    def check_all(self):
        assert np.array_equal(self.A[:], self.model), self.name

    def prefetch(self):
        self.A.prefetch(self.span())

    def rollback(self):
        savepoint, model = self.thread.tm.savepoint(), self.model
        self.write()
        self.append()
        savepoint.rollback()
        self.model = model

    def commit(self):
        self.thread.tm.commit()
        self.committed = self.model

    def abort(self):
        self.thread.tm.abort()
        self.model = self.committed


class Thread(threading.Thread):
    """A client: a Connection, and what it does."""

    def __init__(self, db, n: int, until: float, seen: Counter) -> None:
        super().__init__(name=f"client {n}")
        self.db, self.n, self.until, self.seen = db, n, until, seen
        self.rng = random.Random(f"{os.getpid()} {n}")
        self.tm = TransactionManager()
        self.error: str | None = None

    def run(self):
        try:
            self.work()
        except BaseException:
            self.error = traceback.format_exc()

    def open(self):
        self.conn = self.db.open(self.tm)
        self.root = self.conn.root()

    def work(self):
        self.open()
        while True:
            self.own = own = Own(self)
            with suppress(ConflictError):  # other threads change the root, too
                own.commit()
                break
            self.tm.abort()
        mine = [own.write] * 6 + [own.check] * 6 + [own.commit] * 4 + [own.read, own.append]
        mine += [own.abort, own.rollback, own.prefetch, own.resize, own.check_all]
        mine += [self.transfer] * 4 + [self.sum, self.reopen, self.minimize, self.reclaim]
        todo = list(dict.fromkeys(mine))  # each at least once: a slow server does not do many
        self.rng.shuffle(todo)
        while todo or time.monotonic() < self.until:
            act = todo.pop() if todo else self.rng.choice(mine)
            act()
            self.seen[act.__name__] += 1
        own.abort()
        own.check_all()
        self.sum()
        self.tm.abort()
        del self.root, self.own
        self.conn.close()

    def transfer(self):
        """Move something from an element of the shared array to another."""
        self.own.abort()
        shared = self.root["shared"]
        i, j = self.rng.randrange(SHARED), self.rng.randrange(SHARED)
        shared[i] -= 1
        shared[j] += 1
        try:
            self.tm.commit()
        except ConflictError:
            self.tm.abort()
            self.seen["conflicts"] += 1

    def sum(self):
        self.own.abort()
        assert self.root["shared"][:].sum() == 0, "the sum of the shared array"

    def reopen(self):
        self.own.abort()
        self.conn.close()
        self.open()

    def minimize(self):
        self.conn.cacheMinimize()

    def reclaim(self):
        ram_reclaim()


# ---- a process ----


def is_page_memory(fd: str) -> bool:
    """Say whether a descriptor is of page memory: up to eight files, which all handles share."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:wendelin.core")
    except FileNotFoundError:
        return True  # it was that of the listing


def used() -> dict[str, float]:
    """Return the resources that this process has."""
    gc.collect()
    ram_reclaim()
    status = Path("/proc/self/status").read_text()
    sizes = [int(status.split(f"{name}:")[1].split()[0]) for name in ("RssAnon", "RssShmem")]
    return {
        "fds": sum(not is_page_memory(fd) for fd in os.listdir("/proc/self/fd")),
        # without the pools, which stay for their next work
        "threads": sum("wendelin.core-" not in t.name for t in threading.enumerate()),
        "mappings": Path("/proc/self/maps").read_text().count("\n"),
        "resident MiB": round(sum(sizes) / 1024, 1),
    }


def are_tolerated(leaks: dict[str, float]) -> bool:
    return all(n <= TOLERATED[name] for name, n in leaks.items())


class Pager:
    """What the pager did for handles that come and go; looked at often, so it is about right."""

    NAMES = ("faults", "loads", "reclaims", "failures", "waits")

    def __init__(self) -> None:
        self.seen: dict[weakref.ref, HandleStats] = {}

    def look(self) -> None:
        for handle in list(handles):
            self.seen[weakref.ref(handle)] = stats_of(handle)

    def total(self) -> dict[str, int]:
        return {name: sum(getattr(c, name) for c in self.seen.values()) for name in self.NAMES}


def watch(db, until: float, seen: Counter, pager: Pager, packs: bool) -> None:
    """Look at the pager until a time; pack now and then."""
    next_pack = time.monotonic() + PACK_EVERY
    while time.monotonic() < until:
        time.sleep(0.1)
        pager.look()
        if packs and time.monotonic() > next_pack:
            db.pack()
            seen["packs"] += 1
            next_pack += PACK_EVERY


def session(url: str, seconds: float, threads: int, seen: Counter, pager: Pager) -> None:
    """Work for so many seconds.

    Raises
    ------
    SystemExit
        Something was wrong; the message says what.
    """
    root = dbopen(url)
    db, until = root._p_jar.db(), time.monotonic() + seconds
    clients = [Thread(db, n, until, seen) for n in range(threads)]
    for client in clients:
        client.start()
    watch(db, until, seen, pager, url.startswith("file"))
    for client in clients:
        client.join()
    transaction.abort()
    dbclose(root)
    errors = [client.error for client in clients if client.error]
    if errors:
        raise SystemExit("\n".join(errors))


def process(url: str, seconds: float, threads: int) -> None:
    """Work, and print what was done, and what was not given back, as JSON."""
    session(url, WARM, threads, Counter(), Pager())
    before, seen, pager = used(), Counter(), Pager()
    session(url, seconds, threads, seen, pager)
    for _ in range(20):  # threads of pools may still end something, or collect garbage
        after = used()
        leaks = {name: round(after[name] - before[name], 1) for name in before}
        left = stats()
        leaks |= {"pages": left.clean + left.dirty, "handles": len(left.handles)}
        if are_tolerated(leaks):
            break
        time.sleep(0.3)
    did = pager.total() | {"page faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt}
    print(json.dumps({"did": seen, "pager": did, "leaks": leaks}))


# ---- all ----


def soak(url: str, seconds: float, threads: int, clients: int) -> tuple[list[dict], bool]:
    """Return what each process has printed, and whether all was well."""
    root = dbopen(url)
    root["shared"] = ZBigArray((SHARED,), "i8", blksize=BLK)
    transaction.commit()
    dbclose(root)
    env = os.environ | {"PYTHONPATH": str(TESTS), "WENDELIN_CORE_RAM": RAM}
    command = [sys.executable, "-P", __file__, "--url", url, "--seconds", str(seconds)]
    command += ["--threads", str(threads)]
    processes = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(clients)
    ]
    results, well = [], True
    for child in processes:
        out, _ = child.communicate()
        if child.returncode != 0:
            print(f"FAILED: exit code {child.returncode}")
            well = False
            continue
        result = json.loads(out)
        well = well and are_tolerated(result["leaks"])
        results.append(result)
    return results, well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--threads", type=int, default=4, help="of a process")
    parser.add_argument("--clients", type=int, help="processes; 2, or 1 where there is no server")
    parser.add_argument("--url", help=argparse.SUPPRESS)  # be one of the processes
    args = parser.parse_args()
    if args.url:
        process(args.url, args.seconds, args.threads)
        return
    kind = storages.kind()
    folder = Path(tempfile.mkdtemp(prefix="wendelin-soak-"))
    try:
        database = kind(folder)
        clients = args.clients or (2 if kind.has_server else 1)
        print(f"{kind.describe()}; {clients} x {args.threads} threads, {args.seconds:g} s, {RAM}")
        results, well = soak(database.url, args.seconds, args.threads, clients)
        database.stop()
    finally:
        shutil.rmtree(folder)
    for result in results:
        for what, counts in result.items():
            print(f"{what}: {', '.join(f'{n} {name}' for name, n in counts.items())}")
    sys.exit(0 if well else "not all was well")


if __name__ == "__main__":
    main()
