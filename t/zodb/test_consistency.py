"""Pages agree with the objects of their Connection, also after commits of others and failures.

Each test was seen failing without the protection that it tests. Threads that race are in
test_race.py. States of other versions and parallel appends are in test_states.py.
"""

import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import transaction
from BTrees.OOBTree import OOBTree
from support.clients import BLK, FIRST, Client, Manager, N, changed, fill, in_database, stored
from support.threads import pending
from transaction import TransactionManager
from transaction.interfaces import DoomedTransaction, NoTransaction, TransactionError
from ZODB.POSException import ConflictError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import DoomedError, ram_reclaim
from wendelin.bigfile.file_zodb import ZBlk1


@pytest.fixture
def explicit(root, A):
    client = Client(root, explicit=True)
    client.tm.begin()
    yield client
    client.close()


@pytest.fixture
def elsewhere():
    """Return a function that runs a given function in another thread, always the same thread."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda act, *args: pool.submit(act, *args).result()


def drops(A):
    """Return a list that gets each page that the handle of an array drops from now on."""
    handle, result = A._fileh(), []
    invalidate_page = handle.invalidate_page
    handle.invalidate_page = lambda blk: (result.append(blk), invalidate_page(blk))
    return result


def test_a_commit_loads_no_objects_of_bytes(A):
    """They get new bytes. A block in chunks is loaded, and its table."""
    conn, now = A._p_jar, FIRST.copy()
    for k in range(3):
        conn.cacheMinimize()
        in_chunks = sum(type(zblk) is ZBlk1 for zblk in A.zfile.blktab.values())
        conn.getTransferCounts(clear=True)
        for start in range(0, 2 * BLK, 4096):
            A[start] = now[start] = k
        transaction.commit()
        loads, _ = conn.getTransferCounts()
        assert loads <= 2 * in_chunks
        assert np.array_equal(in_database(A), now)


def test_other_objects_are_loaded_while_a_block_is_marked(A):
    """A finalizer, or a signal's handler, may look at them then; an application has its hooks."""
    conn = A._p_jar
    conn.root()["T"] = T = OOBTree({"a": 1})
    transaction.commit()
    seen, register, setstate = [], conn.register, conn.setstate

    def look(obj):
        T._p_deactivate()
        seen.append(len(T))
        register(obj)

    def hook(obj):
        setstate(obj)

    conn.register, conn.setstate = look, hook
    conn.cacheMinimize()
    A[0], A[BLK] = 1, 2
    transaction.commit()
    assert set(seen) == {1}
    assert conn.setstate is hook


# ---- Connections and their managers ----


def test_a_connection_reopened_elsewhere_has_nothing_to_do_with_its_old_manager(root, A, elsewhere):
    client = Client(root)
    b = client["A"][:]
    b[0] = 1
    client.tm.commit()
    client.conn.close()
    transaction.begin()
    A[3 * BLK] = 4
    transaction.commit()

    def reopen():
        again = root._p_jar.db().open()
        assert again is client.conn
        assert again.transaction_manager is transaction.manager.manager
        assert b[3 * BLK] == again.root()["A"][3 * BLK] == 4
        b[BLK] = 2
        again.root()["A"][BLK + 1] = 3

    elsewhere(reopen)
    client.tm.commit()  # must not commit the changes, which belong to another thread now
    now = changed((0, 1), (3 * BLK, 4))
    assert np.array_equal(in_database(A), now)
    client.tm.begin()
    client.tm.abort()  # must not abort them either
    assert b[BLK : BLK + 2].tolist() == [2, 3]
    elsewhere(transaction.commit)
    now = changed((BLK, 2), (BLK + 1, 3), of=now)
    assert np.array_equal(in_database(A), now)
    # nor does the old manager decide which state is seen
    transaction.begin()
    A[2 * BLK] = 3
    transaction.commit()
    seen = b[2 * BLK]
    A[2 * BLK] = 4
    transaction.commit()
    client.tm.begin()
    assert b[2 * BLK] == seen
    elsewhere(transaction.begin)
    assert b[2 * BLK] == 4
    elsewhere(transaction.abort)
    elsewhere(client.conn.close)


