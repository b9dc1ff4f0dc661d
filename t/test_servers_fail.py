"""Servers that die, hang, or cannot be reached: what readers see, and what becomes of commits.

All with a ZEO server, and with NEO behind its gateway, as the environment says. The client that is
tested has a proxy between itself and the server; others that check, or change something meanwhile,
have none. It may know what servers and storages do, and no inner side of the pager but the one
place where pages are dropped.

Whatever could hang runs in a thread with a limit (within()).
"""

import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from clients import BLK, FIRST, N, changed, in_database
from neocluster import Gateway, NeoCluster
from proxy import TO_CLIENT, Proxy
from servers import HOST, ZeoServer, free_port, wait_until
from transaction import TransactionManager
from ZEO.Exceptions import ClientDisconnected
from ZODB.DB import DB

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, DoomedError
from wendelin.lib.zodb import dbopen, dbstoropen

pytestmark = [
    pytest.mark.servers("zeo", "neo"),
    pytest.mark.database,
    pytest.mark.formats,
]

# a gateway of Python 2.7 may take a while, on a loaded machine
WAIT = 3 if os.environ.get("WENDELIN_CORE_TEST_DB") == "neo" else 1  # wait_timeout of clients [s]
LONG = 20  # of those that are to see the server come back [s]
LIMIT = 5 * WAIT + 5  # for one read, or one step of a transaction, on a loaded machine [s]


# ---- limits ----


def within(seconds, act, *args):
    """Return what a call returns, or raise what it raises; it fails if that takes longer."""
    outcome = {}

    def run():
        try:
            outcome["result"] = act(*args)
        except BaseException as e:
            outcome["error"] = e

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        faulthandler.dump_traceback(sys.__stderr__)
        pytest.fail(f"{act} has not ended within {seconds} s")
    if "error" in outcome:
        raise outcome["error"]
    return outcome.get("result")


@contextmanager
def meanwhile(act, *args):
    """Run a call in another thread; it must end, without an exception, within the block's limit."""
    errors = []

    def run():
        try:
            act(*args)
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(LONG + LIMIT)
    assert not thread.is_alive()
    assert errors == []


# ---- servers and clients ----


class Zeo:
    """A ZEO server that knows what the last three transactions changed, and no more."""

    def __init__(self, folder):
        self.server = ZeoServer(folder, options="  invalidation-queue-size 3\n")
        self.server.start()
        self.port = self.server.port

    def start(self):
        self.server.start()

    def forget(self):
        """Let it not know what the last transactions changed; run while the client is away."""

    def stop(self):
        self.server.stop()


class Neo:
    """A gateway before a cluster that all tests share."""

    cluster = None

    def __init__(self, folder):
        self.server = Gateway(folder, self.cluster.masters)
        self.server.start()
        self.port = int(self.server.address.rpartition(":")[2])

    def start(self):
        self.server.start()

    def forget(self):
        self.server.stop()
        self.server.start()

    def stop(self):
        self.server.stop()


