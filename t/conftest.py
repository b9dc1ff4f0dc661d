"""Fixtures of all tests: a database, an array in it, another client, and a check for leaks.

WENDELIN_CORE_TEST_DB says which kind of database a run has.
"""

import gc
import os
import platform
import sys
import threading
import time

import numpy as np
import pytest
import transaction
from support import neocluster, postgres, storages
from support.cli import Caller
from support.clients import Client, fill

from wendelin.bigfile import ram_reclaim, ram_set_limit
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.lib.zodb import dbclose, dbopen


def pytest_report_header(config):
    return [
        f"wendelin.core: storage {storages.kind().describe()}",
        f"wendelin.core: NumPy {np.__version__}, Linux {platform.release()} {platform.machine()}",
    ]


def pytest_configure(config):
    # hundreds of child processes import the same modules: otherwise each compiles them
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    config.addinivalue_line("markers", "database: opens databases of the kind that runs")
    config.addinivalue_line("markers", "once: long, and the same in environments like others")
    config.addinivalue_line("markers", 'slow: not in the quick run, -m "not slow"')
    config.addinivalue_line("markers", "formats: the same with any format of blocks, or chooses")
    config.addinivalue_line("markers", "only(kind, ...): runs with these kinds of database")


def pytest_collection_finish():
    """Freeze all that was imported and collected, so that gc.collect() in tests is fast."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """Freeze what stays after each module, too: what its tests have imported, and reports."""
    yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(config, items):
    """Leave out tests that only repeat what a run with a file has shown.

    With a kind of database other than "fs", these are tests that open no database of that kind. If
    WENDELIN_CORE_ZBLK_FMT names a format, they are also tests that choose their format, and tests
    that are the same with any format. WENDELIN_CORE_TEST_ALL keeps all of these. Tests that are
    marked for other kinds only are always left out.
    """
    kind = os.environ.get("WENDELIN_CORE_TEST_DB", "fs")
    keep, leave = [], []
    for item in items:
        only = item.get_closest_marker("only")
        (keep if only is None or kind in only.args else leave).append(item)
    if kind != "fs" and "WENDELIN_CORE_TEST_ALL" not in os.environ:
        keep = _not_again(keep, leave)
    missing = {"neo": neocluster.missing, "postgres": postgres.missing}.get(kind)
    if missing is not None and "CI" not in os.environ and (why := missing()):
        for item in keep:
            item.add_marker(pytest.mark.skip(reason=why))
    items[:] = keep
    config.hook.pytest_deselected(items=leave)


def _not_again(items, leave):
    again = os.environ.get("WENDELIN_CORE_ZBLK_FMT", "auto") != "auto"
    keep = []
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        opens = "testdb" in item.fixturenames or "database" in marks
        same = again and ("fmt" in item.fixturenames or "formats" in marks)
        (keep if opens and not same else leave).append(item)
    return keep


class TestDatabase:
    """A database, and its roots that a test has opened."""

    __test__ = False

    def __init__(self, folder):
        self.database = storages.kind()(folder)
        self.url = self.database.url
        self.roots = []

    def open(self):
        """Open the database; return the root."""
        root = dbopen(self.url)
        self.roots.append(root)
        return root

    def close(self, root):
        """Close a root that open() has returned."""
        self.roots = [other for other in self.roots if other is not root]  # equal ones stay
        dbclose(root)

    def stop(self):
        """Close everything."""
        transaction.abort()
        while self.roots:
            self.close(self.roots[-1])
        self.database.stop()


@pytest.fixture
def testdb(tmp_path):
    """Return a fresh database: `root = testdb.open()`."""
    db = TestDatabase(tmp_path)
    yield db
    db.stop()


@pytest.fixture
def root(testdb):
    return testdb.open()


@pytest.fixture(params=["ZBlk0", "ZBlk1", "auto"])
def fmt(request):
    return request.param


@pytest.fixture
def A(root, fmt):
    return fill(root, fmt)


@pytest.fixture
def other(root, A):
    """Return another client, whose transaction has begun after the array was committed."""
    client = Client(root)
    yield client
    client.close()


@pytest.fixture
def on_touch(monkeypatch):
    """Have blocks shown only when they are touched, also of a local file."""
    monkeypatch.setenv("WENDELIN_CORE_READY", "0")


@pytest.fixture
def set_page_memory():
    """Return ram_set_limit(); after the test, the limit is as it was."""
    limit, _, _ = ram_stat()
    yield ram_set_limit
    ram_set_limit(limit)


@pytest.fixture
def path(tmp_path):
    """Return the path of a Data.fs that does not exist yet."""
    return str(tmp_path / "x.fs")


@pytest.fixture
def call(capsys):
    """Return a Caller, which calls the program's main() in this process."""
    return Caller(capsys)


def resources():
    """Return how many (descriptors, threads) this process has; our pools do not count."""
    threads = sum(not t.name.startswith("wendelin.core-") for t in threading.enumerate())
    return len(os.listdir("/proc/self/fd")), threads


@pytest.fixture
def no_leaks():
    """Check that a test leaves no descriptor and no thread; pages are given back first."""
    gc.collect()
    before = resources()
    yield
    for _ in range(50):
        gc.collect()
        ram_reclaim()
        after = resources()
        if all(a <= b for a, b in zip(after, before, strict=True)):
            break
        time.sleep(0.1)  # threads that read ahead release objects a little later
    assert all(a <= b for a, b in zip(after, before, strict=True)), (before, after)
