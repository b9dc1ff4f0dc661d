"""After kill -9 a database opens, and has exactly the transactions that were committed.

Workers (crash.py) and servers are killed at random moments. There are about 20 rounds, or as many
as WENDELIN_CORE_TEST_KILLS says.
"""

import os
import random
import subprocess
import sys
import time

import pytest
import transaction
from support import TESTS, crash
from support.servers import ZeoServer, wait_until
from support.storages import SMALL

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

pytestmark = [pytest.mark.once, pytest.mark.slow]

KILLS = int(os.environ.get("WENDELIN_CORE_TEST_KILLS", "20"))
SEED = int(os.environ.get("WENDELIN_CORE_TEST_SEED", "0"))


@pytest.fixture
def workers(tmp_path):
    workers = crash.Workers(tmp_path / "workers.log")
    yield workers
    workers.stop()


def share(part, of=KILLS):
    """Return the seeds of a part of the rounds."""
    return range(SEED, SEED + max(2, int(part * of)))


@pytest.mark.only("fs")
@pytest.mark.parametrize(
    ("options", "pack", "part"),
    [
        (SMALL, False, 0.3),
        ("?align=false", False, 0.3),
        (SMALL, True, 0.2),
        ("?align=false", True, 0.2),
    ],
    ids=["mapped", "copied", "mapped, packing", "copied, packing"],
)
def test_a_process_with_a_file_is_killed(workers, tmp_path, options, pack, part):
    url = f"file://{tmp_path}/test.fs{options}"
    n, more = crash.rounds(workers, url, tmp_path / "notes", share(part), pack)
    print(f"{n} transactions, {more} of them without a note")
    assert n > 0


@pytest.fixture(params=["filestorage", "alignedfilestorage"])
def server(request, tmp_path):
    section = f"<{request.param} {{n}}>\n  path {{path}}\n</{request.param}>\n"
    server = ZeoServer(tmp_path, section=section)
    server.start()
    yield server
    server.stop()


@pytest.mark.database
@pytest.mark.only("zeo")
@pytest.mark.formats
@pytest.mark.parametrize("pack", [False, True], ids=["", "packing"])
def test_a_client_is_killed(workers, server, tmp_path, pack):
    n, more = crash.rounds(workers, server.url, tmp_path / "notes", share(0.2), pack)
    print(f"{n} transactions, {more} of them without a note")
    assert n > 0


@pytest.mark.database
@pytest.mark.only("zeo")
@pytest.mark.formats
def test_a_server_is_killed(server, tmp_path):
    """Its client goes on when the server is there again."""
    notes, log = tmp_path / "notes", tmp_path / "worker.log"
    url = f"{server.url}?wait_timeout=60"
    expected = crash.Expected()
    with open(log, "wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-P", crash.__file__, "work", url, str(notes)],
            env=os.environ | {"PYTHONPATH": str(TESTS)},
            stdout=out,
            stderr=out,
        )
    try:
        for seed in share(0.1):
            before = crash.last_note(notes)
            wait_until(
                lambda n=before: crash.last_note(notes) > n,
                "commits",
                alive=lambda: worker.poll() is None,
            )
            time.sleep(random.Random(seed).uniform(0, 0.1))
            server.kill()
            worker_notes = crash.last_note(notes)
            root = dbopen(f"file://{server.folder}/1.fs")
            expected.check(root, worker_notes)
            transaction.abort()
            dbclose(root)
            server.start()
    finally:
        worker.kill()
        worker.wait()
    assert not log.read_text(), log.read_text()
    root = dbopen(server.url)
    assert expected.check(root, crash.last_note(notes)) > 0
    transaction.abort()
    dbclose(root)


@pytest.mark.database
@pytest.mark.only("zeo")
def test_a_view_is_writeable_while_the_server_is_away(server):
    root = dbopen(f"{server.url}?wait_timeout=60")
    root["A"] = A = ZBigArray((10,), "u1")
    transaction.commit()
    assert A[0] == 0
    server.kill()
    connected = root._p_jar.db().storage.is_connected
    wait_until(lambda: not connected(), "the client sees it")
    A[0] = 1
    assert not root._p_jar.isReadOnly()
    server.start()
    wait_until(connected, "the client sees that, too")
    transaction.commit()
    assert A[:2].tolist() == [1, 0]
    dbclose(root)


@pytest.mark.database
@pytest.mark.only("zeo")
@pytest.mark.formats
def test_oids_are_new_after_a_server_was_killed(server):
    """The server gives the same oids again. The client skips them: a transaction may need both."""
    root = dbopen(f"{server.url}?wait_timeout=60")
    storage = root._p_jar.db().storage
    first = [storage.new_oid() for _ in range(150)]
    server.kill()
    server.start()
    second = [storage.new_oid() for _ in range(250)]
    assert len({*first, *second}) == 400
    dbclose(root)


@pytest.mark.database
@pytest.mark.only("zeo")
@pytest.mark.formats
def test_oids_that_a_server_gave_in_advance_are_not_those_of_another_client(server):
    """Else its commits fail: with a conflict again and again, or with a ValueError of ZODB."""
    root, other = dbopen(f"{server.url}?wait_timeout=60"), dbopen(f"{server.url}?wait_timeout=60")
    storage = root._p_jar.db().storage
    storage.new_oid()
    server.kill()
    server.start()
    for client in root, other:
        client._p_jar.sync()
    theirs = {other._p_jar.db().storage.new_oid() for _ in range(100)}
    assert not theirs.intersection(storage.new_oid() for _ in range(100))
    dbclose(other)
    dbclose(root)
