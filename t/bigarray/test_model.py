"""A ZBigArray against a plain ndarray, over random histories of one client."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import transaction
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import storages

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import ram_reclaim
from wendelin.bigfile.virtmem.frames import set_smallest
from wendelin.lib.zodb import dbclose, dbopen

BLK = 4096
LIMIT = 12 * BLK


class Model(RuleBasedStateMachine):
    """Write, append, resize, commit, abort, reclaim, new view, drop view, close and reopen.

    The model has the present data of the array and the committed data. A view keeps its size: it
    shows the first bytes of the file, and zeros past the end of the array.
    """

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.database = storages.kind()(self.folder)
        self.root = dbopen(self.database.url)
        self.views = []

    def teardown(self):
        transaction.abort()
        self.views.clear()
        dbclose(self.root)
        self.database.stop()
        shutil.rmtree(self.folder)
        set_smallest(256 << 10)

    @initialize(dtype=st.sampled_from(["u1", "V3", "<i8"]), frames=st.booleans())
    def create(self, dtype, frames):
        if frames:
            set_smallest(BLK)
        self.dtype = np.dtype(dtype)
        self.root["A"] = ZBigArray((0,), dtype, blksize=BLK)
        transaction.commit()
        self.A = self.root["A"]
        self.now = self.committed = np.zeros(0, dtype)

    def values(self, n, byte):
        return np.frombuffer(bytes([byte]) * (n * self.dtype.itemsize), self.dtype)

    @rule(
        at=st.floats(0, 1), n=st.integers(0, 3 * BLK), byte=st.integers(0, 255), via=st.booleans()
    )
    def write(self, at, n, byte, via):
        start = int(at * len(self.now))
        part = self.now[start : start + n]
        target = self.views[-1] if via and self.views else self.A
        if len(target) < start + len(part):
            target = self.A
        target[start : start + len(part)] = self.values(len(part), byte)
        self.now = self.now.copy()
        self.now[start : start + n] = self.values(len(part), byte)

    @rule(n=st.integers(0, 2 * BLK), byte=st.integers(1, 255))
    def append(self, n, byte):
        if self.now.nbytes + n < LIMIT:
            values = self.values(n // self.dtype.itemsize, byte)
            self.A.append(values)
            self.now = np.concatenate([self.now, values])

    @rule(n=st.integers(0, LIMIT) | st.sampled_from([0, BLK, 3 * BLK]))
    def resize(self, n):
        n //= self.dtype.itemsize
        self.A.resize((n,))
        grown = np.zeros(max(0, n - len(self.now)), self.dtype)
        self.now = np.concatenate([self.now[:n], grown])

    @rule()
    def commit(self):
        transaction.commit()
        self.committed = self.now

    @rule()
    def abort(self):
        transaction.abort()
        self.now = self.committed

    @rule()
    def begin(self):
        transaction.begin()
        self.now = self.committed

    @rule()
    def reclaim(self):
        ram_reclaim()

    @rule()
    def minimize_cache(self):
        self.root._p_jar.cacheMinimize()

    @precondition(lambda self: len(self.now) and len(self.views) < 5)
    @rule()
    def new_view(self):
        self.views.append(self.A[:])

    @precondition(lambda self: self.views)
    @rule(i=st.integers(0, 4))
    def drop_view(self, i):
        del self.views[i % len(self.views)]

    @rule()
    def reopen(self):
        transaction.abort()
        self.now = self.committed
        self.views.clear()
        dbclose(self.root)
        self.root = dbopen(self.database.url)
        self.A = self.root["A"]

    @invariant()
    def same(self):
        if not hasattr(self, "A"):
            return
        assert self.A.shape == self.now.shape
        assert self.A[:].tobytes() == self.now.tobytes()
        for view in self.views:
            n = min(len(view), len(self.now))
            assert view[:n].tobytes() == self.now[:n].tobytes()
            assert not any(view[n:].tobytes())


Model.TestCase.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, print_blob=True
)
TestModel = pytest.mark.filterwarnings("error")(
    pytest.mark.slow(pytest.mark.database(Model.TestCase))
)
