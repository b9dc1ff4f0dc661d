"""Transactions of arrays: savepoints, failures in each phase, other threads, boundaries."""

import threading

import numpy as np
import pytest
import transaction
from support.child import check_child
from support.clients import Manager
from transaction.interfaces import DoomedTransaction, NoTransaction, TransactionError
from ZODB.POSException import ConflictError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, DoomedError, ram_reclaim
from wendelin.bigfile.virtmem.located import invalidate_loading
from wendelin.lib.zodb_boundary import watch_of

BLK = 4096
N = 8  # blocks


@pytest.fixture
def A(root):
    """Return a committed array of N blocks, each full of its number; its first byte is 100 more."""
    root["A"] = A = ZBigArray((N * BLK,), "u1", blksize=BLK)
    transaction.commit()
    A[:] = np.repeat(np.arange(N), BLK)
    A[::BLK] += 100
    transaction.commit()
    return A


def of(A):
    """Return the first byte of each block."""
    return A[::BLK].tolist()


FIRST = [100 + i for i in range(N)]


# ---- savepoints ----


def test_rollback_takes_back_what_came_after(A):
    a = A[:]
    a[0] = 1
    first = transaction.savepoint()
    a[0], a[BLK], a[2 * BLK] = 2, 2, 2
    second = transaction.savepoint()
    a[0], a[3 * BLK] = 3, 3
    assert of(A) == [3, 2, 2, 3, *FIRST[4:]]
    second.rollback()
    assert of(A) == [2, 2, 2, *FIRST[3:]]
    a[4 * BLK] = 4
    second.rollback()  # once more
    assert of(A) == [2, 2, 2, *FIRST[3:]]
    first.rollback()
    assert of(A) == [1, *FIRST[1:]]
    a[5 * BLK] = 5
    third = transaction.savepoint()
    a[5 * BLK] = 6
    third.rollback()
    transaction.commit()
    assert of(A) == [1, *FIRST[1:5], 5, *FIRST[6:]]
    assert (A[1:BLK] == 0).all()


def test_rollback_of_the_first_changes(A):
    before = transaction.savepoint()
    A[0] = 1
    before.rollback()
    assert of(A) == FIRST
    A[BLK] = 2
    transaction.commit()
    assert of(A) == [FIRST[0], 2, *FIRST[2:]]


def test_rollback_of_a_size(A):
    A[0] = 1
    savepoint = transaction.savepoint()
    A.resize((BLK,))
    A[0] = 2
    A.append(np.full(2 * BLK, 3, "u1"))
    other = transaction.savepoint()
    savepoint.rollback()
    assert A.shape == (N * BLK,)
    assert of(A) == [1, *FIRST[1:]]
    assert not other.valid
    A.resize((3 * BLK,))
    A.resize((N * BLK,))
    A[4 * BLK] = 4
    shrunk = transaction.savepoint()
    A.resize((0,))
    shrunk.rollback()
    assert of(A) == [1, *FIRST[1:3], 0, 4, 0, 0, 0]
    transaction.commit()
    assert of(A) == [1, *FIRST[1:3], 0, 4, 0, 0, 0]


def test_a_savepoint_between_creation_and_data(root):
    root["B"] = B = ZBigArray((N * BLK,), "u1", blksize=BLK)
    transaction.savepoint()
    b = B[:]
    b[0] = 1
    savepoint = transaction.savepoint()
    root._p_jar.cacheMinimize()
    b[BLK] = 2
    ram_reclaim()
    assert b.sum() == 3
    savepoint.rollback()
    assert b.sum() == 1
    root["C"] = C = ZBigArray((N,), "u1", blksize=BLK)
    root._p_jar.add(C)
    C[0] = 9
    savepoint.rollback()
    assert "C" not in root
    assert root["B"][:].sum() == 1
    transaction.commit()
    assert root["B"][:].sum() == 1


def test_commit_after_savepoints_stores_all(root, A, testdb):
    A[0] = 1
    transaction.savepoint()
    A[BLK] = 2
    transaction.savepoint(optimistic=True)
    transaction.commit()
    transaction.abort()
    assert of(A) == [1, 2, *FIRST[2:]]
    testdb.close(root)
    assert of(testdb.open()["A"]) == [1, 2, *FIRST[2:]]


