"""What a commit changes in a block, and which chunks store it.

This module knows the stored and the new bytes of a block, but not how they are pickled.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wendelin.bigfile.virtmem.buffer import differing, end_of, filled

__all__ = ["CELLS", "CHUNK", "Block", "Change", "Layout", "trimmed"]

CHUNK = 4096  # of ZBlk1, as it is written; of auto, a unit of chunks [bytes]
CELLS = 16  # in a block
_FEW = 1024  # to copy so many is quicker than to map their page once more [bytes]


class Block(NamedTuple):
    """A block, as it is in the database."""

    data: memoryview | bytes  # zeros follow; as they were stored, if there is a checksum
    parts: frozenset[bytes] = frozenset()  # oids of its objects, besides its own
    regular: bool = True  # its objects are as we write them, and can be changed
    has_checksum: bool = False  # and matches it
    chunks: tuple[tuple[int, int], ...] | None = None  # of a regular ZBlk1: (start, stop) [bytes]
    digest: bytes | None = None  # of the data, if it is one with a checksum of its own


class Layout(NamedTuple):
    """What a commit does to the chunks of a block; (start, stop) [bytes], multiples of CHUNK."""

    anew: bool  # there are no others
    changed: list[tuple[int, int]]
    removed: list[int]
    added: list[tuple[int, int]]

    @property
    def stored(self) -> int:
        """How much of the block is stored [bytes]."""
        return sum(stop - start for start, stop in self.changed + self.added)


class Change:
    """What a commit changes in a block.

    Parameters
    ----------
    old : Block or None
        The stored block; None if there is none.
    new : memoryview
        The block [blksize bytes].
    by_page : bool
        Whether each chunk is one CHUNK, as of ZBlk1; else they are those of auto.
    used : int, optional
        How much of the block is looked at: what follows is zeros, as is known [bytes].
    """

    def __init__(
        self, old: Block | None, new: memoryview, by_page: bool, used: int | None = None
    ) -> None:
        self.old = old
        self._by_page = by_page
        self._new = new
        self._used = new if used is None else new[:used]
        data = memoryview(old.data if old is not None else b"")[: len(new)]
        self._old = trimmed(data)

    def __bool__(self) -> bool:
        """Say whether anything changed."""
        return self.end > len(self._old) or 1 in self._differing

    @cached_property
    def end(self) -> int:
        """Where the bytes end, without the zeros at their end [bytes]."""
        return end_of(self._used)

    @property
    def is_small(self) -> bool:
        """Whether all but the first CHUNK is zeros."""
        return self.end <= CHUNK

    def copied(self) -> bytes | None:
        """Return a copy of the bytes, trailing zeros cut; None: they are many, or nearly all."""
        return bytes(self._new[: self.end]) if self.end <= _FEW else None

    @cached_property
    def used(self) -> NDArray[np.bool_]:
        """Chunks, of CHUNK bytes each, that are not all zeros now."""
        found = np.frombuffer(filled(self._used, CHUNK), np.bool_)
        result = np.zeros(len(self._new) // CHUNK, np.bool_)
        result[: len(found)] = found
        return result

    @cached_property
    def changed(self) -> NDArray[np.bool_]:
        """Chunks that have changed."""
        result = self.used.copy()  # past the end of the stored bytes there were zeros
        n = len(self._differing)
        result[:n] = np.frombuffer(self._differing, np.bool_)
        if end_of(self._new[len(self._old) : n * CHUNK]):
            result[n - 1] = True
        return result

    @cached_property
    def _differing(self) -> bytes:
        """1 for each chunk of which the stored bytes have changed."""
        return differing(self._new[: len(self._old)], self._old, CHUNK)

    @cached_property
    def was_full(self) -> bool:
        """Whether the last chunk was not all zeros."""
        return len(self._old) > len(self._new) - CHUNK

    @cached_property
    def fills(self) -> bool:
        """Whether the block is full to its end, except for high bytes of a number."""
        return len(trimmed(self._new[-CHUNK:])) >= CHUNK - 8

    @cached_property
    def is_append(self) -> bool:
        """Whether nothing changed before the CHUNK in which the stored bytes end."""
        return not self.changed[: len(self._old) // CHUNK].any()

    @property
    def cell(self) -> int:
        """The size of the cells of the block: a chunk that auto divides ends at theirs [CHUNKs]."""
        return max(1, len(self._new) // CHUNK // CELLS)

    @cached_property
    def layout(self) -> Layout:
        """The chunks that the block gets, and those that are stored for this."""
        old = self.old.chunks if self.old is not None and self.old.parts else None
        if old is None or (self._by_page and any(stop - start > CHUNK for start, stop in old)):
            return Layout(True, [], [], self._runs(self.used))
        changed: list[tuple[int, int]] = []
        removed: list[int] = []
        added: list[tuple[int, int]] = []
        free = np.ones(len(self.used), np.bool_)
        for start, stop in old:
            first, end = start // CHUNK, -(-stop // CHUNK)
            free[first:end] = False
            if self.changed[first:end].any():
                for a, b in self._cut(first, end):
                    if self.used[a:b].any():
                        (changed if a == first else added).append((a * CHUNK, b * CHUNK))
                    elif a == first:
                        removed.append(start)
        added += self._runs(self.changed & self.used & free)
        return Layout(False, changed, removed, sorted(added))

    @cached_property
    def _bounds(self) -> list[int]:
        """Where chunks end, ascending [CHUNKs].

        Those of auto: a quarter of the block that changes is halved, and its half, down to cells.
        So a cell that changes in a block that is one piece leaves five other pieces, not 15, to a
        reader, which maps each of them; and what changes next is a quarter at most. (Of a block
        that is not a power of two cells, what is halved may be less than a quarter.)
        """
        n = len(self.used)
        if self._by_page:
            return list(range(1, n + 1))
        cells = np.logical_or.reduceat(self.changed, np.arange(0, n, self.cell))
        size = 1 << (len(cells) - 1).bit_length()
        most = -(-len(cells) // 4)
        bounds: list[int] = []
        todo = [(0, size)]
        while todo:
            first, size = todo.pop()
            if size > 1 and (size > most or cells[first : first + size].any()):
                size //= 2
                todo += [(first + size, size), (first, size)]
            else:
                bounds.append(min((first + size) * self.cell, n))
        return bounds

    def _cut(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the chunks for the range of pages [start, stop) [CHUNKs]."""
        bounds = self._bounds
        for bound in bounds[bisect_right(bounds, start) :]:
            yield start, min(stop, bound)
            start = bound
            if start >= stop:
                return

    def _runs(self, pages: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Return the chunks for some pages: (start, stop) [bytes]."""
        cut = np.flatnonzero(np.diff(pages, prepend=False, append=False)).reshape(-1, 2).tolist()
        end = int(np.flatnonzero(self.used)[-1]) if self.used.any() else -1
        partial = len(trimmed(self._new[end * CHUNK : (end + 1) * CHUNK])) < CHUNK - 8
        runs = []
        for start, stop in (piece for run in cut for piece in self._cut(*run)):
            if partial and start < end < stop:
                runs.append((start * CHUNK, end * CHUNK))
                start = end
            runs.append((start * CHUNK, stop * CHUNK))
        return runs


def trimmed(buf: memoryview | bytes) -> memoryview:
    """Return buf without its trailing zero bytes."""
    return memoryview(buf)[: end_of(buf)]
