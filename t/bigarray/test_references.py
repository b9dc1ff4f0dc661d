"""Arrays are sent to other processes as references to a moment of the database."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pickle import PicklingError

import numpy as np
import pytest
import transaction
from support import reftasks, storages
from support.child import check_child
from support.clients import BLK, FIRST, Client, changed, fill
from support.servers import wait_until
from ZODB.DB import DB
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ConnectionStateError
from ZODB.utils import p64, u64

from wendelin.bigarray import ArrayRef
from wendelin.bigarray.array_zodb import ZBigArray, array_at
from wendelin.bigfile import BlockLoadError, DoomedError
from wendelin.bigfile.zodb import blockfile
from wendelin.lib.storage import shared
from wendelin.lib.zodb import zconn_at, zstor_2zurl

pytestmark = pytest.mark.formats


def close_past():
    """Close what references have opened, if it is not used; return whether nothing is open now."""
    gc.collect()
    for key, opened in list(shared._databases.items()):
        with opened.lock:
            opened.close_unused(float("inf"))
            if opened.closed:
                shared._databases.pop(key, None)
    return not shared._databases


@pytest.fixture(autouse=True, scope="module")
def collected():
    """Let gc.collect() find what earlier modules have left: see pytest_runtest_teardown."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    wait_until(close_past, "closes all", 5)  # threads that read ahead may still use it


@pytest.fixture
def A(root):
    return fill(root, None)


def sent(x):
    return pickle.loads(pickle.dumps(x))


# ---- what is there ----


def test_the_same_data_at_the_same_moment(root, A):
    a = A[BLK::-3]
    ref = pickle.dumps(ArrayRef(a))
    assert len(ref) < 1000
    expected = a.copy()
    A[5] = 99
    A.append(np.ones(7))
    transaction.commit()
    later, then = pickle.dumps(A), A[:].copy()
    for i in range(2):
        b = pickle.loads(ref).deref()
        assert np.array_equal(b, expected)
        B = pickle.loads(later)
        assert isinstance(B, ZBigArray)
        assert np.array_equal(B[:], then)
        A[i] = 50 + i
        transaction.commit()
        assert np.array_equal(b, expected)
        assert np.array_equal(B[:], np.append(changed((5, 99)), [1] * 7))


def test_the_moment_is_what_the_connection_sees_and_not_the_newest(root, A, other):
    A[0] = 1
    transaction.commit()
    assert np.array_equal(sent(other["A"])[:], FIRST)
    other.tm.begin()
    assert np.array_equal(sent(other["A"])[:], changed((0, 1)))


def test_a_past_state(root, A):
    at = zconn_at(root._p_jar)
    A[0] = 1
    transaction.commit()
    old = Client(root, at=at)
    assert np.array_equal(sent(old["A"])[:], FIRST)
    old.close()


def test_a_reference_that_was_sent_is_sent_on(root, A):
    B = sent(A)
    A[0] = 1
    transaction.commit()
    C = sent(B)
    assert C is B
    assert sent(ArrayRef(B[3:5])).root is B
    assert np.array_equal(C[:], FIRST)


def test_it_is_read_only(root, A):
    B = sent(ArrayRef(A[:])).root
    b = sent(ArrayRef(A[5:10])).deref()
    for view in b, B[:], B[3:], np.asarray(B):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        B[0] = 1
    for change in (lambda: B.resize(3), lambda: B.append([1]), lambda: B.resize(1 << 30)):
        with pytest.raises(ValueError, match=r"read-only.*past state"):
            change()
    # a write without NumPy is refused, too
    raw = np.frombuffer(B._fileh().mmap(0, 1), "u1")
    with pytest.raises(DoomedError, match=r"ReadOnlyHistoryError: it is a past state"):
        raw[0] = 1
        os.getpid()
    assert np.array_equal(B[:], FIRST)
    assert B.read().flags.writeable


def test_a_block_that_is_not_there_is_told_each_time(on_touch, root, A, monkeypatch):
    B = sent(A)
    b = B[:]

    def fail(*args):
        raise OSError("bad disk")

    with monkeypatch.context() as m:
        m.setattr(blockfile.ZFile, "mapblk", fail)
        for _ in range(2):
            with pytest.raises(BlockLoadError, match="bad disk"):
                b[BLK] + 1
                os.getpid()
    assert np.array_equal(b, FIRST)


