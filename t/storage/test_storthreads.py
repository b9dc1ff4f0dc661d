"""Storages that one thread at a time may ask: RelStorage, and storages that are not known.

RelStorage is on SQLite here, or on the database that WENDELIN_CORE_TEST_RELSTORAGE names by its
URL, such as postgres://USER@HOST:PORT/DB.
"""

import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import transaction
from support.child import check_child, run_child
from support.clients import BLK, FIRST, Client, fill
from ZODB.DB import DB
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage
from ZODB.mvccadapter import MVCCAdapter
from ZODB.POSException import ReadOnlyError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, ram_reclaim
from wendelin.lib.storage.storthreads import OneAtATime, asks_in_parallel
from wendelin.lib.zodb import (
    dbclose,
    dbopen,
    dbstoropen,
    zconn_at,
    zconn_load_all,
    zconn_stat,
    zdb_last,
)
from wendelin.tree.opening import past_root


@pytest.fixture
def url(tmp_path):
    pytest.importorskip("relstorage")
    (tmp_path / "sqlite").mkdir()
    return os.environ.get(
        "WENDELIN_CORE_TEST_RELSTORAGE", f"sqlite://localhost/?data_dir={tmp_path}/sqlite"
    )


def test_a_past_state_is_read_only_too(url):
    """The storage makes an instance for each state, which is read-only as the storage is."""
    root = dbopen(url)
    root["x"] = 1
    transaction.commit()
    tid = root._p_jar.db().storage.lastTransaction()
    root["x"] = 2
    transaction.commit()
    dbclose(root)
    root = dbopen(url, read_only=True)
    conn = root._p_jar.db().open(at=tid)
    assert conn.root()["x"] == 1
    conn.close()
    storage = root._p_jar.db().storage
    past = storage.before_instance(storage.lastTransaction())
    for instance in past, storage.new_instance():
        with pytest.raises(ReadOnlyError):
            instance.tpc_begin(None)
        instance.release()
    with pytest.raises(ReadOnlyError):
        storage.zap_all()  # RelStorage's own method: it deletes everything
    assert root["x"] == 2
    dbclose(root)


def test_the_last_transaction_is_the_last_one(url):
    root = dbopen(url)
    conn = root._p_jar
    for i in range(3):
        root["x"] = i
        transaction.commit()
        tid = zconn_at(conn)
        assert zdb_last(conn.db()) == tid
        root["y"] = i
        transaction.commit()
        past, close = past_root(conn, zconn_at(conn))
        assert past["y"] == i
        close()
    dbclose(root)


def test_a_reference_to_what_was_committed_after_the_database_was_shared(url):
    root = dbopen(url)
    A = root["A"] = ZBigArray((10,), "u1")
    transaction.commit()
    opened = []
    for i in range(3):
        A[0] = i
        transaction.commit()
        opened.append(pickle.loads(pickle.dumps(A)))
        assert opened[-1][0] == i
    opened.clear()
    dbclose(root)


