"""lib/storage/fsfollow.py: a process reads a file while another one writes it."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import transaction
from support.clients import BLK, FIRST, changed, fill
from ZODB.Connection import TransactionMetaData
from ZODB.DB import DB
from ZODB.utils import p64, u64, z64

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import ram_reclaim
from wendelin.lib.storage import fsfollow
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsscan import scan
from wendelin.lib.zodb import dbclose, dbopen, zconn_at


@pytest.fixture
def writer(path):
    """Return the root of the writer, with an array."""
    root = dbopen(path)
    fill(root, None)
    yield root
    transaction.abort()
    dbclose(root)


class Reader:
    """Another client, which only reads, and has transactions of its own."""

    def __init__(self, path, options=""):
        self.db = DB(AlignedFileStorage(path, read_only=True, **({"align": 0} if options else {})))
        self.tm = transaction.TransactionManager()
        self.root = self.db.open(self.tm).root()
        self.A = self.root["A"]

    def close(self):
        self.tm.abort()
        self.db.close()


@pytest.fixture(params=["", "align=false"])
def reader(writer, path, request):
    reader = Reader(path, request.param)
    yield reader
    reader.close()


def test_a_reader_does_not_warn_of_an_index_that_is_not_up_to_date(writer, path, caplog):
    Reader(path).close()  # the index is that of the file when it was made
    assert not caplog.text


def test_each_transaction_sees_what_was_committed_before_it(writer, reader):
    a = reader.A[:]
    assert np.array_equal(a, FIRST)
    for i in range(1, 5):
        writer["A"][i * BLK] = i
        writer["x"] = i
        writer["A"].append([i])
        assert reader.A.shape == (len(FIRST) + i - 1,)
        transaction.commit()
        assert a[i * BLK] == FIRST[i * BLK]
        reader.tm.begin()
        assert a[i * BLK] == i
        assert reader.root["x"] == i
        assert reader.A.shape == (len(FIRST) + i,)
        assert reader.A[-1] == i
        assert zconn_at(reader.root._p_jar) == zconn_at(writer._p_jar)
    assert np.array_equal(a, changed(*((i * BLK, i) for i in range(1, 5))))


def test_pages_of_what_did_not_change_stay(writer, reader):
    a = reader.A[:]
    a.sum()
    handle = reader.A._fileh()
    loaded = []
    handle.invalidate_page = loaded.append
    writer["A"][BLK] = 1
    transaction.commit()
    reader.tm.begin()
    assert loaded == [1]


def test_what_is_not_finished_is_not_seen(writer, reader):
    storage = writer._p_jar.db().storage
    at = zconn_at(reader.root._p_jar)
    size = len(reader.db.storage)

    def nothing_new():
        reader.tm.begin()
        return zconn_at(reader.root._p_jar) == at and len(reader.db.storage) == size

    for ends in storage.tpc_abort, storage.tpc_finish:
        txn = TransactionMetaData()
        storage.tpc_begin(txn)
        storage.store(p64(1000), z64, bytes([len(ends.__name__)]) * (1 << 20), "", txn)
        assert nothing_new()
        storage.tpc_vote(txn)
        assert nothing_new()
        ends(txn)
    reader.tm.begin()
    assert zconn_at(reader.root._p_jar) == storage.lastTransaction()
    assert len(reader.db.storage) == size + 1
    assert reader.db.storage.load(p64(1000))[0][:2] == bytes([len("tpc_finish")]) * 2


class Voting:
    """Another storage that takes part in a commit; calls a function after the vote of Data.fs."""

    def __init__(self, tm, function):
        self.transaction_manager = tm
        self.function = function

    def sortKey(self):
        return "~~~~"

    def tpc_begin(self, txn):
        """Do nothing."""

    commit = abort = tpc_abort = tpc_finish = tpc_begin

    def tpc_vote(self, txn):
        self.function()


@pytest.mark.parametrize("late", [False, True])
def test_a_snapshot_stays_when_it_begins_between_vote_and_finish(writer, path, late):
    """The tid of the transaction that was voted for is not yet the last one."""
    last = writer._p_jar.db().storage.lastTransaction
    for name in "x", "y":
        writer[name] = 0
    transaction.commit()
    reader = None if late else Reader(path)  # late: opened in the middle of the commit
    writer["z"] = 0
    transaction.commit()  # the reader has not looked at this one
    seen = []

    def begin():
        nonlocal reader
        reader = reader or Reader(path)
        reader.tm.begin()
        seen.append((reader.root["x"], reader.db.storage.lastTransaction(), last()))

    writer["x"] = writer["y"] = 1
    transaction.get().join(Voting(transaction.manager, begin))
    transaction.commit()
    other = transaction.TransactionManager()
    conn = reader.db.open(other)
    other.begin()  # another transaction begins, and sees the commit
    assert conn.root()["x"] == 1
    assert reader.db.storage.lastTransaction() == last()
    assert reader.root["y"] == 0
    assert seen == [(0, seen[0][2], seen[0][2])]
    reader.tm.begin()
    assert (reader.root["x"], reader.root["y"]) == (1, 1)
    other.abort()
    reader.close()


def test_what_a_crash_has_left_is_looked_at_once(writer, path, monkeypatch):
    dbclose(writer)
    with open(path, "ab") as file:
        file.write(bytes([1]) * 50000)
    scans = []
    monkeypatch.setattr(fsfollow, "scan", lambda *args: scans.append(1) or scan(*args))
    reader = Reader(path)
    for _ in range(5):
        reader.tm.begin()
    assert len(scans) == 1
    again = dbopen(path)  # this cuts it off
    again["x"] = 7
    transaction.commit()
    reader.tm.begin()
    assert reader.root["x"] == 7
    reader.close()
    dbclose(again)


def test_after_a_pack_a_reader_reads_the_packed_file(writer, reader):
    a = reader.A[:]
    writer["A"][BLK] = 1
    transaction.commit()
    writer._p_jar.db().pack()
    writer["A"][2 * BLK] = 2
    transaction.commit()
    # nothing is read from where it is in the other file
    ram_reclaim()
    reader.root._p_jar.cacheMinimize()
    assert np.array_equal(a, FIRST)
    assert np.array_equal(reader.A[:], FIRST)
    reader.tm.begin()
    assert np.array_equal(a, changed((BLK, 1), (2 * BLK, 2)))
    writer["A"][3 * BLK] = 3
    writer["x"] = 1
    transaction.commit()
    reader.tm.begin()
    assert reader.root["x"] == 1
    assert np.array_equal(a, changed((BLK, 1), (2 * BLK, 2), (3 * BLK, 3)))
    both = writer._p_jar.db().storage, reader.db.storage
    tids = [[txn.tid for txn in storage.iterator()] for storage in both]
    assert tids[0] == tids[1]


def test_between_the_renames_of_a_pack(writer, reader, path):
    os.rename(path, path + ".old")
    reader.tm.begin()
    assert np.array_equal(reader.A[:], FIRST)
    os.rename(path + ".old", path)


def test_a_reader_leaves_nothing_behind(writer, reader, path, tmp_path):
    files = sorted(os.listdir(tmp_path))
    reader.tm.begin()
    reader.close()
    assert sorted(os.listdir(tmp_path)) == files


def test_time_travel_stays_where_it_is(writer, path):
    at = zconn_at(writer._p_jar)
    size = os.path.getsize(path)
    for i in range(2):
        writer["A"][0] = i + 1
        transaction.commit()
    storage = AlignedFileStorage(path, read_only=True, stop=p64(u64(at) + 1))
    storage.sync()
    assert storage.getSize() == size
    storage.close()


WRITER = """
import sys
import numpy as np
import transaction
from wendelin.lib.zodb import dbopen, dbclose

