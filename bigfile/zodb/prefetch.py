"""Blocks that threads of a pool load before they are touched.

This is for servers, which are asked block by block. The pager itself reads blocks ahead that can be
mapped or copied from a file (readahead). The threads call BigFileH.load(), like all others, so they
use only the storage of a Connection.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

from wendelin.bigfile.virtmem.ahead import window as blocks_ahead
from wendelin.lib.pool import in_pool, submit

__all__ = ["ReadAhead", "prefetch"]

THREADS = 2  # for a storage on this machine, for which they mostly wait for the GIL
REMOTE_THREADS = 8  # for one over a network: the number of requests under way
MANY = 4  # a view of so many blocks is likely to be read from its beginning on


class Loads(Protocol):
    """A handle, which loads."""

    def load(self, pgoffset: int, pglen: int) -> None:
        """Load pages that are not in memory."""


def _load_next(
    user: weakref.ref[object], handle: weakref.ref[Loads], pages: Iterator[int], others: int = 0
) -> None:
    """Load one page, and leave the rest to a new job at the end of the queue.

    So one or two jobs wait, however long the range is, and they end when the user is gone, or the
    interpreter ends, or a page cannot be loaded: the next ones would most likely fail, too, as when
    the database was closed or its server is gone. First start other jobs: the reader does not start
    all of them itself, as it has a page of its own to load.
    """
    if others:
        submit(_load_next, user, handle, pages, others - 1)
    page = next(pages, None)
    fileh = handle()
    if page is None or fileh is None or user() is None:
        return
    with suppress(Exception):  # a thread that touches it gets the error
        fileh.load(page, 1)
        submit(_load_next, user, handle, pages)


def prefetch(user: object, fileh: Loads, pages: Collection[int], threads: int = THREADS) -> None:
    """Start loading pages, as long as the user lives, without waiting."""
    if pages:
        others = min(len(pages), threads) - 1
        submit(_load_next, weakref.ref(user), weakref.ref(fileh), iter(pages), others)


class Window(NamedTuple):
    """Blocks [first, stop) that are to be loaded ahead of a sequential reader."""

    first: int
    stop: int
    reader: int  # the block of these that the reader loads itself
    looked_up: int  # look up blocks [stop, looked_up), too, for the next window


def _load_window(
    find: weakref.WeakMethod[Callable[[int, int], Iterable[int]]],
    handle: weakref.ref[Loads],
    window: Window,
    threads: int,
) -> None:
    """Start loading the stored blocks of a window, and look up those behind it.

    Others are holes, or past the end of the file: these cost the reader nothing.
    """
    method, fileh = find(), handle()
    if method is None or fileh is None:
        return
    with suppress(Exception):  # a thread that touches a block gets the error
        stored = [blk for blk in method(window.first, window.stop) if blk != window.reader]
        prefetch(fileh, fileh, stored, threads)
        if window.stop < window.looked_up:
            method(window.stop, window.looked_up)


class ReadAhead:
    """Notices sequential readers, and loads the next blocks meanwhile.

    It learns of the blocks that a reader loads itself. So one block of each window is left for the
    reader, which reaches it while those behind it are still under way:

        the reader   1 2           7           11              16
        windows          | 3 4 5 6 . 8 9 10 |  .  12 13 14 15 |  .  17 ...

    If the storage is remote, blocks are looked up a window before their load: otherwise all threads
    would wait for that look-up at the same time.

    Parameters
    ----------
    blksize : int
        [bytes]
    remote : bool
        Blocks are loaded over a network.
    find : (start, stop) -> blocks
        A method that looks up which of the blocks [start, stop) are stored. It is not kept alive.
    """

    def __init__(
        self, blksize: int, remote: bool, find: Callable[[int, int], Iterable[int]]
    ) -> None:
        self._find = weakref.WeakMethod(find)
        self._remote = remote
        self._threads = REMOTE_THREADS if remote else THREADS
        self._most = blocks_ahead(blksize, remote)
        self._next = 0  # the block that a sequential reader will load itself, next
        self._stop = 0  # of the last window
        self._begin = -1  # a reader that touches this block first is expected to go on

    def expect(self, first: int, n: int) -> None:
        """Called when a view of n blocks is taken.

        A reader that begins with the first of many is likely to read them all, as Linux assumes for
        files.
        """
        if n >= MANY:
            self._begin = first

    def loading(self, fileh: Loads, blk: int) -> None:
        """Called when a thread loads a block that it touched. In any thread."""
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
        window = Window(first, stop, self._next, stop + self._most if self._remote else stop)
        submit(_load_window, self._find, weakref.ref(fileh), window, self._threads)
