"""Three clients of one database against a model that keeps every committed version.

WENDELIN_CORE_TEST_STEPS says how many steps are taken in all.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import storages
from ZODB.POSException import ConflictError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import ram_reclaim
from wendelin.lib.zodb import dbclose, dbopen, zdb_last

STEPS = int(os.environ.get("WENDELIN_CORE_TEST_STEPS", "3000"))
BLK = 16384  # four chunks of a ZBlk1
BLOCKS = 6
MOST = BLOCKS * BLK
CLIENTS = 3

clients = st.integers(0, CLIENTS - 1)
sizes = st.integers(0, MOST) | st.sampled_from([0, 1, BLK, 3 * BLK - 1, 3 * BLK, MOST])
formats = st.sampled_from(["ZBlk0", "ZBlk1", "auto"])


class Version:
    """A version of the array: n bytes, and zeros after them."""

    def __init__(self, n=0, data=None):
        self.n = n
        self.data = np.zeros(MOST, "u1") if data is None else data.copy()
        self.data[n:] = 0

    def copy(self):
        return Version(self.n, self.data)

    def blocks(self, other):
        """Return which blocks differ."""
        return (self.data != other.data).reshape(BLOCKS, BLK).any(axis=1)


@dataclass
class Client:
    """A Connection with its own transactions, and the version of the model that it sees."""

    tm: transaction.TransactionManager
    conn: object
    base: int  # version that it began with
    now: Version
    shrank: bool = False  # since it began
    views: list = field(default_factory=list)
    savepoints: list = field(default_factory=list)

    @property
    def A(self):
        return self.conn.root()["A"]


class Isolation(RuleBasedStateMachine):
    """After every step, all views of each client are what the model has for it."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.database = storages.kind()(self.folder)
        self.root = dbopen(self.database.url)
        self.db = self.root._p_jar.db()
        self.clients = []

    def teardown(self):
        for client in self.clients:
            client.tm.abort()
            client.views.clear()
            client.conn.close()
        transaction.abort()
        dbclose(self.root)
        self.database.stop()
        shutil.rmtree(self.folder)

    @initialize(n=sizes, fmt=formats)
    def create(self, n, fmt):
        self.root["A"] = A = ZBigArray((n,), "u1", blksize=BLK, zblk_fmt=fmt)
        transaction.commit()
        A[:] = 7
        transaction.commit()
        self.versions = [Version(n, np.full(MOST, 7, "u1"))]
        self.tids = [zdb_last(self.db)]
        self.packed = 0  # the oldest version that packs have left
        for _ in range(CLIENTS):
            tm = transaction.TransactionManager()
            self.clients.append(Client(tm, self.db.open(tm), 0, self.versions[0].copy()))

    def boundary(self, client):
        """Let the model of a client have the version that was committed last."""
        client.base = len(self.versions) - 1
        client.now = self.versions[-1].copy()
        client.shrank = False
        client.savepoints.clear()

    # ---- changes ----

    @rule(c=clients, at=st.floats(0, 1), n=sizes, byte=st.integers(0, 255), via=st.booleans())
    def write(self, c, at, n, byte, via):
        client = self.clients[c]
        start = int(at * client.now.n)
        stop = min(start + n, client.now.n)
        target = client.views[-1] if via and client.views else client.A
        if len(target) < stop:
            target = client.A
        target[start:stop] = byte
        client.now.data[start:stop] = byte

    @rule(c=clients, at=st.floats(0, 1), byte=st.integers(0, 255))
    def write_one(self, c, at, byte):
        self.write(c, at, 1, byte, True)

    @rule(c=clients, n=st.integers(0, 2 * BLK), byte=st.integers(1, 255))
    def append(self, c, n, byte):
        client = self.clients[c]
        start = client.now.n
        n = min(n, MOST - start)
        client.A.append(np.full(n, byte, "u1"))
        client.now.n += n
        client.now.data[start : start + n] = byte

    @rule(c=clients, n=sizes)
    def resize(self, c, n):
        client = self.clients[c]
        client.A.resize((n,))
        client.shrank |= n < client.now.n
        client.now = Version(n, client.now.data)

    @rule(c=clients, fmt=formats)
    def change_format(self, c, fmt):
        """Change the format of blocks that the client writes from now on, but not the array."""
        self.clients[c].A._fileh().file.zblk_fmt = fmt

    # ---- transactions ----

    @rule(c=clients)
    def commit(self, c):
        client = self.clients[c]
        base, latest = self.versions[client.base], self.versions[-1]
        changed, others = base.blocks(client.now), base.blocks(latest)
        resized = client.now.n != base.n
        before = zdb_last(self.db)
        try:
            client.tm.commit()
        except ConflictError:
            client.tm.abort()
            assert client.base != len(self.versions) - 1, "a conflict with nobody"
            self.boundary(client)
            return
        if not client.shrank:
            assert not (changed & others).any(), "a change was overwritten"
        assert not (resized and latest.n != base.n)
        if zdb_last(self.db) != before:
            new = latest.copy()
            new.n = client.now.n if resized else latest.n
            for i in np.flatnonzero(changed):
                new.data[i * BLK : (i + 1) * BLK] = client.now.data[i * BLK : (i + 1) * BLK]
            self.versions.append(Version(new.n, new.data))
            self.tids.append(zdb_last(self.db))
        else:
            assert not changed.any()
            assert not resized
        self.boundary(client)

    @rule(c=clients)
    def abort(self, c):
        self.clients[c].tm.abort()
        self.boundary(self.clients[c])

    @rule(c=clients)
    def begin(self, c):
        self.clients[c].tm.begin()
        self.boundary(self.clients[c])

    @rule(c=clients)
    def savepoint(self, c):
        client = self.clients[c]
        saved = client.tm.savepoint(), client.now.copy(), client.shrank
        client.savepoints.append(saved)

    @precondition(lambda self: any(client.savepoints for client in self.clients))
    @rule(data=st.data())
    def rollback(self, data):
        client = data.draw(st.sampled_from([c for c in self.clients if c.savepoints]))
        i = data.draw(st.integers(0, len(client.savepoints) - 1))
        del client.savepoints[i + 1 :]
        savepoint, now, client.shrank = client.savepoints[i]
        savepoint.rollback()
        client.now = now.copy()

    # ---- the database ----

    # NEO 1.12: a storage node ends with an AssertionError at an undo, after some sequences
    @precondition(lambda self: storages.kind() is not storages.NeoDatabase)
    @precondition(lambda self: len(self.versions) - 1 > self.packed)
    @rule()
    def undo(self):
        tm = transaction.TransactionManager()
        self.db.undo(self.db.undoLog(0, 1)[0]["id"], tm.get())
        tm.commit()
        self.versions.append(self.versions[-2].copy())
        self.tids.append(zdb_last(self.db))

    @rule()
    def pack(self):
        for client in self.clients:  # a pack removes what clients still see
            client.tm.begin()
            self.boundary(client)
        self.db.pack()
        self.packed = len(self.versions) - 1

    @rule(i=st.integers(0, 100))
    def look_back(self, i):
        i = self.packed + i % (len(self.versions) - self.packed)
        tm = transaction.TransactionManager()
        conn = self.db.open(tm, at=self.tids[i])
        a = conn.root()["A"][:]
        assert len(a) == self.versions[i].n
        assert np.array_equal(a, self.versions[i].data[: len(a)])
        tm.abort()
        conn.close()

    # ---- what changes nothing ----

    @rule(c=clients)
    def minimize_cache(self, c):
        self.clients[c].conn.cacheMinimize()

    @rule()
    def reclaim(self):
        ram_reclaim()

    @rule(c=clients)
    def view(self, c):
        self.clients[c].views.append(self.clients[c].A[:])
        del self.clients[c].views[:-3]

    @rule(c=clients)
    def drop_views(self, c):
        self.clients[c].views.clear()

    @rule(c=clients)
    def reopen(self, c):
        client = self.clients[c]
        client.tm.abort()
        client.conn.close()
        client.conn = self.db.open(client.tm)
        self.boundary(client)

    @invariant()
    def each_sees_its_version(self):
        for client in self.clients:
            n, data = client.now.n, client.now.data
            A = client.A
            assert A.shape == (n,)
            assert np.array_equal(A[:], data[:n])
            for view in client.views:
                m = min(len(view), n)
                assert np.array_equal(view[:m], data[:m])


Isolation.TestCase.settings = settings(
    max_examples=max(1, STEPS // 50),
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
TestIsolation = pytest.mark.filterwarnings("error")(
    pytest.mark.slow(pytest.mark.database(pytest.mark.formats(Isolation.TestCase)))
)
