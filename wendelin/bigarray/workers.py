"""How much memory a worker of Dask has for arrays: for chunks, for pages, and for page tables.

A worker whose process has a nanny is paused at 80 % of its memory limit, and ended at 95 %. Without
any task it has WORKER already. What is left below 70 % is the room of its data:

    worker     WORKER │ pages: a third of the room │ chunks: COPIES of them a thread │ 30 %

This module knows limits, and what Dask says of its workers. It does not know arrays. Dask is
imported only where it is in use.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import Any

from wendelin.bigfile import ram_set_limit
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.bigfile.virtmem.resident import watch
from wendelin.lib.memlimit import memory_limit

__all__ = ["arrived", "chunk_limit", "limit_memory", "limits_are_due"]

MIB = 1 << 20
WORKER = 170 * MIB  # of a worker before any task, where xarray and pandas are installed
COPIES = 4  # of a chunk that a task has at a time: what it reads, makes, and sends
LEAST = 4 * MIB  # of pages: two blocks

_lock = threading.Lock()
_limited = False
#: an array has come from another process, and no task has used one yet
limits_are_due = False


def room(limit: int) -> int:
    """Return the room that a worker of a memory limit has for data [bytes]."""
    return int(max(0.7 * limit - WORKER, limit / 16))


def arrived() -> None:
    """An array has come from another process: the next task that uses one limits its memory."""
    global limits_are_due
    limits_are_due = not _limited and "distributed.worker" in sys.modules


def limit_memory() -> None:
    """Limit pages, and page tables, of a worker that has a process of its own.

    Pages are a cache, as chunks are copies. Without this, the pages of each worker could take half
    of the machine's memory; and what a task reads of a mapped file would count as memory.
    WENDELIN_CORE_RAM sets another limit of pages. It does nothing outside of tasks.
    """
    global _limited, limits_are_due
    if _limited:
        return
    try:
        from distributed import get_worker

        worker = get_worker()
    except (ImportError, ValueError):
        return
    with _lock:  # two tasks may do this at a time, which does no harm
        limit = worker.memory_manager.memory_limit
        if worker.nanny is not None and limit:
            pages = max(LEAST, room(limit) // 3)
            watch(pages)
            if "WENDELIN_CORE_RAM" not in os.environ:
                ram_set_limit(min(ram_stat()[0], pages))
        _limited, limits_are_due = True, False


def chunk_limit() -> int:
    """Return the size of a chunk of which every thread of every worker has room for some [bytes].

    Of the current client's workers; without one, or with an asynchronous one, of threads of this
    process.
    """
    workers = [(memory_limit(), os.cpu_count() or 1)]
    if "distributed" in sys.modules:
        from distributed import default_client

        with suppress(ValueError):
            known: dict[str, dict[str, Any]] = default_client().scheduler_info()["workers"]
            workers = [(w["memory_limit"], w["nthreads"]) for w in known.values()] or workers
    return min(room(m or memory_limit()) * 2 // 3 // (COPIES * n) for m, n in workers)