def test_abort_after_a_savepoint(A):
    A[0] = 1
    transaction.savepoint()
    transaction.abort()
    assert of(A) == FIRST
    transaction.commit()
    assert of(A) == FIRST


def test_savepoints_leave_no_files(A, no_leaks):
    for _ in range(3):
        A[0] += 1
        savepoint = transaction.savepoint()
        A[0] += 1
        savepoint.rollback()
        transaction.commit()
    assert A[0] == 103


def test_a_rollback_that_cannot_load_fails_the_transaction(A):
    A[0] = 1
    savepoint = transaction.savepoint()
    file = A._fileh().file

    def load(oid):
        raise OSError("gone")

    file.records.load = load
    file.mapblk = lambda blk: None
    with pytest.raises(BlockLoadError, match="gone"):
        savepoint.rollback()
    with pytest.raises(TransactionError):
        transaction.commit()
    del file.records.load, file.mapblk
    transaction.abort()
    assert of(A) == FIRST


# ---- failures ----


@pytest.mark.parametrize("phase", ["tpc_begin", "commit", "tpc_vote"])
@pytest.mark.parametrize("key", ["", "~"])
def test_another_manager_fails(root, A, phase, key):
    def fail():
        raise OSError("no")

    a = A[:]
    a[0] = 1
    A.append([7])
    transaction.get().join(Manager(phase, fail, key))
    with pytest.raises(OSError, match="no"):
        transaction.commit()
    transaction.abort()
    assert A.shape == (N * BLK,)
    assert of(A) == FIRST
    assert a[0] == 100
    a[0] = 2
    transaction.commit()
    assert a[0] == 2


@pytest.mark.parametrize("key", ["", "~"])
def test_another_manager_fails_to_finish(root, A, key, testdb):
    """ZODB may have committed by then, or not: pages show which."""

    def fail():
        raise OSError("too late")

    a = A[:]
    a[0] = 1
    transaction.get().join(Manager("tpc_finish", fail, key))
    with pytest.raises(OSError, match="too late"):
        transaction.commit()
    transaction.abort()
    stored = key == "~"
    assert a[0] == (1 if stored else 100)
    testdb.close(root)
    assert testdb.open()["A"][0] == (1 if stored else 100)


def test_doomed(A):
    A[0] = 1
    transaction.doom()
    with pytest.raises(DoomedTransaction):
        transaction.commit()
    transaction.abort()
    assert of(A) == FIRST


# ---- threads ----


def in_thread(act):
    result = []

    def run():
        try:
            result.append(act())
        except BaseException as e:
            result.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


@pytest.mark.parametrize("changed", ["the same array", "another array", "no array"])
def test_a_writer_in_another_thread_waits_for_the_end_of_a_commit(root, A, changed):
    root["B"] = B = ZBigArray((N * BLK,), "u1", blksize=BLK)
    transaction.commit()
    a, b = A[:], B[:]
    if changed == "the same array":
        a[0] = 1
    elif changed == "another array":
        b[0] = 1
    root["n"] = 1
    wrote = threading.Event()

    def write():
        a[BLK] = 2
        wrote.set()

    threads = []

    def during():
        threads.append(in_thread(write))
        assert not wrote.wait(0.3)

    transaction.get().join(Manager("tpc_vote", during))
    transaction.commit()
    assert wrote.wait(10)
    threads[0][0].join(10)
    assert threads[0][1] == [None]
    # it is a change of the next transaction
    assert a[BLK] == 2
    transaction.abort()
    assert a[BLK] == FIRST[1]
    assert a[0] == (1 if changed == "the same array" else 100)


def test_a_commit_may_not_change_what_it_commits(root, A):
    def change():
        with pytest.raises(TransactionError, match="too late"):
            A.resize((0,))

    root["n"] = 1
    transaction.get().join(Manager("tpc_vote", change))
    transaction.commit()
    assert of(A) == FIRST


def test_a_writer_waits_for_after_commit_hooks(root, A):
    """Until the hooks are done, the manager keeps the transaction that has ended."""
    a = A[:]
    started = threading.Event()
    threads = []

    def write():
        started.set()
        a[BLK] = 2

    def hook(committed):
        threads.append(in_thread(write))
        assert started.wait(10)
        threads[0][0].join(0.1)

    a[0] = 1
    transaction.get().addAfterCommitHook(hook)
    transaction.commit()
    threads[0][0].join(10)
    assert threads[0][1] == [None]
    assert (a[0], a[BLK]) == (1, 2)  # the end of the hooks aborts only their own changes
    transaction.commit()
    assert of(A) == [1, 2, *FIRST[2:]]


