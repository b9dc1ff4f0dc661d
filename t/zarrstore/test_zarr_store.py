"""zarr's own tests of a store; set() and get() write and read values without the store."""

import asyncio
import functools
import inspect

import pytest
import transaction
from support.clients import Client
from zarr.core.buffer import cpu
from zarr.testing.store import StoreTests

from wendelin.zarr import ZarrGroup, ZarrValue, ZODBStore

pytestmark = [pytest.mark.database, pytest.mark.formats]


def in_loops(cls):
    """Let each coroutine of a test class run in an event loop of its own."""
    for name, test in inspect.getmembers(cls, inspect.iscoroutinefunction):
        if name.startswith("test_"):
            setattr(cls, name, _in_loop(test))
    return cls


def _in_loop(test):
    @functools.wraps(test)
    def run(*args, **kw):
        asyncio.run(test(*args, **kw))

    return run


@in_loops
class TestZODBStore(StoreTests[ZODBStore, cpu.Buffer]):
    store_cls = ZODBStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, root):
        self.root = root
        self.tm = root._p_jar.transaction_manager  # zarr also calls from its own thread
        root["g"] = ZarrGroup()
        transaction.commit()
        return {"group": root["g"]}

    @pytest.fixture
    def store(self, open_kwargs):
        return asyncio.run(self.store_cls.open(**open_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs):
        return self.store_cls(**store_kwargs)

    async def set(self, store, key, value):
        """Store a value with another Connection, and let the store see it."""
        self.tm.commit()
        client = Client(self.root)
        client["g"].table[key] = ZarrValue(value.to_bytes())
        client.tm.commit()
        client.close()
        self.tm.begin()

    async def get(self, store, key):
        """Commit, and return what another Connection loads."""
        self.tm.commit()
        client = Client(self.root)
        value = client["g"].table[key]
        value._p_activate()
        found = self.buffer_cls.from_bytes(value._v_data)
        client.close()
        return found

    def test_store_repr(self, store):
        assert repr(store) == f"ZODBStore('{store}')"
        assert str(store).endswith(f"#0x{self.root['g']._p_oid.hex()}")

    def test_store_supports_writes(self, store):
        assert store.supports_writes

    def test_store_supports_listing(self, store):
        assert store.supports_listing
