"""transact(): it commits the work of a function, and tries again after a conflict."""

import threading

import numpy as np
import pytest
import transaction
from support.clients import Client
from transaction import TransactionManager
from ZODB.POSException import ConflictError

import wendelin
from wendelin.tree import retry

pytestmark = pytest.mark.formats


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda s: None)


def test_transact_commits_and_returns(root):
    def work():
        root["n"] = root.get("n", 0) + 1
        return "done"

    assert wendelin.transact(work) == "done"
    transaction.abort()
    assert root["n"] == 1


def test_a_conflict_is_tried_again(root):
    wendelin.Group(root)["x"] = np.zeros(5, "i8")
    transaction.commit()
    other = Client(root)
    calls = []

    def work():
        calls.append(int(root["x"][0]))
        root["x"][0] += 1
        if len(calls) < 4:
            other.tm.begin()
            other["x"][0] += 10
            other.tm.commit()

    wendelin.transact(work)
    assert calls == [0, 10, 20, 30]
    assert root["x"][0] == 31
    other.close()


def test_the_last_conflict_is_raised(root):
    wendelin.Group(root)["x"] = np.zeros(5, "i8")
    transaction.commit()
    other = Client(root)

    def work():
        root["x"][0] += 1
        other.tm.begin()
        other["x"][0] += 10
        other.tm.commit()

    with pytest.raises(ConflictError) as e:
        wendelin.transact(work, tries=3)
    assert e.value.__notes__ == ["transact() has tried it 3 times"]
    assert root["x"][0] == 30  # its change was aborted
    other.close()


def test_other_errors_are_not_tried_again(root):
    calls = []

    def work():
        calls.append(1)
        root["n"] = 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wendelin.transact(work)
    assert calls == [1]
    assert "n" not in root


def test_changes_before_transact_are_refused(root):
    root["n"] = 1
    with pytest.raises(ValueError, match="changes that are not committed"):
        wendelin.transact(lambda: None)
    assert root["n"] == 1
    transaction.abort()
    for tries in 0, -1, 1.5, True:
        with pytest.raises(ValueError, match="tries is"):
            wendelin.transact(lambda: None, tries=tries)
    with pytest.raises(TypeError, match="is not callable"):
        wendelin.transact(5)


def test_many_clients_count_together(root):
    root["n"] = 0
    transaction.commit()
    db = root._p_jar.db()

    def client():
        manager = TransactionManager()
        conn = db.open(manager)

        def work():
            conn.root()["n"] += 1

        for _ in range(5):
            wendelin.transact(work, 1000, manager=manager)
        conn.close()

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    transaction.begin()
    assert root["n"] == 20
