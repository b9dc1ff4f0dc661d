"""URLs that other packages resolve: opened read-only, in any thread, and with time limits."""

import signal

import pytest
import transaction
from support import resolvers
from support.child import check_child
from support.servers import ZeoServer
from ZODB.POSException import ReadOnlyError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.interrupt import handlers_optional
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen


@pytest.fixture
def server(tmp_path):
    server = ZeoServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def neo(server, tmp_path, monkeypatch):
    """Return a URL of another package's client, which asks the ZEO server."""
    for folder in resolvers.install(tmp_path).split(":"):
        monkeypatch.syspath_prepend(folder)
    return f"neo://1@127.0.0.1:{server.port}"


@pytest.fixture(params=["neo", "sqlite", "zconfig", "demo", "demo in memory"])
def url(request, tmp_path):
    """Return a URL that opens a database."""
    if request.param == "neo":
        return request.getfixturevalue("neo")
    if request.param == "sqlite":
        pytest.importorskip("relstorage")
        (tmp_path / "db").mkdir()
        return f"sqlite://localhost/?data_dir={tmp_path}/db"
    if request.param == "zconfig":
        (tmp_path / "z.conf").write_text(f"<filestorage>\n  path {tmp_path}/z.fs\n</filestorage>\n")
        return f"zconfig://{tmp_path}/z.conf"
    return f"demo:(file://{tmp_path}/b.fs)/(file://{tmp_path}/c.fs)"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what clients import
def test_a_database_that_is_opened_read_only_is_not_changed(url, request, tmp_path):
    dbclose(dbopen(f"file://{tmp_path}/b.fs"))
    root = dbopen(url)
    root["A"] = A = ZBigArray((1000,), "i4", blksize=4096)
    transaction.commit()
    A[:] = root["x"] = 1
    transaction.commit()
    dbclose(root)
    if "memory" in request.node.name:
        base = f"file://{tmp_path}/m.fs"
        root = dbopen(base)
        root["A"] = A = ZBigArray((1000,), "i4", blksize=4096)
        root._p_jar.add(A)
        A[:] = root["x"] = 1
        transaction.commit()
        dbclose(root)
        url = f"demo:({base})/(memory://)"
    root = dbopen(url, read_only=True)
    conn = root._p_jar
    db = conn.db()
    assert db.storage.isReadOnly()
    assert conn.isReadOnly()
    assert root["A"][5] == root["x"] == 1

    def change():
        root["x"] = 2
        transaction.commit()

    def change_array():
        root["A"][5] = 2
        transaction.commit()

    for act in (
        change,
        change_array,
        lambda: conn.add(ZBigArray((5,), float)),
        lambda: db.storage.pack(0, None),
        db.storage.new_oid,
        lambda: db.storage.tpc_begin(transaction.get()),
    ):
        # a view of such an array is read-only, and raises what a read-only ndarray does
        with pytest.raises(ValueError if act is change_array else ReadOnlyError):
            act()
        transaction.abort()
    assert root["A"][5] == root["x"] == 1
    dbclose(root)
    root = dbopen(url)
    assert root["A"][5] == root["x"] == 1
    dbclose(root)


def test_a_storage_is_opened_read_only(neo):
    dbclose(dbopen(neo))
    storage = dbstoropen(neo, read_only=True)
    assert storage.isReadOnly()
    with pytest.raises(ReadOnlyError):
        storage.store(b"\0" * 8, b"\0" * 8, b"", "", None)
    storage.close()


def test_a_new_database_in_memory_is_not_opened_read_only():
    with pytest.raises(ValueError, match=r"memory://.*do not open it read-only"):
        dbopen("memory://", read_only=True)


def test_what_cannot_be_kept_from_writing_is_refused(monkeypatch):
    from wendelin.lib.storage import dburl

    closed = []

    class Storage:
        __slots__ = ()

        def store(self):
            """Nothing can be put in the place of this."""

        def close(self):
            closed.append(1)

    with pytest.raises(ValueError, match="'x://y' cannot be opened with read_only: a Storage"):
        dburl._read_only(Storage, "x://y")()
    assert closed


