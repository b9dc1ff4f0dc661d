"""Every kind of storage does what arrays want of one."""

import os

import pytest
import transaction
from support.conformance import StorageTests

from wendelin.lib.zodb import dbclose, dbopen


class TestKind(StorageTests):
    """The kind of storage that this run of tests is for."""


class ByURL(StorageTests):
    """A storage that a URL opens; {} is a folder of the test."""

    url: str

    @pytest.fixture
    def root(self, tmp_path):
        root = dbopen(self.url.format(tmp_path))
        yield root
        transaction.abort()
        dbclose(root)


class TestMemory(ByURL):
    url = "memory://"


class TestDemo(ByURL):
    url = "demo:(memory://)/(memory://)"


class TestDemoOfAFile(ByURL):
    url = "demo:(file://{}/x.fs)/(memory://)"


class TestRelStorage(ByURL):
    """On SQLite, or on the database that WENDELIN_CORE_TEST_RELSTORAGE names."""

    url = os.environ.get("WENDELIN_CORE_TEST_RELSTORAGE", "sqlite://localhost/?data_dir={}/sqlite")

    @pytest.fixture
    def root(self, tmp_path):
        pytest.importorskip("relstorage")
        (tmp_path / "sqlite").mkdir()
        root = dbopen(self.url.format(tmp_path))
        yield root
        transaction.abort()
        dbclose(root)