def test_a_change_while_the_connection_is_closed_is_refused(root, A):
    client = Client(root)
    b = client["A"][:]
    client.close()
    with pytest.raises(DoomedError, match="Connection is closed"):
        b[0] = 1
        pending()
    client.conn = root._p_jar.db().open(client.tm)
    assert b[0] == FIRST[0]
    b[BLK] = 2
    client.tm.commit()
    assert np.array_equal(in_database(A), changed((BLK, 2)))
    client.close()


# ---- what is dropped at a boundary ----


def test_a_block_is_replaced_by_one_of_another_format(A, other, monkeypatch):
    b = other["A"][:]
    now = FIRST
    for i, name in enumerate(["ZBlk1", "ZBlk0", "ZBlk1", "ZBlk0"], 1):
        assert np.array_equal(b, now)
        monkeypatch.setattr(A._fileh().file, "zblk_fmt", name)
        A[BLK + i] = i
        transaction.commit()
        assert type(A.zfile.blktab[1]).__name__ == name
        assert np.array_equal(b, now)
        other.tm.begin()
        now = changed((BLK + i, i), of=now)
        assert np.array_equal(b, now)


def test_the_block_table_changes_its_shape(root, fmt):
    n, blksize = 150, 4096
    root["A"] = A = ZBigArray((n * blksize,), "u1", blksize=blksize, zblk_fmt=fmt)
    transaction.commit()
    client = Client(root)
    b = client["A"][:]
    a = A[:]
    now = np.zeros(n, "u1")
    # one bucket in the root; then many buckets, of which some go and come again
    for value, start, stop in [(1, 0, 20), (2, 20, 140), (3, 100, n), (0, 70, n), (4, 65, 130)]:
        assert np.array_equal(b[::blksize], now)
        if value:
            a[start * blksize : stop * blksize : blksize] = value
        else:
            A.resize(start * blksize)
            A.resize(n * blksize)
        transaction.commit()
        assert np.array_equal(b[::blksize], now)
        now[start:stop] = value
        client.tm.begin()
        assert np.array_equal(b[::blksize], now)
    client.close()


def test_objects_that_have_left_the_cache(A, other):
    b = other["A"][:]
    assert np.array_equal(b, FIRST)
    other.conn.cacheMinimize()
    gc.collect()
    A[0] = A[-1] = 1
    transaction.commit()
    other.conn.cacheMinimize()
    other.tm.begin()
    assert np.array_equal(b, changed((0, 1), (-1, 1)))
    # the same with blocks that this client has stored itself
    b[1] = 2
    other.tm.commit()
    other.conn.cacheMinimize()
    gc.collect()
    transaction.begin()
    A[2] = A[4096] = 3
    transaction.commit()
    other.tm.begin()
    assert np.array_equal(b, changed((0, 1), (-1, 1), (1, 2), (2, 3), (4096, 3)))


def change_chunk(root, blk, start, data):
    """Change a chunk as the existing system does: only the object of the chunk."""
    with TransactionManager() as txn:
        conn = root._p_jar.db().open(txn._manager)
        chunk = conn.root()["A"].zfile.blktab[blk].chunktab[start]
        chunk._p_changed = True
        chunk._v_data = data
    conn.close()


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_a_chunk_changes_and_its_block_object_does_not(root, commits):
    A = fill(root, "ZBlk1")
    client = Client(root)
    b = client["A"][:]
    for i in range(commits):  # this client may have stored a part of the block before
        b[i] = 0
        client.tm.commit()
    assert b[2 * 4096] == FIRST[2 * 4096]
    client.conn.cacheMinimize()
    change_chunk(root, 0, 2 * 4096, b"\7" * 4096)
    assert stored(root._p_jar.db().storage) == ["ZData"]
    client.tm.begin()
    expected = in_database(A)
    assert expected[2 * 4096] == 7
    assert np.array_equal(b, expected)
    client.close()


