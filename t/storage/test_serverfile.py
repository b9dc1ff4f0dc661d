"""The file of a ZEO server, from which clients of its machine map blocks. See serverfile."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import transaction
from support.clients import Client
from support.servers import ZeoServer
from ZODB.POSException import ConflictError
from ZODB.utils import p64

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.virtmem.stats import stats_of
from wendelin.bigfile.zodb.handle import handles_of
from wendelin.lib.storage import zeoclient
from wendelin.lib.storage.fsalign import HUGE, HUGE_FROM
from wendelin.lib.storage.record import bytes_state
from wendelin.lib.storage.serverfile import ServerFile
from wendelin.lib.zodb import dbclose, dbopen, zconn_at

BLK = 1 << 16  # [bytes]
SECTION = "<alignedfilestorage {n}>\n  path {path}\n</alignedfilestorage>\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = ZeoServer(tmp_path_factory.mktemp("zeo"), 12, section=SECTION)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def url(server, request):
    """Return the URL of a storage of its own."""
    used = getattr(server, "used", 0) + 1
    server.used = used
    return f"{server.url}?storage={used}"


@pytest.fixture
def root(url):
    root = dbopen(url)
    yield root
    transaction.abort()
    dbclose(root)


def values(seed=0):
    return np.random.default_rng(seed).integers(1, 255, 4 * BLK, "u1")


def create(root, fmt="ZBlk0"):
    root["A"] = A = ZBigArray((4 * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
    transaction.commit()
    A[:] = values()
    transaction.commit()
    return A


def of(A):
    (handle,) = handles_of(A.zfile)
    return stats_of(handle)


def test_blocks_are_mapped_and_changes_go_to_the_server(root, url):
    A = create(root)
    assert of(A).mapped == A.nbytes  # after its own commit
    other = dbopen(url)
    B = other["A"]
    np.testing.assert_array_equal(B[:], values())
    assert (of(B).mapped, of(B).resident, of(B).loads) == (B.nbytes, 0, 0)
    before = zconn_at(other._p_jar)
    A[5], A[2 * BLK :] = 1, values(1)[2 * BLK :]
    transaction.commit()
    other._p_jar.sync()
    np.testing.assert_array_equal(B[:], A[:])
    assert B[5] == 1
    past = other._p_jar.db().open(at=before)
    np.testing.assert_array_equal(past.root()["A"][:], values())
    assert of(past.root()["A"]).mapped == B.nbytes
    past.close()
    # a change of a mapped page copies it first, and is of this client only
    view = B[:]
    view[7] = 2
    assert A[7] == values()[7]
    transaction.abort()
    dbclose(other)


def test_a_large_block_is_mapped_and_sent_without_its_pad(url):
    root = dbopen(url)
    root["A"] = A = ZBigArray((HUGE_FROM,), "u1", blksize=HUGE_FROM)
    transaction.commit()
    A[:] = 7
    transaction.commit()
    dbclose(root)
    root = dbopen(url)
    storage, block = root._p_jar.db().storage, root["A"].zfile.blktab[0]
    (found,) = storage.server_file.at(b"\x7f" * 8).locate([block._p_oid], b"\x7f" * 8)
    assert found.offset % HUGE == 0
    record = storage.load(block._p_oid)[0]
    assert len(record) < HUGE_FROM + 200
    assert bytes_state(record) == b"\7" * HUGE_FROM
    A = root["A"]
    assert int(A[:].sum()) == 7 * HUGE_FROM
    assert (of(A).mapped, of(A).loads) == (A.nbytes, 0)
    dbclose(root)


def test_nothing_stays_open(url, no_leaks):
    for i in range(2):
        root = dbopen(url)
        if i == 0:
            create(root)
        assert root["A"][:].any()
        assert of(root["A"]).mapped == root["A"].nbytes
        dbclose(root)
    del root


def test_a_pack_and_a_trim_of_the_server(root, url):
    A = create(root)
    client = Client(root)
    client["A"][:]
    for seed in 1, 2:
        A[:] = values(seed)
        transaction.commit()
    root._p_jar.db().storage.trim()
    # what a client looks at is not trimmed
    np.testing.assert_array_equal(client["A"][:], values())
    root._p_jar.db().pack()
    for reader in client["A"], A:
        reader._p_jar.sync()
        np.testing.assert_array_equal(reader[:], values(2))
        assert of(reader).mapped == A.nbytes
    A[3] = 4
    transaction.commit()
    client.conn.sync()
    assert client["A"][3] == 4
    client.close()


def test_a_trim_after_a_pack_of_the_server(root, url):
    """What is held in the file that was replaced is held in the new one, too."""
    A = create(root, "auto")
    other = dbopen(url)
    client = Client(other)
    client["A"][:1]
    root._p_jar.db().pack()
    client.conn.sync()
    A[:] = values(1)
    transaction.commit()
    root._p_jar.db().storage.trim()
    np.testing.assert_array_equal(client["A"][:], values())
    client["A"][7] = 5
    with pytest.raises(ConflictError):  # this compares the block with what the server has
        client.tm.commit()
    client.close()
    dbclose(other)


def test_a_connection_that_comes_while_the_server_is_asked(root, url):
    """It may be another server, which has another file."""
    create(root)
    file = root._p_jar.db().storage.server_file
    asked = []

    def ask():
        asked.append(file._ask())
        if len(asked) == 1:
            new.renew()
        return asked[-1]

    new = ServerFile(ask, file._last)
    assert new.at(p64(1)) is not None
    assert len(asked) == 2
    assert new.at(p64(1)) is not None
    assert len(asked) == 2
    new.close()


@pytest.mark.parametrize(
    "what", ["not there", "a copy", "other bytes", "a pipe", "not small", "behind"]
)
def test_another_file_is_not_used(root, url, tmp_path, monkeypatch, what):
    create(root)
    right = root._p_jar.db().storage.server_file._ask()
    path = tmp_path / "x.fs"
    place = right._replace(path=str(path))
    if what == "a copy":  # of which nobody knows whether it is kept up to date
        shutil.copy(right.path, path)
    elif what == "other bytes":
        data = bytearray(Path(right.path).read_bytes())
        data[right.end - 5] ^= 1
        path.write_bytes(data)
        place = place._replace(inode=path.stat().st_ino)
    elif what == "a pipe":
        os.mkfifo(path)
        place = place._replace(inode=path.stat().st_ino)
    elif what == "not small":
        monkeypatch.setattr("wendelin.lib.storage.serverfile._MOST_INDEX", -1)
        monkeypatch.setattr("wendelin.lib.storage.serverfile._MOST_UNINDEXED", -1)
        place = right
    elif what == "behind":  # as on a network file system
        monkeypatch.setattr("wendelin.lib.storage.fsfollow.FileFollower.follow", lambda self: None)
        place = right
    monkeypatch.setattr(zeoclient, "place_in", lambda data: place)
    other = dbopen(url)
    if what == "behind":
        assert other["A"][0] == values()[0]
        assert of(other["A"]).mapped > 0
        root["A"][:] = values(1)
        transaction.commit()
        other._p_jar.sync()
        np.testing.assert_array_equal(other["A"][:], values(1))
    else:
        np.testing.assert_array_equal(other["A"][:], values())
    assert of(other["A"]).mapped == 0
    assert of(other["A"]).resident == 4 * BLK
    dbclose(other)


def put_a_copy_in_place(path):
    """Replace a file, as a pack without the server, or a restored backup, does."""
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    path.unlink()
    shutil.copy(copy, path)


def test_what_is_mapped_from_a_new_file_in_a_transaction_is_not_trimmed(tmp_path):
    server = ZeoServer(tmp_path, section=SECTION)
    server.start()
    root = dbopen(server.url)
    A = create(root)
    root["B"] = ZBigArray((4 * BLK,), "u1", blksize=BLK, zblk_fmt="ZBlk0")
    transaction.commit()
    reader, writer = dbopen(server.url), Client(root)
    assert reader["B"][0] == 0  # its state is held from here on
    server.stop()
    put_a_copy_in_place(tmp_path / "1.fs")
    server.start()
    seen = reader["A"][:]
    np.testing.assert_array_equal(seen, values())
    assert of(reader["A"]).mapped == A.nbytes
    writer.conn.sync()  # it waits for the server
    writer["A"][:] = values(1)
    writer.tm.commit()
    writer.conn.db().storage.trim()
    np.testing.assert_array_equal(seen, values())
    del seen
    writer.close()
    dbclose(reader)
    dbclose(root)
    server.stop()


def test_a_server_of_another_database_now(tmp_path):
    server = ZeoServer(tmp_path, section=SECTION)
    server.start()
    root = dbopen(server.url)
    create(root)
    assert root["A"][0] == values()[0]
    file = root._p_jar.db().storage.server_file.at(p64(1))
    assert file is not None
    server.stop()
    put_a_copy_in_place(tmp_path / "1.fs")
    server.start()
    root._p_jar.sync()
    root["A"][9] = 77
    transaction.commit()
    assert root["A"][9] == 77
    now = root._p_jar.db().storage.server_file.at(p64(1))
    assert os.path.samestat(os.fstat(now.file.fileno()), (tmp_path / "1.fs").stat())
    dbclose(root)
    server.stop()
