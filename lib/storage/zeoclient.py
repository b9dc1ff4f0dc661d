"""ZEOClient: a ZEO ClientStorage that sees all earlier commits, and does not wait for ever.

- A transaction sees all commits of all clients before its begin(), as with a file or with NEO: each
  begin() asks the server once (server_sync). Without that, it may see less.
- A server that hangs does not hang its clients: a late answer is an error, and the client connects
  again. ZEO itself limits only the time to connect. The time to send a large commit does not count,
  and the server gets more time to write it.
- Only a limited part of a commit waits in the memory of the client to be sent.
- If a connection is lost, requests that only read are repeated over the next one.
- After a new connection, the server says what has changed, and all other objects and pages stay.
  ZEO itself drops all objects of Connections. If the server does not know, changed_since() asks it.
- load_all requests many objects at once, and waits for the server once.
- A new object never gets an oid that was given before. A server that was killed gives uncommitted
  oids again, and ZEO itself would use one twice in a transaction. Those that one has given in
  advance are forgotten with its connection: the next server may give them to another client.
- Large objects, mostly blocks of arrays, are not written to the file of ZEO's cache, nor to its
  temporary file of a commit: pages have their bytes.

This module knows ZEO, but not URLs.
"""

from __future__ import annotations

import logging
import os
import struct
import termios
import time
import weakref
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from fcntl import ioctl
from functools import partial
from typing import Any

from ZEO.asyncio.client import ClientIO, Protocol
from ZEO.asyncio.futures import Future, run_coroutine_threadsafe
from ZEO.cache import ClientCache
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ReadOnlyError, StorageError
from ZODB.utils import maxtid

from wendelin.lib.adapters.zeo import Client, Network
from wendelin.lib.storage.forked import of_this_process
from wendelin.lib.storage.fstrim import TRIM
from wendelin.lib.storage.served import PLACE, REVISIONS, place_in, revisions_in
from wendelin.lib.storage.serverfile import ServerFile
from wendelin.lib.storage.tags import pack_time
from wendelin.lib.storage.zeokind import WAIT
from wendelin.lib.storage.zeoreceive import Receiver, decoder
from wendelin.lib.storage.zeotls import note_failures, tls_failure, tls_works
from wendelin.lib.utils import override

__all__ = ["ZEOClient"]

log = logging.getLogger(__name__)


_CACHE_SIZE = 20 << 20  # ZEO's default [bytes]
_LARGE = 16  # objects larger than this part of the cache are not in it

_LOOK = 1.0  # how often a waiting thread checks that there is still a connection [s]

#: calls that may take longer, as the server works on them
_UNLIMITED = {"pack"}

_SLOW = 4 << 20  # a server that writes slower than this seems to hang [bytes/s]

_PROGRESS = 4096  # less is requests of other threads, on their way at that moment [bytes]

_STORES = {"storea", "restorea"}  # their third argument is data
_STEP = 2 << 20  # of stored data [bytes]
_STEPS_AHEAD = 4  # under way at a time

#: up to this many objects, the client asks the server what changed, and does not drop them all
_MOST_ASKED = 20_000

#: calls that may be repeated
_READS = {"getTid", "lastTransaction", "loadSerial", "ping"}


