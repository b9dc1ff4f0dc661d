"""Pages at a boundary: effects of changes of other clients, and of touches of other threads."""

import threading

import numpy as np
import pytest
import transaction
from persistent.mapping import PersistentMapping
from support import storages
from support.clients import Client, zeros
from support.threads import in_thread

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.virtmem.located import epoch, set_located
from wendelin.bigfile.zodb.blockmap import BlockMap
from wendelin.lib.zodb_boundary import Changes

BLK = 4096  # block size of most arrays here [bytes]


@pytest.fixture
def A(root):
    return zeros(root)


# ---- several Connections ----


def test_others_see_a_change_at_their_next_transaction(root, A, other):
    a, b = A[:], other.root["A"][:]
    assert b.sum() == 0
    a[3 * BLK] = 1  # a hole becomes a block
    transaction.commit()
    assert b.sum() == 0
    other.tm.begin()
    assert b.sum() == 1
    a[3 * BLK] = 2  # a block changes
    a[4 * BLK] = 2
    transaction.commit()
    other.tm.begin()
    assert b.sum() == 4
    A.resize(4 * BLK)  # a block becomes a hole
    transaction.commit()
    other.tm.begin()
    assert b.sum() == 2
    assert other.root["A"].shape == (4 * BLK,)


@pytest.mark.parametrize("change", [False, True])
def test_a_hole_past_the_previous_end_is_looked_up_again_after_the_commit(root, A, other, change):
    A.resize((30 * BLK,))
    a = A[:]
    assert a[25 * BLK] == 0
    if change:  # the page is dirty, and there is nothing to store
        a[25 * BLK] = 0
    transaction.commit()
    assert a[25 * BLK] == 0
    other.tm.begin()
    other.root["A"][25 * BLK] = 1
    other.tm.commit()
    transaction.begin()
    assert a[25 * BLK] == 1


def test_a_block_that_was_stored_here_and_goes_away_there(root, A, other):
    A.append(np.ones(BLK, "u1"))  # no block was ever looked up
    a = A[20 * BLK :]
    transaction.commit()
    other.tm.begin()
    other.root["A"].resize((0,))
    other.root["A"].resize((21 * BLK,))
    other.tm.commit()
    transaction.begin()
    assert a.sum() == 0


