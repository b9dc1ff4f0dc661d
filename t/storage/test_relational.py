"""RelStorage on PostgreSQL: loads of several threads, which all see the state of their Connection.

The file of COPY BINARY is tried without a database.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from struct import pack

import numpy as np
import pytest
import transaction
from support.clients import BLK, FIRST, Client, changed, fill
from transaction import TransactionManager
from ZODB.POSException import ReadConflictError
from ZODB.utils import p64

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, ram_reclaim
from wendelin.lib.storage import copyrows, relational
from wendelin.lib.storage.copyrows import records_of
from wendelin.lib.zodb import dbclose, dbopen, zconn_load_revisions

pytestmark = pytest.mark.formats
with_postgres = pytest.mark.only("postgres")


class Cursor:
    """Sends rows as PostgreSQL does, in pieces of some size."""

    def __init__(self, rows, size):
        head = b"PGCOPY\n\xff\r\n\0" + pack("!iI", 0, 3) + b"ext"
        sent = [pack("!hiqiqi", 3, 8, o, 8, t, len(s)) + s for o, t, s in rows]
        self.data = head + b"".join(sent) + pack("!h", -1)
        self.size = size

    def copy_expert(self, query, file):
        assert "IN (1,2,3)" in query
        for at in range(0, len(self.data), self.size):
            file.write(self.data[at : at + self.size])


@pytest.mark.parametrize("size", [1, 2, 7, 30, 1000])
def test_rows_come_in_any_pieces(size):
    rows = [(3, 30, b"three" * 9), (1, 10, b""), (9, 90, b"was not asked for")]
    found = records_of(Cursor(rows, size), [p64(1), p64(2), p64(3)], history=True)
    assert found == [(b"", p64(10)), None, (b"three" * 9, p64(30))]


def test_what_is_not_copy_is_an_error():
    cursor = Cursor([], 100)
    cursor.data = b"x" * 50
    with pytest.raises(ValueError, match="PGCOPY"):
        records_of(cursor, [p64(1), p64(2), p64(3)], history=True)


def instance(root):
    return root._p_jar._normal_storage


@pytest.fixture
def blocks(testdb):
    """Return the root of a database with an array, and the oids of its blocks."""
    root = testdb.open()
    A = root["A"] = ZBigArray((16 * BLK,), "u1", blksize=BLK, zblk_fmt="ZBlk0")
    transaction.commit()
    A[:] = np.repeat(np.arange(16, dtype="u1"), BLK)
    transaction.commit()
    return root, [zblk._p_oid for zblk in A.zfile.blktab.values()]


@pytest.fixture(params=["history", "free"])
def opened(request, testdb):
    """Return the root of a database that keeps its history, or does not."""
    if request.param == "history":
        yield testdb.open()
        return
    testdb.database.server.execute("CREATE DATABASE free")
    root = dbopen(testdb.database.server.url("free") + "?keep_history=false")
    yield root
    transaction.abort()
    dbclose(root)
    testdb.database.server.execute("DROP DATABASE free")


@with_postgres
def test_several_threads_load_at_a_time_the_same_state(blocks, monkeypatch):
    """Another client commits meanwhile: nobody sees that."""
    root, oids = blocks
    before = zconn_load_revisions(root._p_jar, oids)
    other = Client(root)
    other["A"][:] = 77
    other.tm.commit()
    other.close()
    at_once = threading.Barrier(3)
    cursors = set()
    records = copyrows.records_of

    def together(cursor, *args):
        cursors.add(cursor)
        at_once.wait(30)
        return records(cursor, *args)

    def load(part):
        return zconn_load_revisions(root._p_jar, oids[part::3][:5])

    expected = [before[part::3][:5] for part in range(3)]
    with ThreadPoolExecutor(3) as pool:
        instance(root)._ask(instance(root)._export)
        with monkeypatch.context() as patch:
            patch.setattr(relational, "records_of", together)
            assert list(pool.map(load, range(3))) == expected
        assert len(cursors) == 3
        transaction.begin()  # what they saw is over
        assert not instance(root)._others
        assert all(record[1] != old[1] for record, old in zip(load(0), expected[0], strict=True))


@with_postgres
def test_a_snapshot_that_is_asked_for_while_a_transaction_ends(blocks, monkeypatch):
    """It is of that transaction: nobody loads by it in the next one."""
    root, oids = blocks
    storage = instance(root)
    asked, ends = threading.Event(), threading.Event()
    cursor_of, let_go = relational.cursor_of, storage._let_go

    def slow(*args):
        if not asked.is_set():
            asked.set()
            ends.wait(1)  # as it should not
        return cursor_of(*args)

    def noted():
        ends.set()
        let_go()

    monkeypatch.setattr(relational, "cursor_of", slow)
    monkeypatch.setattr(storage, "_let_go", noted)
    other = Client(root)
    other["A"][:] = 77
    other.tm.commit()
    other.close()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(storage._load_there, oids)
        assert asked.wait(30)
        changed = storage.poll_invalidations()  # the last call of a boundary
        loading.exception(30)  # it may have been too late for its snapshot
    assert storage._snapshot is None
    assert not storage._others
    assert set(oids) <= set(changed)


@with_postgres
def test_another_connection_that_fails_is_not_needed(blocks, monkeypatch):
    root, oids = blocks
    ours = instance(root)
    expected = zconn_load_revisions(root._p_jar, oids)
    monkeypatch.setattr(ours, "_snapshot", "00000003-0000001B-1")  # there is none
    inside = threading.Event()

    def slow():
        inside.set()
        return threading.Event().wait(0.3)

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(ours._ask, slow)
        assert inside.wait(30)
        assert zconn_load_revisions(root._p_jar, oids) == expected
        busy.result()


@with_postgres
@pytest.mark.parametrize("explicit", [False, True])
def test_a_view_keeps_its_state(opened, explicit):
    root = opened
    A = fill(root, "auto")
    client = Client(root, explicit)
    client.tm.begin()
    b = client["A"][:]
    assert b[0] == FIRST[0]
    A[0] = A[-1] = 1
    transaction.commit()
    ram_reclaim()
    assert np.array_equal(b, FIRST)
    client.tm.abort()
    A[0] = A[-1] = 2
    transaction.commit()
    ram_reclaim()
    assert np.array_equal(b, changed((0, 1), (-1, 1)))
    client.tm.begin()
    assert np.array_equal(b, changed((0, 2), (-1, 2)))
    client.close()


@with_postgres
def test_a_state_that_is_lost_is_an_error(blocks):
    """RelStorage drops its connection in a transaction, and would take a new state."""
    root, oids = blocks
    a = root["A"][:]
    ram_reclaim()
    instance(root).asked._load_connection.drop()
    with pytest.raises(ReadConflictError, match="was lost"):
        zconn_load_revisions(root._p_jar, oids)
    with pytest.raises(BlockLoadError):
        a.copy()
        for _ in range(1000):
            pass
    transaction.abort()
    assert np.array_equal(a, np.repeat(np.arange(16, dtype="u1"), BLK))


@with_postgres
def test_past_states_come_in_binary_too(blocks, monkeypatch):
    root, _ = blocks
    tid = instance(root).lastTransaction()
    root["A"][:] = 50
    transaction.commit()
    past = root._p_jar.db().open(TransactionManager(), at=tid)
    a = past.root()["A"]
    monkeypatch.setattr(instance(root).asked, "loadBefore", None)
    assert np.array_equal(a.read(slice(None)), np.repeat(np.arange(16, dtype="u1"), BLK))
    past.close()