def test_changes_at_the_edge_of_commits_are_never_lost(A):
    """One thread changes pages, and another commits: each change is committed or still pending."""
    stop = threading.Event()
    counts = np.zeros(N, int)
    a = A[:]
    a[:] = 0
    transaction.commit()

    def change():
        rng = np.random.default_rng(1)
        while not stop.is_set():
            i = rng.integers(N)
            a[i * BLK] ^= 1
            counts[i] += 1

    thread, result = in_thread(change)
    for _ in range(300):
        transaction.commit()
    stop.set()
    thread.join(30)
    assert result == [None]
    transaction.commit()
    invalidate_loading(A._fileh())
    for i in range(N):
        A._fileh().invalidate_page(i)
    assert of(A) == (counts % 2).tolist()


def test_what_runs_in_a_commit_cannot_write(path):
    """Such a write would wait for itself, or belong to the next transaction, or to none."""
    check_child(
        """
        import asyncio, itertools, sys, threading, transaction
        from support.clients import Manager
        from wendelin.bigarray.array_zodb import ZBigArray
        from wendelin.bigfile import DoomedError
        from wendelin.lib.zodb import dbopen
        root = dbopen(sys.argv[1])
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        def write():
            a[4096] = 2
            for _ in range(100): pass
        async def write_soon(): write()
        def in_loop(): asyncio.run_coroutine_threadsafe(write_soon(), loop).result()
        phases = "tpc_vote", "tpc_finish", "after"
        for phase, by, changed in itertools.product(phases, (write, in_loop), (False, True)):
            root["A"] = A = ZBigArray((8 * 4096,), "u1", blksize=4096)
            transaction.commit()
            a = A[:]
            errors = []
            def act(*args):
                try: by()
                except DoomedError as e: errors.append(str(e))
            if changed: a[0] = 1
            root["n"] = 1
            if phase == "after": transaction.get().addAfterCommitHook(act)
            else: transaction.get().join(Manager(phase, act))
            try: transaction.commit()
            except DoomedError: assert phase == "tpc_vote" and changed
            transaction.abort()
            at = phase, by, changed, errors
            assert len(errors) == 1, at
            assert "too late" in errors[0] or "thread that is storing" in errors[0], at
            assert a[4096] == 0 and not A._fileh().isdirty(), at
            a[4096] = 3
            transaction.commit()
            assert a[4096] == 3, at
        loop.call_soon_threadsafe(loop.stop)
        """,
        path,
    )


def test_a_thread_that_a_hook_waits_for_gives_up(A):
    """No such thread writes: otherwise the next transaction would have a part of their work."""
    a = A[:]
    watch_of(A._p_jar).patience = 0.2
    threads = []

    def hook(committed):
        def write(i):
            a[i * BLK] = 2
            for _ in range(100):
                pass

        threads.extend(in_thread(lambda i=i: write(i)) for i in (1, 2))
        for thread, _ in threads:
            thread.join(20)
            assert not thread.is_alive()

    transaction.get().addAfterCommitHook(hook)
    a[0] = 1
    transaction.commit()
    for _, result in threads:
        assert "nothing was heard of it" in str(result[0])
    assert all(isinstance(result[0], DoomedError) for _, result in threads)
    assert of(A) == [1, *FIRST[1:]]
    a[BLK] = 3
    transaction.commit()
    assert of(A)[:3] == [1, 3, FIRST[2]]


# ---- boundaries ----


def test_explicit_transactions(root, A):
    """Between two transactions a view shows what it showed at the end of the first."""
    tm = transaction.TransactionManager(explicit=True)
    conn = root._p_jar.db().open(tm)
    tm.begin()
    b = conn.root()["A"][:]
    assert b[0] == 100
    b[BLK] = 7
    A[0] = 1
    A[BLK * 2] = 1
    transaction.commit()
    with pytest.raises(ConflictError):
        b[0] = 2
        tm.commit()
    tm.abort()
    tm.begin()
    assert (b[0], b[BLK], b[2 * BLK]) == (1, FIRST[1], 1)
    b[BLK] = 7
    tm.commit()
    A[BLK * 3] = 5
    transaction.commit()
    ram_reclaim()
    assert (b[BLK], b[3 * BLK]) == (7, FIRST[3])
    with pytest.raises(NoTransaction):
        conn.root()["A"].resize((1,))
    tm.begin()
    assert (b[BLK], b[3 * BLK]) == (7, 5)
    tm.abort()
    conn.close()


