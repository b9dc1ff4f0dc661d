"""Transactions of arrays: failures in each phase, other threads, several Connections, hooks."""

import os
import signal
import threading

import numpy as np
import pytest
import transaction
from support.child import check_child
from support.clients import Manager
from support.numbered import BLK, FIRST, N, fill, of
from support.threads import in_thread
from ZODB.POSException import ConflictError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import DoomedError
from wendelin.bigfile.virtmem import writeout
from wendelin.bigfile.virtmem.located import invalidate_loading
from wendelin.bigfile.zodb import handle
from wendelin.lib.zodb_boundary import watch_of


@pytest.fixture
def A(root):
    return fill(root)


# ---- failures ----


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


# ---- threads ----


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
    threads[0].finish()
    # it is a change of the next transaction
    assert a[BLK] == 2
    transaction.abort()
    assert a[BLK] == FIRST[1]
    assert a[0] == (1 if changed == "the same array" else 100)


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
        threads[0].join(0.1)

    a[0] = 1
    transaction.get().addAfterCommitHook(hook)
    transaction.commit()
    threads[0].finish()
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

    thread = in_thread(change)
    for _ in range(300):
        transaction.commit()
    stop.set()
    thread.finish()
    transaction.commit()
    invalidate_loading(A._fileh())
    for i in range(N):
        A._fileh().invalidate_page(i)
    assert of(A) == (counts % 2).tolist()


# ---- several views, handles and Connections ----


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
            b[BLK] += 5
            if tried == 1:
                A.append([77])
                A[BLK] = A[BLK + 1] = 2
                transaction.commit()
    assert tried == 2
    transaction.begin()
    assert A[N * BLK :].tolist() == [77, 2]
    assert A[BLK : BLK + 2].tolist() == [7, 2]

    def change():
        b[0] += 1
        return b[0]

    assert other.run(change) == 101
    other.abort()
    conn.close()


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


# ---- what a commit runs ----


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
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()

    transaction.get().addAfterCommitHook(hook)
    a[0] = 1
    transaction.commit()
    for thread in threads:
        with pytest.raises(DoomedError, match="nothing was heard of it"):
            thread.finish()
    assert of(A) == [1, *FIRST[1:]]
    a[BLK] = 3
    transaction.commit()
    assert of(A)[:3] == [1, 3, FIRST[2]]


@pytest.mark.parametrize("step", ["commit", "savepoint"])
def test_a_ctrl_c_while_pages_are_protected(A, step, monkeypatch):
    """The next transaction can change them, although the caller could not note that they are."""

    def interrupted(fh):
        writeout.writeout_begin(fh)
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGINT)

    a = A[:]
    before = a[0].copy()
    a[0] = 1
    monkeypatch.setattr(handle, "writeout_begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(transaction, step)()
    transaction.abort()
    assert A[0] == before
    A[0] = 2
    transaction.savepoint()
    transaction.commit()
    assert A[0] == 2


def test_a_ctrl_c_in_an_abort_comes_after_changes_are_discarded(A, monkeypatch):
    """The transaction is over then, and the next one would store them."""
    a = A[:]
    before = a[0].copy()
    a[0] = 1

    def interrupted(fh):
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGINT)
        return True

    monkeypatch.setattr(handle, "is_shown", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transaction.abort()
    assert a[0] == before
