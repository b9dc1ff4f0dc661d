"""Moments of a tree of arrays: past states, the log, undo, tags, and packs that keep tags."""

import time
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import transaction
from hypothesis import given, settings
from hypothesis import strategies as st
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping
from persistent.TimeStamp import TimeStamp
from support import storages
from support.clients import Client
from ZODB.POSException import ConnectionStateError, ReadOnlyError, UndoError
from ZODB.utils import p64, u64

import wendelin
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.virtmem.errors import BlockLoadError
from wendelin.lib.storage.tags import oldest_tag, tags_of
from wendelin.lib.zodb import zdb_last
from wendelin.tree.history import last_transactions
from wendelin.tree.moments import moment, tid_time

BLK = 4096
GONE = (ValueError, KeyError, BlockLoadError)  # errors of what a pack has dropped


IS_NEO = storages.kind() is storages.NeoDatabase
undoes = pytest.mark.skipif(IS_NEO, reason="the gateway refuses it: see test_no_undo_on_neo")


@pytest.mark.skipif(not IS_NEO, reason="it undoes")
def test_no_undo_on_neo(g):
    """Some undos make the storage nodes of NEO 1.12 end."""
    history(g)
    with pytest.raises(ValueError, match=r"has no undo\. Read the earlier state"):
        g.undo(g.log(1)[0].tid)
    assert (g["x"][:] == 4).all()


@pytest.fixture
def g(testdb):
    return wendelin.Group(testdb.open())


def commit(note=""):
    transaction.get().note(note)
    transaction.commit()


def last(g):
    return zdb_last(g.obj._p_jar.db())


def history(g):
    """Commit five states of an array; return their tids."""
    tids = []
    for i in range(5):
        if i == 0:
            g.create_array("x", (10,), "i8", blksize=BLK)
        g["x"][:] = i
        commit(f"state {i}")
        tids.append(last(g))
    return tids


# ---- moments ----


def test_moments_of_text():
    now = datetime(2026, 3, 1, 12, 0, 0).astimezone().timestamp()
    local = datetime.fromtimestamp

    def ago(seconds):
        return moment(datetime.fromtimestamp(now - seconds).astimezone(), now)

    assert moment("3 days ago", now) == ago(3 * 86400)
    assert moment("an hour ago", now) == moment("1 hour ago", now) == ago(3600)
    assert moment("1.5 minutes ago", now) == ago(90)
    assert moment("2 weeks ago", now) == ago(14 * 86400)
    assert moment("now", now) == ago(0)
    assert moment("yesterday", now) == moment("2026-02-28", now) == moment(date(2026, 2, 28), now)
    assert moment("0x03f1a2b3c4d5e6f7") == bytes.fromhex("03f1a2b3c4d5e6f7")
    assert moment(b"12345678") == b"12345678"
    assert moment(np.datetime64("2026-01-31T18:30"), now) == moment(
        datetime(2026, 1, 31, 18, 30, tzinfo=UTC), now
    )
    end = tid_time(moment("2026-01-31T18:30", now))  # the end of that minute
    assert end == pytest.approx(
        local(datetime(2026, 1, 31, 18, 31).timestamp()).astimezone(), abs=timedelta(microseconds=1)
    )
    end = tid_time(moment("2026-01-31", now))  # the end of that day
    assert end == pytest.approx(
        local(datetime(2026, 2, 1).timestamp()).astimezone(), abs=timedelta(microseconds=1)
    )


@pytest.mark.parametrize(
    ("at", "error"),
    [
        ("soon", ValueError),
        ("", ValueError),
        ("3 days", ValueError),
        ("2999-01-01", ValueError),
        (datetime(2999, 1, 1), ValueError),
        (datetime(1800, 1, 1, tzinfo=UTC), ValueError),
        ("999999 years ago", ValueError),
        (b"1234", ValueError),
        (5, TypeError),
        (None, TypeError),
    ],
)
def test_what_is_not_a_moment(at, error):
    with pytest.raises(error, match=r"moment|future|not a tid|not a time"):
        moment(at)


