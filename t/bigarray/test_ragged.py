"""ZRagged: pieces by key, with several writers; compared with a dict of arrays."""

import multiprocessing
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import storages
from support.child import check_child, start_child
from support.clients import Client
from support.raggedtasks import read, write
from ZODB.POSException import ConflictError, ConnectionStateError

from wendelin.lib.zodb import zstor_2zurl
from wendelin.ragged import ZRagged

pytestmark = pytest.mark.database


def made(root, *args, **kw):
    R = root["R"] = ZRagged(*args, **kw)
    transaction.commit()
    return R


def test_pieces(root):
    R = made(root, "i4")
    R.put("one", [1, 2, 3])
    R.put(b"two", np.array([4, 5], "u1"))
    R.put(-7, ())
    R.update({"three": [6.0], 12: [7, 8]})
    transaction.commit()
    assert R["one"].tolist() == [1, 2, 3]
    assert R["one"].dtype == "i4"
    assert R[b"two"].tolist() == [4, 5]
    assert R[np.int8(-7)].shape == (0,)
    assert list(R) == [-7, 12, b"two", "one", "three"] == list(R.keys())
    assert len(R) == 5
    assert "one" in R
    assert b"one" not in R
    assert 1.5 not in R
    assert R.get("four") is None
    assert [v.tolist() for v in R.values()] == [[], [7, 8], [4, 5], [1, 2, 3], [6]]
    assert R[:].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert R[-3:].tolist() == [6, 7, 8]
    assert R[6:1:-2].tolist() == [7, 5, 3]
    assert R[3:3].shape == (0,)
    assert np.sum(R) == 36
    for key, start, stop in R.ranges():
        assert np.array_equal(R[start:stop], R[key])


def test_a_view_is_of_the_database(root):
    R = made(root, "f8")
    R.put("a", np.arange(4))
    R["a"][:2] = 9
    transaction.commit()
    assert R["a"].tolist() == [9, 9, 2, 3]
    R["a"][3] = -1
    transaction.abort()
    assert R["a"].tolist() == [9, 9, 2, 3]


def test_rows(root):
    R = made(root, "f4", row=(2, 3))
    R.put("a", np.ones((4, 2, 3)))
    R.put("b", [])
    assert R["a"].shape == (4, 2, 3)
    assert R["b"].shape == (0, 2, 3)
    with pytest.raises(ValueError, match=r"values of shape \(2, 3\) are not a piece .*\(n, 2, 3\)"):
        R.put("c", np.ones((2, 3)))
    S = root["S"] = ZRagged([("t", "i8"), ("v", "f4")])
    transaction.commit()
    S.put("x", [(1, 2.5), (3, 4.5)])
    assert S["x"]["v"].tolist() == [2.5, 4.5]


def test_bad_input(root):
    R = ZRagged("i4")
    with pytest.raises(ConnectionStateError, match=r"root\['R'\] = R"):
        R.put("a", [1])
    R = made(root, "i4")
    R.put("a", [1, 2])
    for key in 1.5, None, ("a",), True:
        with pytest.raises(TypeError, match="a key is a str, bytes or int"):
            R.put(key, [3])
    with pytest.raises(ValueError, match="64 bits"):
        R.put(1 << 63, [3])
    with pytest.raises(ValueError, match="are not a piece"):
        R.put("b", 3)
    with pytest.raises(KeyError, match="none"):
        R["none"]
    with pytest.raises(KeyError, match="none"):
        del R["none"]
    with pytest.raises(TypeError, match="a writer's name is a str"):
        R.writer(1)
    with pytest.raises(TypeError):
        ZRagged(object)
    assert next(R.values()).tolist() == [1, 2]
    assert R[:].tolist() == [1, 2]


def test_replaced_and_removed(root):
    R = made(root, "i4")
    R.update({k: np.full(1000, k) for k in range(100)})
    transaction.commit()
    R.put(3, [33])
    del R[5]
    with pytest.raises(ValueError, match=r"2000 rows of pieces that were replaced.*compact"):
        R[:]
    assert R.compact() == 2000
    transaction.commit()
    assert R[:].shape == (98_001,)
    for k in range(100):
        assert k == 5 or R[k].tolist() == ([33] if k == 3 else [k] * 1000)
    assert R.compact() == 0


