"""Servers that die, hang, or cannot be reached: what readers see, and what becomes of commits.

All tests run with a ZEO server, with NEO behind its gateway, or with PostgreSQL, as the environment
says: with PostgreSQL those that ask for no time limit, and no second try, as RelStorage has none. A
proxy is between the client that is tested and the server. Other clients, which check or change
something meanwhile, have none. This module may know what servers and storages do. Of the inside of
the pager, it knows only the place where pages are dropped.

All that could hang runs in a thread with a limit (within()).
"""

import gc
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from support.clients import BLK, FIRST, N, changed
from support.neocluster import NeoCluster
from support.proxied import (
    LIMIT,
    LONG,
    WAIT,
    At,
    Neo,
    Postgres,
    Servers,
    World,
    ends,
    gone,
    meanwhile,
    read,
    within,
)
from support.proxy import TO_CLIENT
from support.servers import HOST, free_port, wait_until
from ZEO.Exceptions import ClientDisconnected

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, DoomedError
from wendelin.lib.zodb import dbopen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.only("zeo", "neo", "postgres"),
    pytest.mark.database,
    pytest.mark.formats,
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Return the NEO cluster, or None if the tests run with ZEO."""
    if Servers is not Neo:
        yield None
        return
    cluster = Neo.cluster = NeoCluster(tmp_path_factory.mktemp("neo"), storages=2, replicas=1)
    cluster.start()
    yield cluster
    cluster.stop()


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


#: with servers that clients wait for, and whose time to answer has a limit
with_limits = pytest.mark.only("zeo", "neo")
#: ways in which it is away, and others that a client without a time limit cannot tell from slowness
AWAY = [*["killed", "cut"], *([] if Servers is Postgres else ["hangs", "stalls"])]


# ---- reading ----


@pytest.mark.parametrize("way", [way for way in AWAY if way != "cut" or Servers is Postgres])
def test_a_reader_when_the_server_goes(world, client, way):
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
    assert isinstance(e.value.__cause__, world.servers.GONE)
    with pytest.raises(DoomedError):
        within(LIMIT, client.tm.commit)
    within(LIMIT, client.tm.abort)
    with pytest.raises(world.servers.GONE):
        within(LIMIT, client.tm.begin)
    come()
    client.again()
    assert (within(LIMIT, read, a) == FIRST).all()
    a[mid] = 2
    within(LIMIT, client.tm.commit)
    assert world.in_database()[mid] == 2


@pytest.mark.only("postgres")
@pytest.mark.parametrize("way", ["killed", "cut"])
def test_a_reader_in_the_middle_of_a_block_gets_an_error(world, client, way):
    """It sees no byte of the block, and no state but its own: also if the server is back at once.

    Then it goes on, in the next transaction.
    """
    go, come = gone(world)[way]
    a = client.A[:]
    near = world.near()
    near.A[0] = near.A[2 * BLK] = 9
    near.tm.commit()
    came = threading.Event()
    world.proxy.after(BLK + BLK // 2, TO_CLIENT, lambda: (world.proxy.cut(), came.set()))
    with pytest.raises(BlockLoadError) as e:
        within(LIMIT, read, a)
    assert came.is_set()
    assert isinstance(e.value.__cause__, world.servers.GONE)
    go()
    come()
    world.proxy.mend()
    with pytest.raises(BlockLoadError):
        within(LIMIT, read, a)
    within(LIMIT, client.tm.abort)
    client.again()
    assert (within(LIMIT, read, a) == changed((0, 9), (2 * BLK, 9))).all()


@with_limits
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
            except (BlockLoadError, *world.servers.GONE):
                with suppress(*world.servers.GONE):  # a Connection without arrays asks, too
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


def check_either(world, client, outcomes=(FIRST, NEW)):
    """Check that the database has one of these states; the client sees it, and can go on."""
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
        # these differ in the client only: one kind of server is enough
        *([] if Servers is Neo else CLIENT_ONLY),
    ]
    if Servers is not Postgres
    else [*[("killed", point) for point in POINTS], ("cut", "before_vote"), ("cut", "in_finish")],
)
def test_a_commit_when_the_server_goes(world, client, way, point):
    """The server goes at a point of the commit: the state is one of the two."""
    go, come = gone(world)[way]
    within(LIMIT, read, client.A[:])
    change(client)
    At(client.tm, *POINTS[point], go)
    voted = point in ("after_vote", "in_finish")
    with pytest.raises(world.servers.UNKNOWN if voted else world.servers.GONE):
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
    with pytest.raises(world.servers.UNKNOWN):
        within(2 * LIMIT, client.tm.commit)
    world.proxy.mend()
    # the first answer that PostgreSQL gives then is to a reader's end, if there was one
    check_either(world, client, [FIRST, NEW] if seen and Servers is Postgres else [NEW])


@pytest.mark.only("postgres")
@pytest.mark.parametrize("explicit", [False, True])
def test_a_commit_that_is_done_is_not_said_to_have_failed(world, explicit):
    """The server goes after its answer, when the Connection asks what others have changed."""
    client = world.open(explicit=explicit)
    client.A[0] = 1
    At(client.tm, "tpc_finish", True, world.kill)
    within(LIMIT, client.tm.commit)
    world.servers.start()
    check_either(world, client, [changed((0, 1))])


@pytest.mark.only("zeo")
def test_a_slow_network_is_not_taken_for_a_hanging_server(world):
    """A commit takes longer than wait_timeout to send, but goes on all the time."""
    client = world.open(wait=1)
    client.A.append(np.random.default_rng(1).integers(0, 256, 2 << 20, dtype="u1"))
    world.proxy.bandwidth = 500_000
    within(LIMIT, client.tm.commit)
    world.proxy.bandwidth = None
    assert len(world.in_database()) == N * BLK + (2 << 20)


@with_limits
def test_a_commit_does_not_keep_in_memory_what_the_server_has_not_taken(world):
    client = world.near()
    BLOCK = 2 << 20
    client.root["B"] = ZBigArray((40 * BLOCK,), "u1", blksize=BLOCK)
    client.tm.commit()
    client.root["B"][:] = 7
    world.server.send(signal.SIGSTOP)
    sent, at, async_ = [], [], client.storage._async
    client.storage._async = lambda method, *args: (sent.append(method), async_(method, *args))

    def waits():
        at.append(sent.count("storea") * BLOCK)
        return len(at) > 20 and at[-20] == at[-1] > 8 << 20

    with meanwhile(client.tm.commit):
        try:
            wait_until(waits, "the commit waits")
            assert at[-1] <= 48 << 20
        finally:
            world.server.send(signal.SIGCONT)
    assert world.near().root["B"].read(-1) == 7


@with_limits
def test_a_large_transaction_has_more_time_for_its_vote(world):
    """The server writes all of it then, and says nothing."""
    client = world.open(wait=1)
    client.A.append(np.full(16 << 20, 3, "u1"))

    def hang():
        client.storage._server.call("ping")  # it has taken all
        world.server.send(signal.SIGSTOP)
        threading.Timer(3.5, world.server.send, [signal.SIGCONT]).start()

    At(client.tm, *POINTS["before_vote"], hang)
    within(3 * LIMIT, client.tm.commit)
    assert world.in_database()[-1] == 3


@with_limits
@pytest.mark.parametrize("way", ["killed", "hangs", "closed"])
def test_many_answers_that_do_not_come_are_one_error(world, client, caplog, way):
    """The caller gets one error; nothing is logged of the other answers."""
    storage = client.storage
    oids = [client.A._p_oid, client.A.zfile._p_oid] * 200
    go, come = (gone(world) | {"closed": (storage.close, lambda: None)})[way]
    world.server.send(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        loads = pool.submit(storage._server.load_all, oids, b"\x7f" + b"\xff" * 7)
        wait_until(lambda: len(storage._server.client.protocol.futures) >= len(oids), "requests")
        within(LIMIT, go)
        with pytest.raises(ClientDisconnected):
            loads.result(LIMIT)
    gc.collect()
    assert [r for r in caplog.records if r.name == "asyncio"] == []
    come()


# ---- coming back ----


@pytest.mark.parametrize("known", [True, False])
def test_reconnecting_drops_what_changed(world, client, known):
    """If the server cannot say what changed, the client asks for the tids of the objects."""
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


@with_limits
def test_the_server_goes_in_the_middle_of_a_boundary(world, client):
    """The client knows what changed, but cannot look where blocks are: it does not try for each."""
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


@pytest.mark.only("zeo")
def test_a_connection_that_is_lost_while_it_is_made(world, client):
    """The network takes the connection, and then forgets it: the client makes another."""
    a = client.A[:]
    world.proxy.stall()
    with pytest.raises(BlockLoadError):
        within(LIMIT, read, a)
    time.sleep(2.5)  # the client connects anew, and waits for the first word of the server
    world.proxy.forget()
    world.proxy.mend()
    client.again()
    assert (within(LIMIT, read, a) == FIRST).all()


# ---- servers of NEO ----


@pytest.mark.only("neo")
@pytest.mark.parametrize(("node", "point"), [(0, "in_read"), (1, "before_vote"), (0, "after_vote")])
def test_a_storage_node_dies(world, cluster, node, point):
    """Clients go on. The node comes back, then the other one dies: the first has everything."""
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


@pytest.mark.only("neo")
def test_the_master_dies(world, client, cluster):
    """What the gateway cannot answer is an error in time; when the master is back, all is well."""
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


@with_limits
def test_there_is_no_server(no_ends):
    check_not_opened(free_port())


@pytest.mark.only("zeo")
def test_there_is_a_server_of_another_kind(no_ends):
    with socket.create_server((HOST, 0)) as other:
        check_not_opened(other.getsockname()[1])


@with_limits
def test_there_is_no_such_storage(world):
    assert "'nix'" in check_not_opened(world.servers.port, "&storage=nix")


@with_limits
def test_the_server_hangs_when_it_is_opened(world):
    world.server.send(signal.SIGSTOP)
    check_not_opened(world.servers.port)


@pytest.mark.only("postgres")
def test_there_is_no_postgres(no_ends):
    url = f"postgres://me:secret@{HOST}:{free_port()}/db"
    with pytest.raises(Exception, match="refused") as e:
        within(LIMIT, dbopen, url)
    assert HOST in str(e.value)
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("way", [way for way in AWAY if way in ("hangs", "cut")])
def test_closing_without_a_server(world, way):
    """It does not wait for a server that is gone, and keeps nothing open, even in mid-commit."""
    go, _ = gone(world)[way]
    client = world.open()
    client.A.append(np.zeros(8 << 20, "u1") + 1)
    At(client.tm, "commit", False, go)
    with pytest.raises(world.servers.GONE):
        within(2 * LIMIT, client.tm.commit)
    world.clients.remove(client)
    within(LIMIT, client.close)