@pytest.mark.parametrize("where", ["is_current", "adopt_stored_blocks"])
def test_an_interrupted_boundary_after_a_commit_keeps_nothing_old(url, where):
    """RelStorage counts the commit before it is asked for changes of others."""
    root = dbopen(url)
    A = root["A"] = ZBigArray((3 * 4096,), "u1", blksize=4096)
    transaction.commit()
    A[0] = 1
    transaction.commit()
    other = Client(root)
    b, file = other["A"][:], other["A"]._fileh().file
    assert b.sum() == 1
    A[0] = 5
    transaction.commit()
    b[4096] = 1

    def interrupted(*args, **kw):
        delattr(file, where)
        raise KeyboardInterrupt

    setattr(file, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.tm.commit()
    assert b.sum() == 6
    other.close()
    dbclose(root)


READERS = """
    import sys, threading
    import numpy as np, transaction
    from concurrent.futures import ThreadPoolExecutor
    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.lib.zodb import dbclose, dbopen
    from wendelin.bigfile import ram_reclaim
    url, fmt = sys.argv[1:]
    N, BLK = 60, 16384
    root = dbopen(url)
    root.clear()
    root["A"] = A = ZBigArray((N * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
    root._p_jar.add(A)
    A[:] = np.repeat(np.arange(N), BLK)
    root["objects"] = [root.__class__(n=i) for i in range(50)]
    transaction.commit()
    dbclose(root)

    def read(root, part):
        a = root["A"][:]
        return sum(int((a[i * BLK:(i + 1) * BLK] != i).sum()) for i in range(part, N, 4))

    with ThreadPoolExecutor(4) as pool:
        for turn in range(3):
            root = dbopen(url)
            root["A"].prefetch()
            futures = [pool.submit(read, root, part) for part in range(4)]
            # the Connection's own thread asks, too, for objects; begins, and commits
            for i, obj in enumerate(root["objects"]):
                assert obj["n"] == i
                if i % 10 == 0:
                    obj["turn"] = turn
                    transaction.commit()
                    root._p_jar.cacheMinimize()
            assert [f.result() for f in futures] == [0] * 4
            transaction.abort()
            dbclose(root)
    print("right")
"""


@pytest.mark.parametrize("fmt", ["ZBlk0", "ZBlk1"])
def test_threads_read_what_is_there(url, fmt):
    assert "right" in check_child(READERS, url, fmt)


COMMITS = """
    import sys, threading
    import numpy as np, transaction
    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.lib.zodb import dbclose, dbopen
    root = dbopen(sys.argv[1])
    root.clear()
    root["A"] = A = ZBigArray((40 * 4096,), "u1", blksize=4096)
    transaction.commit()
    db = root._p_jar.db()
    stop, wrong, seen = threading.Event(), [], set()

    def look():                         # each transaction sees one number everywhere
        tm = transaction.TransactionManager()
        conn = db.open(tm)
        while not stop.is_set():
            tm.begin()
            values = np.unique(conn.root()["A"][:])
            seen.update(values.tolist())
            if len(values) != 1:
                wrong.append(values)
        tm.abort()
        conn.close()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(1, 11):
        A[:] = i
        transaction.savepoint()         # what is under it is asked in turn, too
        root["n"] = root.__class__(i=i)
        transaction.commit()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong
    A[:] = 0
    transaction.abort()
    assert A[17] == 10 and root["n"]["i"] == 10
    dbclose(root)
    print("right")
"""


@pytest.mark.slow
def test_commits_beside_readers(url):
    assert "right" in check_child(COMMITS, url)


REFERENCE = """
    import pickle, subprocess, sys, transaction
    from wendelin.bigarray import ArrayRef
    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.lib.zodb import dbclose, dbopen
    root = dbopen(sys.argv[1])
    root.clear()
    root["A"] = A = ZBigArray((4096,), "u1", blksize=4096)
    transaction.commit()
    A[:] = 1
    transaction.commit()
    ref = pickle.dumps(ArrayRef(A[7:]))
    A[:] = 2
    transaction.commit()
    other = "import pickle, sys; print(pickle.load(sys.stdin.buffer).deref().sum())"
    for one in ref, pickle.dumps(ArrayRef(A[7:])):
        subprocess.run([sys.executable, "-P", "-c", other], input=one, check=True)
    dbclose(root)
"""


@pytest.mark.slow
def test_references_go_to_other_processes(url):
    assert check_child(REFERENCE, url).split() == ["4089", "8178"]


SLOW = """
import sys, transaction
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen
root = dbopen(sys.argv[1])
root["A"] = A = ZBigArray((100,), "u1")
transaction.commit()
A[:] = 1
transaction.commit()
dbclose(root)
"""


def test_a_log_names_the_connection_in_the_middle_of_a_commit(url):
    """RelStorage does so if a step takes ten seconds; here, if it takes none."""
    done = run_child(SLOW, url, RS_PERF_LOG_WARNING_MIN="0")
    assert done.returncode == 0, done.stderr
    assert "Function tpc_finish" in done.stderr
    assert "Logging error" not in done.stderr


class Alone:
    """A storage that is not known: it notes how many threads are in it at a time."""

    def __init__(self):
        self.inner = MappingStorage()
        self.inside, self.most, self.asked = 0, 0, threading.Event()
        self.inner_lock = threading.Lock()

    def __getattr__(self, name):
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def ask(*args, **kw):
            with self.inner_lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            try:
                self.asked.set()
                time.sleep(0.0005)  # other threads come in, if they can
                return found(*args, **kw)
            finally:
                with self.inner_lock:
                    self.inside -= 1

        return ask


@pytest.fixture
def alone():
    storage = Alone()
    db = DB(storage)
    root = db.open().root()
    yield storage, root
    transaction.abort()
    root._p_jar.close()
    db.close()


def test_what_is_not_known_is_asked_by_one_thread_at_a_time(alone, fmt):
    """Threads that touch, threads that load ahead, and the Connection's own thread ask it."""
    storage, root = alone
    A = fill(root, fmt)
    root["m"] = [root.__class__(n=i) for i in range(30)]
    transaction.commit()
    storage.most = 0
    for turn in range(3):
        view = A[:]
        ram_reclaim()
        with ThreadPoolExecutor(4) as pool:
            A.prefetch()
            sums = [pool.submit(np.sum, view[i * BLK :]) for i in range(4)]
            for m in root["m"]:
                m["turn"] = turn
                transaction.savepoint()
            transaction.commit()
            assert [s.result() for s in sums] == [FIRST[i * BLK :].sum() for i in range(4)]
    assert storage.most == 1


def test_a_handle_is_made_after_a_savepoint(alone):
    _, root = alone
    root["a"] = root.__class__()
    transaction.savepoint()
    A = fill(root, "ZBlk0")  # its handle is made within a transaction that has stored something
    assert isinstance(root._p_jar._normal_storage, OneAtATime)
    assert root._p_jar._storage is root._p_jar._normal_storage
    root["b"] = root.__class__()
    transaction.savepoint()
    A[0] = 77
    transaction.commit()
    with_other = Client(root)
    assert with_other["A"][0] == 77
    assert set(with_other.root) == {"a", "b", "A"}
    with_other.close()


def test_what_is_known_is_asked_as_it_is(tmp_path):
    for storage in MappingStorage(), FileStorage(str(tmp_path / "a.fs")), dbstoropen("memory://"):
        assert asks_in_parallel(storage)
        assert asks_in_parallel(MVCCAdapter(storage).new_instance())
        storage.close()
    assert asks_in_parallel(DemoStorage())
    assert not asks_in_parallel(DemoStorage(base=Alone()))
    assert not asks_in_parallel(MVCCAdapter(Alone()).new_instance())

    class Sub(MappingStorage):
        pass

    class SubOfDemo(DemoStorage):
        pass

    for storage in Sub(), SubOfDemo():
        assert not asks_in_parallel(storage)  # the subclass may have added what is not safe
    root = dbopen(tmp_path / "b.fs")
    fill(root, "ZBlk0")
    assert not isinstance(root._p_jar._normal_storage, OneAtATime)
    dbclose(root)


def test_a_signal_handler_in_the_middle_of_a_call_is_told(alone):
    """Else it would wait for itself, or get the answer to another call."""
    storage, root = alone
    fill(root, "ZBlk0")
    in_turn = root._p_jar._normal_storage
    said = []

    def handler(number, frame):
        try:
            in_turn.load(root._p_oid)
        except RuntimeError as e:
            said.append(str(e))

    load = storage.inner.loadBefore

    def slow(*args):
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(1000):  # the handler runs here
            pass
        return load(*args)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        storage.inner.loadBefore = slow
        assert in_turn.load(root._p_oid)
    finally:
        del storage.inner.loadBefore
        signal.signal(signal.SIGUSR1, before)
    assert len(said) == 1
    assert "MVCCAdapterInstance is in the middle of a call of this thread" in said[0]
    assert in_turn.load(root._p_oid)


def test_records_of_several_objects(alone):
    storage, root = alone
    root["m"] = [root.__class__(n=i) for i in range(8)]
    transaction.commit()
    storage.most = 0
    oids = [m._p_oid for m in root["m"]]
    for _ in "before", "after":
        records = zconn_load_all(root._p_jar, oids)
        assert records == [root._p_jar._normal_storage.load(oid)[0] for oid in oids]
        assert [s.tid for s in zconn_stat(root._p_jar, oids)] == [m._p_serial for m in root["m"]]
        fill(root, "ZBlk0")  # a handle
    assert storage.most == 1


def test_a_block_that_cannot_be_loaded_leaves_the_turn_to_others(alone):
    storage, root = alone
    A = fill(root, "ZBlk0")
    oid = A.zfile.blktab[1]._p_oid
    ram_reclaim()
    load = storage.inner.loadBefore

    def fails(asked, before):
        if asked == oid:
            raise ZeroDivisionError
        return load(asked, before)

    storage.inner.loadBefore = fails
    with pytest.raises(BlockLoadError):
        A.read(slice(BLK, 2 * BLK))
    del storage.inner.loadBefore
    transaction.abort()
    assert np.array_equal(A.read(slice(BLK, 2 * BLK)), FIRST[BLK : 2 * BLK])