THREAD = """
    import signal, sys, threading, transaction
    from wendelin.lib.zodb import dbclose, dbopen
    original, default = signal.signal, signal.getsignal(signal.SIGUSR2)
    found = []

    def work():
        with transaction.manager:
            root = dbopen(sys.argv[1])
            root["x"] = 1
        dbclose(root)
        found.append(1)

    assert "support.resolvers" not in sys.modules
    if sys.argv[2] == "thread":
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGUSR2) is default
    else:
        work()
        assert signal.getsignal(signal.SIGUSR2) is not default
    assert "support.resolvers" in sys.modules
    assert found and signal.signal is original
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["thread", "main"])
def test_a_client_that_sets_handlers_of_signals(neo, where, tmp_path):
    (tmp_path / "again").mkdir()
    check_child(THREAD, neo, where, PYTHONPATH=resolvers.install(tmp_path / "again"))


def test_handlers_in_threads():
    """Two threads use it at a time; other threads still get the error."""
    import threading

    original = signal.signal
    step = threading.Barrier(3)
    failed = []

    def tolerant(first):
        with handlers_optional():
            step.wait()
            before = signal.getsignal(signal.SIGUSR2)
            if signal.signal(signal.SIGUSR2, print) is not before:
                failed.append("another answer")
            step.wait()
            if first:
                step.wait()
        if not first:
            step.wait()

    def strict():
        step.wait()
        try:
            signal.signal(signal.SIGUSR2, print)
            failed.append("no error")
        except ValueError:
            pass
        step.wait()
        step.wait()

    threads = [threading.Thread(target=tolerant, args=(first,)) for first in (True, False)]
    threads.append(threading.Thread(target=strict))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert signal.signal is original
    assert signal.getsignal(signal.SIGUSR2) is not print


HANGS = """
    import os, signal, sys, threading, time, transaction
    import numpy as np
    from persistent.mapping import PersistentMapping
    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.bigfile import BlockLoadError
    from wendelin.lib.zodb import dbclose, dbopen
    url, pid = sys.argv[1], int(sys.argv[2])
    root = dbopen(url + "?wait_timeout=5")
    root["m"] = PersistentMapping(x=1)
    root["A"] = A = ZBigArray((4096,), "u1", blksize=4096)
    transaction.commit()
    A[:] = 1
    transaction.commit()
    dbclose(root)

    def gives_up(act, what):
        try:
            act()
        except (TimeoutError, BlockLoadError) as e:
            e = e.__cause__ or e
            assert isinstance(e, TimeoutError) and e.errno == 110, e
            assert "neo://1@127.0.0.1" in str(e) and what in str(e) and "wait_timeout" in str(e), e
        else:
            raise AssertionError(what)
        transaction.abort()

    root = dbopen(url + "?wait_timeout=0.8")
    assert root["m"]["x"] == 1
    root["m"]["x"] = 2
    os.kill(pid, signal.SIGSTOP)
    gives_up(transaction.begin, "sync()")
    gives_up(lambda: root["A"].read(), "did not answer load")
    os.kill(pid, signal.SIGCONT)
    for _ in range(100):                   # what is under way still ends
        try:
            transaction.begin()
            break
        except TimeoutError:
            time.sleep(0.1)
    assert root["A"][7] == 1 and root["m"]["x"] == 1
    root["m"]["x"] = 3
    os.kill(pid, signal.SIGSTOP)
    gives_up(transaction.commit, "tpc_vote()")
    os.kill(pid, signal.SIGCONT)
    for _ in range(100):
        try:
            transaction.begin()
            root["m"]["x"] = 4
            transaction.commit()
            break
        except Exception as e:
            transaction.abort()
            time.sleep(0.1)
    assert root["m"]["x"] == 4
    os.kill(pid, signal.SIGSTOP)           # a process ends, while a call hangs
    gives_up(transaction.begin, "sync()")
    print("right", flush=True)
"""


@pytest.mark.slow
@pytest.mark.slow
def test_a_server_that_hangs(neo, server, tmp_path):
    """The program goes on, and ends; the client goes on when the server does."""
    (tmp_path / "again").mkdir()
    path = resolvers.install(tmp_path / "again")
    assert "right" in check_child(HANGS, neo, str(server.pid), PYTHONPATH=path)


def test_a_client_of_neo_for_another_python(tmp_path, monkeypatch):
    """pip installs neoppod 1.12 on Python 3, too, and its resolver is registered."""
    info = tmp_path / "oldneo-1.12.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oldneo\nVersion: 1.12\n")
    (info / "entry_points.txt").write_text("[zodburi.resolvers]\nneo = oldneo:resolve\n")
    (tmp_path / "oldneo.py").write_text("print 'Python 2'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"oldneo 1\.12.* does not run on Python 3.*gateway"):
        dbopen("neo://name@127.0.0.1:1")