Servers = Neo if os.environ.get("WENDELIN_CORE_TEST_DB") == "neo" else Zeo


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Return the NEO cluster; None: it is not NEO that runs."""
    if Servers is Zeo:
        yield None
        return
    cluster = Neo.cluster = NeoCluster(tmp_path_factory.mktemp("neo"), storages=2, replicas=1)
    cluster.start()
    yield cluster
    cluster.stop()


class Opened:
    """A client with its own storage, and transactions."""

    def __init__(self, port, wait=WAIT, options=""):
        self.tm = TransactionManager()
        self.storage = dbstoropen(f"zeo://{HOST}:{port}?wait_timeout={wait}{options}")
        self.db = DB(self.storage)
        self.root = self.db.open(self.tm).root()

    @property
    def A(self):
        return self.root["A"]

    def close(self):
        """Close it, also where nobody answers."""
        with suppress(ClientDisconnected):
            self.tm.abort()
        self.root._p_jar.close()
        self.db.close()
        self.root = self.db = self.storage = None  # pytest keeps fixtures for long

    def again(self):
        """Begin a transaction, as soon as the server answers."""
        end = time.monotonic() + 30
        while True:
            try:
                within(LIMIT, self.tm.abort)
                return within(LIMIT, self.tm.begin)
            except ClientDisconnected:
                assert time.monotonic() < end


class World:
    """Servers, the network, and clients."""

    def __init__(self, folder):
        self.servers = Servers(folder)
        self.server = self.servers.server
        self.proxy = Proxy(self.servers.port)
        self.clients = []

    def open(self, **kw):
        """Return a client behind the proxy."""
        return self._open(self.proxy.port, **kw)

    def near(self):
        """Return a client that no proxy troubles."""
        return self._open(self.servers.port, wait=LONG)

    def _open(self, port, **kw):
        client = within(2 * LONG, lambda: Opened(port, **kw))
        self.clients.append(client)
        return client

    def in_database(self):
        """Return what the database has, as nobody's cache knows it."""
        client = self.near()
        data = in_database(client.A)
        self.clients.remove(client)
        client.close()
        return data

    def kill(self):
        self.server.kill()

    def stop(self):
        self.proxy.mend()
        if self.server.alive():
            self.server.send(signal.SIGCONT)
        for client in self.clients:
            within(3 * LIMIT, client.close)
        self.proxy.close()
        self.servers.stop()


def ends():
    """Return (sockets, threads) of this process, without the threads that load ahead."""
    gc.collect()
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    threads = [t for t in threading.enumerate() if "prefetch" not in t.name]
    return sum(link.startswith("socket:") for link in links), len(threads)


@pytest.fixture
def no_ends():
    """Check that no connection, and no thread of one, is left."""
    before = ends()
    yield
    after = ends()
    assert all(a <= b for a, b in zip(after, before, strict=True)), (before, after)


@pytest.fixture
def world(tmp_path, cluster, no_ends):
    world = World(tmp_path)
    creator = world.near()
    creator.root.clear()
    creator.root["A"] = ZBigArray((N * BLK,), "u1", blksize=BLK)
    creator.tm.commit()
    creator.A[: FIRST.size] = FIRST
    creator.tm.commit()
    world.clients.remove(creator)
    creator.close()
    yield world
    world.stop()


@pytest.fixture
def client(world):
    return world.open()


def read(view):
    """Return a copy of what a view shows; the exception comes from here."""
    copy = view.copy()
    for _ in range(1000):
        pass
    return copy


def gone(world):
    """Ways in which servers are not there: what makes it so, and what ends it."""
    return {
        "killed": (world.kill, world.servers.start),
        "hangs": (
            lambda: world.server.send(signal.SIGSTOP),
            lambda: world.server.send(signal.SIGCONT),
        ),
        "cut": (world.proxy.cut, world.proxy.mend),
        "stalls": (world.proxy.stall, world.proxy.mend),
    }


# ---- reading ----


@pytest.mark.parametrize("way", ["killed", "hangs", "stalls"])
def test_a_reader(world, client, way):
    """Pages in memory are read; others are an error, which dooms the transaction; then all is well.

    Twenty pages that are not there take no longer than one.
    """
    go, come = gone(world)[way]
    a = client.A[:]
    mid = 2 * BLK
    assert within(LIMIT, lambda: a[mid]) == FIRST[mid]
    go()
    assert (read(a[mid : mid + BLK]) == FIRST[mid : mid + BLK]).all()
    a[mid] = 1
    with pytest.raises(BlockLoadError) as e:
        within(LIMIT, read, a)
    assert isinstance(e.value.__cause__, ClientDisconnected)
    with pytest.raises(DoomedError):
        within(LIMIT, client.tm.commit)
    within(LIMIT, client.tm.abort)
    with pytest.raises(ClientDisconnected):
        within(LIMIT, client.tm.begin)
    come()
    client.again()
    assert (within(LIMIT, read, a) == FIRST).all()
    a[mid] = 2
    within(LIMIT, client.tm.commit)
    assert world.in_database()[mid] == 2


