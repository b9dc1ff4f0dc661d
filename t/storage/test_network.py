"""Databases of servers: what a client sees of others, how much it asks at once, several processes.

What happens when servers fail is in test_servers_fail.py.
"""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import transaction
import trustme
from persistent.mapping import PersistentMapping
from support import storages
from support.clients import BLK, FIRST, fill
from support.servers import ZeoServer
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected
from ZEO.TransactionBuffer import TransactionBuffer
from ZODB.DB import DB
from ZODB.POSException import POSKeyError
from ZODB.utils import p64, u64

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.storage.zeoclient import ZEOClient
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen, zconn_load_all, zstor_2zurl

pytestmark = pytest.mark.formats

served = pytest.mark.skipif(not storages.kind().has_server, reason="a file has one client")
by_zeo = pytest.mark.only("zeo", "neo")  # a gateway is a ZEO server


@served
def test_a_transaction_begins_with_all_that_was_committed(testdb):
    """It sees the commits of any client, without a wait."""
    one, other = testdb.open(), testdb.open()
    assert one._p_jar.db() is not other._p_jar.db()
    tm = transaction.TransactionManager()
    conn = other._p_jar.db().open(tm)
    one["A"] = A = fill(one, "ZBlk0")
    for value in range(100):
        A[5] = value
        transaction.commit()
        tm.begin()
        assert conn.root()["A"][5] == value
    tm.abort()
    conn.close()