def test_a_block_object_changes_with_its_chunk(root):
    """Programs that look only at block objects, like wendelin.core 2, learn of the change."""
    A = fill(root, "ZBlk1")
    A[BLK + 5] = 0
    transaction.commit()
    assert stored(root._p_jar.db().storage) == ["ZBlk1", "ZData"]


def test_pages_that_did_not_change_stay(A, other):
    B = other["A"]
    b, handle, dropped = B[:], B._fileh(), drops(B)
    assert np.array_equal(b, FIRST)
    now = FIRST
    for i in range(3):
        A.append(np.full(BLK, i + 1, "u1"))
        if i == 2:  # what changes is dropped, and only that
            A[BLK] = 7
            now = changed((BLK, 7))
        transaction.commit()
        other.tm.begin()
        assert B.shape == A.shape
        assert B._fileh() is handle
        assert set(dropped) & set(range(N)) == ({1} if i == 2 else set())
        assert B[-1] == i + 1
    assert np.array_equal(b, now)
    assert set(dropped) <= {1, N, N + 1, N + 2}  # the last ones known as holes, at most


@pytest.mark.only("fs", "fscopy", "zeo", "neo")  # by names of ZODB's adapter
def test_objects_that_are_invalidated_twice(A, other):
    B = other["A"]
    b, handle = B[:], B._fileh()
    assert np.array_equal(b, FIRST)
    b[-1] = 1
    other.tm.commit()
    every = [obj._p_oid for obj in (B, B.zfile, B.zfile.blktab, *B.zfile.blktab.values())]
    storage = other.conn._normal_storage
    for _ in range(2):
        storage._invalidate(storage._ltid, every)
        other.tm.begin()
        for obj in (B, B.zfile):
            obj._p_invalidate()
            obj._p_invalidate()
        assert B._fileh() is handle
        assert B.shape == (N * BLK,)
    assert np.array_equal(b, changed((-1, 1)))
    b[0] = 1
    other.tm.commit()
    assert np.array_equal(in_database(A), changed((-1, 1), (0, 1)))


def test_a_conflict_invalidates_again(A, other):
    B = other["A"]
    b, handle = B[:], B._fileh()
    for i in range(1, 3):
        transaction.begin()
        A.append([i])
        A[0] = i
        transaction.commit()
        b[0] = b[BLK] = 9
        B.append([9])
        with pytest.raises(ConflictError):
            other.tm.commit()
        other.tm.abort()
        assert B._fileh() is handle
        assert B.shape == (N * BLK + i,)
        assert np.array_equal(b, changed((0, i)))
        assert np.array_equal(B[N * BLK :], np.arange(1, i + 1))


# ---- joining ----


def test_pages_alone_make_a_transaction(A):
    """So do pages that a hook changes just before the commit."""
    a = A[:]
    a[0] = 1
    transaction.get().addBeforeCommitHook(lambda: a.__setitem__(1, 2))
    transaction.commit()
    assert np.array_equal(in_database(A), changed((0, 1), (1, 2)))
    transaction.get().addBeforeCommitHook(lambda: a.__setitem__(BLK, 3))
    transaction.commit()
    assert np.array_equal(in_database(A), changed((0, 1), (1, 2), (BLK, 3)))


@pytest.mark.parametrize("first", ["the Connection", "the array"])
def test_pages_are_stored_before_the_connection_stores_objects(root, A, first):
    if first == "the Connection":
        root["x"] = 1
    A[0] = 1
    A[-1] = 2
    root["y"] = 2
    assert A._fileh().sortKey() < root._p_jar.sortKey()
    transaction.commit()
    assert np.array_equal(in_database(A), changed((0, 1), (-1, 2)))