def test_aborted_creation(root):
    R = root["R"] = ZRagged("i4")
    root._p_jar.add(R)
    R.put("a", [1])
    assert R["a"].tolist() == [1]
    transaction.abort()
    with pytest.raises(ConnectionStateError):
        R.put("b", [2])
    root["R"] = R
    with pytest.raises(ValueError, match="make another one"):
        transaction.commit()
    transaction.abort()


KEYS = st.one_of(st.integers(-3, 3), st.sampled_from("abc"), st.sampled_from([b"a", b"b"]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(["", "w"]), KEYS, st.integers(0, 3000)),
        st.tuples(st.sampled_from(["del"]), KEYS),
        st.tuples(
            st.sampled_from(["commit", "abort", "compact", "savepoint", "rollback", "other"])
        ),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_model(root, steps):
    """It behaves as a dict of arrays, over commits, aborts, savepoints, and another client."""
    R = root["model"] = ZRagged("i4", blksize=4096)
    transaction.commit()
    now, committed, saved, number = {}, {}, None, 0
    for step, *args in steps:
        if step == "put":
            writer, key, n = args
            number += 1
            values = np.full(n, number, "i4")
            R.writer(writer).put(key, values)
            now[key] = values
        elif step == "del":
            if args[0] in now:
                del R[args[0]], now[args[0]]
        elif step == "commit":
            transaction.commit()
            committed, saved = dict(now), None
        elif step == "abort":
            transaction.abort()
            now, saved = dict(committed), None
        elif step == "compact":
            R.compact()
        elif step == "savepoint":
            saved = transaction.savepoint(), dict(now)
        elif step == "rollback" and saved is not None:
            saved[0].rollback()
            now, saved = dict(saved[1]), None
        elif step == "other":
            transaction.commit()
            committed, saved = dict(now), None
            with closing(Client(root)) as other:
                seen = {k: np.array(v) for k, v in other.root["model"].items()}
                _assert_same(seen, committed)
        _assert_same(dict(R.items()), now)
        assert len(R) == len(now)
    transaction.abort()
    del root["model"]
    transaction.commit()


def _assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert np.array_equal(found[key], values), key


def test_writers_do_not_conflict(root):
    R = made(root, "i4")
    for i in range(3):
        R.writer(f"w{i}").put(f"w{i}", [i])
    transaction.commit()
    with closing(Client(root)) as one, closing(Client(root)) as two:
        for turn in range(20):
            for i, client in enumerate((one, two)):
                client.tm.begin()
                w = client.root["R"].writer(f"w{i}")
                w.update({f"{i}-{turn}-{k}": np.full(500, turn) for k in range(30)})
            one.tm.commit()
            two.tm.commit()
    transaction.begin()
    assert len(R) == 3 + 2 * 20 * 30
    assert np.sum(R) == 3 + 2 * 30 * 500 * sum(range(20))


def test_the_same_writer_conflicts(root):
    R = made(root, "i4")
    R.put("a", [1])
    transaction.commit()
    with closing(Client(root)) as one, closing(Client(root)) as two:
        for client in one, two:
            client.tm.begin()
            client.root["R"].put("b", [2])
        one.tm.commit()
        with pytest.raises(ConflictError):
            two.tm.commit()
        two.tm.abort()
        assert two.root["R"]["b"].tolist() == [2]


def test_the_last_put_counts(root):
    R = made(root, "i4")
    R.writer("z").put("a", [1])
    R.writer("b").put("a", [2, 2])
    assert R["a"].tolist() == [2, 2]
    assert len(R) == 1
    assert R.compact() == 1
    assert R["a"].tolist() == [2, 2]
    assert R.writers() == ["", "b", "z"]


# ---- the example of bigarray, in processes ----


JOBS = [(i, i + 10) for i in range(0, 80, 10)]


def _writers(root):
    R = made(root, "int32")
    for start, _ in JOBS:
        R.writer(f"from {start}")
    transaction.commit()
    return R


def _check(R):
    transaction.begin()
    assert R["name0"].tolist() == list(range(10))
    assert R["name66"].tolist() == list(range(660, 670))
    assert R["name78"].tolist() == list(range(780, 790))
    for name, s, e in R.ranges():
        assert np.array_equal(R[s:e], R[name])
    assert np.sum(R) == 319600


@pytest.mark.skipif(not storages.kind().has_server, reason="a file has one client that writes")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_example_in_processes(root, start):
    """As https://github.com/trungnt13/bigarray has it: two processes write, two read."""
    R = _writers(root)
    url = zstor_2zurl(root._p_jar.db().storage)
    with multiprocessing.get_context(start).Pool(2) as p:
        p.map(write, [(url, *job) for job in JOBS])
        _check(R)
        assert sum(p.map(read, [(R, *job) for job in JOBS])) == 319600


def test_example_in_threads(root):
    R = _writers(root)
    for start, stop in JOBS:
        R.writer(f"from {start}").update(
            {f"name{i}": np.arange(i * 10, i * 10 + 10) for i in range(start, stop)}
        )
    transaction.commit()
    _check(R)
    with ThreadPoolExecutor(2) as p:
        assert sum(p.map(read, [(R, *job) for job in JOBS])) == 319600
        past = pickle.loads(pickle.dumps(R))
        assert sum(p.map(read, [(past, *job) for job in JOBS])) == 319600
    with pytest.raises(pickle.PicklingError, match="not committed"):
        R.put("x", [1])
        pickle.dumps(R)
    assert "x" not in past
    assert len(past) == 80


@pytest.mark.only("fs", "zeo")
def test_isolation(root):
    """A client sees pieces as at its last boundary, while another puts, removes and compacts."""
    R = made(root, "i4")
    R.update({"a": [1, 1], "b": [2], "c": [3, 3, 3]})
    transaction.commit()
    client = Client(root)
    S = client["R"]
    before = {key: piece.tolist() for key, piece in S.items()}
    kept = S["c"]
    R.put("a", [9])
    del R["b"]
    R.put("d", [4])
    R.writer("p").put("e", [5])
    assert {key: piece.tolist() for key, piece in S.items()} == before  # not committed
    R.compact()
    transaction.commit()
    assert {key: piece.tolist() for key, piece in S.items()} == before  # no boundary yet
    assert kept.tolist() == [3, 3, 3]
    client.tm.begin()
    assert {key: piece.tolist() for key, piece in S.items()} == {
        "a": [9],
        "c": [3, 3, 3],
        "d": [4],
        "e": [5],
    }
    R.put("f", [6])
    transaction.abort()
    assert "f" not in R
    client.close()


WRITES = """
    import sys
    import numpy as np, transaction
    from wendelin.lib.zodb import dbopen
    from wendelin.ragged import ZRagged
    root = dbopen(sys.argv[1])
    R = root["R"] = ZRagged("i4", blksize=4096)
    root["n"] = 0
    transaction.commit()
    print("begin", flush=True)
    while True:
        n = root["n"]
        R.update({k: np.full(k % 3000, k) for k in range(n, n + 10)})
        if n % 50 == 40:
            del R[n - 20]
            R.compact()
        root["n"] = n + 10
        transaction.commit()
"""
CHECKS = """
    import sys
    from wendelin.lib.zodb import dbopen
    root = dbopen(sys.argv[1])
    R, n = root["R"], root["n"]
    gone = {k - 20 for k in range(40, n, 50)}
    assert set(R) == set(range(n)) - gone, (len(R), n)
    for k, values in R.items():
        assert values.shape == (k % 3000,) and (values == k).all(), k
    print(n)
"""


@pytest.mark.only("fs", "zeo")
@pytest.mark.parametrize("seconds", [0.1, 0.8])
def test_kill(testdb, seconds):
    """A process that is killed in the middle leaves whole transactions."""
    with start_child(WRITES, testdb.url, stdout=-1) as child:
        assert child.stdout.readline() == "begin\n"
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
    assert int(check_child(CHECKS, testdb.url)) >= 0