@served
def test_a_cluster_of_processes(testdb):
    program = Path(sys.executable).with_name("demo-cluster")
    done = subprocess.run(
        [program, "--seconds=10", testdb.url], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "nothing lost" in done.stdout
    counts = [int(word) for word in done.stdout.split() if word.isdecimal()]
    assert min(counts[:3]) > 0, done.stdout


def test_a_cluster_of_a_file_is_refused(tmp_path):
    program = Path(sys.executable).with_name("demo-cluster")
    done = subprocess.run([program, "x.fs"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "'x.fs'" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_storages_are_asked_for_many_objects_at_once(tmp_path):
    """Such as ZEO's own client. A load waits until several are under way."""
    server = ZeoServer(str(tmp_path))
    server.start()
    storage = ClientStorage(("127.0.0.1", server.port), "1")
    db = DB(storage)
    conn = db.open()
    for i in range(8):
        conn.root()[i] = conn.root().__class__(n=i)
    transaction.commit()
    oids = [conn.root()[i]._p_oid for i in range(8)]
    together = threading.Barrier(4, timeout=30)
    load = storage.loadBefore

    def waits(oid, tid):
        together.wait()
        return load(oid, tid)

    storage.loadBefore = waits
    records = zconn_load_all(conn, oids)
    del storage.loadBefore
    assert records == [conn._normal_storage.load(oid)[0] for oid in oids]
    conn.close()
    db.close()
    server.stop()


@by_zeo
def test_chunks_are_asked_for_at_once(testdb):
    root = testdb.open()
    A = fill(root, "ZBlk1")
    conn = root._p_jar
    oids = [c._p_oid for c in A.zfile.blktab[0].chunktab.values()]
    testdb.close(root)
    root = testdb.open()
    conn = root._p_jar
    storage = conn.db().storage
    assert isinstance(storage, ZEOClient)
    asked = []
    load_all = storage._server.load_all

    def noted(oids, before):
        asked.append(list(oids))
        return load_all(oids, before)

    storage._server.load_all = noted
    assert np.array_equal(root["A"][:BLK], FIRST[:BLK])
    assert oids in asked
    with pytest.raises(POSKeyError, match="7777"):
        zconn_load_all(conn, [oids[0], b"\x77" * 8])


@by_zeo
def test_large_objects_are_not_in_the_cache_of_zeo(testdb):
    root = testdb.open()
    root["large"] = large = PersistentMapping(data=b"x" * (2 << 20))
    root["small"] = small = PersistentMapping(data=b"x" * 1000)
    transaction.commit()
    cache = root._p_jar.db().storage._cache
    for _ in range(2):  # what was stored, and what was loaded
        assert cache.loadBefore(small._p_oid, b"\x7f" * 8) is not None
        assert cache.loadBefore(large._p_oid, b"\x7f" * 8) is None
        root._p_jar.cacheMinimize()
        cache.clear()
        assert len(large["data"]) == 2 << 20
        assert len(small["data"]) == 1000


@served
def test_an_object_that_is_large_now_and_then(testdb, monkeypatch):
    """The cache does not give its previous record, even if it does not take the new one."""
    kept = []
    store = TransactionBuffer.store
    monkeypatch.setattr(
        TransactionBuffer,
        "store",
        lambda self, oid, data: kept.append(data) or store(self, oid, data),
    )
    root, other = testdb.open(), testdb.open()
    root["m"] = PersistentMapping()
    transaction.commit()
    for size in 1000, 3 << 20, 500, 2 << 20, 100:
        root["m"]["data"] = data = os.urandom(size)
        transaction.commit()
        for r in root, other:
            r._p_jar.transaction_manager.begin()
            r._p_jar.cacheMinimize()
            assert r["m"]["data"] == data
    assert not any(data and len(data) > 2 << 20 for data in kept), "it is kept in vain"


@by_zeo
def test_which_objects_have_changed(testdb):
    """An object that is not there counts as changed."""
    root = testdb.open()
    for name in "abc":
        root[name] = PersistentMapping()
    transaction.commit()
    storage = root._p_jar.db().storage
    after = p64(u64(storage.lastTransaction()) + 1)
    root["b"]["x"] = 1
    transaction.commit()
    a, b, c = (root[name]._p_oid for name in "abc")
    never = b"\0" * 6 + b"\x77\x77"
    assert storage.changed_since([a, b, never, c], after) == {b, never}
    assert storage.changed_since([a, c], after) == set()
    storage.close()
    assert storage.changed_since([a], after) is None


# ---- TLS ----


@pytest.fixture
def tls(tmp_path):
    """Return a ZEO server that talks only to clients with certificates of its authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    for name in "server", "client":
        cert = authority.issue_cert("localhost", common_name=name)
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        for pem in cert.cert_chain_pems:
            pem.write_to_path(tmp_path / f"{name}.pem", append=True)
    options = (
        f"<ssl>\ncertificate {tmp_path}/server.pem\nkey {tmp_path}/server.key\n"
        f"authenticate {tmp_path}/ca.pem\n</ssl>\n"
    )
    server = ZeoServer(tmp_path, options=options)
    server.start()
    yield server
    server.stop()


@pytest.mark.only("zeo")
@pytest.mark.database
@pytest.mark.formats
# A client of ZEO - the stock one, too - tries again and again. When it is closed in the middle of a
# handshake, it leaves a socket to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls(tls, tmp_path, monkeypatch):
    right = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}

    def url(options):
        query = "&".join(f"{name}={tmp_path}/{file}" for name, file in options.items())
        return f"{tls.url}?wait_timeout=2&server_hostname=localhost&{query}"

    monkeypatch.chdir(tmp_path)
    root = dbopen(url(right).replace(f"{tmp_path}/", ""))
    root["x"] = 1
    transaction.commit()
    by_url = zstor_2zurl(root._p_jar.db().storage)
    dbclose(root)
    assert by_url == url(right)
    monkeypatch.chdir("/")
    root = dbopen(by_url)
    assert root["x"] == 1
    dbclose(root)
    unknown = ClientStorage(("127.0.0.1", tls.port), ssl=True, wait=False)
    with pytest.raises(NotImplementedError, match=r"TLS.*zeo://HOST:PORT\?ca="):
        zstor_2zurl(unknown)
    unknown.close()
    for wrong, what in [
        (url({"ca": "ca.pem"}), "it closes the connection .*may want a certificate.*cert="),
        (url(right | {"ca": "other.pem"}), "its certificate is not accepted: .*ca="),
        (url(right).replace("=localhost", "=other"), "not accepted: .*'other'.*server_hostname="),
    ]:
        with pytest.raises(ClientDisconnected, match=f"server at 127.0.0.1:{tls.port}: .*{what}"):
            dbopen(wrong)
    with pytest.raises(ClientDisconnected, match="wait_timeout"):
        dbopen(f"{tls.url}?wait_timeout=2")
    with pytest.raises(FileNotFoundError):
        dbopen(url(right | {"cert": "nothing.pem"}))
    gc.collect()


@pytest.mark.only("zeo")
@pytest.mark.database
@pytest.mark.formats
def test_a_server_gets_another_certificate(tls, tmp_path):
    """A client that waits for the server is told so, and goes on with the right certificate."""
    names = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
    query = "&".join(f"{name}={tmp_path}/{file}" for name, file in names.items())
    # it tries to connect every one to two seconds
    root = dbopen(f"{tls.url}?wait_timeout=5&server_hostname=localhost&{query}")
    root["x"] = 1
    transaction.commit()
    pem = tmp_path / "server.pem"
    right, other = pem.read_bytes(), trustme.CA().issue_cert("localhost")
    tls.stop()
    key = tmp_path / "server.key"
    right_key = key.read_bytes()
    pem.write_bytes(b"".join(p.bytes() for p in other.cert_chain_pems))
    other.private_key_pem.write_to_path(key)
    tls.start()
    with pytest.raises(ClientDisconnected, match="its certificate is not accepted"):
        transaction.begin()
    tls.stop()
    pem.write_bytes(right)
    key.write_bytes(right_key)
    tls.start()
    for _ in range(30):
        with suppress(ClientDisconnected):
            transaction.begin()
            break
    assert root["x"] == 1
    dbclose(root)


@pytest.mark.only("zeo")
@pytest.mark.database
@pytest.mark.formats
def test_tls_to_a_server_without(testdb):
    with pytest.raises(ClientDisconnected, match=r"TLS failed: .*Does the server use TLS"):
        dbopen(f"{testdb.url}&wait_timeout=2&server_hostname=localhost")


@by_zeo
def test_a_call_ends_when_its_storage_is_closed(testdb):
    """So does a call on its way to the connection's thread, when that thread ends."""
    storage = dbstoropen(testdb.url)

    async def never():
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(storage._server._limited_call, never())
        storage.close()
        with pytest.raises((ClientDisconnected, RuntimeError, CancelledError)):
            call.result(60)


@served
@pytest.mark.parametrize("zblk_fmt", ["ZBlk0", "ZBlk1"])
def test_closing_while_blocks_are_loaded_ahead(testdb, caplog, zblk_fmt):
    """All loads that are under way end with the connection, and log nothing."""
    root = testdb.open()
    root["A"] = array = ZBigArray((40 * BLK // 8,), np.int64, blksize=BLK, zblk_fmt=zblk_fmt)
    transaction.commit()
    array[:] = np.arange(len(array))
    transaction.commit()
    for _ in range(5):
        root = dbopen(testdb.url)
        view = root["A"][:]
        assert view[0] == 0
        assert view[BLK // 8] == BLK // 8  # a reader that goes on
        dbclose(root)
        del root, view
    assert not [r for r in caplog.records if r.name == "asyncio" or r.levelname == "ERROR"]