@pytest.mark.parametrize("phase", ["tpc_begin", "commit", "tpc_vote", "tpc_finish"])
def test_a_change_during_the_commit_is_refused(root, A, phase):
    seen = []

    def change():
        for act in lambda: A.append([1]), lambda: A.resize((0,)):
            with pytest.raises(TransactionError, match="too late"):
                act()
            seen.append(A.shape)

    root["x"] = 1
    transaction.get().join(Manager(phase, change))
    transaction.commit()
    assert seen == [(N * BLK,)] * 2
    assert root["x"] == 1
    assert np.array_equal(A[:], FIRST)
    assert np.array_equal(in_database(A), FIRST)
    A.append([1])
    transaction.commit()
    assert in_database(A)[-1] == 1


# ---- boundaries ----


@pytest.mark.parametrize("how", ["begin", "abort", "commit", "commit of a change", "sync"])
def test_every_way_to_a_new_state(A, other, how):
    b = other["A"][:]
    assert np.array_equal(b, FIRST)
    A[0] = A[-1] = 1
    transaction.commit()
    assert np.array_equal(b, FIRST)
    if how == "commit of a change":
        b[-BLK - 1] = 1
        with suppress(ConflictError):  # with "auto": one block was replaced, and another was added
            other.tm.commit()
        other.tm.abort()
    elif how == "sync":
        other.conn.sync()
    else:
        getattr(other.tm, how)()
    assert (b[0], b[-1]) == (1, 1)
    assert np.array_equal(b, in_database(A))


def test_explicit_transactions(A, explicit):
    B, tm = explicit["A"], explicit.tm
    b = B[:]
    assert np.array_equal(b, FIRST)
    tm.abort()
    A[0] = A[-1] = 1
    transaction.commit()
    for act in lambda: B.append([1]), lambda: B.resize((BLK,)):
        with pytest.raises(NoTransaction):
            act()
    with pytest.raises(DoomedError, match="NoTransaction"):
        b[1] = 5
        pending()
    ram_reclaim()
    assert np.array_equal(b, FIRST)
    tm.begin()
    assert np.array_equal(b, changed((0, 1), (-1, 1)))
    b[BLK] = 2
    tm.commit()
    assert np.array_equal(in_database(A), changed((0, 1), (-1, 1), (BLK, 2)))
    # a conflict ends the transaction, and the next one shows the changes of both
    tm.begin()
    b[1] = 9
    transaction.begin()
    A[2] = 3
    transaction.commit()
    assert b[2] == FIRST[2]
    with pytest.raises(ConflictError):
        tm.commit()
    tm.abort()
    tm.begin()
    assert np.array_equal(b, changed((0, 1), (-1, 1), (BLK, 2), (2, 3)))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_doomed_transaction(A, when):
    a = A[:]
    if when == "before":
        transaction.doom()
    a[0] = a[-1] = 1
    A.append([2])
    if when == "after":
        transaction.doom()
    assert (a[0], a[-1], A[-1]) == (1, 1, 2)
    with pytest.raises(DoomedTransaction):
        transaction.commit()
    transaction.abort()
    assert np.array_equal(a, FIRST)
    assert np.array_equal(A[:], FIRST)
    a[1] = 3
    transaction.commit()
    assert np.array_equal(in_database(A), changed((1, 3)))


@pytest.mark.only("fs", "fscopy", "zeo", "neo")  # as above
def test_between_the_end_of_a_commit_and_the_next_transaction(A, explicit):
    """A view still shows its state with its own changes, and no commits of others."""
    B, tm = explicit["A"], explicit.tm
    b = B[:]
    assert np.array_equal(b, FIRST)
    b[0] = b[-1] = 1
    tm.commit()
    A[BLK] = 9  # begins in a state without b's commit; the next one has it
    transaction.abort()
    A[2 * BLK] = A[1] = 2
    transaction.commit()
    ram_reclaim()
    explicit.conn.cacheMinimize()
    mine = changed((0, 1), (-1, 1))
    assert np.array_equal(b, mine)
    assert np.array_equal(B[:], mine)
    tm.begin()
    assert np.array_equal(b, changed((1, 2), (2 * BLK, 2), of=mine))
    assert np.array_equal(B[:], in_database(A))