def test_attempts_and_run_retry(root, A):
    db = root._p_jar.db()
    other = transaction.TransactionManager()
    conn = db.open(other)
    b = conn.root()["A"]
    tried = 0
    for attempt in other.attempts(3):
        with attempt:
            tried += 1
            b.append([tried])
            if tried == 1:
                A.append([77])
                transaction.commit()
    assert tried == 2
    transaction.begin()
    assert A[N * BLK :].tolist() == [77, 2]

    def change():
        b[0] += 1
        return b[0]

    assert other.run(change) == 101
    other.abort()
    conn.close()


def test_a_connection_of_the_pool_in_another_thread(root, A):
    """The Connection keeps its cached objects, and gets the manager of the other thread."""
    db = root._p_jar.db()
    tm = transaction.TransactionManager()
    conn = db.open(tm)
    view = conn.root()["A"][:]
    view[0] = 1
    tm.commit()
    conn.close()
    transaction.begin()
    A[BLK] = 2
    transaction.commit()

    def elsewhere():
        again = db.open()
        assert again is conn
        assert again.transaction_manager is transaction.manager.manager
        a = again.root()["A"]
        seen = of(a)[:2], view[BLK]
        a[2 * BLK] = 3
        view[3 * BLK] = 4
        tm.commit()  # the old manager has nothing to do with it any more
        tm.abort()
        transaction.commit()
        again.close()
        return seen

    thread, result = in_thread(elsewhere)
    thread.join(30)
    assert result == [([1, 2], 2)]
    transaction.begin()
    assert of(A) == [1, 2, 3, 4, *FIRST[4:]]


def test_two_connections_in_one_thread(root, A):
    """Both are in the transaction of the thread. ZODB demands that only one of them changes."""
    conn = root._p_jar.db().open()
    b = conn.root()["A"]
    view = b[:]
    A[0] = 1
    assert view[0] == 100
    transaction.commit()
    assert view[0] == 1
    b[0] = 2
    transaction.abort()
    b[BLK] = 3
    transaction.commit()
    assert of(A)[:2] == of(b)[:2] == [1, 3]
    conn.close()


def test_several_handles_on_one_file(root, A):
    """Each handle has pages of its own, and shows what the other one commits."""
    one, two = A.zfile.fileh_open(), A.zfile.fileh_open()
    a, b = (memoryview(h.mmap(0, N)) for h in (one, two))
    assert a[0] == b[0] == 100
    a[0], b[BLK] = 1, 2
    transaction.commit()
    assert (a[0], a[BLK], b[0], b[BLK]) == (1, 2, 1, 2)
    assert of(A)[:2] == [1, 2]
    a[0], b[0] = 3, 4
    with pytest.raises(ConflictError, match="two of its handles"):
        transaction.commit()
    transaction.abort()
    assert (a[0], b[0], A[0]) == (1, 1, 1)


def test_arrays_that_share_a_file(root, A):
    """The second array shows what the first one commits: blocks, holes, and the end of the file."""
    root["B"] = B = ZBigArray((4 * N * BLK,), "u1", blksize=BLK)
    B.zfile = A.zfile
    transaction.commit()
    b = B[:]
    assert b[0] == 100
    assert b[2 * N * BLK] == 0
    A.append(np.full(2 * N * BLK, 5, "u1"))
    A[BLK] = 6
    transaction.commit()
    assert (b[0], b[BLK], b[2 * N * BLK]) == (100, 6, 5)
    A.resize((BLK,))
    transaction.commit()
    assert (b[0], b[BLK], b[2 * N * BLK]) == (100, 0, 0)


def test_sync(root, A):
    a = A[:]
    tm = transaction.TransactionManager()
    conn = root._p_jar.db().open(tm)
    conn.root()["A"][0] = 9
    tm.commit()
    conn.close()
    assert a[0] == 100
    root._p_jar.sync()
    assert a[0] == 9
