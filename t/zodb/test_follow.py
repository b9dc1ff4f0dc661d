"""A reader that follows a writer has right values after any change, and visits only changes."""

import os

import numpy as np
import pytest
import transaction
from BTrees.LOBTree import LOBTree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clients import Client
from transaction import TransactionManager

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.zodb.blocktable import BlockTable
from wendelin.lib.zodb import dbclose, dbopen

BLK = 4096  # block size [bytes]
MOST = 120  # blocks
EXAMPLES = int(os.environ.get("WENDELIN_CORE_TEST_FOLLOW", "10"))

blocks = st.integers(0, MOST - 1)
steps = st.one_of(
    st.tuples(st.just("change"), st.lists(blocks, min_size=1, max_size=4)),
    st.tuples(st.just("append"), st.integers(1, 30)),
    st.tuples(st.just("resize"), st.integers(0, MOST)),
    st.tuples(st.just("read"), st.lists(blocks, max_size=10)),
    st.tuples(st.just("own"), st.lists(blocks, min_size=1, max_size=4)),
    st.tuples(st.just("pack"), st.just(0)),
    st.tuples(st.just("reclaim"), st.just(0)),
)


class Clients:
    """A writer, a reader, and a model of the array."""

    def __init__(self, path, fmt):
        self.root = dbopen(path)
        self.root["A"] = self.A = ZBigArray((0,), "u1", blksize=BLK, zblk_fmt=fmt)
        transaction.commit()
        self.tm = TransactionManager()
        self.B = self.root._p_jar.db().open(self.tm).root()["A"]
        self.model = np.zeros(0, "u1")
        self.value = 0

    def close(self):
        transaction.abort()
        self.tm.abort()
        self.B._p_jar.close()
        dbclose(self.root)

    def set_blocks(self, array, blks):
        self.value = self.value % 250 + 1
        for blk in blks:
            if (blk + 1) * BLK <= len(self.model):
                array[blk * BLK + 5] = self.model[blk * BLK + 5] = self.value

    def step(self, what, arg):
        if what == "change":
            self.set_blocks(self.A, arg)
        elif what == "append":
            values = np.full(min(arg, MOST - len(self.model) // BLK) * BLK, self.value + 1, "u1")
            self.A.append(values)
            self.model = np.concatenate([self.model, values])
        elif what == "resize":
            self.A.resize(arg * BLK)
            self.model = np.resize(self.model, arg * BLK) if arg == 0 else self.resized(arg * BLK)
        elif what == "own":
            self.tm.begin()
            self.set_blocks(self.B, arg)
            self.tm.commit()
        elif what == "pack":
            self.root._p_jar.db().pack()
        transaction.commit()
        self.tm.begin()
        if what == "read":
            for blk in arg:
                if (blk + 1) * BLK <= len(self.model):
                    assert self.B[blk * BLK + 5] == self.model[blk * BLK + 5]
        self.check_known()

    def resized(self, n):
        more = np.zeros(max(0, n - len(self.model)), "u1")
        return np.concatenate([self.model, more])[:n]

    def check_known(self):
        """Check what the reader knows of blocks against a table that is read afresh."""
        file = self.B._fileh().file
        fresh = BlockTable(file.records.load_all)
        root = file.blktab._p_oid
        known = file.made_of
        assert {blk: known.get(blk) for blk in known.blocks()} == {
            blk: fresh.lookup(root, blk) for blk in known.blocks()
        }


@pytest.mark.once
@pytest.mark.parametrize("fmt", ["ZBlk0", "ZBlk1"])
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(first=st.integers(0, MOST), steps=st.lists(steps, max_size=20))
def test_a_reader_sees_what_a_plain_array_has(tmp_path_factory, fmt, first, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOBTree, "max_leaf_size", 4)
        patch.setattr(LOBTree, "max_internal_size", 4)
        clients = Clients(str(tmp_path_factory.mktemp("follow") / "1.fs"), fmt)
        try:
            clients.step("append", first)
            for what, arg in steps:
                clients.step(what, arg)
            assert np.array_equal(clients.B[:], clients.model)
        finally:
            clients.close()


@pytest.fixture
def other(root):
    """Return another client: no array that has a format of its own is needed."""
    client = Client(root)
    yield client
    client.close()


@pytest.fixture
def known(root, other):
    """Return an array of a reader that knows 4,000 blocks: 1,800 are stored, the rest holes."""
    root["K"] = K = ZBigArray((4_000 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    for start in range(0, 1_800, 600):
        K[start * BLK : (start + 600) * BLK : BLK] = 1
        transaction.commit()
    other.tm.begin()
    B = other.root["K"]
    assert int(B[::BLK].sum()) == 1_800
    handle = B._fileh()
    assert len(handle.file.made_of) >= 4_000
    return B


@pytest.mark.once
@pytest.mark.parametrize("what", ["change", "append", "insert", "own change", "own append"])
def test_a_boundary_visits_what_changed(known, root, other, what, monkeypatch):
    K = root["K"] if "own" not in what else known
    tm = transaction if "own" not in what else other.tm
    tm.begin()
    if "change" in what:
        K[1000 * BLK] = 7
        K[15 * BLK] = 7
    elif "append" in what:
        K.append(np.full(BLK, 7, "u1"))
    else:
        K[3_000 * BLK] = 7
    handle, file = known._fileh(), known._fileh().file
    dropped, loaded = [], []
    drop, load_all = handle.invalidate_page, file.records.load_all
    monkeypatch.setattr(
        file.table, "_load_all", lambda oids: (loaded.extend(oids), load_all(oids))[1]
    )
    handle.invalidate_page = lambda blk: (dropped.append(blk), drop(blk))
    visits = file.made_of.visits
    tm.commit()
    other.tm.begin()
    assert len(dropped) <= 2, "pages that did not change were dropped"
    assert len(set(loaded)) <= 8, "nodes of the table that did not change were read"
    # A bucket has 60 blocks, a chunk 64. The last bucket also covers all holes behind it.
    assert file.made_of.visits - visits < 100 + 2_700 / 64
    del handle.invalidate_page
    assert (
        int(known[:][::BLK].sum())
        == 1_800 + {"change": 12, "append": 7, "insert": 7}[what.removeprefix("own ")]
    )
