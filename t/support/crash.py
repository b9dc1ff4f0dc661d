"""Commits until it is killed, to see that kill -9 leaves in a database just what was committed.

A worker has an array of each format, and a counter. The number of a transaction says what it
changes. When a commit has returned, the worker notes the number. A test kills the worker, opens the
database, and compares it with a model. The model has done all transactions that are noted, or one
more: that one was committed, and the worker had no time to note it.

Workers are forked from a process that has imported everything, so that rounds are short:
python t/support crash serve. Or a worker is started alone: python t/support crash work URL NOTES
"""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import transaction
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError, POSError

from support import TESTS
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

FORMATS = ("ZBlk0", "ZBlk1", "auto")
BLK = 16384
LARGEST = 10 * BLK
#: modules that dbopen() imports late; else many workers would be killed during these imports
LATE = ("zodburi.resolvers", "ZEO.ClientStorage", "wendelin.lib.storage.zeoclient")
SECONDS = 60  # until the first commit of a worker [s]


# ---- the model ----


class Model:
    """What an array must be, in an ndarray."""

    def __init__(self) -> None:
        self.a = np.zeros(3 * BLK, "u1")

    def __setitem__(self, idx, values):
        self.a[idx] = values

    def __len__(self):
        return len(self.a)

    def append(self, values):
        self.a = np.append(self.a, values)

    def resize(self, shape):
        new = np.zeros(shape, "u1")
        n = min(len(new), len(self.a))
        new[:n] = self.a[:n]
        self.a = new


def change(arrays, n: int) -> None:
    """Do what transaction n does, to arrays or their models."""
    rng = random.Random(n)
    for fmt in rng.sample(FORMATS, rng.choice([1, 2, 3])):
        a = arrays[fmt]
        for _ in range(rng.choice([1, 1, 3])):
            kind = rng.choice(["byte", "piece", "blocks", "append", "shrink"])
            start = rng.randrange(len(a))
            if kind == "byte":
                a[start] = rng.randrange(256)
            elif kind == "piece":
                a[start : start + 3000] = rng.randrange(256)
            elif kind == "blocks":
                start -= start % BLK
                a[start : start + 2 * BLK] = rng.randrange(256)
            elif kind == "append" and len(a) < LARGEST:
                a.append(np.full(rng.randrange(1, 2 * BLK), rng.randrange(256), "u1"))
            elif kind == "shrink":
                a.resize(max(BLK, start))


class Expected:
    """What a database must have after n transactions; n only grows."""

    def __init__(self) -> None:
        self.n = 0
        self.arrays = {fmt: Model() for fmt in FORMATS}

    def check(self, root, committed: int) -> int:
        """Compare a database after `committed` commits have returned; return how many it has.

        Raises
        ------
        AssertionError
            Something is lost, or something is there that must not be.
        """
        n = root.get("n", 0)
        assert committed <= n <= committed + 1, f"{n} of {committed} transactions are there"
        while self.n < n:
            self.n += 1
            change(self.arrays, self.n)
        for fmt in FORMATS if n else ():
            a = root[fmt].read()
            assert len(a) == len(self.arrays[fmt].a), f"transaction {n}: {fmt} has another size"
            wrong = np.flatnonzero(a != self.arrays[fmt].a)
            assert len(wrong) == 0, f"transaction {n}: {fmt}, bytes {wrong}"
        return n


# ---- the worker ----


def commit_next(root) -> int:
    """Do the next transaction; return its number."""
    n = root.get("n", 0) + 1
    if n == 1:
        for fmt in FORMATS:
            root[fmt] = A = ZBigArray((3 * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
            root._p_jar.add(A)
    change(root, n)
    root["n"] = n
    transaction.commit()
    return n


def pack_for_ever(db) -> None:
    while True:
        # another pack runs, as of the previous worker; or the server has gone
        with suppress(POSError, ClientDisconnected):
            db.pack()


def work(url: str, notes: str, pack: bool = False) -> None:
    """Commit for ever. If a server goes, wait until it is back."""
    root = dbopen(url)
    if pack:
        threading.Thread(target=pack_for_ever, args=(root._p_jar.db(),), daemon=True).start()
    fd = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        try:
            n = commit_next(root)
        except (ConflictError, POSError, ClientDisconnected, OSError):
            if not url.startswith("zeo"):
                raise
            transaction.abort()
            continue
        os.write(fd, b"%d\n" % n)


def last_note(notes) -> int:
    """Return the number of the last commit that has returned."""
    with suppress(FileNotFoundError):
        lines = Path(notes).read_text().split()
        return int(lines[-1]) if lines else 0
    return 0


# ---- the process that workers are forked from ----


def has_ended(pid: int) -> bool:
    """Say whether a child has ended, and leave it to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def serve() -> None:
    """Fork a worker for each line of stdin, kill it, and print its exit code."""
    for name in LATE:
        import_module(name)
    for line in sys.stdin:
        seconds, after_commit, args = json.loads(line)
        before = last_note(args[1])
        pid = os.fork()
        if pid == 0:
            try:
                work(*args)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        if after_commit:
            stop = time.monotonic() + SECONDS
            while last_note(args[1]) == before and not has_ended(pid) and time.monotonic() < stop:
                time.sleep(0.002)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Workers:
    """The process that workers are forked from, as seen from outside."""

    def __init__(self, log) -> None:
        self.log = Path(log)
        with open(log, "wb") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", __file__, "serve"],
                env=os.environ | {"PYTHONPATH": str(TESTS)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def run(self, seconds: float, after_commit: bool, *args) -> None:
        """Let a worker work; kill it some seconds after its start, or after its first commit."""
        self.popen.stdin.write(json.dumps([seconds, after_commit, args]) + "\n")
        self.popen.stdin.flush()
        ended = self.popen.stdout.readline().strip()
        assert ended == str(-signal.SIGKILL), f"ended by itself: {ended}\n{self.log.read_text()}"

    def stop(self) -> None:
        self.popen.stdin.close()
        self.popen.wait(60)
        self.popen.stdout.close()


def rounds(workers, url: str, notes, seeds, pack: bool = False) -> tuple[int, int]:
    """Kill a worker for each seed, and check then; return (transactions, those without a note)."""
    expected = Expected()
    more = 0
    for i, seed in enumerate(seeds):
        # Every second kill comes after a first commit, however slow the machine is. The others may
        # come while the worker opens the database.
        after_commit = i % 2 == 1
        seconds = random.Random(seed).uniform(0, 0.15 if after_commit else 0.3)
        workers.run(seconds, after_commit, url, str(notes), pack)
        committed = max(last_note(notes), expected.n)
        root = dbopen(url)
        try:
            n = expected.check(root, committed)
        finally:
            transaction.abort()
            dbclose(root)
        more += n - committed
    return expected.n, more


if __name__ == "__main__":
    logging.getLogger().addHandler(logging.NullHandler())
    if sys.argv[1] == "serve":
        serve()
    else:
        work(*sys.argv[2:4])
