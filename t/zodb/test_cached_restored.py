"""The cache of blocks, and a database that was restored from a backup while the clock was set back.

Its transactions then have the same tids as those that were lost: each is the previous tid and one.
A new process must see what the database has, and not what the cache has kept of the lost ones.
"""

import shutil
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import transaction
from support import storages
from support.servers import ZeoServer

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.virtmem.stats import stats_of
from wendelin.bigfile.zodb import cached
from wendelin.bigfile.zodb.handle import handles_of
from wendelin.lib.zodb import dbclose, dbopen, zconn_at

BLK = 1 << 17  # [bytes]
N = 4
BEFORE = 1.5e9  # the clock, when it is set back [s]

RUNZEO = f"""
import sys, time
from types import SimpleNamespace
import ZODB.BaseStorage
from ZEO.runzeo import main
if sys.argv.pop(1) == "back":
    ZODB.BaseStorage.time = SimpleNamespace(time=lambda: {BEFORE}, gmtime=time.gmtime)
main()
"""


class Restorable:
    """A database with a backup, by a URL: a file of this machine, or one of a ZEO server."""

    def __init__(self, folder, monkeypatch):
        self.monkeypatch = monkeypatch
        self.server = None
        self.data = folder / "1.fs"
        self.backup = folder / "backup"
        self.url = f"file://{self.data}?align=false"
        if storages.kind() is storages.ZeoDatabase:
            self.server = ZeoServer(folder)
            self.arguments = self.server.command[1:]
            self.set_clock("right")

    def set_clock(self, how):
        """Let the clock of what writes the file be right, or "back"."""
        if self.server is not None:
            self.server.stop()
            self.server.command = [sys.executable, "-P", "-c", RUNZEO, how, *self.arguments]
            self.server.start()
            self.url = self.server.url
        elif how == "back":
            self.set_time(BEFORE)

    def set_time(self, now):
        """Let transactions of this process be of a time [s since 1970]."""
        clock = SimpleNamespace(time=lambda: now, gmtime=time.gmtime)
        self.monkeypatch.setattr("ZODB.BaseStorage.time", clock)

    def save(self):
        """Make the backup."""
        shutil.copy(self.data, self.backup)

    def restore(self):
        """Put the backup back."""
        if self.server is not None:
            self.server.stop()
        for path in self.data.parent.glob("1.fs*"):
            path.unlink()
        shutil.copy(self.backup, self.data)
        if self.server is not None:
            self.server.start()

    def stop(self):
        if self.server is not None:
            self.server.stop()

    @contextmanager
    def opened(self, **options):
        """Open it as another process would: no page and no object is known."""
        root = dbopen(self.url, **options)
        try:
            yield root
        finally:
            transaction.abort()
            dbclose(root)

    def change(self, *blocks):
        """Give blocks other numbers, in a transaction each; return the tids.

        The writer has no cache: else it could make a second folder, and readers take one of both.
        """
        tids = []
        with self.monkeypatch.context() as patch, self.opened() as root:
            patch.setenv("WENDELIN_CORE_CACHE", "off")
            for blk, seed in blocks:
                root["A"][blk * BLK : (blk + 1) * BLK] = values(seed)
                transaction.commit()
                tids.append(zconn_at(root._p_jar))
        return tids

    def check(self, *seeds):
        """See what a reader sees; return how many blocks were in the cache."""
        with self.opened(read_only=True) as root:
            A = root["A"]
            for blk, seed in enumerate(seeds):
                assert np.array_equal(A[blk * BLK : (blk + 1) * BLK], values(seed)), blk
            (handle,) = handles_of(A.zfile)
            return stats_of(handle).hits


def values(seed):
    return np.random.default_rng(seed).integers(1, 255, BLK, "u1")


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setenv("WENDELIN_CORE_CACHE", f"{tmp_path}/cache:100M")
    (tmp_path / "db").mkdir()
    database = Restorable(tmp_path / "db", monkeypatch)
    try:
        with database.opened() as root:
            A = root["A"] = ZBigArray((N * BLK,), "u1", blksize=BLK, zblk_fmt="ZBlk0")
            transaction.commit()
            for blk in range(N):
                A[blk * BLK : (blk + 1) * BLK] = values(blk)
            transaction.commit()
        database.set_clock("back")
        database.save()
        yield database
    finally:
        database.stop()


@pytest.fixture(params=[True, False], ids=["", "no revisions"])
def says_revisions(request, monkeypatch):
    """Say whether the storage does: a stock ZEO server, for one, says nothing."""
    if not request.param:
        monkeypatch.setattr(cached, "zconn_revisions", lambda _, oids: [None] * len(oids))
    return request.param


@pytest.mark.only("fs", "zeo")
@pytest.mark.database
@pytest.mark.formats
@pytest.mark.slow
@pytest.mark.parametrize("seen", [False, True], ids=["", "seen"])
@pytest.mark.parametrize(
    "again",
    [[(0, 20), (1, 21)], [(0, 20)], [(0, 20), (1, 11)], [(1, 21), (2, 22)]],
    ids=["other", "less", "end same", "other blocks"],
)
def test_restored_with_the_clock_set_back(database, again, seen, says_revisions):
    lost = database.change((0, 10), (1, 11))
    database.check(10, 11, 2, 3)
    hits = database.check(10, 11, 2, 3)
    assert hits == N or not says_revisions  # all are kept
    database.restore()
    if seen:  # a reader comes before the first change
        database.check(0, 1, 2, 3)
    assert database.change(*again) == lost[: len(again)]  # else this tests nothing
    expected = dict(enumerate(range(N))) | dict(again)
    for _ in range(2):
        database.check(*expected.values())
    database.restore()
    database.check(0, 1, 2, 3)


@pytest.mark.only("fs")
@pytest.mark.database
@pytest.mark.formats
def test_many_blocks_of_transactions_that_are_close(database, tmp_path):
    """They are not all compared; but what is kept stays of use, and is not kept again and again."""
    seeds = list(range(100, 124))
    with database.opened() as root:
        root["A"].resize((len(seeds) * BLK,))
        transaction.commit()
    database.change(*enumerate(seeds))
    database.check(*seeds)
    for _ in range(3):
        assert database.check(*seeds) == cached._MOST_COMPARED
    assert len(list(tmp_path.glob("cache/*/about"))) == 1


@pytest.mark.only("fs")
@pytest.mark.database
@pytest.mark.formats
def test_a_state_that_was_lost(database, monkeypatch):
    """No tids are close, but a state of the past has the name of one that was lost."""
    monkeypatch.setattr(cached, "zconn_revisions", lambda _, oids: [None] * len(oids))
    now = time.time()

    def change(after, blk, seed):
        database.set_time(now + after)
        (tid,) = database.change((blk, seed))
        return tid

    change(1000, 0, 10)
    lost = change(2000, 1, 11)
    database.check(10, 11, 2, 3)
    assert database.check(10, 11, 2, 3) == N
    database.restore()
    change(500, 2, 22)
    change(3000, 3, 23)
    database.check(0, 1, 22, 23)
    with database.opened() as root:
        past = root._p_jar.db().open(at=lost)
        try:
            A = past.root()["A"]
            for blk, seed in enumerate((0, 1, 22, 3)):
                assert np.array_equal(A[blk * BLK : (blk + 1) * BLK], values(seed)), blk
        finally:
            past.close()
