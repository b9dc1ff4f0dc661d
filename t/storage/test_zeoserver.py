"""A ZEO server that has our storage: what it keeps of a transaction until the vote."""

import pytest
from support.child import check_child

pytestmark = pytest.mark.formats

PROGRAM = """
import sys
import ZEO.runzeo
from ZODB.config import storageFromString

assert "ZEO.StorageServer" not in sys.modules  # it opens its storages first
SECTION = "%import wendelin.lib\\n<alignedfilestorage>\\n path {}\\n</alignedfilestorage>"
storageFromString(SECTION.format(sys.argv[1])).close()
import ZEO.StorageServer as server

def logged(data):
    log = server.CommitLog()
    log.store(b"o" * 8, b"s" * 8, data)
    log.delete(b"d" * 8, b"t" * 8)
    size = log.size()
    assert list(log) == [("_store", (b"o" * 8, b"s" * 8, data)), ("_delete", (b"d" * 8, b"t" * 8))]
    log.close()
    return size

data = bytes(range(256)) * 4096
assert logged(data) < len(data) + 1000
storageFromString(SECTION.format(sys.argv[1])).close()
assert len(server.CommitLog.mro()) == 3  # once
"""


def test_bytes_wait_for_the_vote_as_bytes(tmp_path):
    check_child(PROGRAM, str(tmp_path / "x.fs"))
