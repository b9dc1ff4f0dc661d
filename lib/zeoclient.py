"""ZEOClient: a ZEO ClientStorage that sees what was committed, and does not wait for ever.

- A transaction sees all that was committed before it began, by any client, as with a file or with
  NEO: each begin asks the server once (server_sync). Without that it may see less.
- A server that hangs does not hang its clients: what it does not answer in time is an error, and
  the connection is made anew. ZEO itself limits only the time to connect.
- Many objects are asked for at once (load_all), and wait for the server once.
- Large objects, blocks of arrays above all, are not written to the file that is ZEO's cache: pages
  have their bytes.

It knows ZEO. It does not know URLs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from asyncio import AbstractEventLoop
from collections.abc import Coroutine
from typing import Any

from ZEO.asyncio.client import ClientThread
from ZEO.cache import ClientCache
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected

__all__ = ["ZEOClient"]

_WAIT = 30  # for a server that is not there, or does not answer [s]

_CACHE_SIZE = 20 << 20  # as ZEO has it [bytes]
_LARGE = 16  # what is more than this part of the cache is not in it

_RECEIVE = 4 << 20  # in one piece, at most [bytes]; asyncio's own is 256 KiB

#: what may take longer: the server works on it
_UNLIMITED = {"pack"}


class ZEOClient(ClientStorage):  # type: ignore[misc]  # ZEO has no type hints
    """A ClientStorage, with limits.

    Parameters
    ----------
    address : (host, port), or str
        Of the server: TCP, or the path of its socket.
    wait_timeout : int
        How long to wait for a connection, and for an answer [s].
    server_sync : bool
        See above; False is faster by a round trip a transaction.
    cache_size : int
        Of ZEO's cache on disk [bytes]; objects up to 1/16 of it are in it.
    client, var : str
        Name and folder of a cache that stays; without a name it is a temporary file.
    **options
        Of ClientStorage.

    Raises
    ------
    ClientDisconnected
        There is no server, or it does not answer. Also of all methods.
    """

    def __init__(
        self,
        address: str | tuple[str, int],
        wait_timeout: int = _WAIT,
        server_sync: bool | int = True,
        cache_size: int = _CACHE_SIZE,
        client: str | None = None,
        var: str | None = None,
        **options: Any,
    ) -> None:
        path = None
        if client:  # as ZEO names it
            name = f"{client}-{options.get('storage', '1')}.zec"
            path = os.path.join(var or os.getcwd(), name)
        try:
            super().__init__(
                address,
                wait_timeout=wait_timeout,
                server_sync=server_sync,
                cache=_Cache(path, cache_size),
                _client_factory=_LimitedThread,
                **options,
            )
        except ClientDisconnected as e:
            where = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
            raise ClientDisconnected(
                f"no ZEO server answers at {where} (tried for {wait_timeout} s: wait_timeout), or "
                f"it has no storage {options.get('storage', '1')!r}: {e}"
            ) from e

    def notify_connected(self, conn: Any, info: dict[str, Any]) -> None:
        """See ClientStorage. Runs in the thread of the connection."""
        # ZEO joins what it receives, piece by piece: the time is the square of their number
        conn.protocol.sm_protocol.transport.max_size = _RECEIVE
        super().notify_connected(conn, info)

    def load_all(self, oids: list[bytes], before: bytes) -> list[tuple[bytes, bytes, Any] | None]:
        """Return what loadBefore() does, for many objects; asked for at once. In any thread."""
        return self._server.load_all(oids, before)  # type: ignore[no-any-return]


class _Cache(ClientCache):  # type: ignore[misc]  # ZEO has no type hints
    """ZEO's cache, without large objects."""

    def store(self, oid: bytes, start_tid: bytes, end_tid: bytes | None, data: bytes) -> None:
        """See ClientCache."""
        if len(data) <= self.maxsize // _LARGE:
            super().store(oid, start_tid, end_tid, data)


class _LimitedThread(ClientThread):  # type: ignore[misc]  # ZEO has no type hints
    """Limits the time that the server may take for an answer."""

    def setup_delegation(self, loop: AbstractEventLoop) -> None:
        """See ClientRunner. Runs in the thread of the connection."""
        super().setup_delegation(loop)
        self.io_call = self._limited_call

    def call(self, method: str, *args: Any, **kw: Any) -> Any:
        """See ClientRunner."""
        if method not in _UNLIMITED or not kw.get("wait", True):
            return super().call(method, *args, **kw)
        return super().call(method, *args, **kw, wait=False).result()

    def load_all(self, oids: list[bytes], before: bytes) -> list[Any]:
        """See ZEOClient."""
        return self.io_call(self._load_all(oids, before))  # type: ignore[no-any-return]

    async def _load_all(self, oids: list[bytes], before: bytes) -> list[Any]:
        client = self.client
        if not client.operational:
            await client.await_operational_co(self.timeout)
        # past the cache: what is read so becomes a page
        answers = [client.protocol.call_sync("loadBefore", (oid, before)) for oid in oids]
        return [await answer for answer in answers]

    def _limited_call(self, coro: Coroutine[Any, Any, Any], wait: bool = True) -> Any:
        future = asyncio.run_coroutine_threadsafe(coro, self.loop)
        if not wait:
            return future
        # twice: first for a connection, which has its own limit, and then for the answer
        limit = 2 * self.timeout
        try:
            return future.result(limit)
        except concurrent.futures.TimeoutError:
            if future.done():
                return future.result()
            future.cancel()
            self.loop.call_soon_threadsafe(self._reconnect)
            raise ClientDisconnected(f"the ZEO server did not answer within {limit} s") from None

    def _reconnect(self) -> None:
        protocol = self.client.protocol
        if protocol is not None:
            protocol.sm_protocol.transport.abort()