@pytest.mark.parametrize("where", ["is_current", "_moved", "_stale", "_drop"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_boundary_keeps_nothing_of_the_previous_state(root, A, other, where, error):
    """ZODB says only once which objects have changed."""
    root["n"] = 1
    transaction.commit()
    other.tm.begin()
    b, file = other.root["A"][:], other.root["A"]._fileh().file
    assert (b.sum(), other.root["n"]) == (0, 1)
    A[3 * BLK] = 5
    root["n"] = 2
    transaction.commit()
    interrupt(file, where, error)
    with pytest.raises(error):
        other.tm.begin()
    for _ in range(2):
        assert (b.sum(), other.root["n"]) == (5, 2)
        other.tm.begin()
    b[4 * BLK] = 1
    other.tm.commit()
    assert b.sum() == 6


@pytest.mark.parametrize("where", ["is_current", "adopt_stored_blocks"])
def test_what_was_committed_stays_if_the_boundary_is_interrupted(root, A, other, where):
    b, file = other.root["A"][:], other.root["A"]._fileh().file
    assert b.sum() == 0
    A[3 * BLK] = 5
    transaction.commit()
    b[4 * BLK] = 1
    interrupt(file, where, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        other.tm.commit()
    for _ in range(2):
        assert b.sum() == 6
        other.tm.begin()
    b[4 * BLK] = 2
    other.tm.commit()
    transaction.begin()
    assert A[:].sum() == 7


def test_a_boundary_that_is_interrupted_while_an_array_reads_its_state(root, A, other, monkeypatch):
    """The interrupt comes in the middle of ZODB's list of changed objects."""
    for i in range(20):
        root[i] = PersistentMapping(n=1)
    transaction.commit()
    other.tm.begin()
    b = other.root["A"][:]
    assert (b.sum(), [other.root[i]["n"] for i in range(20)]) == (0, [1] * 20)
    A.append(np.ones(5, "u1"))
    for i in range(20):
        root[i]["n"] = 2
    transaction.commit()
    setstate = ZBigArray.__setstate__

    def interrupted(self, state):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(ZBigArray, "__setstate__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.tm.begin()
    assert ZBigArray.__setstate__ is setstate
    for _ in range(2):
        assert [other.root[i]["n"] for i in range(20)] == [2] * 20
        assert other.root["A"][:].sum() == 5
        other.tm.begin()
    other.root["A"][3] = 2  # the array has the same handle as the view
    assert b[3] == 2
    other.tm.commit()


def test_a_boundary_that_is_interrupted_twice(root, A, other):
    """All other objects learn of the changes nevertheless."""
    root["B"] = B = ZBigArray((20 * BLK,), "u1", blksize=BLK)
    root["n"] = 1
    transaction.commit()
    other.tm.begin()
    b = other.root["B"][:]
    assert (other.root["A"][:].sum(), b.sum(), other.root["n"]) == (0, 0, 1)
    A[3 * BLK] = B[3 * BLK] = 5
    root["n"] = 2
    transaction.commit()
    handle = other.root["A"]._fileh()
    interrupt(handle.file, "is_current", KeyboardInterrupt)
    interrupt(handle, "forget", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        other.tm.begin()
    assert (b.sum(), other.root["n"]) == (5, 2)


def interrupt(obj, name, error):
    """Let a method raise at its next call, and only then."""

    def interrupted(*args, **kw):
        delattr(obj, name)
        raise error

    setattr(obj, name, interrupted)


def test_many_blocks_and_a_table_that_splits(root, other):
    root["B"] = B = ZBigArray((3000 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    other.tm.begin()
    view = other.root["B"][:]
    b = B[:]
    rng = np.random.default_rng(3)
    model = np.zeros(3000, "u1")
    for _ in range(6):
        for blk in rng.integers(0, 3000, 200).tolist():
            model[blk] = b[blk * BLK] = rng.integers(1, 255)
        transaction.commit()
        other.tm.begin()
        assert (view[::BLK] == model).all()
        other.conn.cacheMinimize()


def test_a_past_state_is_readable_and_not_writable(root, A):
    A[0] = 1
    transaction.commit()
    at = root._p_jar.db().lastTransaction()
    A[0] = 2
    A[5 * BLK] = 2
    transaction.commit()
    old = Client(root, at=at)
    a = old.root["A"][:]
    assert a.sum() == 1
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 3
    old.tm.commit()
    assert a.sum() == 1
    old.close()


# ---- other threads touch pages while a boundary processes changes of other clients ----


class TouchingMap(BlockMap):
    """A map that calls run() when it looks for blocks: another thread might touch a page then."""

    run = staticmethod(lambda: None)

    def blocks_of(self, oids):
        self.run()
        return super().blocks_of(oids)

    def differing(self, start, stop, now):
        self.run()
        return super().differing(start, stop, now)


class Touching(bytes):
    """An oid in a dict that calls run() when another one is looked for and may be the same."""

    run = staticmethod(lambda: None)
    __hash__ = bytes.__hash__

    def __eq__(self, other):
        Touching.run()
        return super().__eq__(other)


@pytest.fixture
def long(root):
    """Return a committed array of 2200 blocks: one is a hole, the others are ones."""
    root["L"] = A = ZBigArray((2200 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    a = A[:]
    a[:] = 1
    a[2000 * BLK : 2001 * BLK] = 0
    transaction.commit()
    return A


@pytest.mark.parametrize("where", ["pages", "table"])
def test_a_touch_while_the_changed_pages_are_looked_for(on_touch, long, other, where, monkeypatch):
    transaction.begin()
    a = long[:]
    file = long._fileh().file
    file.follow(Changes(None, set()), long._fileh())
    a[0], a[1990 * BLK]
    if where == "pages":
        known, file.made_of = file.made_of, TouchingMap()
        for blk in known.blocks():
            file.made_of[blk] = known.get(blk)
    else:
        table = file.table
        table._inner = {Touching(oid): node for oid, node in table._inner.items()}
        table._buckets = {Touching(oid): node for oid, node in table._buckets.items()}
    b = other.root["L"][:]
    b[0] = b[3 * BLK] = 5
    b[2000 * BLK] = 7  # a node of the table changes
    other.tm.commit()
    # over a network all blocks are known at once, and the touch looks for none of them
    new = next((blk for blk in range(2199, 0, -1) if blk not in file.made_of), 1500)
    touched = []

    def touch(*args):
        if not touched:  # the touch looks for blocks, too
            touched.append("begun")
            touched.append(in_thread(lambda: int(a[new * BLK])).finish())

    monkeypatch.setattr(Touching, "run", touch)
    monkeypatch.setattr(TouchingMap, "run", touch)
    transaction.begin()
    monkeypatch.undo()
    assert touched == ["begun", 1]
    assert a[0] == a[3 * BLK] == 5
    assert a[2000 * BLK] == 7
    assert a[new * BLK] == 1


@pytest.fixture
def reader(long, other):
    client = Client(other.root)
    yield client
    client.close()


def test_a_touch_that_asked_the_previous_table(on_touch, long, other, reader):
    """The table answers after the boundary has processed the changes of other clients."""
    A = reader.root["L"]
    a, file = A[:], A._fileh().file
    a[1990 * BLK]
    known, changed, lookup = file.made_of, file.table.changed, file.lookup
    assert 2000 not in known
    asked, go = threading.Event(), threading.Event()
    threads = []

    def slow_lookup(blk):
        oid = lookup(blk)
        if not asked.is_set():
            asked.set()
            assert go.wait(30)
        return oid

    def touch_before(oids):
        file.lookup = slow_lookup
        threads.append(in_thread(lambda: a[2000 * BLK]))
        assert asked.wait(30)
        return changed(oids)

    other.root["L"][2000 * BLK :][0] = 7
    other.tm.commit()
    file.table.changed = touch_before
    reader.tm.begin()
    go.set()
    threads[0].finish()
    assert a[2000 * BLK] == 7


@pytest.mark.skipif(
    storages.kind() is not storages.FileStorageDatabase, reason="there only holes are looked for"
)
def test_a_look_ahead_that_asked_the_previous_table(on_touch, long, other, reader):
    """Its answer is not valid for pages that were loaded meanwhile."""
    A = reader.root["L"]
    a, file = A[:], A._fileh().file
    for blk in 0, 4, 12, 28, 60, 124, 252, 508:
        a[blk * BLK]
    between = file.table.between
    asked, go = threading.Event(), threading.Event()

    def slow_between(root, start, stop):
        found = between(root, start, stop)
        if (start, stop) == (1020, 2044) and not asked.is_set():
            asked.set()
            assert go.wait(30)
        return found

    file.table.between = slow_between
    thread = in_thread(lambda: a[1020 * BLK])
    assert asked.wait(30)
    for value in 7, 8:
        other.root["L"][2000 * BLK :][0] = value
        other.tm.commit()
        reader.tm.begin()
        assert a[2000 * BLK] == value
        go.set()
        thread.finish()


def look_ahead(A):
    """Look ahead, as a thread does after it has loaded one of the first 20 blocks."""
    handle = A._fileh()
    before = epoch(handle)
    set_located(handle, handle.file.mapahead(0, 20), before)


def test_a_look_ahead_while_a_commit_makes_pages_clean(root, A):
    """The look-ahead must not find holes where the commit has just stored blocks."""
    a, file = A[:], A._fileh().file
    assert a[::BLK].sum() == 0
    committed = file.adopt_stored_blocks

    def slow_committed(handle):
        in_thread(lambda: look_ahead(A)).finish()
        return committed(handle)

    a[3 * BLK :] = 7
    file.adopt_stored_blocks = slow_committed
    transaction.commit()
    del file.adopt_stored_blocks
    assert (a[3 * BLK :] == 7).all()
    transaction.begin()
    assert (a[3 * BLK :] == 7).all()


@pytest.mark.skipif(
    storages.kind() is storages.NeoDatabase, reason="NEO refuses undo: see test_no_undo_on_neo"
)
def test_a_look_ahead_that_sees_the_new_state_during_the_boundary(root):
    """Blocks became holes again: the look-ahead finds that before their pages are dropped."""
    size = 16 * 4096  # so that blocks are mapped
    root["M"] = M = ZBigArray((20 * size,), "u1", blksize=size)
    transaction.commit()
    a, file = M[:], M._fileh().file
    other = Client(root)
    other.root["M"][3 * size :] = 7
    other.tm.commit()
    transaction.begin()
    assert (a[3 * size :] == 7).all()
    db = root._p_jar.db()
    db.undo(db.undoLog(0, 1)[0]["id"], other.tm.get())
    other.tm.commit()
    other.close()
    changed = file.table.changed

    def changed_and_a_look(oids):
        moved = changed(oids)
        in_thread(lambda: look_ahead(M)).finish()
        return moved

    file.table.changed = changed_and_a_look
    transaction.begin()
    file.table.changed = changed
    assert not a.any()
