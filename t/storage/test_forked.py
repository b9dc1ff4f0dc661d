"""Children of fork(): a database that is inherited refuses calls; a child opens it anew."""

import pytest
from support import storages
from support.child import check_child

pytestmark = pytest.mark.formats

HEAD = """
    import multiprocessing, os, subprocess, sys, traceback, warnings
    import numpy as np, transaction
    from persistent.mapping import PersistentMapping
    from ZODB.DB import DB
    from zc.lockfile import LockError
    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.bigfile import ForkError
    from wendelin.lib.zodb import dbclose, dbopen, dbstoropen
    warnings.simplefilter("ignore")         # of fork() in a process with threads
    url = sys.argv[1]

    def new(n=1000):
        root = dbopen(url)
        root["A"] = A = ZBigArray((n,), float, blksize=4096)
        root["m"] = PersistentMapping()
        transaction.commit()
        for i in 1, 2:
            A[:] = i
            transaction.commit()
        return root

    def in_child(f, exits=os._exit):        # sys.exit: what is alive is finalized
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                f()
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            exits(code)
        assert os.waitpid(pid, 0)[1] == 0

    def refused(f, *args):
        try:
            f(*args)
        except ForkError as e:
            assert "fork()" in str(e) and "Open the database again" in str(e), e
        else:
            raise AssertionError(f)

    def check(root, first):                 # the parent goes on, and what it has is there
        A = root["A"]
        A[7] = -7
        root["m"]["x"] = 7
        transaction.commit()
        dbclose(root)
        root = dbopen(url)
        assert root["A"][6] == first and root["A"][7] == -7 and root["m"]["x"] == 7
        dbclose(root)
        print("right")
"""


def run(code, *args, **kw):
    return check_child(HEAD + code, *args, **kw)


EVERY_CALL = """
    root = new()
    conn = root._p_jar
    db = conn.db()
    storage = db.storage
    tid = storage.lastTransaction()
    undone = storage.undoLog(0, 1) if hasattr(storage, "undoLog") else []
    undo = undone[0]["id"] if undone else None      # NEO's gateway says that it has none

    def child():
        txn = transaction.get()
        for call, *args in [
            ("close",), ("load", root._p_oid), ("loadBefore", root._p_oid, tid), ("new_oid",),
            ("history", root._p_oid), ("iterator",), ("pack", 0, None), ("tpc_begin", txn),
            ("store", root._p_oid, tid, b"", "", txn), ("tpc_vote", txn), ("tpc_finish", txn),
            ("tpc_abort", txn), ("undo", undo, txn), ("undoLog", 0, 1), ("cleanup",),
        ]:
            if hasattr(storage, call):
                refused(getattr(storage, call), *args)
        for call in db.close, db.pack, db.open, lambda: db.undo(undo):
            refused(call)
        root["m"]["x"] = -1
        refused(transaction.commit)
        transaction.abort()
        conn.cacheMinimize()
        refused(lambda: root["m"]["x"])     # what is not in memory
        transaction.begin()
        transaction.abort()

    for exits in os._exit, sys.exit:
        in_child(child, exits)
    in_child(lambda: (dbclose(root), dbclose(root), transaction.commit()))
    check(root, 2)
"""


@pytest.mark.database
def test_every_call_that_could_harm_is_refused(testdb):
    assert "right" in run(EVERY_CALL, testdb.url)


UNCOMMITTED = """
    root = new()
    root["A"][6] = 6
    root["m"]["y"] = 6
    point = transaction.savepoint()
    root["A"][6] = 66
    root["m"]["y"] = 66
    transaction.savepoint()

    def child():
        refused(lambda: root["A"][0])
        refused(point.rollback)
        transaction.abort()

    def savepoint():
        refused(transaction.savepoint)

    for act in child, savepoint, transaction.begin, lambda: dbclose(root):
        for exits in os._exit, sys.exit:
            in_child(act, exits)
    assert root["A"][6] == 66 and root["m"]["y"] == 66
    point.rollback()
    assert root["A"][6] == 6 and root["m"]["y"] == 6
    check(root, 6)
"""


@pytest.mark.database
def test_what_the_parent_has_not_committed_stays_as_it_is(testdb):
    assert "right" in run(UNCOMMITTED, testdb.url)