root = dbopen(sys.argv[1])
A = root["A"]
rng = np.random.default_rng(1)
for i in range(59):
    a = A[:]
    x, y = rng.integers(0, len(a), 2)
    a[x] += 1
    a[y] -= 1
    root["i"] = i
    A.append([i, -i])
    if i % 7 == 3:
        transaction.abort()
    else:
        transaction.commit()
    if i % 20 == 19:
        root._p_jar.db().pack()
    if i % 10 == 9:
        sys.stdin.readline()            # the reader has seen one more state
dbclose(root)
"""


@pytest.mark.slow
def test_a_sum_stays_while_another_process_writes(path):
    root = dbopen(path)
    root["A"] = A = ZBigArray((6000,), "i8", blksize=4096)
    root["i"] = -1
    transaction.commit()
    A[:] = 1
    transaction.commit()
    dbclose(root)
    writing = subprocess.Popen(
        [sys.executable, "-P", "-c", WRITER, path], cwd=Path(path).parent, stdin=subprocess.PIPE
    )
    reader = Reader(path)
    a = reader.A[:]
    seen = set()
    while True:
        ended = writing.poll()
        reader.tm.begin()
        if reader.root["i"] not in seen and ended is None:
            seen.add(reader.root["i"])
            with suppress(BrokenPipeError):  # it has ended meanwhile
                os.write(writing.stdin.fileno(), b"\n")
        assert reader.A[:].sum() == 6000
        assert len(reader.A) == 6000 + 2 * sum(j % 7 != 3 for j in range(reader.root["i"] + 1))
        if ended is not None:
            break
    writing.stdin.close()
    assert ended == 0
    assert reader.root["i"] == 58
    assert len(seen) > 3
    assert a.shape == (6000,)
    reader.close()


@pytest.mark.parametrize("whose", ["reader", "writer"])
def test_a_ctrl_c_while_a_packed_file_takes_the_place_of_the_file(
    writer, reader, path, whose, monkeypatch
):
    """It comes after that: else the storage has one file, and positions in the other one."""
    storage = (writer._p_jar if whose == "writer" else reader.root._p_jar).db().storage
    set_index = AlignedFileStorage.set_index

    def interrupted(self, *args):
        if self is storage:
            os.kill(os.getpid(), signal.SIGINT)
        set_index(self, *args)

    def change(i):
        writer["A"][i * BLK] = i
        transaction.commit()

    for i in 1, 2:
        change(i)
    reader.A[:]  # it holds a state
    monkeypatch.setattr(AlignedFileStorage, "set_index", interrupted)
    if whose == "writer":
        with pytest.raises(KeyboardInterrupt):
            writer._p_jar.db().pack()
    else:
        writer._p_jar.db().pack()
        with pytest.raises(KeyboardInterrupt):
            reader.tm.begin()
    monkeypatch.undo()
    for i in 3, 4:
        change(i)
        reader.tm.begin()
        assert np.array_equal(reader.A[:], writer["A"][:])
    again = Reader(path)
    assert np.array_equal(again.A[:], writer["A"][:])
    again.close()
