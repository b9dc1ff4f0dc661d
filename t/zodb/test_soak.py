"""A short soak test (soak.py): 4 seconds, or as many as WENDELIN_CORE_TEST_SECONDS says."""

import os

import pytest
from support import soak, storages

pytestmark = [pytest.mark.once, pytest.mark.slow]

SECONDS = float(os.environ.get("WENDELIN_CORE_TEST_SECONDS", "4"))


@pytest.mark.formats
def test_soak(testdb):
    clients = 2 if storages.kind().has_server else 1
    results, well = soak.soak(testdb.url, SECONDS, 3, clients)
    print(results)
    assert well, results
    assert len(results) == clients
    for act in "write", "check", "commit", "abort", "rollback", "transfer", "sum":
        assert sum(result["did"].get(act, 0) for result in results) > 0
    for result in results:
        assert result["pager"]["loads"] > 0
        assert result["pager"]["reclaims"] > 0