def test_a_copy_of_an_array_is_refused(root, A):
    for do in copy.copy, copy.deepcopy:
        with pytest.raises(TypeError, match=r"np.array\(A\)"):
            do(A)


# ---- what cannot be sent ----


def refused(A):
    for x in (A, ArrayRef(A)):
        with pytest.raises(PicklingError, match=r"ZBigArray.* commit"):
            pickle.dumps(x)
    return True


def test_changes_that_are_not_committed_are_not_sent(root, A):
    B = ZBigArray(10, "u1")
    assert refused(B)
    root._p_jar.add(B)
    assert refused(B)
    A[0] = 1
    assert refused(A)
    transaction.savepoint()
    assert refused(A)
    transaction.abort()
    assert np.array_equal(sent(A)[:], FIRST)
    root._p_jar.cacheMinimize()
    assert np.array_equal(sent(A)[:], FIRST)

    # this changes no page
    A.resize((2, A.size // 2))
    assert refused(A)
    transaction.savepoint()
    assert refused(A)
    transaction.abort()

    A.resize(5)
    assert refused(A)
    point = transaction.savepoint()
    assert refused(A)
    A[0] = 1
    point.rollback()
    assert refused(A)
    transaction.abort()
    assert np.array_equal(sent(A)[:], FIRST)

    A.append([1])
    assert refused(A)
    transaction.commit()
    assert sent(A)[-1] == 1


def test_what_another_handle_has_changed(root, A):
    raw = np.frombuffer(A.zfile.fileh_open().mmap(0, 1), "u1")
    raw[0] = 1
    assert refused(A)
    transaction.abort()
    sent(A)


@pytest.mark.only("fs", "fscopy", "zeo", "neo")  # RelStorage shows a state that there is
def test_between_a_commit_and_the_next_transaction(root, A):
    client = Client(root, explicit=True)
    with pytest.raises(ConnectionStateError, match="begun"):
        zconn_at(client.conn)
    client.tm.begin()
    B = client["A"]
    B[0] = 1
    client.tm.commit()
    # B shows the previous state with its own changes: the database does not have such a state
    assert refused(B)
    client.tm.begin()
    assert np.array_equal(sent(B)[:], changed((0, 1)))
    client.close()


def test_a_database_that_no_other_process_can_open():
    db = DB(MappingStorage("of this process"))
    root = db.open().root()
    A = fill(root, None)
    with pytest.raises(NotImplementedError, match="MappingStorage 'of this process'"):
        pickle.dumps(A)
    db.close()


def test_references_that_are_wrong(root, A):
    url, oid, tid = A.__reduce__()[1]
    with pytest.raises(TypeError, match=r"object 0x00 of .* is a PersistentMapping"):
        array_at(url, root._p_oid, tid)
    with pytest.raises(KeyError):
        array_at(url, p64(1 << 60), tid)
    with pytest.raises(ValueError, match=r"no transaction 0x.*another database"):
        array_at(url, oid, p64(u64(tid) + 1))
    with pytest.raises(ValueError, match="gopher"):
        array_at("gopher://x", oid, tid)
    assert np.array_equal(array_at(url, oid, tid)[:], FIRST)


# ---- what is open ----


def connections():
    return sum(len(opened._conns) for opened in shared._databases.values())


def test_a_process_opens_a_database_once_and_closes_what_is_not_used(root, A, monkeypatch):
    opened = []
    monkeypatch.setattr(
        shared, "DB", lambda *args, **kw: opened.append(DB(*args, **kw)) or opened[-1]
    )
    used = [sent(A)]

    def only_used():
        return close_past() or connections() == len(used)

    for i in range(shared.MOST + 4):
        A[0] = i
        transaction.commit()
        B = sent(A)
        assert B is sent(A)
        assert sent(ArrayRef(A[3:])).root is B
        if i < 2:
            used.append(B[:])
    assert len(opened) == len(shared._databases) == 1
    del B
    gc.collect()
    assert connections() == shared.MOST + len(used)
    # an array, or a view, holds its Connection
    wait_until(only_used, "closes what is not used")
    assert connections() == len(used)
    assert [int(x[0]) for x in used] == [FIRST[0], 0, 1]
    used.clear()
    wait_until(close_past, "closes all")
    assert np.array_equal(sent(A)[1:], FIRST[1:])
    assert len(opened) == 2


@pytest.mark.usefixtures("no_leaks")
def test_what_is_not_used_is_closed_after_a_while(testdb, monkeypatch):
    monkeypatch.setenv("WENDELIN_CORE_KEEP", "0.1")
    B = sent(fill(testdb.open(), None))
    name = shared.CLOSER
    assert name in [t.name for t in threading.enumerate()]
    b = B[:]
    del B

    def closed():
        gc.collect()
        return name not in [t.name for t in threading.enumerate()]

    assert not closed()
    assert np.array_equal(b, FIRST)
    del b
    wait_until(closed, "closes what is not used")
    assert shared._databases == {}


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_wrong_time_to_keep_a_database_is_named(root, A, monkeypatch, value):
    sent_before = pickle.dumps(A)
    monkeypatch.setenv("WENDELIN_CORE_KEEP", value)
    with pytest.raises(ValueError, match=f"WENDELIN_CORE_KEEP is '{value}': it must be seconds"):
        pickle.loads(sent_before)


def test_threads(root, A):
    refs = []
    for i in range(4):
        A[i * BLK] = i
        transaction.commit()
        refs.append((pickle.dumps(ArrayRef(A[: 4 * BLK])), int(A[: 4 * BLK].sum())))
    start = threading.Barrier(8)

    def work(i):
        start.wait(30)
        for j in range(20):
            ref, expected = refs[(i + j) % 4]
            assert reftasks.total(pickle.loads(ref)) == expected

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


# ---- processes ----

PROCESSES = """
import multiprocessing, pickle, sys, warnings
from concurrent.futures import ProcessPoolExecutor
import numpy as np
import transaction
from support import reftasks
from wendelin.bigarray import ArrayRef
from wendelin.lib.zodb import dbopen, dbclose

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of fork() in a process with threads
    root = dbopen(sys.argv[2])
    A = root["A"]
    reftasks.opened(pickle.loads(pickle.dumps(ArrayRef(A[:]))))  # which a child does not inherit
    refs = [ArrayRef(A[i:]) for i in range(30)]
    totals = [int(A[i:].sum()) for i in range(30)]
    context = multiprocessing.get_context(sys.argv[1])
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(reftasks.total, refs)) == totals
        sent = [pool.submit(reftasks.total, ref) for ref in refs]
        assert [future.result() for future in sent] == totals
        A[0] += 1
        transaction.commit()
        assert pool.submit(reftasks.total, ArrayRef(A[:])).result() == totals[0] + 1
        said = set(pool.map(reftasks.opened, refs))
        assert {(databases, connections <= 2) for _, databases, connections in said} == {(1, True)}
    dbclose(root)
    print(len({pid for pid, _, _ in said}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "forkserver", "fork"])
def test_processes(testdb, start):
    root = testdb.open()
    fill(root, None)
    url = zstor_2zurl(root._p_jar.db().storage)
    if not storages.kind().has_server:
        testdb.close(root)
    assert check_child(PROCESSES, start, url) in ("1\n", "2\n")


def test_a_reader_in_another_process_while_this_one_writes(root, A):
    with reader() as read:
        for i in range(5):
            A[0] = i
            A.append([i])
            transaction.commit()
            assert read(A) == (i, i, len(FIRST) + i + 1, "1\n")


@contextmanager
def reader():
    """Start a process that says what it finds in references."""
    code = (
        "import pickle, sys\n"
        "from wendelin.lib.storage import shared\n"
        "while True:\n"
        "    try: A = pickle.load(sys.stdin.buffer)\n"
        "    except EOFError: break\n"
        "    print(A[0], A[-1], A.shape[0], len(shared._databases), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
    )

    def read(A):
        pickle.dump(A, process.stdin)
        process.stdin.flush()
        *numbers, databases = process.stdout.readline().decode().split(" ")
        return *map(int, numbers), databases

    try:
        yield read
    finally:
        process.stdin.close()
        assert process.wait(30) == 0
        process.stdout.close()


def test_a_state_that_was_packed_away(root, A):
    if storages.kind().has_server:
        pytest.skip("packs a file")
    old = pickle.dumps(ArrayRef(A[:]))
    A[:] = 1
    transaction.commit()
    root._p_jar.db().pack()
    with pytest.raises((KeyError, BlockLoadError)):
        pickle.loads(old).deref().copy()
    assert sent(A)[:].min() == 1
