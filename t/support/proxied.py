"""Servers, a network in front of them, and clients, for tests of servers that fail.

WENDELIN_CORE_TEST_DB says whether it is a ZEO server, NEO behind its gateway, or PostgreSQL under
RelStorage. This module may know what servers and storages do, but nothing of the pager. A call that
could hang runs in a thread with a limit: within().
"""

import atexit
import faulthandler
import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from transaction import TransactionManager
from transaction.interfaces import NoTransaction
from ZEO.Exceptions import ClientDisconnected
from ZODB.DB import DB

from support.clients import Manager, in_database
from support.neocluster import Gateway
from support.postgres import PostgresServer
from support.proxy import Proxy
from support.servers import HOST, ZeoServer
from wendelin.lib.storage.relational import CommitUnknownError
from wendelin.lib.zodb import dbstoropen

# a gateway of Python 2.7 may take a while, on a loaded machine
KIND = os.environ.get("WENDELIN_CORE_TEST_DB")
WAIT = 3 if KIND == "neo" else 1  # wait_timeout of clients [s]
LONG = 20  # wait_timeout of clients that are to see the server come back [s]
LIMIT = 5 * WAIT + 5  # for one read, or one step of a transaction, on a loaded machine [s]

# ---- limits ----


def within(seconds, act, *args):
    """Return what a call returns, or raise what it raises; fail if that takes too long."""
    outcome = {}

    def run():
        try:
            outcome["result"] = act(*args)
        except BaseException as e:
            outcome["error"] = e

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        faulthandler.dump_traceback(sys.__stderr__)
        pytest.fail(f"{act} has not ended within {seconds} s")
    if "error" in outcome:
        raise outcome["error"]
    return outcome.get("result")


@contextmanager
def meanwhile(act, *args):
    """Run a call in another thread during a block; it must end in time, without an exception."""
    errors = []

    def run():
        try:
            act(*args)
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(LONG + LIMIT)
    assert not thread.is_alive()
    assert not errors, errors


# ---- servers and clients ----


class Zeo:
    """A ZEO server that knows what the last three transactions changed, and no more."""

    GONE = UNKNOWN = (ClientDisconnected,)  # what calls raise without it; and tpc_finish()

    def __init__(self, folder):
        self.server = ZeoServer(folder, options="  invalidation-queue-size 3\n")
        self.server.start()
        self.port = self.server.port

    @staticmethod
    def url(port, wait):
        return f"zeo://{HOST}:{port}?wait_timeout={wait}"

    def start(self):
        self.server.start()

    def forget(self):
        """Have it forget what the last transactions changed, while the client is away."""

    def stop(self):
        self.server.stop()


class Neo:
    """A gateway before a cluster that all tests share."""

    cluster = None
    GONE = UNKNOWN = (ClientDisconnected,)
    url = staticmethod(Zeo.url)

    def __init__(self, folder):
        self.server = Gateway(folder, self.cluster.masters)
        self.server.start()
        self.port = int(self.server.address.rpartition(":")[2])

    def start(self):
        self.server.start()

    def forget(self):
        self.server.stop()
        self.server.start()

    def stop(self):
        self.server.stop()


class Postgres:
    """A PostgreSQL server under RelStorage: all tests share it, each has a database."""

    UNKNOWN = (CommitUnknownError,)
    server = None
    used = 0

    def __init__(self, folder):
        cls = type(self)
        self.GONE = _errors_of_postgres()
        if cls.server is None:
            cls.folder = tempfile.mkdtemp(prefix="postgres-")  # another user may look into it
            cls.server = PostgresServer(cls.folder)
            atexit.register(cls.end)
            cls.server.create()
        elif not cls.server.alive():
            cls.server.start()
        cls.used += 1
        self.name = f"test{cls.used}"
        self.server.execute(f"CREATE DATABASE {self.name} TEMPLATE empty")
        self.port = self.server.port

    def url(self, port, wait):
        return self.server.url(self.name, port)

    def start(self):
        self.server.start()

    def forget(self):
        """Do nothing: it knows of all transactions."""

    def stop(self):
        """Let the server go on, for other tests."""

    @classmethod
    def end(cls):
        """Stop the server, and remove its files."""
        cls.server.stop()
        cls.server.log.unlink()
        shutil.rmtree(cls.folder)


def _errors_of_postgres():
    import psycopg2

    return psycopg2.DatabaseError, psycopg2.InterfaceError  # the first one also for half a COPY


Servers = {"neo": Neo, "postgres": Postgres}.get(KIND, Zeo)


class Opened:
    """A client with its own storage, and transactions."""

    def __init__(self, servers, port, wait=WAIT, explicit=False):
        self.servers = servers
        self.tm = TransactionManager(explicit)
        self.tm.begin()
        self.storage = dbstoropen(servers.url(port, wait))
        self.db = DB(self.storage)
        self.root = self.db.open(self.tm).root()

    @property
    def A(self):
        return self.root["A"]

    def close(self):
        """Close it, also if no server answers."""
        with suppress(NoTransaction, *self.servers.GONE):
            self.tm.abort()
        self.root._p_jar.close()
        self.db.close()
        self.root = self.db = self.storage = None  # pytest keeps fixtures for long

    def again(self):
        """Begin a transaction, as soon as the server answers."""
        end = time.monotonic() + 30
        while True:
            try:
                with suppress(NoTransaction):
                    within(LIMIT, self.tm.abort)
                return within(LIMIT, self.tm.begin)
            except self.servers.GONE:
                assert time.monotonic() < end


class World:
    """Servers, the network, and clients."""

    def __init__(self, folder):
        self.servers = Servers(folder)
        self.server = self.servers.server
        self.proxy = Proxy(self.servers.port)
        self.clients = []

    def open(self, **kw):
        """Return a client behind the proxy."""
        return self._open(self.proxy.port, **kw)

    def near(self):
        """Return a client that is connected without the proxy."""
        return self._open(self.servers.port, wait=LONG)

    def _open(self, port, **kw):
        client = within(2 * LONG, lambda: Opened(self.servers, port, **kw))
        self.clients.append(client)
        return client

    def in_database(self):
        """Return what the database has, read by a new client: not from a cache."""
        client = self.near()
        data = in_database(client.A)
        self.clients.remove(client)
        client.close()
        return data

    def kill(self):
        self.server.kill()

    def stop(self):
        self.proxy.mend()
        if self.server.alive():
            self.server.send(signal.SIGCONT)
        for client in self.clients:
            within(3 * LIMIT, client.close)
        self.proxy.close()
        self.servers.stop()


def ends():
    """Return how many (sockets, threads) this process has; threads of our pools do not count."""
    gc.collect()
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    threads = [t for t in threading.enumerate() if not t.name.startswith("wendelin.core")]
    return sum(link.startswith("socket:") for link in links), len(threads)


def read(view):
    """Return a copy of what a view shows; an asynchronous exception is raised in here."""
    copy = view.copy()
    for _ in range(1000):
        pass
    return copy


def gone(world):
    """Return {way in which a server is away: (what begins it, what ends it)}."""
    return {
        "killed": (world.kill, world.servers.start),
        "hangs": (
            lambda: world.server.send(signal.SIGSTOP),
            lambda: world.server.send(signal.SIGCONT),
        ),
        "cut": (world.proxy.cut, world.proxy.mend),
        "stalls": (world.proxy.stall, world.proxy.mend),
    }


class At(Manager):
    """Does something at a point of a transaction's commit, before or after the storage."""

    def __init__(self, tm, phase, after, act):
        super().__init__(phase, act, "~" if after else "", tm)
        tm.get().join(self)
