"""The pool of threads that call storages, to read ahead, and for several requests at a time.

This module knows only functions. If a job of the pool makes several requests, it does the work
itself, as all other threads may be busy, too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

__all__ = ["THREADS", "in_pool", "submit", "together"]

_T = TypeVar("_T")
_U = TypeVar("_U")

THREADS = 16  # limit of requests under way

_here = threading.local()  # .in_pool: this thread is one of the pool


def _begin() -> None:
    _here.in_pool = True


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "wendelin.core-load", _begin)


os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads stay in the parent


def in_pool() -> bool:
    """Say whether this thread is one of the pool."""
    return getattr(_here, "in_pool", False)


def submit(work: Callable[..., Any], *args: Any) -> None:
    """Let a thread of the pool call work(*args). Nothing happens when the interpreter ends."""
    with suppress(RuntimeError):
        _pool().submit(work, *args)


def together(work: Callable[[_T], _U], items: Collection[_T]) -> list[_U]:
    """Return [work(item) for item in items]; this thread and others of the pool do it.

    Raises
    ------
    Exception
        The first known exception of work(). No other item is begun after it.
    """
    todo = iter(list(enumerate(items)))  # to take the next one is atomic under the GIL
    results: dict[int, _U] = {}
    failed = threading.Event()

    def run() -> None:
        for i, item in todo:
            if failed.is_set():
                return
            try:
                results[i] = work(item)
            except BaseException:
                failed.set()
                raise

    helpers: list[Future[None]] = []
    with suppress(RuntimeError):  # the interpreter ends
        helpers += (_pool().submit(run) for _ in range(min(len(items), THREADS) - 1))
    try:
        run()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
    for helper in begun:
        helper.result()
    return [results[i] for i in range(len(items))]
