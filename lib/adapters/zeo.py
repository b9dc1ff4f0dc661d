"""ZEO's ClientStorage, and what it has of the connection to its server.

ZEO has public names for neither; a client that limits how long it waits, or that asks for many
objects at once, has to be made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from ZEO.asyncio.client import ClientThread
from ZEO.ClientStorage import ClientStorage

from wendelin.lib.adapters.lockfile import lock_file

__all__ = ["Client", "Network", "Server", "files_of", "refuse_network"]

#: class -> private names of its instances, or of its parameters
PRIVATE = {
    "ZEO.ClientStorage.ClientStorage": (
        "_addr",
        "_async",
        "_cache",
        "_check_trans",
        "_client_factory",
        "_is_read_only",
        "_oids",
        "_read_only_fallback",
        "_server",
        "_storage",
    ),
    "ZEO.asyncio.client.ClientThread": ("_io_call_after_closure",),
    "ZEO.cache.ClientCache": ("_lock_file",),
}
#: the same, of names that have no underscore, but no documentation either
UNDOCUMENTED = {
    "ZEO.asyncio.client.ClientIO": (
        "await_operational_co",
        "cache",
        "closed",
        "disconnected",
        "operational",
        "protocol",
        "protocols",
        "ready",
        "register_failed",
        "ssl",
        "try_connecting",
        "verify",
    ),
    "ZEO.asyncio.client.ClientThread": (
        "async_",
        "call",
        "client",
        "io_call",
        "is_closed",
        "load_before",
        "loop",
        "setup_delegation",
        "timeout",
    ),
    "ZEO.asyncio.client.Protocol": (
        "call_sync",
        "close",
        "closed",
        "connection_lost",
        "connection_made",
        "decode",
        "eof_received",
        "pause_writing",
        "protocol_factory",
        "protocol_version",
        "resume_writing",
        "sm_protocol",
        "ssl",
    ),
    "ZEO.asyncio.base.SizedMessageProtocol": ("receive", "transport"),
    "ZEO.cache.ClientCache": ("clear", "f", "maxsize", "store"),
}


class Network(ClientThread):  # type: ignore[misc]  # ZEO has no type hints
    """The thread that talks to the server: a coroutine that comes too late is closed."""

    def _io_call_after_closure(self, coro: Coroutine[Any, Any, Any], *args: Any, **kw: Any) -> Any:
        coro.close()
        return super()._io_call_after_closure(coro, *args, **kw)


class Client(ClientStorage):  # type: ignore[misc]  # ZEO has no type hints
    """A ClientStorage with a thread of its maker's choice.

    Parameters
    ----------
    address
        As of ClientStorage.
    network : class
        A subclass of Network.
    **options
        Of ClientStorage.
    """

    def __init__(self, address: Any, network: type[Network], **options: Any) -> None:
        super().__init__(address, _client_factory=network, **options)

    @property
    def network(self) -> Any:
        """The thread that talks to the server."""
        return self._server

    def forget_oids(self) -> None:
        """Forget the oids for new objects that a server has given in advance. In any thread."""
        self._oids.clear()

    def send_record(self, oid: bytes, serial: bytes, data: bytes, txn: Any) -> None:
        """Send a record to be stored by a transaction, and keep none of it for the cache."""
        buffer = self._check_trans(txn, "store")
        self._async("storea", oid, serial, data, id(txn))
        buffer.store(oid, None)


class Server:
    """What a ClientStorage has been told of its server."""

    def __init__(self, storage: ClientStorage) -> None:
        self.addresses = list(storage._addr)
        self.storage: str = storage._storage
        self.read_only: bool = bool(storage._is_read_only)  # also while there is no connection
        self.read_only_fallback: bool = bool(storage._read_only_fallback)
        self.ssl = storage._server.client.ssl
        self.timeout: float = storage._server.timeout


def refuse_network(storage: ClientStorage, refuse: Callable[..., Any]) -> None:
    """Have a function called in place of all that a ClientStorage sends to its server.

    The function gets the coroutine that was to be run.
    """
    storage._server.io_call = refuse


def files_of(storage: Any) -> Iterator[Any]:
    """Yield the files that a ClientStorage writes to; some may be None."""
    cache = getattr(storage, "_cache", None)
    yield getattr(cache, "f", None)
    yield lock_file(getattr(cache, "_lock_file", None))
