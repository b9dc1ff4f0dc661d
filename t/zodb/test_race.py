"""Threads, each with a Connection, move amounts between two arrays: the sum never changes.

WENDELIN_CORE_TEST_SECONDS says for how long, for all formats together. A test goes on at least
until each thread has looked and one thread has moved something.
"""

import os
import threading
import time

import numpy as np
import pytest
import transaction
from ZODB.POSException import ConflictError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import ram_reclaim

SECONDS = float(os.environ.get("WENDELIN_CORE_TEST_SECONDS", "6"))
BLK = 16384
ROWS = 4 * BLK // 8  # four blocks
MOVERS = 3
START = 1000


class Mover:
    """A thread that moves amounts, and checks their sum, in transactions of its own."""

    def __init__(self, db, seed, stop):
        self.db, self.stop = db, stop
        self.rng = np.random.default_rng(seed)
        self.moved = self.conflicts = self.looked = 0
        self.error = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        tm = transaction.TransactionManager()
        conn = self.db.open(tm)
        try:
            views = [conn.root()[name][:] for name in "AB"]
            while not self.stop.is_set():
                tm.begin()
                self.look(views)
                if self.rng.random() < 0.5:
                    self.move(tm, views)
                if self.rng.random() < 0.02:  # perhaps it gets another thread's Connection
                    tm.abort()
                    conn.close()
                    conn = self.db.open(tm)
                    views = [conn.root()[name][:] for name in "AB"]
                if self.rng.random() < 0.02:
                    conn.cacheMinimize()
                    ram_reclaim()
        except BaseException as e:
            self.error = e
            self.stop.set()
        finally:
            tm.abort()
            conn.close()

    def look(self, views):
        total = sum(int(view.sum()) for view in views)
        assert total == 2 * ROWS * START, total
        self.looked += 1

    def move(self, tm, views):
        source, target = self.rng.permutation(2)
        n = int(self.rng.integers(1, 50))
        i = self.rng.integers(0, ROWS, n)
        j = self.rng.integers(0, ROWS, n)
        amount = int(self.rng.integers(1, 10))
        np.subtract.at(views[source], i, amount)
        np.add.at(views[target], j, amount)
        self.look(views)
        try:
            tm.commit()
            self.moved += 1
        except ConflictError:
            tm.abort()
            self.conflicts += 1


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["ZBlk0", "ZBlk1", "auto"])
def test_the_sum_stays(testdb, fmt):
    root = testdb.open()
    for name in "AB":
        root[name] = ZBigArray((ROWS,), "i8", blksize=BLK, zblk_fmt=fmt)
    transaction.commit()
    for name in "AB":
        root[name][:] = START
    transaction.commit()
    stop = threading.Event()
    movers = [Mover(root._p_jar.db(), seed, stop) for seed in range(MOVERS)]
    end = time.monotonic() + SECONDS / 3
    latest = time.monotonic() + 60
    while not stop.wait(0.1) and time.monotonic() < latest:
        if (
            time.monotonic() >= end
            and any(m.moved for m in movers)
            and all(m.looked for m in movers)
        ):
            break
    stop.set()
    for mover in movers:
        mover.thread.join(60)
        assert not mover.thread.is_alive()
    for mover in movers:
        if mover.error is not None:
            raise mover.error
    print(
        f"{fmt}: {sum(m.looked for m in movers)} looks, {sum(m.moved for m in movers)} moves, "
        f"{sum(m.conflicts for m in movers)} conflicts"
    )
    assert all(mover.looked for mover in movers)
    assert sum(mover.moved for mover in movers)
    transaction.begin()
    assert sum(int(root[name][:].sum()) for name in "AB") == 2 * ROWS * START
