"""Time limits for storages whose clients wait for a server for ever, as NEO's does for its master.

A call that hangs cannot be ended. So a thread of ours makes the call, and is abandoned when the
time is up: the caller gets a TimeoutError. Each thread has a thread of its own that calls for it,
as a client may keep data for each thread.

This module knows the methods that storages have, but not their servers.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any

from wendelin.lib.interrupt import interrupts_later

__all__ = ["limit", "opened_within"]

#: methods of a storage that call its server, except those that may take long, such as pack
_CALLS = (
    "checkCurrentSerialInTransaction",
    "close",
    "deleteObject",
    "getSize",
    "getTid",
    "history",
    "lastTransaction",
    "load",
    "loadBefore",
    "loadBlob",
    "loadSerial",
    "new_oid",
    "poll_invalidations",
    "restore",
    "store",
    "storeBlob",
    "sync",
    "tpc_abort",
    "tpc_begin",
    "tpc_finish",
    "tpc_vote",
    "undo",
    "undoInfo",
    "undoLog",
)
_SLOW = 4 << 20  # a server that takes and writes slower than this seems to hang [bytes/s]
_DATA = {"restore": 2, "store": 2}  # position of the argument that is data

_here = threading.local()  # .caller: the thread that calls for this one; .calls: this one is such


class _Caller:
    """A thread that calls for another one, and ends after it."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(
            target=_call, args=(self._jobs,), daemon=True, name="wendelin.core-caller"
        ).start()

    def __del__(self) -> None:
        self._jobs.put(None)

    def call(self, what: Callable[[], Any]) -> Future[Any]:
        """Start a call."""
        future: Future[Any] = Future()
        self._jobs.put((future, what))
        return future


def _call(jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    _here.calls = True
    while (job := jobs.get()) is not None:
        future, what = job
        try:
            future.set_result(what())
        except BaseException as e:
            future.set_exception(e)
        del job, future, what  # they must not stay until the next call


def _after_fork() -> None:
    global _here
    _here = threading.local()  # those threads stay in the parent


os.register_at_fork(after_in_child=_after_fork)


class _Limits:
    """The limits of one storage."""

    def __init__(self, name: str, wait: float) -> None:
        self._name = name
        self._wait = wait  # for a connection, and as long again for an answer [s]
        self._hangs = False  # the last call did: the next ones wait only as for a connection
        self._stored = 0  # by the transaction [bytes]

    def call(self, name: str, method: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Call a method of the storage.

        Raises
        ------
        TimeoutError
            The call takes too long.
        """
        if getattr(_here, "calls", False):  # a call of the storage itself
            return method(*args, **kw)
        if name == "tpc_begin":
            self._stored = 0
        elif name in _DATA and len(args) > _DATA[name]:
            self._stored += len(args[_DATA[name]] or b"")
        seconds = self._wait if self._hangs else 2 * self._wait
        if name.startswith("tpc_") or name in _DATA:
            seconds += self._stored / _SLOW
        what = partial(method, *args, **kw)
        if name != "tpc_finish":
            return self._result(name, what, seconds)
        with interrupts_later():  # else the call would go on, and its result would be lost
            return self._result(name, what, seconds)

    def _result(self, name: str, what: Callable[[], Any], seconds: float) -> Any:
        caller: _Caller | None = getattr(_here, "caller", None)
        if caller is None:
            caller = _Caller()
        _here.caller = None
        future = caller.call(what)
        try:
            result = future.result(seconds)
        except TimeoutError:
            if not future.done():
                self._hangs = True
                more = ": it may still come through" if name == "tpc_finish" else ""
                raise TimeoutError(
                    errno.ETIMEDOUT,
                    f"{self._name} did not answer {name}() within {seconds:g} s (wait_timeout is "
                    f"{self._wait:g} s){more}",
                ) from None
            result = future.result()
        finally:
            if future.done():
                _here.caller = caller
        self._hangs = False
        return result


def limit(storage: Any, name: str, wait: float) -> Any:
    """Return a storage whose calls have a time limit.

    Parameters
    ----------
    storage : storage
    name : str
        Its name in messages.
    wait : float
        How long a connection to the server may take, and as long again for an answer [s].
    """
    limits = _Limits(name, wait)
    for call in _CALLS:
        method = getattr(storage, call, None)
        if method is not None:
            setattr(storage, call, partial(limits.call, call, method))
    new_instance = getattr(storage, "new_instance", None)
    if new_instance is not None:
        storage.new_instance = lambda *a, **kw: limit(new_instance(*a, **kw), name, wait)
    return storage


def opened_within(seconds: float, factory: Callable[[], Any], what: str) -> Any:
    """Return the storage that a factory makes.

    Raises
    ------
    TimeoutError
        It takes longer.
    """
    opened: Future[Any] = Future()

    def make() -> None:
        try:
            storage = factory()
            if hasattr(storage, "sync"):
                storage.sync()  # some connect only when they are asked for something
        except BaseException as e:
            if not opened.cancelled():
                opened.set_exception(e)
            return
        if opened.set_running_or_notify_cancel():
            opened.set_result(storage)
        else:
            storage.close()

    threading.Thread(target=make, daemon=True, name=f"opens {what}").start()
    try:
        return opened.result(seconds)
    except TimeoutError:
        if not opened.cancel():
            return opened.result()
        raise TimeoutError(
            errno.ETIMEDOUT,
            f"{what} did not answer within {seconds:g} s (wait_timeout). Does a master run there, "
            f"is it of a cluster of that name, and of the same NEO as the installed client? "
            f"Masters of 1.12 and earlier do not understand newer clients: use a gateway "
            f"(docs/cluster.md)",
        ) from None
