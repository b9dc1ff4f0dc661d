"""Databases for tests: one class for each kind of storage, all with the same few methods.

WENDELIN_CORE_TEST_DB says which kind: fs, fscopy, zeo, neo or postgres. A new kind needs a class
here, and nothing elsewhere. Servers are started for the first test that needs them, and stopped
after the last one.
"""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import transaction

from support import postgres
from support.neocluster import Gateway, NeoCluster, missing
from support.servers import ZeoServer
from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.zodb import dbclose, dbopen


class Database(Protocol):
    """A database of its own for one test, with all that has to run for it."""

    url: str  # for dbopen(), by any number of clients
    has_server: bool

    def __init__(self, folder: Path) -> None:
        """Start what has to run; data goes to the folder."""

    def stop(self) -> None:
        """Stop what was started."""

    @classmethod
    def describe(cls) -> str:
        """Return what the header of a test run says."""


#: end of a URL: blocks are mapped, although they are small in tests
SMALL = f"?align_from={ALIGNMENT}"


class FileStorageDatabase:
    """A file whose blocks are mapped, although they are small here. One client at a time."""

    options = SMALL
    has_server = False

    def __init__(self, folder: Path) -> None:
        self.url = f"file://{folder}/test.fs{self.options}"

    def stop(self) -> None:
        """Do nothing, as nothing runs."""

    @classmethod
    def describe(cls) -> str:
        return f"file://{cls.options}: FileStorage of ZODB {version('ZODB')}"


class CopiedFileStorageDatabase(FileStorageDatabase):
    """A file, whose blocks are copied as those of any storage are."""

    options = "?align=false"


class ZeoDatabase:
    """A storage of a runzeo process, which has many of them: a fresh one for each test."""

    has_server = True
    STORAGES = 50
    server: ZeoServer | None = None
    used = 0

    def __init__(self, folder: Path) -> None:
        cls = type(self)
        if cls.server is None or cls.used == cls.STORAGES:
            cls.stop_server()
            cls.server = ZeoServer(tempfile.mkdtemp(prefix="zeo-"), cls.STORAGES)
            atexit.register(cls.stop_server)
            cls.server.start()
        cls.used += 1
        self.url = f"{cls.server.url}?storage={cls.used}"

    def stop(self) -> None:
        """Let the server go on, for other tests."""

    @classmethod
    def stop_server(cls) -> None:
        """Stop the server, and remove its files."""
        if cls.server is not None:
            cls.server.stop()
            shutil.rmtree(cls.server.folder)
            cls.server = None
            cls.used = 0

    @classmethod
    def describe(cls) -> str:
        return f"zeo://: runzeo of ZEO {version('ZEO')}, FileStorage of ZODB {version('ZODB')}"


class NeoDatabase:
    """A NEO cluster behind a gateway, one for all tests; each test finds an empty root."""

    has_server = True
    STORAGES, REPLICAS = 2, 1
    folder: Path | None = None
    cluster: NeoCluster
    gateway: Gateway

    def __init__(self, folder: Path) -> None:
        cls = type(self)
        if cls.folder is None:
            cls.start_servers()
        self.url = cls.gateway.url
        root = dbopen(self.url)
        root.clear()
        transaction.commit()
        dbclose(root)

    def stop(self) -> None:
        """Let the cluster go on, for other tests."""

    @classmethod
    def start_servers(cls) -> None:
        """Start the cluster and the gateway."""
        cls.folder = Path(tempfile.mkdtemp(prefix="neo-"))
        atexit.register(cls.stop_servers)
        cls.cluster = NeoCluster(cls.folder, cls.STORAGES, cls.REPLICAS)
        cls.cluster.start()
        cls.gateway = Gateway(cls.folder, cls.cluster.masters)
        cls.gateway.start()

    @classmethod
    def stop_servers(cls) -> None:
        """Stop them, and remove their files."""
        if cls.folder is not None:
            for server in "gateway", "cluster":
                if hasattr(cls, server):
                    getattr(cls, server).stop()
            shutil.rmtree(cls.folder)
            cls.folder = None

    @classmethod
    def describe(cls) -> str:
        if why := missing():
            return f"neo: SKIPPED: {why}"
        return (
            f"neo: NEO 1.12.0 (Python 2.7): 1 master, {cls.STORAGES} storage nodes with SQLite, "
            f"1 admin, replicas {cls.REPLICAS}; through a gateway of ZEO 5.4.1"
        )


class PostgresDatabase:
    """A RelStorage on PostgreSQL: one server for all tests, and a database of it for each."""

    has_server = True
    server: postgres.PostgresServer | None = None
    used = 0

    def __init__(self, folder: Path) -> None:
        cls = type(self)
        if cls.server is None:
            cls.server = postgres.PostgresServer(tempfile.mkdtemp(prefix="postgres-"))
            atexit.register(cls.stop_server)
            cls.server.create()
        cls.used += 1
        self.name = f"test{cls.used}"
        cls.server.execute(f"CREATE DATABASE {self.name} TEMPLATE empty")
        self.url = cls.server.url(self.name)

    def stop(self) -> None:
        """Drop the database, and let the server go on, for other tests."""
        if self.server is not None and self.server.answers():
            self.server.execute(f"DROP DATABASE {self.name} WITH (FORCE)")

    @classmethod
    def stop_server(cls) -> None:
        """Stop the server, and remove its files."""
        if cls.server is not None:
            cls.server.stop()
            shutil.rmtree(cls.server.folder)
            cls.server.log.unlink()
            cls.server = None

    @classmethod
    def describe(cls) -> str:
        if why := postgres.missing():
            return f"postgres: SKIPPED: {why}"
        return f"postgres: RelStorage {version('RelStorage')} on {postgres.program('postgres')}"


KINDS: dict[str, type[Database]] = {
    "fs": FileStorageDatabase,
    "fscopy": CopiedFileStorageDatabase,
    "zeo": ZeoDatabase,
    "neo": NeoDatabase,
    "postgres": PostgresDatabase,
}


def kind() -> type[Database]:
    """Return the kind of storage that this test run is for."""
    name = os.environ.get("WENDELIN_CORE_TEST_DB", "fs")
    if name not in KINDS:
        raise ValueError(f"WENDELIN_CORE_TEST_DB is {name!r}: it must be one of {', '.join(KINDS)}")
    return KINDS[name]
