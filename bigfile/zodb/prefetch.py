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
READERS = 8  # that are told from each other
FIRST = 1 << 20  # the first window: so much, or two blocks [bytes]
_ALL = 1 << 63  # no block is there


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
    """Blocks that are to be loaded ahead of a reader."""

    pages: range
    reader: int  # the block of these that the reader loads itself
    following: range  # look up these, too, for the next window


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
        stored = [blk for blk in _stored(method, window.pages) if blk != window.reader]
        prefetch(fileh, fileh, stored, threads)
        _stored(method, window.following)


def _stored(find: Callable[[int, int], Iterable[int]], pages: range) -> list[int]:
    if pages.step == 1:
        return list(find(pages.start, pages.stop)) if pages else []
    return [blk for page in pages for blk in find(page, page + 1)]


class _Run:
    """Blocks that a reader touched, each `step` after the one before.

    Until its windows begin, `awaits` and `stop` are the next block.
    """

    __slots__ = (
        "awaits", "first", "hi", "last", "lo", "n", "passed", "size", "step", "stop", "stride"
    )  # fmt: skip

    def __init__(self, blk: int, before: int, view: tuple[int, int]) -> None:
        self.last, self.n = blk, 1
        self.stride = blk - before  # the step, if that is not 1
        #: blocks of its view: nothing else is loaded until the reader has passed two views
        self.lo, self.hi = view if view[0] <= blk < view[1] else (0, _ALL)
        self.passed = 0
        self.first = blk == view[0]  # it began with the first block of its view
        self.size = 0  # of its last window
        self._go(blk, 1)

    def _go(self, blk: int, step: int) -> None:
        self.last, self.step = blk, step
        self.awaits = self.stop = blk + step

    def takes(self, blk: int, view: tuple[int, int]) -> bool:
        """Say whether a block is the next one, or one that is to be loaded ahead; then note it."""
        steps, rest = divmod(blk - self.last, self.step)
        if rest == 0 and 0 < steps <= (self.stop - self.last) // self.step:
            self.n += 1
            if self.size == 0:
                self._go(blk, self.step)
            self.last = blk
        elif self.n == 1 and self.stride != 0 and blk == self.last + self.stride:
            self.n = 3
            self._go(blk, self.stride)
        else:
            return False
        if not self.lo <= blk < self.hi:
            self.passed += 1
            within = self.passed < 2 and view[0] <= blk < view[1]
            self.lo, self.hi = view if within else (0, _ALL)
        return True

    @property
    def is_sure(self) -> bool:
        """Say whether so many touches show it. A random reader may touch two neighbours."""
        return self.n >= (4 if self.step != 1 else 2 if self.first else 3)

    def window(self, most: int, least: int, *, look_up: bool) -> Window | None:
        """Return what is to be loaded, now that `last` is touched; None: nothing yet."""
        blk, step = self.last, self.step
        if (blk - self.awaits) * step < 0 and self.size:
            return None  # the reader is faster than the threads: it loads one of theirs
        self.size = min(2 * self.size or least, most)
        begun = (self.stop - blk) // step > 1
        start = self.stop if begun else blk + step
        end = blk + (1 + self.size) * step
        pages = self._of_view(start, end)
        # where the next window begins: at most where the view ends
        self.stop = start + len(pages) * step
        middle = start if begun else blk + (1 + (self.size // 2 or 1)) * step
        self.awaits = min(middle, self.stop) if step > 0 else max(middle, self.stop)
        following = self._of_view(self.stop, self.stop + most * step) if look_up else range(0)
        return Window(pages, self.awaits, following)

    def _of_view(self, start: int, end: int) -> range:
        end = min(end, self.hi) if self.step > 0 else max(end, self.lo - 1)
        return range(start, end, self.step)


class ReadAhead:
    """Notices readers that go on in equal steps, and loads the next blocks meanwhile.

    A reader of one block gets one block. Which ones are next is known when it has touched a few:
    see _Run.is_sure. Windows double from a small one on. So what is loaded in vain, at the end of
    such a reader, is not more than what it has read, or FIRST. It is of the same view, unless the
    reader has gone on from one view to the next twice.

    It learns of the blocks that a reader loads itself. So one block of each window is left for the
    reader, which reaches it while those behind it are still under way. With windows of 4 blocks:

        the reader   1 2           7           11              16
        windows          | 3 4 5 6 . 8 9 10 |  .  12 13 14 15 |  .  17 ...

    If the storage is remote, blocks are looked up a window before their load: otherwise all threads
    would wait for that look-up at the same time.

    Locking: none. Threads that touch blocks at the same time may lose a run, and nothing else.

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
        self._least = min(max(FIRST // blksize, 2), self._most)
        self._view = (0, 0)  # the last one that was taken: its blocks [first, stop)
        self._runs: list[_Run] = []  # the last ones; never changed, but replaced
        self._last = 0  # block that was touched

    def expect(self, first: int, n: int) -> None:
        """Called when a view of blocks [first, first + n) is taken."""
        self._view = (first, first + n)

    def loading(self, fileh: Loads, blk: int) -> None:
        """Called when a thread loads a block that it touched. In any thread."""
        if in_pool():
            return
        runs = self._runs
        run = next((run for run in runs if run.takes(blk, self._view)), None)
        if run is None:
            run = _Run(blk, self._last, self._view)
        self._last = blk
        self._runs = [run, *(other for other in runs if other is not run)][:READERS]
        if run.is_sure:
            window = run.window(self._most, self._least, look_up=self._remote)
            if window is not None:
                submit(_load_window, self._find, weakref.ref(fileh), window, self._threads)
