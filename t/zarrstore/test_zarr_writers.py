"""Several writers of a ZarrGroup: threads, two clients, a writer that is killed."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import transaction
from support.child import start_child
from support.clients import Manager
from transaction.interfaces import TransactionError
from ZODB.POSException import ConflictError

zarr = pytest.importorskip("zarr")

from support.zarrarrays import DATA, make, opened  # noqa: E402

from wendelin.zarr import StaleArrayError, ZarrGroup  # noqa: E402

pytestmark = [pytest.mark.database, pytest.mark.formats]

# ---- threads ----


def test_threads_and_stores_of_one_connection(root, g):
    arrays = [make(g, f"a{i}") for i in range(4)]
    transaction.commit()
    errors = []

    def work(i):
        try:
            a = opened(g, f"a{i}")
            for n in range(6):
                a[n * 10 : n * 10 + 10] = DATA[n * 10 : n * 10 + 10] + i
                j = (i + 1) % 4  # its writer has added j to these rows, or will
                more = arrays[j][50:, 30:] - DATA[50:, 30:]
                assert np.isin(more, (0, j)).all(), more
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    transaction.commit()
    for i in range(4):
        assert np.array_equal(opened(g, f"a{i}")[:], DATA + i)


def test_threads_join_a_transaction_once(root, g):
    make(g)
    transaction.commit()
    table, switch = g.live_table(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            barrier = threading.Barrier(8)

            def change(i, barrier=barrier):
                barrier.wait()
                table.change({f"k{i}": b"x"})

            threads = [threading.Thread(target=change, args=(i,)) for i in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            resources = transaction.get()._resources
            assert [r for r in resources if r is table] == [table]
            assert len(resources) == 2
            transaction.abort()
    finally:
        sys.setswitchinterval(switch)


@pytest.mark.parametrize("chunk", [8, 1])  # 5 and 40 chunks a row: zarr begins 10 at a time
@pytest.mark.parametrize("phase", ["commit", "after"])
def test_writing_in_a_commit_is_refused(root, g, phase, chunk):
    # zarr's threads would wait for the thread that commits, which waits for zarr
    a = zarr.create_array(g.store(), name="a", shape=DATA.shape, chunks=(60, chunk), dtype="i4")
    a[:] = DATA
    transaction.commit()
    errors = []

    def write(*args):
        try:
            a[0] = 1
        except TransactionError as e:
            errors.append(str(e))

    if phase == "commit":
        transaction.get().join(Manager("commit", write))
    else:
        transaction.get().addAfterCommitHook(write)
    root["x"] = phase
    transaction.commit()
    assert len(errors) == 1
    assert "too late" in errors[0]
    a[59, 0] = 0  # work of zarr for the refused call ends before it
    assert np.array_equal(a[:59], DATA[:59])


@pytest.mark.parametrize("other_thread", [False, True])
def test_writing_after_a_commit_that_failed(root, g, other_thread):
    # if another thread aborts, tasks of the refused call may still write
    chunks = DATA.shape if other_thread else (10, 8)
    a = zarr.create_array(g.store(), name="a", shape=DATA.shape, chunks=chunks, dtype="i4")
    a[:] = DATA
    transaction.commit()
    tm = transaction.manager.manager  # of this thread
    root["x"] = 1
    transaction.get().join(Manager("tpc_vote", lambda *args: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        transaction.commit()
    with pytest.raises(TransactionError, match="An operation previously failed"):
        a[0] = 1
    if other_thread:
        thread = threading.Thread(target=tm.abort)
        thread.start()
        thread.join()
    else:
        transaction.abort()
    a[0] = 2
    transaction.commit()
    assert (a[0] == 2).all()


def test_writers_while_another_thread_commits(root, g):
    a = zarr.create_array(g.store(), name="a", shape=(60,), chunks=(1,), dtype="i4")
    transaction.commit()
    errors = []

    def write():
        try:
            for i in range(60):
                a[i] = i + 1
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        # an idle manager may give two threads two transactions
        if not g.live_table().is_of_database():
            transaction.commit()
    thread.join()
    transaction.commit()
    assert not errors
    assert np.array_equal(a[:], np.arange(60) + 1)
    assert len([key for key in g.table if "/c/" in key]) == 60


# ---- two clients ----


def test_isolation(root, g, client):
    a = make(g)
    transaction.commit()
    client.tm.begin()
    b = opened(client["g"])
    assert np.array_equal(b[:], DATA)
    a[:] = 1
    make(g, "c")
    assert np.array_equal(b[:], DATA)
    transaction.commit()
    assert np.array_equal(b[:], DATA)
    assert client["g"].store().get_sync("c/zarr.json") is None
    client.tm.begin()
    assert (b[:] == 1).all()
    assert client["g"].store().get_sync("c/zarr.json") is not None


def test_two_writers(root, g, client):
    # the same chunk: the second writer gets a conflict
    a = make(g)
    transaction.commit()
    client.tm.begin()
    b = opened(client["g"])
    a[0] = 1
    b[1] = 2
    transaction.commit()
    with pytest.raises(ConflictError):
        client.tm.commit()
    client.tm.abort()
    assert (b[0] == 1).all()
    # other chunks, and new ones
    c = zarr.create_array(g.store(), name="n", shape=(1000,), chunks=(1,), dtype="i4")
    transaction.commit()
    client.tm.begin()
    d = opened(client["g"], "n")
    lost = 0
    for i in range(0, 60, 2):
        c[i] = i + 1
        d[i + 1] = i + 2
        transaction.commit()
        try:
            client.tm.commit()
        except ConflictError:  # of a bucket that was split: BTrees does not resolve that
            lost += 1
            client.tm.abort()
            d[i + 1] = i + 2
            client.tm.commit()
        transaction.begin()
        client.tm.begin()
    assert lost < 15
    assert np.array_equal(c[:60], np.arange(60) + 1)
    assert np.array_equal(d[:60], np.arange(60) + 1)


def test_resized_by_another_client(root, g, client):
    a = make(g)
    transaction.commit()
    client.tm.begin()
    b = opened(client["g"])
    b.attrs["x"] = 1  # which does not concern chunks
    client.tm.commit()
    transaction.begin()
    assert np.array_equal(a[:], DATA)
    b = opened(client["g"])
    b.resize((20, 40))
    b[:] = 7
    client.tm.commit()
    assert np.array_equal(a[:], DATA)  # the state of its transaction
    transaction.begin()
    with pytest.raises(StaleArrayError, match=r"'a'.*Open it again"):
        a[:]
    with pytest.raises(StaleArrayError):
        a[30:] = 1
    assert (opened(g)[:] == 7).all()
    assert opened(g).shape == (20, 40)
    with pytest.raises(StaleArrayError):
        a[:]


def test_resized_in_an_aborted_transaction(g):
    a = make(g)
    transaction.commit()
    a.resize((70, 40))
    a[60:] = 1
    transaction.abort()
    assert a.shape == (70, 40)  # zarr does not learn of the abort
    with pytest.raises(StaleArrayError):
        a[:]
    assert np.array_equal(opened(g)[:], DATA)


def test_writer_of_an_array_that_is_resized_or_deleted(root, g, client):
    for n, act in enumerate([lambda a, group: a.resize((10, 40)), delete]):
        name = f"a{n}"
        make(g, name)
        transaction.commit()
        client.tm.begin()
        b = opened(client["g"], name)
        act(opened(g, name), zarr.open_group(g.store()))
        transaction.commit()
        b[50:] = 1
        with pytest.raises(ConflictError):
            client.tm.commit()
        client.tm.abort()
        assert f"{name}/c/5/0" not in client["g"].table


def test_resized_or_deleted_while_another_client_added_chunks(root, g, client):
    # otherwise the chunks would be seen again when the array grows or is made anew
    for n, act in enumerate([lambda a, group: a.resize((10, 40)), delete]):
        name = f"a{n}"
        zarr.create_array(g.store(), name=name, shape=DATA.shape, chunks=(10, 8), dtype="i4")
        transaction.commit()
        client.tm.begin()
        b = opened(client["g"], name)
        act(opened(g, name), zarr.open_group(g.store()))
        b[50:] = 1
        client.tm.commit()
        with pytest.raises(ConflictError):
            transaction.commit()
        transaction.abort()
        assert (opened(g, name)[50:] == 1).all()
        act(opened(g, name), zarr.open_group(g.store()))
        transaction.commit()
        assert f"{name}/c/5/0" not in g.table


def test_attributes_while_another_client_adds_chunks(root, g, client):
    a = zarr.create_array(g.store(), name="a", shape=DATA.shape, chunks=(10, 8), dtype="i4")
    transaction.commit()
    client.tm.begin()
    opened(client["g"])[50:] = 1
    client.tm.commit()
    a.attrs["x"] = 1
    transaction.commit()
    assert (a[50:] == 1).all()


def delete(a, group):
    del group[a.path]


# ---- killed ----

WRITER = """
    import sys, numpy as np, transaction, zarr
    from wendelin.lib.zodb import dbopen
    g = dbopen(sys.argv[1])["g"]
    a, s = (zarr.open_array(g.store(), path=p) for p in "as")
    n = int(a[0, 0])
    print("begin", flush=True)
    while True:
        n += 1
        a[:] = n
        s[:] = -n
        transaction.commit()
        print(n, flush=True)
"""


@pytest.mark.only("fs", "zeo")
@pytest.mark.slow
def test_a_killed_writer_leaves_whole_transactions(testdb):
    root = testdb.open()
    root["g"] = g = ZarrGroup()
    make(g, "a", "zstd", np.zeros((60, 40), "i4"))
    make(g, "s", "sharded", np.zeros((60, 40), "i4"))
    transaction.commit()
    testdb.close(root)
    seen = 0
    for wait in 1, 4:
        child = start_child(WRITER, testdb.url, stdout=subprocess.PIPE)
        assert child.stdout.readline() == "begin\n"
        for _ in range(wait):
            told = int(child.stdout.readline())
        time.sleep(0.003)  # somewhere in the next transaction
        child.kill()
        rest = child.communicate()[0].split()
        told = int(rest[-1]) if rest else told
        root = testdb.open()
        a, s = opened(root["g"], "a")[:], opened(root["g"], "s")[:]
        assert len(np.unique(a)) == 1
        assert np.array_equal(a, -s)
        assert a[0, 0] in (told, told + 1)
        assert a[0, 0] > seen
        seen = int(a[0, 0])
        testdb.close(root)
