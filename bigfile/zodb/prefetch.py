"""Blocks that are loaded before they are touched, by threads of the pool.

For storages that have to be asked, block by block: what can be mapped or copied from a file is
read ahead by the pager itself (readahead). The threads go through BigFileH.load(), as everybody
does: so they touch nothing of a Connection but its storage.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Protocol

from wendelin.bigfile.virtmem.ahead import window
from wendelin.lib.pool import in_pool, submit

__all__ = ["ReadAhead", "prefetch"]

THREADS = 2  # for a storage on this machine, where they mostly wait for the GIL
REMOTE_THREADS = 8  # for one that is asked over a network: so many requests are under way
MANY = 4  # blocks of a view that is likely to be read from its beginning on


class Loads(Protocol):
    """A handle: who is asked to load."""

    def load(self, pgoffset: int, pglen: int) -> None:
        """Load pages that are not in memory."""


def _load_next(
    owner: weakref.ref[object], handle: weakref.ref[Loads], pages: Iterator[int], others: int = 0
) -> None:
    """Load one page, and leave the others to a job behind those of others.

    So that what is waiting is a job or two, however long the range; and that it ends when the
    owner is gone, or the interpreter ends. Before, let other jobs begin: who reads does not start
    all of them itself, as it has a page to load that comes before theirs.
    """
    if others:
        submit(_load_next, owner, handle, pages, others - 1)
    page = next(pages, None)
    fileh = handle()
    if page is None or fileh is None or owner() is None:
        return
    with suppress(Exception):  # who touches it is told
        fileh.load(page, 1)
    submit(_load_next, owner, handle, pages)


def prefetch(owner: object, fileh: Loads, pages: Collection[int], threads: int = THREADS) -> None:
    """Start loading pages, for as long as the owner lives, and do not wait."""
    if pages:
        others = min(len(pages), threads) - 1
        submit(_load_next, weakref.ref(owner), weakref.ref(fileh), iter(pages), others)


def _find(find: weakref.WeakMethod[Callable[[int, int], object]], start: int, stop: int) -> None:
    method = find()
    if method is not None:
        with suppress(Exception):  # who touches it is told
            method(start, stop)


class ReadAhead:
    """Sees who reads block after block, and loads what comes next meanwhile.

    It is told of what a reader has to load itself. So of each window one block is left for the
    reader, which comes to it while those behind it are still under way:

        the reader   1 2           7           11              16
        windows          | 3 4 5 6 . 8 9 10 |  .  12 13 14 15 |  .  17 ...

    Where blocks are is looked up a window before they are asked for, if that is remote: all of the
    threads would wait for it at the same time.

    Parameters
    ----------
    blksize : int
        [bytes]
    remote : bool
        Blocks are asked for over a network.
    find : (start, stop) -> object
        A method that looks up where blocks [start, stop) are. It is not kept alive.
    """

    def __init__(self, blksize: int, remote: bool, find: Callable[[int, int], object]) -> None:
        self._find = weakref.WeakMethod(find) if remote else None
        self._threads = REMOTE_THREADS if remote else THREADS
        self._most = window(blksize, remote)
        self._next = 0  # the block that a sequential reader will load itself, next
        self._stop = 0  # of the last window
        self._begin = -1  # a block that who touches it first is expected to go on from

    def expect(self, first: int, n: int) -> None:
        """Be told that somebody has a view of n blocks.

        Who begins with the first of many is likely to read them all, as Linux takes it for files.
        """
        if n >= MANY:
            self._begin = first

    def loading(self, fileh: Loads, blk: int) -> None:
        """Be told that a block is loaded by whoever touched it. Called in any thread."""
        if in_pool():
            return
        if blk == self._begin:
            self._begin, self._stop = -1, 0
        elif blk != self._next or blk == 0:
            self._next, self._stop = blk + 1, 0
            return
        first, stop = max(self._stop, blk + 1), blk + 1 + self._most
        if self._stop > blk + 1:
            self._next = first
        else:
            self._next = blk + 1 + (self._most // 2 or 1)
        self._stop = stop
        pages = [page for page in range(first, stop) if page != self._next]
        if self._find is not None:
            submit(_find, self._find, first, stop + self._most)
        prefetch(fileh, fileh, pages, self._threads)