IN_A_COMMIT = """
    root = new()

    class Forks:                            # a data manager that forks in the middle of a commit
        transaction_manager = transaction.manager
        def __init__(self, key, exits):
            self.key, self.exits = key, exits
        def sortKey(self):
            return self.key
        def abort(self, txn): pass
        def commit(self, txn): pass
        def tpc_begin(self, txn): pass
        def tpc_vote(self, txn):
            in_child(self.child, self.exits)
        def tpc_finish(self, txn): pass
        tpc_abort = abort
        def child(self):
            storage = root._p_jar.db().storage
            meta = transaction.get().data(root._p_jar)
            for call in storage.tpc_vote, storage.tpc_finish, storage.tpc_abort, storage.close:
                refused(call, *([meta] if call != storage.close else []))
            refused(storage.store, root._p_oid, b"", b"", "", meta)
            dbclose(root)

    for i in range(4):
        root["A"][:] = root["m"]["i"] = i
        # it votes before the Connection, or after it
        transaction.get().join(Forks("~" if i % 2 else " ", (os._exit, sys.exit)[i // 2]))
        transaction.commit()
        assert root["A"][6] == i
    check(root, 3)
"""


@pytest.mark.database
def test_a_fork_in_the_middle_of_a_commit(testdb):
    assert "right" in run(IN_A_COMMIT, testdb.url)


ANEW = """
    root = new()
    root["A"][6] = 5                        # not committed

    def work(i):
        transaction.begin()
        mine = dbopen(url)
        transaction.begin()
        assert mine["A"][6] == 2            # as committed
        with transaction.manager:
            mine["A"][100 * i] = i
        transaction.begin()
        found = mine["A"][100 * i]
        dbclose(mine)
        return found

    in_child(lambda: work(3))
    in_child(lambda: (dbclose(root), work(4)))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(work, [5, 6]) == [5, 6]
    transaction.abort()
    transaction.begin()
    assert [root["A"][100 * i] for i in (3, 4, 5, 6)] == [3, 4, 5, 6]
    check(root, 2)
"""


@pytest.mark.database
@pytest.mark.skipif(not storages.kind().has_server, reason="a file has one client")
def test_children_open_the_database_anew(testdb):
    assert "right" in run(ANEW, testdb.url)


LOCKED = """
    root = new()

    def child():
        try:
            dbopen(url)
        except LockError:
            pass
        else:
            raise AssertionError("two writers")
        mine = dbopen(url, read_only=True)
        transaction.begin()
        assert mine["A"][6] == 2
        dbclose(mine)
        dbclose(root)

    in_child(child)
    in_child(child, sys.exit)
    in_child(lambda: refused(root._p_jar.db().pack))
    second = [sys.executable, "-P", "-c", sys.argv[2], url]
    assert subprocess.run(second).returncode == 0
    leaves, stays = os.pipe()
    if os.fork() == 0:                      # it lives on when the parent has closed the file
        os.close(stays)
        os.read(leaves, 1)
        os._exit(0)
    check(root, 2)
"""
SECOND_WRITER = """
import sys
from wendelin.lib.zodb import dbopen
try:
    dbopen(sys.argv[1])
except Exception as e:
    sys.exit(type(e).__name__ != "LockError")
sys.exit(2)
"""


@pytest.mark.parametrize("options", ["", "?align=false"])
def test_a_file_stays_locked_by_the_parent(path, options):
    assert "right" in run(LOCKED, f"file://{path}{options}", SECOND_WRITER)


def test_a_storage_without_a_database_of_ours(path):
    """The program itself has opened it; a child of a child is refused, too."""
    code = """
    from wendelin.lib.storage.filestorage import AlignedFileStorage
    conn = DB(AlignedFileStorage(url)).open()
    conn.root()["m"] = PersistentMapping()
    transaction.commit()

    def child():
        transaction.begin()
        conn.root()["m"]["x"] = 1
        refused(transaction.commit)
        transaction.abort()
        refused(conn.db().close)

    in_child(child)
    in_child(lambda: in_child(child))
    conn.root()["m"]["x"] = 2
    transaction.commit()
    conn.db().close()
    print(DB(AlignedFileStorage(url)).open().root()["m"]["x"])
    """
    assert run(code, path) == "2\n"


@pytest.mark.parametrize("scheme", ["sqlite", "demo", "memory"])
@pytest.mark.slow
def test_other_storages(tmp_path, scheme):
    """A storage that zodburi opens refuses the same calls, as far as it has them."""
    if scheme == "sqlite":
        pytest.importorskip("relstorage")
        (tmp_path / "db").mkdir()
        url = f"sqlite://localhost/?data_dir={tmp_path}/db"
    else:
        url = {"demo": f"demo:(memory://a)/(file://{tmp_path}/c.fs)", "memory": "memory://a"}[
            scheme
        ]
    code = EVERY_CALL if scheme != "memory" else EVERY_CALL.replace("    check(root, 2)", "")
    run(code, url)