@given(st.integers(0, 1_700_000_000_000_000))
def test_a_moment_is_after_transactions_until_its_time(us):
    """A transaction with the time in its tid is seen; one a few microseconds later is not."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    tid = moment(at)

    def stamp(t):
        return TimeStamp(*t.timetuple()[:5], t.second + t.microsecond / 1e6).raw()

    assert stamp(at) <= tid
    assert tid < stamp(at + timedelta(microseconds=3))


# ---- the past ----


def test_the_past_by_tid_tag_and_time(testdb):
    with wendelin.open(testdb.url) as g:
        tids = history(g)
        g.tag("third", tids[2])
        commit()
        for at in tids[2], tids[2].hex(), f"0x{tids[2].hex()}", "third", tid_time(tids[2]):
            with g.at(at) as past:
                assert past["x"][0] == 2
                with pytest.raises(ReadOnlyError, match="it is a past state"):
                    past["y"] = np.zeros(3)
        with g.at("now") as past:
            assert past["x"][0] == 4
        assert g["x"][0] == 4
        with pytest.raises(ValueError, match=r"has nothing of .*made later, or packed since"):
            g.at(datetime(1990, 1, 1))
        with pytest.raises(ValueError, match=r"not a moment.*or a tag of the database .'third'"):
            g.at("fourth")
    with wendelin.open(testdb.url, at="third") as g:
        assert g["x"][0] == 2
        assert g.log(1)[0].tid == tids[2]
        assert g.tags == {}  # of that moment
    with pytest.raises(ValueError, match="not a moment"):
        wendelin.open(testdb.url, at="nothing")


def test_views_of_the_past_stay_when_the_present_changes(g):
    tids = history(g)
    past = g.at(tids[1])
    view = past["x"][:]
    g["x"][:] = 9
    commit()
    g["x"].resize((3,))
    commit()
    assert (view == 1).all()
    assert past["x"].shape == (10,)
    past.close()
    past.close()


# ---- the log ----


def changes(entry):
    return {c.path: (c.what, c.rows) for c in entry.changes}


def test_log(g, fmt):
    A = g.create_array("run/x", (10 * BLK,), "u1", blksize=BLK, zblk_fmt=fmt, attrs={"a": 1})
    transaction.get().setUser("me")
    commit("created")
    A[: 3 * BLK] = 1
    A[5 * BLK] = 1
    commit("filled")
    A.attrs["a"] = 2
    A.append(np.ones(BLK, "u1"))
    g["run"].attrs["b"] = 1
    commit("appended")
    g.move("run/x", "y")
    commit()
    del g["y"]
    g.tag("end")
    commit()
    entries = g.log()
    assert [e.note for e in entries[:5]] == ["", "", "appended", "filled", "created"]
    assert entries[4].user.endswith("me")
    assert entries == sorted(entries, key=lambda e: e.tid, reverse=True)
    assert all(abs(e.time.timestamp() - time.time()) < 3600 for e in entries[:5])
    # the array is not there any more: the log looks for it where it was
    assert changes(entries[4]) == {
        "": (["names"], []),
        "run": (["created"], []),
        "run/x": (["created", "attributes"], []),
    }
    assert changes(entries[3]) == {"run/x": (["rows"], [(0, 3 * BLK), (5 * BLK, 6 * BLK)])}
    assert changes(entries[2])["run/x"] == (
        ["changed", "attributes", "rows"],
        [(10 * BLK, 11 * BLK)],
    )
    assert changes(entries[2])["run"] == (["names", "attributes"], [])
    assert changes(entries[1]) == {"": (["names"], []), "run": (["names"], [])}
    assert changes(entries[0]) == {"": (["names", "tags"], [])}
    assert all(e.others == 0 for e in entries[:5])
    assert len(g.log(2)) == 2
    assert g.log(0) == []
    assert "run/x: rows 0:12288, 20480:24576" in str(entries[3])
    with pytest.raises(ValueError, match="count is -1"):
        g.log(-1)


def test_log_of_large_groups_and_other_objects(g):
    """Groups of many records, objects that are not groups, arrays of several axes and orders."""
    for i in range(200):
        g.create_group(f"many/{i:03}")
    g.obj["other"] = PersistentMapping()
    A = g.create_array("F", (4, 3 * BLK), "u1", order="F", blksize=BLK)
    g.create_array("scalar", data=5)
    commit()
    g.create_group("many/100x")
    A[:, BLK // 4 : BLK // 2] = 1
    g["scalar"][...] = 6
    commit()
    entry = g.log(1)[0]
    assert changes(entry) == {
        "F": (["rows"], [(BLK // 4, BLK // 2)]),
        "many": (["names"], []),
        "many/100x": (["created"], []),
        "scalar": (["rows"], []),
    }
    assert entry.others == 0


def blocks_of(r, row):
    return range(r * row // BLK, (r * row + row - 1) // BLK + 1)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 99), st.integers(1, 20)), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["u1", "V3", "i8"]),
)
def test_log_has_the_rows_that_changed(tmp_path_factory, works, dtype):
    """Each changed row is in a range. Ranges have only rows of blocks with a changed row."""
    path = tmp_path_factory.mktemp("log") / "x.fs"
    dtype = np.dtype(dtype)
    with wendelin.open(path) as g:
        A = g.create_array("x", (100, 5, 60), dtype, blksize=BLK)
        commit()
        for n, work in enumerate(works, 1):
            for lo, count in work:
                A[lo : lo + count] = np.frombuffer(bytes([n]) * dtype.itemsize, dtype)
            commit()
        entries = g.log(len(works))[::-1]
        row = 300 * dtype.itemsize
        for work, entry in zip(works, entries, strict=True):
            (change,) = entry.changes
            rows = {r for lo, hi in change.rows for r in range(lo, hi)}
            wanted = {r for lo, n in work for r in range(lo, min(100, lo + n))}
            assert wanted <= rows
            blocks = {b for r in wanted for b in blocks_of(r, row)}
            assert rows <= {r for r in range(100) if not blocks.isdisjoint(blocks_of(r, row))}


def test_log_of_any_storage_is_that_of_a_file(path):
    """The reader of record heads gives the same as the iterator of the storage.

    Of that, no records of other transactions are read, also where undoInfo() says nothing.
    """
    with wendelin.open(path) as g:
        history(g)
        g.undo(last(g))
        storage = g.obj._p_jar.db().storage
        found = last_transactions(storage, 4)

        class Transaction(SimpleNamespace):
            def __iter__(self):
                read.append(self.tid)
                return iter(self.records)

        class Iterated:
            lastTransaction = staticmethod(storage.lastTransaction)  # noqa: N815

            def iterator(self, start=None, stop=None):
                for t in storage.iterator(start, stop):
                    yield Transaction(
                        tid=t.tid, user=t.user, description=t.description, records=list(t)
                    )

        read = []
        others = last_transactions(Iterated(), 4)
        assert read == [t.tid for t in others[::-1]]
        every = last_transactions(Iterated(), 1000)
        assert every[:4] == others
        assert len(every) > 5
        stop = others[2].tid
        assert last_transactions(Iterated(), 2, stop) == others[2:]
        assert [(t.tid, t.note, [oid for oid, _ in t.records]) for t in found] == [
            (t.tid, t.note, [oid for oid, _ in t.records]) for t in others
        ]
        assert [r for t in found[1:] for r in t.records] == [
            r for t in others[1:] for r in t.records
        ]


# ---- undo ----


@undoes
def test_undo(g):
    history(g)
    entry = g.log(1)[0]
    g.undo(entry.tid)
    assert (g["x"][:] == 3).all()
    assert g.log(1)[0].note == f"undo of {entry.tid.hex()}"
    g.undo(g.log(1)[0].tid)  # and again
    assert (g["x"][:] == 4).all()
    with pytest.raises(UndoError, match="a later one has changed the same"):
        g.undo(g.log(10)[-3].tid)
    assert (g["x"][:] == 4).all()
    g["x"][0] = 7
    with pytest.raises(ValueError, match="commit or abort them before undo"):
        g.undo(entry.tid)
    transaction.abort()
    for tid in p64(u64(last(g)) + 5), b"\0" * 8:
        with pytest.raises(ValueError, match="has no transaction"):
            g.undo(tid)


@undoes
def test_undo_of_a_tree(g):
    g["a/x"] = np.arange(5)
    commit()
    del g["a"]
    g["b"] = np.arange(3)
    commit()
    g.undo(last(g))
    assert [path for path, _ in g.walk()] == ["a", "a/x"]
    assert g["a/x"][:].tolist() == [0, 1, 2, 3, 4]


# ---- tags ----


def test_tags(g):
    g["x"] = np.arange(5)
    g.tag("first")
    assert g.tags == {"first": None}
    with pytest.raises(ConnectionStateError, match="is not committed yet"):
        g.at("first")
    commit()
    tid = last(g)
    assert g.tags == {"first": tid}
    g["x"][0] = 9
    g.tag("second")
    g.tag("again", "first")
    commit()
    assert g.tags == {"first": tid, "second": last(g), "again": tid}
    storage = g.obj._p_jar.db().storage
    assert tags_of(storage) == g.tags
    assert oldest_tag(storage)[1] == tid
    with g.at("first") as past:
        assert past["x"][0] == 0
    with pytest.raises(ValueError, match=r"there is a tag 'first' already.*g.untag\('first'\)"):
        g.tag("first")
    for name in "", "a\nb", " x":
        with pytest.raises(ValueError, match="must be printable text"):
            g.tag(name)
    with pytest.raises(TypeError, match="must be a str"):
        g.tag(5)
    with pytest.raises(
        KeyError, match="there is no tag 'third': the database has 'first', 'second'"
    ):
        g.untag("third")
    g.untag("first")
    transaction.abort()
    assert "first" in g.tags
    for name in list(g.tags):
        g.untag(name)
    commit()
    assert g.tags == tags_of(storage) == {}
    assert list(g) == ["x"]


@pytest.mark.only("fs", "fscopy", "zeo")
def test_a_pack_keeps_what_is_tagged(g, caplog):
    tids = history(g)
    g.tag("third", tids[2])
    commit()
    db = g.obj._p_jar.db()
    db.pack(time.time() + 10)
    assert "the tag 'third' keeps that moment" in caplog.text
    for i in 2, 3, 4:
        with g.at(tids[i]) as past:
            assert (past["x"][:] == i).all()
    if not storages.kind().has_server:  # its client caches what it has seen
        with pytest.raises(GONE), g.at(tids[0]) as past:
            past["x"].read()
    caplog.clear()
    g.untag("third")
    commit()
    time.sleep(0.01)
    db.pack()
    assert "tag" not in caplog.text
    assert (g["x"][:] == 4).all()
    g.obj._p_jar.cacheMinimize()
    assert (g["x"][:] == 4).all()
    if not storages.kind().has_server:
        with pytest.raises(GONE), g.at(tids[2]) as past:
            past["x"].read()


def test_objects_that_are_not_tags_are_refused(root):
    storage = root._p_jar.db().storage
    assert tags_of(storage) == {}
    try:
        for wrong in 5, {}, ZBigArray((1,), "u1"), PersistentMapping(a=5), PersistentList([1]):
            root["~tags"] = wrong
            transaction.commit()
            with pytest.raises(Exception, match=r"is not a mapping of tags|is damaged"):
                tags_of(storage)
            assert wendelin.Group(root).log(1)
    finally:
        del root["~tags"]  # other tests use the same NEO cluster
        transaction.commit()


# ---- two clients ----


@undoes
def test_two_clients_tag_and_undo(testdb):
    root = testdb.open()
    g = wendelin.Group(root)
    other = Client(root)
    h = wendelin.Group(other.root)
    g["x"] = np.arange(3)
    commit()
    other.tm.begin()
    h["x"][0] = 5
    h.tag("theirs")
    other.tm.commit()
    transaction.begin()
    assert list(g.tags) == ["theirs"]
    g.undo(last(g))
    assert (g["x"][0], g.tags) == (0, {})
    other.tm.begin()
    assert h["x"][0] == 0
    other.close()