class ZEOClient(Client):
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
        Of ZEO's cache on disk [bytes]; it keeps objects up to 1/16 of this.
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
        wait_timeout: int = WAIT,
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
        where = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
        if options.get("ssl") is not None:
            note_failures(options["ssl"])
        self._objects = _Cache(path, cache_size)
        self._told: _ToldDB | None = None
        #: the server's file, where it can be opened here
        self.server_file = ServerFile(
            lambda: place_in(self.loadSerial(PLACE, b"")), lambda: bytes(self.lastTransaction())
        )
        try:
            super().__init__(
                address,
                _LimitedThread,
                wait_timeout=wait_timeout,
                server_sync=server_sync,
                cache=self._objects,
                **options,
            )
        except ClientDisconnected as e:
            why = tls_failure(options.get("ssl"))
            if why is not None:
                raise ClientDisconnected(
                    f"no connection to the ZEO server at {where}: {why}"
                ) from e
            raise ClientDisconnected(
                f"no ZEO server answers at {where} (tried for {wait_timeout} s: wait_timeout), or "
                f"it has no storage {options.get('storage', '1')!r}: {e}"
            ) from e
        of_this_process(self)

    _says_revisions = True  # the server, as far as is known
    _newest = b""  # the largest oid that was given
    _reads_only: bool | None = None  # by the last connection

    @override
    def is_read_only(self) -> bool:
        """Say whether it cannot be changed; while there is no connection, as it was before.

        ZEO says yes then. But arrays can be changed, and a commit waits for the server.
        """
        known = self._reads_only
        return bool(super().is_read_only()) if known is None else known

    isReadOnly = is_read_only  # noqa: N815  # of IStorage

    @override
    def registerDB(self, db: Any) -> None:
        self._told = _ToldDB(db)
        super().registerDB(self._told)

    def close(self) -> None:
        """See IStorage."""
        super().close()
        self.server_file.close()

    def notify_connected(self, conn: ClientIO, info: dict[str, Any]) -> None:
        """See ClientStorage. Runs in the thread of the connection, as invalidations do."""
        conn.protocol.decode = decoder(conn.protocol)
        tls_works(conn.ssl)
        self._reads_only = bool(conn.is_read_only())
        self._says_revisions = True
        self.server_file.renew()
        self.forget_oids()
        db = self._told
        if db is not None:
            db.told = self._objects.told
        try:
            super().notify_connected(conn, info)
        finally:
            if db is not None:
                db.told = False

    @override
    def store(self, oid: bytes, serial: bytes, data: bytes, version: str, txn: Any) -> None:
        if self._objects.takes(data):
            super().store(oid, serial, data, version, txn)
            return
        # ZEO writes data to a temporary file, for its cache after the commit: in pickles of
        # protocol 1, with bytes as text, which takes as long as sending them.
        self.send_record(oid, serial, data, txn)

    def pack(
        self, t: float | None = None, referencesf: Any = None, wait: bool = True, days: float = 0
    ) -> None:
        """See IStorage; what is tagged is kept, also by a server that does not know of tags."""
        t = (time.time() if t is None else t) - days * 86400
        super().pack(pack_time(self, t), referencesf, wait, 0)

    @override
    def new_oid(self) -> bytes:
        while True:
            oid = bytes(super().new_oid())
            if oid > self._newest:
                self._newest = oid
                return oid

    def load_all(self, oids: list[bytes], before: bytes) -> list[tuple[bytes, bytes, Any] | None]:
        """Return what loadBefore() does, for many objects at once. In any thread."""
        return self.network.load_all(oids, before)  # type: ignore[no-any-return]

    def revisions(self, oids: Collection[bytes], before: bytes) -> list[bytes | None]:
        """Return which revisions of objects the state before a tid has, in one round trip.

        None: that is not known. Only our storage knows it of an object that has changed since.
        """
        if self._says_revisions:
            try:
                return revisions_in(self.loadSerial(REVISIONS, before + b"".join(oids)))
            except (ClientDisconnected, MemoryError):
                raise
            except Exception:  # a gateway of NEO cannot send its POSKeyError
                self._says_revisions = False

        def ask() -> list[bytes | None]:
            found = map(self._tid, self.network.ask_all("getTid", [(oid,) for oid in oids]))
            return [tid if tid < before else None for tid in found]

        return self.network.again(ask)  # type: ignore[no-any-return]

    def changed_since(self, oids: Collection[bytes], tid: bytes) -> set[bytes] | None:
        """Return which objects have changed at a tid or later; None if that is not known.

        This takes one round trip and little data for all of them.
        """
        if len(oids) > _MOST_ASKED:
            return None
        try:
            answers = self.network.ask_all("getTid", [(oid,) for oid in oids])
            tids = map(self._tid, answers)
            return {oid for oid, now in zip(oids, tids, strict=True) if now >= tid}
        except ClientDisconnected:
            return None
        except Exception:
            log.warning("the server does not say which objects have changed", exc_info=True)
            return None

    def histories(self, oids: list[bytes]) -> list[dict[str, Any] | None]:
        """Return the last entry of history() for many objects at once.

        None for objects that do not exist.
        """
        return [self._entry(f) for f in self.network.ask_all("history", [(o, 1) for o in oids])]

    def trim(self, before: float | bytes | None = None, keep: int = 1) -> None:
        """Have the server trim its storage: see AlignedFileStorage.trim(). Its log says more.

        What other clients look at is not known to the server: where they read a revision that was
        trimmed, they are told that it was.

        Raises
        ------
        ReadOnlyError
            The storage only reads.
        StorageError
            The storage of the server is another one, which cannot do that.
        """
        if self.isReadOnly():
            raise ReadOnlyError
        (answer,) = self.network.ask_all("pack", [((TRIM, before, keep), True)])
        try:
            answer.result()
        except TypeError as e:  # FileStorage's, which is given a time that is none
            raise StorageError(
                f"the server of {self.getName()} cannot trim: its storage has to be a file that "
                f"wendelin.core has open, as <alignedfilestorage> in its configuration"
            ) from e

    @staticmethod
    def _entry(answer: Future) -> dict[str, Any] | None:
        try:
            return dict(answer.result()[0])
        except (KeyError, IndexError):
            return None

    @staticmethod
    def _tid(answer: Future) -> bytes:
        try:
            return bytes(answer.result())
        except KeyError:  # NEO's is not a POSKeyError
            return bytes(maxtid)  # it is gone