@pytest.mark.parametrize("way", ["killed", "cut"])
def test_a_reader_in_the_middle_of_a_block_waits(world, way):
    """The server is gone in the middle of its answer, and comes back: it is asked again."""
    go, come = gone(world)[way]
    client = world.open(wait=LONG)
    a = client.A[:]
    came = threading.Event()
    world.proxy.after(BLK + BLK // 2, TO_CLIENT, lambda: (world.proxy.cut(), go(), came.set()))

    def check():
        assert (read(a) == FIRST).all()

    with meanwhile(check):
        assert came.wait(LIMIT)
        come()  # here, as the server goes down with the thread that starts it
        world.proxy.mend()
    client.tm.commit()


def test_readers_in_threads(world):
    """Each has its view, and sees the right bytes or an exception, whenever the server goes."""
    clients = [world.open() for _ in range(4)]
    outcomes = []

    def reader(client):
        for _ in range(3):
            try:
                client.tm.begin()
                client.root._p_jar.cacheMinimize()
                a = client.A[:]
                for blk in range(N):
                    client.A._fileh().invalidate_page(blk)
                outcomes.append((read(a) == FIRST).all())
            except (BlockLoadError, ClientDisconnected):
                client.tm.abort()

    threads = [threading.Thread(target=reader, args=(c,), daemon=True) for c in clients]
    reached = threading.Event()
    world.proxy.after(3 * N * BLK // 2, TO_CLIENT, lambda: (world.proxy.cut(), reached.set()))
    for thread in threads:
        thread.start()
    assert reached.wait(LIMIT)
    world.kill()
    world.servers.start()
    world.proxy.mend()
    for thread in threads:
        thread.join(3 * LIMIT)
        assert not thread.is_alive()
    assert all(outcomes)
    for client in clients:
        client.again()
        assert (read(client.A[:]) == FIRST).all()


# ---- commits ----

NEW = np.concatenate([FIRST, np.full(BLK, 3, "u1")])
NEW[0], NEW[5 * BLK + 3] = 1, 2


def change(client):
    """Change a block, make one of a hole, and append one: FIRST becomes NEW."""
    client.A[0], client.A[5 * BLK + 3] = 1, 2
    client.A.append(np.full(BLK, 3, "u1"))


class At:
    """A data manager that does something at a point of the commit, before or after the storage."""

    def __init__(self, tm, phase, after, act):
        self.transaction_manager, self.phase, self.after, self.act = tm, phase, after, act
        tm.get().join(self)

    def sortKey(self):
        return "~" if self.after else ""

    def __getattr__(self, name):
        if name not in ("tpc_begin", "commit", "tpc_vote", "tpc_finish", "tpc_abort", "abort"):
            raise AttributeError(name)
        return lambda txn: self.act() if name == self.phase else None


def check_either(world, client, outcomes=(FIRST, NEW)):
    """Check that the database has one of two states, the client sees that, and can go on."""
    client.again()
    data = world.in_database()
    assert any(np.array_equal(data, outcome) for outcome in outcomes)
    assert client.A.shape == data.shape
    assert (within(LIMIT, read, client.A[:]) == data).all()
    near = world.near()
    assert (read(near.A[:]) == data).all()
    client.A[BLK] = 77
    within(LIMIT, client.tm.commit)
    data[BLK] = 77
    assert (world.in_database() == data).all()
    near.tm.begin()
    assert (read(near.A[:]) == data).all()


POINTS = {
    "before_stores": ("tpc_begin", True),
    "before_vote": ("commit", True),
    "after_vote": ("tpc_vote", True),
    "in_finish": ("tpc_finish", False),
}


CLIENT_ONLY = [
    ("killed", "before_stores"),
    ("killed", "in_finish"),
    ("hangs", "before_vote"),
    ("cut", "before_vote"),
]


@pytest.mark.parametrize(
    ("way", "point"),
    [
        ("killed", "before_vote"),
        ("killed", "after_vote"),
        ("stalls", "in_finish"),
        # what differs in the client only is tried with one kind
        *([] if Servers is Neo else CLIENT_ONLY),
    ],
)
def test_a_commit(world, client, way, point):
    """The server goes at a point of the commit: the state is one of the two."""
    go, come = gone(world)[way]
    within(LIMIT, read, client.A[:])
    change(client)
    At(client.tm, *POINTS[point], go)
    with pytest.raises(ClientDisconnected):
        within(2 * LIMIT, client.tm.commit)
    come()
    # what has not been cut off may still get through
    check_either(world, client, [FIRST] if way in ("killed", "cut") else [FIRST, NEW])


@pytest.mark.parametrize("seen", [False, True])
def test_a_commit_whose_answer_is_lost(world, client, seen):
    """It is in the database, and the client was told that it failed."""
    if seen:
        within(LIMIT, read, client.A[:])
    change(client)
    At(client.tm, "tpc_finish", False, lambda: world.proxy.after(0, TO_CLIENT))
    with pytest.raises(ClientDisconnected):
        within(2 * LIMIT, client.tm.commit)
    world.proxy.mend()
    check_either(world, client, [NEW])


@pytest.mark.servers("zeo")
def test_a_commit_over_a_slow_network_is_no_hanging_server(world):
    """It takes longer than wait_timeout to send, and goes on all the time."""
    client = world.open(wait=1)
    client.A.append(np.random.default_rng(1).integers(0, 256, 2 << 20, dtype="u1"))
    world.proxy.bandwidth = 500_000
    within(LIMIT, client.tm.commit)
    world.proxy.bandwidth = None
    assert len(world.in_database()) == N * BLK + (2 << 20)


# ---- coming back ----


@pytest.mark.parametrize("known", [True, False])
def test_reconnecting_drops_what_changed(world, client, known):
    """Also where the server cannot say what changed: then the objects' tids are asked for."""
    a = client.A[:]
    within(LIMIT, read, a)
    handle = client.A._fileh()
    dropped = set()
    drop = handle.invalidate_page
    handle.invalidate_page = lambda blk: (dropped.add(blk), drop(blk))
    world.proxy.cut()
    expected = FIRST.copy()
    near = world.near()
    for at in [3 * BLK, 5 * BLK] if known else [3 * BLK, 5 * BLK, 3 * BLK, 3 * BLK]:
        near.A[at] += 1
        expected[at] += 1
        near.tm.commit()
    if not known:
        world.servers.forget()
    world.proxy.mend()
    client.again()
    assert (within(LIMIT, read, a) == expected).all()
    assert dropped == {3, 5}


def test_reconnecting_drops_nothing_if_nothing_changed(world, client):
    a = client.A[:]
    within(LIMIT, read, a)
    handle = client.A._fileh()
    world.kill()
    world.servers.start()
    handle.invalidate_page = None
    client.again()
    del handle.invalidate_page
    assert (within(LIMIT, read, a) == FIRST).all()


def test_the_server_goes_in_the_middle_of_a_boundary(world, client):
    """The client knows what changed, and cannot look where blocks are now: it does not for each."""
    client.A.append(np.ones(20 * BLK, "u1"))
    client.tm.commit()
    a = client.A[:]
    within(LIMIT, read, a)
    near = world.near()
    near.A[5 * BLK] = 9
    near.tm.commit()
    last = client.storage.lastTransaction
    client.storage.lastTransaction = lambda: (world.kill(), last())[1]
    with suppress(ClientDisconnected):
        within(LIMIT, client.tm.begin)
    del client.storage.lastTransaction
    with pytest.raises(BlockLoadError):
        within(LIMIT, read, a)
    world.servers.start()
    client.again()
    expected = np.concatenate([changed((5 * BLK, 9)), np.ones(20 * BLK, "u1")])
    assert (within(LIMIT, read, client.A[:]) == expected).all()


@pytest.mark.servers("zeo")
def test_a_connection_that_is_lost_while_it_is_made(world, client):
    """The network takes the connection, and then forgets it: another is made."""
    a = client.A[:]
    world.proxy.stall()
    with pytest.raises(BlockLoadError):
        within(LIMIT, read, a)
    time.sleep(2.5)  # it is made anew, and waits for the first word of the server
    world.proxy.forget()
    world.proxy.mend()
    client.again()
    assert (within(LIMIT, read, a) == FIRST).all()


# ---- servers of NEO ----


@pytest.mark.servers("neo")
@pytest.mark.parametrize(("node", "point"), [(0, "in_read"), (1, "before_vote"), (0, "after_vote")])
def test_a_storage_node_dies(world, cluster, node, point):
    """All goes on; it is brought back, and the other one dies: it has everything."""
    client = world.open(wait=LONG)
    dies, other = cluster.storages[node], cluster.storages[1 - node]
    if point == "in_read":
        world.proxy.after(BLK + BLK // 2, TO_CLIENT, dies.kill)
    else:
        At(client.tm, *POINTS[point], dies.kill)
    assert (within(2 * LONG, read, client.A[:]) == FIRST).all()
    change(client)
    within(2 * LONG, client.tm.commit)
    assert not dies.alive()
    assert (world.in_database() == NEW).all()
    dies.start()
    try:
        wait_until(cluster.is_replicated, "replication")
        other.kill()
        assert (world.in_database() == NEW).all()
        client.tm.begin()
        assert (within(2 * LONG, read, client.A[:]) == NEW).all()
    finally:
        if not other.alive():
            other.start()
        wait_until(cluster.is_replicated, "replication")


@pytest.mark.servers("neo")
def test_the_master_dies(world, client, cluster):
    """What the gateway cannot answer is an error in time; with the master, all is well again."""
    a = client.A[:]
    assert within(LIMIT, lambda: a[0]) == FIRST[0]
    cluster.master.kill()
    try:
        a[0] = 1
        with pytest.raises(ClientDisconnected):
            within(2 * LIMIT, client.tm.commit)
        with suppress(ClientDisconnected, BlockLoadError):  # storage nodes may answer
            within(LIMIT, client.tm.begin)
            assert (within(2 * LIMIT, read, a) == FIRST).all()
    finally:
        cluster.master.start()
        cluster.wait()
    check_either(world, client, [FIRST, changed((0, 1))])


# ---- opening, and closing ----


def check_not_opened(port, options=""):
    address = f"{HOST}:{port}"
    with pytest.raises(ClientDisconnected) as e:
        within(LIMIT, dbopen, f"zeo://{address}?wait_timeout={WAIT}{options}")
    assert address in str(e.value)
    assert f"{WAIT} s" in str(e.value)
    assert "wait_timeout" in str(e.value)
    return str(e.value)


def test_there_is_no_server(no_ends):
    check_not_opened(free_port())


@pytest.mark.servers("zeo")
def test_there_is_a_server_of_another_kind(no_ends):
    with socket.create_server((HOST, 0)) as other:
        check_not_opened(other.getsockname()[1])


def test_there_is_no_such_storage(world):
    assert "'nix'" in check_not_opened(world.servers.port, "&storage=nix")


def test_the_server_hangs_when_it_is_opened(world):
    world.server.send(signal.SIGSTOP)
    check_not_opened(world.servers.port)


@pytest.mark.parametrize("way", ["hangs", "cut"])
def test_closing(world, way):
    """It does not wait for who is not there, and keeps nothing open; not in mid-commit, either."""
    go, _ = gone(world)[way]
    client = world.open()
    client.A.append(np.zeros(8 << 20, "u1") + 1)
    At(client.tm, "commit", False, go)
    with pytest.raises(ClientDisconnected):
        within(2 * LIMIT, client.tm.commit)
    world.clients.remove(client)
    within(LIMIT, client.close)
