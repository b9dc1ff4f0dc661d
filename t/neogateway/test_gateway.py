"""The gateway before NEO: storage nodes are slow or do not answer, and clients go."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import transaction
from persistent.mapping import PersistentMapping
from support import storages
from support.clients import FIRST, fill
from support.neocluster import Gateway, NeoCluster
from support.servers import wait_until
from ZEO.Exceptions import ClientDisconnected

from wendelin.lib.zodb import dbclose, dbopen, dbstoropen
from wendelin.neogateway.gateway import PROGRAM

pytestmark = [pytest.mark.only("neo"), pytest.mark.database, pytest.mark.formats]

NEWEST = b"\x7f" + b"\xff" * 7
LIMIT = 60  # longer than any wait if nothing is wrong [s]


class FaultyGateway(Gateway):
    def __init__(self, folder, faults):
        super().__init__(folder, storages.NeoDatabase.cluster.masters)
        self.command[-2] = str(Path(__file__).with_name("gateway_faults.py"))
        self.command[:0] = [
            "env",
            f"WENDELIN_CORE_GATEWAY_FAULTS={faults}",
            f"WENDELIN_CORE_GATEWAY_FOLDER={PROGRAM.parent}",
        ]

    def check_nothing_is_left(self):
        wait_until(self.is_idle, "the end of all loads", LIMIT)

    def is_idle(self):
        said = self.output().count("LEFT")
        self.send(signal.SIGUSR1)
        wait_until(lambda: self.output().count("LEFT") > said, "what is left", LIMIT)
        return self.output().rpartition("LEFT ")[2].startswith("[]")


@pytest.fixture
def faulty(request, testdb, tmp_path):
    """Return another gateway before the cluster of testdb."""
    gateway = FaultyGateway(tmp_path, request.param)
    gateway.start()
    yield gateway
    gateway.stop()


def objects(root, n, size=0):
    for i in range(n):
        root[i] = PersistentMapping(value=0, data=bytes([i % 256]) * size)
    transaction.commit()
    return [root[i]._p_oid for i in range(n)]


@pytest.mark.parametrize("faulty", ["broken"], indirect=True)
@pytest.mark.parametrize("zblk_fmt", ["ZBlk0", "ZBlk1"])
def test_records_are_loaded_in_spite_of_broken_answers(testdb, faulty, zblk_fmt):
    root = testdb.open()
    fill(root, zblk_fmt)
    oids = objects(root, 100, 1000)
    small = objects(root, 40, 100_000)
    records = {oid: root._p_jar._storage.load(oid) for oid in oids + small}
    root = dbopen(faulty.url)
    assert (root["A"][:] == FIRST).all()
    storage = root._p_jar.db().storage
    got = storage.load_all(list(records), NEWEST)
    assert [x[:2] for x in got] == list(records.values())
    dbclose(root)
    faulty.check_nothing_is_left()


@pytest.mark.parametrize("faulty", ["interrupted"], indirect=True)
def test_no_answer_is_forgotten(testdb, faulty):
    """One that came as the loop had just taken all would have been, and all that came after it."""
    root = testdb.open()
    oids = objects(root, 30)
    storage = dbstoropen(f"{faulty.url}?wait_timeout=20")
    for oid in oids:
        assert storage.loadBefore(oid, NEWEST)
    assert all(storage.load_all(oids, NEWEST))
    storage.close()
    faulty.check_nothing_is_left()


@pytest.mark.parametrize("faulty", ["late"], indirect=True)
def test_a_record_invalidated_while_it_is_loaded_is_not_taken_for_the_newest(testdb, faulty):
    """A client keeps what it was given, until it is told of a newer revision."""
    root = testdb.open()
    objects(root, 10)
    reader = dbopen(faulty.url)

    def read():
        transaction.begin()
        reader._p_jar.cacheMinimize()
        values = {reader[i]["value"] for i in range(10)}
        assert len(values) == 1, values
        return values.pop()

    tm = transaction.TransactionManager()
    conn = root._p_jar.db().open(tm)
    with ThreadPoolExecutor(1) as pool:
        for now in range(1, 11):
            reader._p_jar.db().storage._cache.clear()
            reading = pool.submit(read)
            for i in range(10):
                conn.root()[i]["value"] = now
            tm.commit()
            assert reading.result(LIMIT) in (now - 1, now)
            assert read() == now
    conn.close()
    dbclose(reader)
    faulty.check_nothing_is_left()


@pytest.mark.parametrize("faulty", ["busy"], indirect=True)
def test_a_transaction_begins_with_what_was_committed_through_another_gateway(testdb, faulty):
    root = testdb.open()
    root["x"] = 0
    transaction.commit()
    reader = dbopen(faulty.url)
    for i in range(20):
        assert reader["x"] == i
        root["x"] = i + 1
        transaction.commit()
        transaction.begin()
    dbclose(reader)


@pytest.fixture(scope="module")
def no_replicas(tmp_path_factory):
    """Return a cluster in which each partition is of one node; and a gateway before it."""
    folder = tmp_path_factory.mktemp("neo")
    cluster = NeoCluster(folder, storages=2, replicas=0)
    cluster.start()
    gateway = Gateway(folder, cluster.masters)
    try:
        gateway.start()
        yield cluster, gateway
    finally:
        gateway.stop()
        cluster.stop()


@pytest.mark.parametrize("size", [1000, 100_000])
def test_a_storage_node_that_hangs_delays_only_loads_of_its_objects(no_replicas, size):
    """Half of the objects are of the node that hangs; the others are answered meanwhile."""
    cluster, gateway = no_replicas
    root = dbopen(gateway.url)
    oids = objects(root, 400, size)
    storage = root._p_jar.db().storage
    node = cluster.storages[0]
    node.send(signal.SIGSTOP)
    try:
        asked = [storage._server.call("loadBefore", oid, NEWEST, wait=False) for oid in oids]
        wait_until(lambda: sum(f.done() for f in asked) > 0.45 * len(asked), "answers")
        assert not all(f.done() for f in asked)
    finally:
        node.send(signal.SIGCONT)
    assert all(len(f.result(LIMIT)[0]) > size for f in asked)
    dbclose(root)


def is_lost(future):
    try:
        future.result(LIMIT)
    except ClientDisconnected:
        return True
    return False


@pytest.mark.parametrize("faulty", ["late"], indirect=True)
def test_loads_of_clients_that_are_gone_are_forgotten(testdb, faulty):
    oids = objects(testdb.open(), 150, 100_000)
    storage = dbstoropen(faulty.url)
    asked = [storage._server.call("loadBefore", oid, NEWEST, wait=False) for oid in oids * 5]
    storage.close()
    assert sum(map(is_lost, asked))
    root = dbopen(faulty.url)
    assert root[7]["data"][:1] == b"\7"
    dbclose(root)
    faulty.check_nothing_is_left()
