"""Runs ZEO's own tests of its client on ZEOClient: tox -m full runs all of them, a test one class.

It needs a process of its own, as it puts ZEOClient in the place of ZEO's class.
`python t/support zeo-suite CLASS ...` runs classes of ZEO.tests.testZEO and testConnection.
"""

import os
import sys
import unittest

import ZEO.ClientStorage

from wendelin.lib.storage import zeoclient


class Client(zeoclient.ZEOClient):
    """ZEOClient with the arguments of a ClientStorage; its begin() does not ask the server."""

    def __init__(self, addr, storage="1", cache_size=20 << 20, **options):
        wait_timeout = options.pop("wait_timeout", None) or 30
        options.setdefault("server_sync", False)
        super().__init__(addr, wait_timeout, cache_size=cache_size, storage=storage, **options)


Client.__name__ = "ClientStorage"  # which a test prints

#: tests that are not for us: name -> why
NOT_FOR_US = {
    "test_ZEO_client_convenience": "it gives the client another thread, a mock",
    "protocols.test": "it wants ZEO's words where no server answers",
    "zeo-fan-out.test": "it wants all objects to be forgotten after a new connection",
}
if os.geteuid() == 0:
    NOT_FOR_US["blob_transaction.txt"] = "root may write what is read-only: so with ZEO's client"


def tests(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests(test)
        else:
            yield test


def wanted(test, names):
    """Say whether a test is to run: one of these classes, or, without names, any."""
    if any(name in str(test) for name in NOT_FOR_US):
        return False
    return not names or type(test).__name__ in names


def main(names):
    ZEO.ClientStorage.ClientStorage = Client
    zeoclient._LARGE = 1  # the caches of these tests are small, and are to have everything
    from ZEO.tests import testConnection, testZEO

    found = [t for m in (testZEO, testConnection) for t in tests(m.test_suite())]
    chosen = [test for test in found if wanted(test, names)]
    result = unittest.TextTestRunner(verbosity=1 if names else 2).run(unittest.TestSuite(chosen))
    print("RAN", result.testsRun)
    sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
    main(sys.argv[1:])