class _ToldDB:
    """The database, as its storage knows it: a new connection does not empty its caches.

    A ClientStorage calls invalidateCache() here although the server has said what changed.
    """

    told = False

    def __init__(self, db: Any) -> None:
        self.db = db

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)

    def invalidateCache(self) -> None:
        if not self.told:
            self.db.invalidateCache()


class _Cache(ClientCache):  # type: ignore[misc]  # ZEO has no type hints
    """ZEO's cache, without large objects."""

    #: The server has said what changed since it was last up to date: it has objects, and stays.
    told = False

    def clear(self) -> None:
        """See ClientCache. ZEO calls it where a new connection cannot say what has changed."""
        self.told = False
        super().clear()

    def takes(self, data: bytes) -> bool:
        return bool(len(data) <= self.maxsize // _LARGE)

    @override
    def store(self, oid: bytes, start_tid: bytes, end_tid: bytes | None, data: bytes) -> None:
        if self.takes(data):
            super().store(oid, start_tid, end_tid, data)


class _LimitedThread(Network):
    """Limits the time that the server may take for an answer."""

    def setup_delegation(self, loop: AbstractEventLoop) -> None:
        """See ClientRunner. Runs in the thread of the connection."""
        super().setup_delegation(loop)
        self.io_call = self._limited_call
        self.client.try_connecting = self._try_connecting
        self.client.verify = self._verify
        self._receive()
        self._stored = 0  # by the transaction [bytes]
        #: requests whose answers show that all data stored before them has arrived; ascending
        self._pings: deque[Future] = deque()
        #: connections that were not ready when a caller had waited for one
        self._late: weakref.WeakSet[Protocol] = weakref.WeakSet()

    def _try_connecting(self) -> None:
        ClientIO.try_connecting(self.client)
        self._receive()

    async def _verify(self, server_tid: bytes | None) -> None:
        """Bring ZEO's cache up to date, over a new connection."""
        cache = self.client.cache
        cache.told = len(cache) > 0  # of an empty one ZEO does not ask what has changed
        await ClientIO.verify(self.client, server_tid)

    def _receive(self) -> None:
        """Make connections receive through a Receiver; called before they are made."""
        for protocol in self.client.protocols:
            protocol.protocol_factory = partial(Receiver, protocol)

    @override
    def call(self, method: str, *args: Any, **kw: Any) -> Any:
        ask = super().call
        if method in _READS:
            return self.again(lambda: ask(method, *args, **kw))
        if method == "vote":  # the server writes all stored data
            kw["more"] = self._stored / _SLOW
        if method not in _UNLIMITED or not kw.get("wait", True):
            return ask(method, *args, **kw)
        return ask(method, *args, **kw, wait=False).result()

    @override
    def load_before(self, oid: bytes, tid: bytes) -> Any:
        ask = super().load_before
        return self.again(lambda: ask(oid, tid))

    def again(self, ask: Callable[[], Any]) -> Any:
        """Send a request; repeat it if the connection was lost meanwhile."""
        start = time.monotonic()
        while True:
            try:
                return ask()
            except ClientDisconnected:
                waited = time.monotonic() - start
                # None: it never was connected, and did not wait
                if waited >= self.timeout or self.is_closed() or self.client.ready is None:
                    raise

    @override
    def load_all(self, oids: list[bytes], before: bytes) -> list[Any]:
        # past the cache: the bytes become a page
        calls = [(oid, before) for oid in oids]
        return self.again(  # type: ignore[no-any-return]
            lambda: [answer.result() for answer in self.ask_all("loadBefore", calls)]
        )

    def ask_all(self, method: str, calls: Sequence[tuple[Any, ...]]) -> list[Future]:
        """Send many requests at once, and wait until each has an answer, or has failed."""
        return self.io_call(self._ask_all(method, calls))  # type: ignore[no-any-return]

    async def _ask_all(self, method: str, calls: Sequence[tuple[Any, ...]]) -> list[Future]:
        client = self.client
        if not client.operational:
            await client.await_operational_co(self.timeout)
        answers = [_heard(client.protocol.call_sync(method, args)) for args in calls]
        for answer in answers:
            with suppress(Exception):  # it is in the answer
                await answer
        return answers

    def async_(self, method: str, *args: Any) -> None:
        """See ClientRunner. Data is not sent faster than the server takes it."""
        super().async_(method, *args)
        if method == "tpc_begin":
            self._stored = 0
        elif method in _STORES:
            before, self._stored = self._stored, self._stored + len(args[2] or b"")
            if before // _STEP != self._stored // _STEP:
                self.io_call(self._keep_up())

    async def _keep_up(self) -> None:
        """Wait until all data but the last steps has arrived: until then it is in memory."""
        pings = self._pings
        while pings and pings[0].done():
            pings.popleft()
        if not self.client.operational:
            raise ClientDisconnected
        pings.append(_heard(self.client.protocol.call_sync("ping", ())))
        if len(pings) > _STEPS_AHEAD:
            await pings.popleft()

    def _limited_call(
        self, coro: Coroutine[Any, Any, Any], wait: bool = True, more: float = 0
    ) -> Any:
        try:
            future = run_coroutine_threadsafe(coro, self.loop)
            # twice: first for a connection, which has its own limit, and then for the answer
            return self._limited_result(future, 2 * self.timeout + more) if wait else future
        finally:
            if self.loop.is_closed():
                coro.close()  # it may never have begun

    def _limited_result(self, future: Any, limit: float) -> Any:
        """Return the result of a call; if its loop was closed meanwhile, raise."""
        start = since = time.monotonic()
        most = 0  # was left to send since the last progress [bytes]
        while True:
            try:
                return future.result(max(0.0, min(since + limit - time.monotonic(), _LOOK)))
            except ClientDisconnected:
                if time.monotonic() - start >= self.timeout:
                    self._in_loop(self._abort_late)
                why = tls_failure(self.client.ssl)
                if why is not None:
                    raise ClientDisconnected(f"no connection to the ZEO server: {why}") from None
                raise
            except TimeoutError:
                if future.done():
                    return future.result()
                if self.loop.is_closed():
                    raise ClientDisconnected("the connection was closed") from None
            now = time.monotonic()
            left = self._left_to_send()
            if most - left >= _PROGRESS:
                since, most = now, left  # it is sent, or just was: an answer may come
            elif now - since >= limit:
                self._in_loop(self._give_up, f"the ZEO server did not answer within {limit:.0f} s")
                since, limit = now, 10  # it ends now
            most = max(most, left)

    def _in_loop(self, act: Callable[..., None], *args: Any) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(act, *args)

    def _left_to_send(self) -> int:
        """Return how much of the requests has not come to the server's machine [bytes]."""
        protocol = self.client.protocol
        transport = getattr(getattr(protocol, "sm_protocol", None), "transport", None)
        if transport is None:
            return 0
        left = int(transport.get_write_buffer_size())
        try:
            socket = transport.get_extra_info("socket")
            (queued,) = struct.unpack("i", ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4)))
        except (AttributeError, OSError, ValueError):
            return left  # the connection is gone
        return left + int(queued)

    # ---- in the thread of the connection ----

    def _give_up(self, why: str) -> None:
        """The server hangs: all waiting threads get an error, before a late answer may come.

        Otherwise a commit could fail here, and be finished there.
        """
        protocol = self.client.protocol
        if protocol is None:
            return
        _abort(protocol, why)
        self.client.disconnected(protocol)

    def _abort_late(self) -> None:
        """Replace connections that are not ready, if a thread waited for them before.

        The network may have forgotten them.
        """
        if self.client.operational or self.client.closed:
            return
        for protocol in [self.client.protocol, *self.client.protocols]:
            # a client that is not connected at all tries again and again by itself
            if protocol is None or protocol.closed or protocol.sm_protocol is None:
                continue
            if protocol in self._late:
                _abort(protocol, "the ZEO server did not answer to a new connection")
                self.client.disconnected(protocol)
            else:
                self._late.add(protocol)


def _heard(answer: Future) -> Future:
    """Retrieve an exception, so that asyncio does not report that it was never retrieved."""
    answer.add_done_callback(Future.exception)
    return answer


def _abort(protocol: Protocol, why: str) -> None:
    transport = protocol.sm_protocol.transport
    protocol.close(why)
    transport.abort()  # unsent data is dropped
