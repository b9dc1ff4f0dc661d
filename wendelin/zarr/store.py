"""ZODBStore: a Zarr group in the database, as zarr's Store. It needs zarr, version 3 or later.

zarr calls it in threads with event loops: what can be answered at once, out of memory or of a local
file that is in memory, is. What has to be waited for is waited for in threads of ours. Requests
that come in one turn of a loop go to another machine together.

What an array object of zarr knows of its array - shape, chunks, codecs - it has read once. The
store remembers which metadata it gave. If that changes, but by a write through this store, reads
and writes of the array's chunks raise StaleArrayError, until its metadata is read again.

It knows zarr's stores. The group it knows as a ZarrTable.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from transaction import TransactionManager
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, default_buffer_prototype
from ZODB.POSException import POSKeyError

from wendelin.lib.storage.dburl import read_only as url_read_only
from wendelin.lib.storage.shared import share, zconn_past
from wendelin.lib.storage.storurl import zstor_2zurl
from wendelin.lib.utils import override
from wendelin.lib.zodb import zconn_at, zconn_name, zdb_last
from wendelin.zarr.byteranges import byte_slice
from wendelin.zarr.errors import StaleArrayError
from wendelin.zarr.group import ZarrGroup
from wendelin.zarr.layout import is_metadata, layouts
from wendelin.zarr.table import Request, ZarrTable
from wendelin.zarr.values import Data, WouldWaitError

if TYPE_CHECKING:
    from zarr.core.buffer import BufferPrototype

__all__ = ["ZODBStore"]

THREADS = 8  # that wait for disks and servers

T = TypeVar("T")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "wendelin.core-zarr")


os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads stay in the parent


class ZODBStore(Store):
    """A Zarr group in the database, for zarr, xarray, Dask and all that takes zarr's stores.

    Parameters
    ----------
    group : ZarrGroup
    at, read_only
        See ZarrGroup.store().

    Notes
    -----
    It reads what the group's Connection sees: the state at the last transaction boundary, and all
    changes of its transaction. Any thread, and any event loop, may use it.

    It is pickled as the URL of the database and the transaction that it sees: another process reads
    that state, and cannot write.
    """

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True

    def __init__(self, group: ZarrGroup, *, at: Any = None, read_only: bool = False) -> None:
        if not isinstance(group, ZarrGroup):
            raise TypeError(f"a ZODBStore is of a ZarrGroup, not of a {type(group).__name__}")
        super().__init__(read_only=bool(read_only) or at is not None)
        self._group = group  # of its maker
        self._at = at
        self._writes = at is None
        self._set_table((group if at is None else _past(group, at)).live_table())

    def _set_table(self, table: ZarrTable) -> None:
        self._table = table
        table.attach()
        table.stores.add(self)
        #: (metadata document, array) -> layout, as it was given; protected by: _lock
        self._given: dict[tuple[str, str], str] = {}
        self._stale: set[str] = set()  # paths of arrays
        self._moment = table.moment
        self._lock = threading.Lock()
        self._looking = threading.Lock()  # > _lock, and what reading takes
        self._waiting: dict[asyncio.AbstractEventLoop, list[_Wanted]] = {}

    # ---- as an object ----

    def __str__(self) -> str:
        group = self._group
        if group._p_jar is None or group._p_oid is None:
            return "zodb://?"
        name = zconn_name(group._p_jar).strip("'")
        return f"{name}#0x{group._p_oid.hex()}"

    def __repr__(self) -> str:
        at = f", at={self._at!r}" if self._at is not None else ""
        return f"ZODBStore('{self}'{at})"

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ZODBStore):
            return False
        if self._table is other._table:
            return True
        a, b = self._identity(), other._identity()
        return a is not None and a == b

    def _identity(self) -> tuple[Any, ...] | None:
        group = self._group
        conn = group._p_jar
        if conn is None:
            return None
        try:
            where: Any = url_read_only(zstor_2zurl(conn.db().storage))
        except (NotImplementedError, AttributeError):
            where = id(conn.db())
        return where, group._p_oid, self._at

    def __reduce__(self) -> tuple[Any, ...]:
        table = self._table
        if not table.is_of_database():
            raise PicklingError(
                f"{self!r} has changes that are not committed: another process cannot see them. "
                f"Commit first"
            )
        conn = table.conn
        url = zstor_2zurl(conn.db().storage)
        return _unpickled, (url, table.group._p_oid, zconn_at(conn), self._at, self.read_only)

    def check_writable(self) -> None:
        """Check that it can be written.

        Raises
        ------
        ValueError
            It is read-only, of a past state, or came from another process.
        """
        self._check_writable()
        if not self._writes:
            raise ValueError(
                f"{self!r} came from another process, or is of a past state: it reads one state "
                f"of the database. A process that writes takes the group from a Connection of its "
                f"own; a Dask array is stored by wendelin.zarr.dask.to_zarr()"
            )

    def share(self) -> None:
        """Let the tasks of other threads of this process use its database: see shared."""
        share(self._table.conn.db())

    @override
    def with_read_only(self, read_only: bool = False) -> ZODBStore:
        if not read_only and not self._writes:
            raise ValueError(f"{self!r} is of a past state, which cannot be changed")
        copy = type(self).__new__(type(self))
        Store.__init__(copy, read_only=read_only)
        copy._group, copy._at, copy._writes = self._group, self._at, self._writes
        copy._set_table(self._table)
        return copy

    # ---- metadata that array objects know ----

    def _check(self, key: str) -> None:
        """Refuse a chunk of an array whose metadata has changed since it was given."""
        if self._moment != self._table.moment:
            self._look_again()
        if self._stale:
            path = key
            while path:
                path = path.rpartition("/")[0]
                if path in self._stale:
                    raise StaleArrayError(
                        f"array {path or '/'!r} of {self} has another shape, or other chunks or "
                        f"codecs, than when it was opened: another client has changed it, or the "
                        f"change was aborted. Open it again"
                    )

    def _must_look(self) -> bool:
        return self._moment != self._table.moment and bool(self._given)

    def _look_again(self) -> None:
        """Compare what was given with what there is now. May wait; one thread does it."""
        with self._looking:
            if self._moment != self._table.moment:
                self._compare()

    def _compare(self) -> None:
        moment = self._table.moment
        with self._lock:
            given = self._given.copy()
        documents = sorted({document for document, _ in given})
        found = self._table.read([(document, None) for document in documents])
        now = {d: layouts(d, data) for d, data in zip(documents, found, strict=True)}
        stale = {path for (d, path), layout in given.items() if now[d].get(path) != layout}
        with self._lock:
            self._stale = stale
            self._moment = moment

    def _gave(self, key: str, data: Data | None) -> None:
        """Remember what a metadata document says."""
        if not is_metadata(key):
            return
        found = layouts(key, data)
        with self._lock:
            for path in [path for document, path in self._given if document == key]:
                del self._given[key, path]
            self._given.update({(key, path): layout for path, layout in found.items()})
            self._stale.difference_update(found)

    # ---- reading ----

    def _now(self, request: Request) -> Data | None:
        key = request[0]
        metadata = is_metadata(key)
        if not metadata:
            if self._must_look():
                raise WouldWaitError
            self._check(key)
        found = self._table.read_now(request)
        if metadata:
            self._gave(key, found)
        return found

    def _read(self, requests: list[Request]) -> list[Data | None]:
        for key, _ in requests:
            if not is_metadata(key):
                self._check(key)
        found = self._table.read(requests)
        for (key, _), data in zip(requests, found, strict=True):
            self._gave(key, data)
        return found

    async def _get(self, request: Request) -> Data | None:
        try:
            return self._now(request)
        except WouldWaitError:
            pass
        loop = asyncio.get_running_loop()
        if not self._table.remote:
            return (await loop.run_in_executor(_pool(), self._read, [request]))[0]
        wanted = _Wanted(request, loop.create_future())
        waiting = self._waiting.get(loop)
        if waiting is None:
            waiting = self._waiting[loop] = []
            loop.call_soon(self._ask, loop)
        waiting.append(wanted)
        return await wanted.answer

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask for all that was wanted in a turn of the loop, in a thread."""
        some = self._waiting.pop(loop)
        loop.run_in_executor(_pool(), self._answer, loop, some)

    def _answer(self, loop: asyncio.AbstractEventLoop, some: list[_Wanted]) -> None:
        try:
            found = self._read([wanted.request for wanted in some])
        except BaseException as e:
            if len(some) == 1:
                _tell(loop, some[0].answer.set_exception, some[0], e)
                return
            for wanted in some:  # one of them may be damaged; the others are not
                self._answer(loop, [wanted])
            return
        for wanted, data in zip(some, found, strict=True):
            _tell(loop, wanted.answer.set_result, wanted, data)

    @override
    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if not self._is_open:
            await self._open()
        data = await self._get((key, byte_slice(byte_range)))
        return _buffer(data, prototype)

    @override
    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        wanted = [self.get(key, prototype, byte_range) for key, byte_range in key_ranges]
        return list(await asyncio.gather(*wanted))

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        requests = list(requests)
        found = await asyncio.gather(*(self.get(*request) for request in requests))
        for request, data in zip(requests, found, strict=True):
            yield request[0], data

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Do what get() does, in this thread."""
        request = key, byte_slice(byte_range)
        try:
            data = self._now(request)
        except WouldWaitError:
            data = self._read([request])[0]
        return _buffer(data, prototype)

    async def _wait(self, act: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(_pool(), act, *args)

    @override
    async def exists(self, key: str) -> bool:
        return await self._wait(self._table.exists, key)

    @override
    async def getsize(self, key: str) -> int:
        size = await self._wait(self._table.size, key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    @override
    async def getsize_prefix(self, prefix: str) -> int:
        keys = await self._wait(self._table.listed, _folder(prefix))
        return sum(await asyncio.gather(*map(self.getsize, keys)))

    @override
    async def list(self) -> AsyncIterator[str]:
        for key in await self._wait(self._table.listed, ""):
            yield key

    @override
    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in await self._wait(self._table.listed, prefix):
            yield key

    @override
    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in await self._wait(self._table.names, _folder(prefix)):
            yield name

    # ---- writing ----

    def _change(self, changes: dict[str, Data | None]) -> None:
        self.check_writable()
        for key in changes:
            if not is_metadata(key):
                self._check(key)
        self._table.change(changes)
        for key, data in changes.items():
            self._gave(key, data)

    async def _change_soon(self, changes: dict[str, Data | None]) -> None:
        if not self._is_open:
            await self._open()
        self._table.check_may_change()  # here, in the context of the call
        watch = self._table.watch
        if self._must_look() or (watch is not None and watch.ends()):
            await self._wait(self._change, changes)
        else:
            self._change(changes)

    @override
    async def set(self, key: str, value: Buffer) -> None:
        await self._change_soon({key: _bytes(value)})

    def set_sync(self, key: str, value: Buffer) -> None:
        """Do what set() does, in this thread."""
        self._change({key: _bytes(value)})

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await self._change_soon({key: _bytes(value) for key, value in values})

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """See Store. Two clients that do it have a conflict."""
        if not await self.exists(key):
            await self.set(key, value)

    @override
    async def delete(self, key: str) -> None:
        self._check_writable()
        if await self.exists(key):
            await self._change_soon({key: None})

    def delete_sync(self, key: str) -> None:
        """Do what delete() does, in this thread."""
        self._check_writable()
        if self._table.exists(key):
            self._change({key: None})

    @override
    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()
        keys = await self._wait(self._table.listed, _folder(prefix))
        # the metadata of an array that is gone says nothing of its chunks
        await self._change_soon(dict.fromkeys(sorted(keys, key=is_metadata, reverse=True)))


def _folder(prefix: str) -> str:
    """Return how keys in a folder begin, with a slash at its end or not."""
    folder = prefix.rstrip("/")
    return f"{folder}/" if folder else ""


class _Wanted:
    """A request that waits for its answer."""

    def __init__(self, request: Request, answer: asyncio.Future[Data | None]) -> None:
        self.request = request
        self.answer = answer


def _tell(
    loop: asyncio.AbstractEventLoop, tell: Callable[[Any], None], wanted: _Wanted, what: Any
) -> None:
    """Answer in the thread of the loop; one that was closed, or a task that was, does not wait."""

    def act() -> None:
        if not wanted.answer.done():
            tell(what)

    try:
        loop.call_soon_threadsafe(act)
    except RuntimeError:  # it is closed
        pass


def _buffer(data: Data | None, prototype: BufferPrototype | None) -> Buffer | None:
    if data is None:
        return None
    return (prototype or default_buffer_prototype()).buffer.from_bytes(data)


def _bytes(value: Buffer) -> Data:
    if not isinstance(value, Buffer):
        raise TypeError(
            f"ZODBStore.set(): `value` must be a Buffer instance. Got an instance of {type(value)} "
            f"instead."
        )
    return memoryview(np.ascontiguousarray(value.as_numpy_array()).data).cast("B")


def _past(group: ZarrGroup, at: Any) -> ZarrGroup:
    """Return a group as it was.

    Raises
    ------
    ValueError
        There was none, or it is a time to come.
    """
    conn = group._p_jar
    if conn is None or group._p_oid is None:
        raise ValueError(f"{group!r} is not in a database: it has no past")
    zdb_last(conn.db())  # it knows then what is not in the future
    past = conn.db().open(TransactionManager(), at=at)
    return _group_in(past, group._p_oid, at)


def _group_in(conn: Any, oid: bytes, at: Any) -> ZarrGroup:
    try:
        group = conn.get(oid)
    except POSKeyError as e:
        raise ValueError(f"{zconn_name(conn)} had no ZarrGroup 0x{oid.hex()} at {at!r}") from e
    if not isinstance(group, ZarrGroup):
        raise ValueError(f"object 0x{oid.hex()} of {zconn_name(conn)} is not a ZarrGroup")
    return group


def _unpickled(url: str, oid: bytes, tid: bytes, at: Any, read_only: bool) -> ZODBStore:
    """Return the store of one state of a database, in this process."""
    with zconn_past(url, tid) as conn:
        group = _group_in(conn, oid, tid)
        store = ZODBStore.__new__(ZODBStore)
        Store.__init__(store, read_only=read_only)
        store._group, store._at, store._writes = group, at, False
        store._set_table(group.live_table())
        return store
