"""The block table of a ZBigFile, read without a Connection: block number -> oid.

In the database it is a LOBTree of block objects. Here its nodes are read from their records, and
kept: all inner ones, and a limited number of buckets. The file says which nodes changed: drop(),
changed(). Then moved() returns the ranges of blocks for which lookups may have other results. It
compares changed nodes with their previous state, and reads no others. So its time depends on the
change, not on the size of the table.

This module knows tables, and reads records. Locking: the GIL, for operations that are atomic under
it. A lookup that runs while nodes are dropped may return an old result, and the file loads such a
page again (located.invalidate_loading). Or it sees nodes of two states, which may not fit
together: so a table that looks damaged is read again, from its root.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, TypeVar

from wendelin.bigfile.zodb.btree import (
    DEEPEST,
    Node,
    Todo,
    check_chains,
    descend,
    from_records,
    read_node,
    soon,
    walk,
)
from wendelin.lib.storage.record import RecordError

__all__ = ["BlockTable", "Changed", "stored_blocks"]

_T = TypeVar("_T")

_BUCKETS = 4096  # limit of those that are kept: about 3 MB
_MOST = 1 << 63  # above all block numbers


class Span(NamedTuple):
    """A node, and its range of blocks by the nodes above it."""

    oid: bytes
    low: int
    high: int


class Changed(NamedTuple):
    """The result of changed(), for moved()."""

    spans: list[Span]  # of changed nodes; empty: no lookup has used any
    oids: set[bytes]  # of all objects that changed
    inner: dict[bytes, Node]  # their previous state
    all: bool  # it is not known what changed

    def __bool__(self) -> bool:
        return self.all or bool(self.spans)


class BlockTable:
    """Block number -> oid of the block object.

    Parameters
    ----------
    load_all : (oids) -> records
        Returns records of the state to read.
    """

    def __init__(self, load_all: Callable[[list[bytes]], list[bytes]]) -> None:
        self._load_all = load_all
        # drop() and changed() replace these, so that a lookup in another thread that began before
        # does not put an old node into the new dict
        self._inner: dict[bytes, Node] = {}
        self._buckets: dict[bytes, Node] = {}
        # oid of a child -> oid of its node. Noted when the node is read, before any child is: so
        # changed() knows every node that a lookup has used
        self._parents: dict[bytes, bytes] = {}
        self._root: bytes | None = None
        # the nodes known here have all results that the file depends on
        self._complete = True

    def _get(self, oid: bytes, todo: Todo) -> Node:
        """Return a node; if it is loaded, load others that are needed soon, too."""
        inner, buckets = self._inner, self._buckets
        node = inner.get(oid) or buckets.get(oid)
        if node is None:
            oids = [oid]
            if todo:
                oids += [o for o in soon(todo) if o != oid and o not in inner and o not in buckets]
            read = [read_node(record, "LO") for record in self._load_all(oids)]
            for each, of in zip(oids, read, strict=True):
                if of.leaf:
                    buckets[each] = of.without_classes()
                else:
                    self._parents.update(dict.fromkeys(of.children, each))
                    inner[each] = of
            if len(buckets) > _BUCKETS:
                for each in list(buckets.copy())[: _BUCKETS // 4]:  # the oldest
                    buckets.pop(each, None)
            node = read[0]
        return node

    def lookup(self, root: bytes, blk: int) -> bytes | None:
        """Return the oid of a block object; None: a hole.

        Parameters
        ----------
        root : bytes
            Oid of the table.

        Raises
        ------
        RecordError
            The table is damaged.
        Exception
            What load_all raised.
        """
        return self._twice(lambda: self._lookup(root, blk))

    def _twice(self, look: Callable[[], _T]) -> _T:
        try:
            return look()
        except RecordError:
            self.drop()
            return look()

    def _lookup(self, root: bytes, blk: int) -> bytes | None:
        self._root = root
        return descend(root, self._get, blk).find(blk)

    def between(self, root: bytes, start: int, stop: int) -> dict[int, bytes]:
        """Return the oids of block objects in [start, stop), by block, ascending; see lookup()."""
        return self._twice(lambda: self._between(root, start, stop))

    def _between(self, root: bytes, start: int, stop: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        self._root = root
        top = self._get(root, [])
        if top.leaf:  # of a small file, of which there may be thousands
            return {blk: oid for blk, oid in top.oids.items() if start <= blk < stop}
        for _, node in walk(root, self._get, start, stop):
            found.update((blk, of) for blk, of in node.oids.items() if start <= blk < stop)
        return found

    def deletable(self, root: bytes, start: int) -> list[int]:
        """Return the blocks from `start` on, which BTrees is going to delete; see lookup().

        For that, BTrees follows the chain of the buckets, and trusts it.

        Raises
        ------
        RecordError
            There is another object than a bucket in the chain, or it does not end.
        """
        return self._twice(lambda: self._deletable(root, start))

    def _deletable(self, root: bytes, start: int) -> list[int]:
        self._root = root
        nodes = list(walk(root, self._get, start))
        # the previous bucket is changed as well, if the next one is taken out
        inner = [node.keys for _, node in nodes if not node.leaf]
        before = [key for keys in inner for key in keys[: bisect_right(keys, start)][-1:]]
        if before:
            nodes = list(walk(root, self._get, max(before) - 1))
        check_chains(nodes, self._get)
        return [blk for _, node in nodes for blk in node.oids if blk >= start]

    # ---- what changed ----

    def drop(self) -> None:
        """Forget all nodes."""
        self._inner, self._buckets, self._parents = {}, {}, {}
        self._complete = False

    def not_asked(self) -> None:
        """The file depends on blocks that it has not looked up, and cannot."""
        self._complete = False

    def changed(self, oids: set[bytes]) -> Changed:
        """Forget nodes that changed. True: lookups may have other results now; see moved()."""
        inner, buckets = self._inner, self._buckets
        complete, self._complete = self._complete, True
        parents = self._parents.copy() if len(self._parents) < len(oids) else self._parents
        if parents is self._parents:
            known = [oid for oid in oids if oid in parents or oid == self._root]
        else:
            known = [oid for oid in {*parents, self._root} if oid is not None and oid in oids]
        spans = [self._span(oid) for oid in known]
        if known:
            # copy() is atomic under the GIL: lookups in other threads add to these
            self._inner, self._buckets = inner.copy(), buckets.copy()
            for oid in known:
                self._inner.pop(oid, None)
                self._buckets.pop(oid, None)
        return Changed(
            [span for span in spans if span is not None],
            oids,
            inner,
            not complete or None in spans,
        )

    def _span(self, oid: bytes) -> Span | None:
        """Return for which blocks a node is; None: it is not known any more."""
        low: int | None = None
        high: int | None = None
        at = oid
        for _ in range(DEEPEST):
            if at == self._root:
                return Span(oid, 0 if low is None else low, _MOST if high is None else high)
            parent = self._parents.get(at)
            node = None if parent is None else self._inner.get(parent)
            if parent is None or node is None or at not in node.children:
                return None
            lower, higher = node.bounds(node.children.index(at), None, None)
            low = lower if low is None else low
            high = higher if high is None else high
            at = parent
        return None

    def moved(
        self, root: bytes, changed: Changed, knows: Callable[[int, int], bool]
    ) -> list[tuple[int, int]]:
        """Return ranges [start, stop) of blocks that may be other objects now.

        Parameters
        ----------
        root : bytes
            Oid of the table.
        changed : Changed
            Of which `all` is not set.
        knows : (start, stop) -> bool
            Says whether the caller depends on any block in a range. What it does not know is left
            out, and not read.

        Raises
        ------
        RecordError
            The table is damaged.
        Exception
            What load_all raised.
        """
        ranges: list[tuple[int, int]] = []
        inner, oids = changed.inner, changed.oids
        for span in changed.spans:
            before, after = {span}, {span}
            for _ in range(2 * DEEPEST):
                same = {s for s in before & after if s.oid not in oids}
                before = {s for s in before - same if knows(s.low, s.high)}
                after = {s for s in after - same if knows(s.low, s.high)}
                trees = {s for s in after if not self._get(s.oid, []).leaf}
                # What changed first: what is under it was there most often, and needs no look.
                old = {s for s in before if s.oid in inner and s.oid in oids}
                new = {s for s in trees if s.oid not in inner or s.oid in oids}
                if not old and not new:
                    old, new = {s for s in before if s.oid in inner}, trees
                if not old and not new:
                    break
                before = (before - old).union(*(_under(s, inner[s.oid]) for s in old))
                after = (after - new).union(*(_under(s, self._get(s.oid, [])) for s in new))
            ranges += [(s.low, s.high) for s in before | after]
        return _joined(ranges)


def _under(span: Span, node: Node) -> set[Span]:
    """Return the children of a node."""
    keys = [min(max(key, span.low), span.high) for key in node.keys]
    bounds = pairwise([span.low, *keys, span.high])
    spans = zip(node.children, bounds, strict=True)
    return {Span(oid, low, high) for oid, (low, high) in spans if low < high}


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges without those that overlap, ascending."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def stored_blocks(
    root: bytes, load_all: Callable[[list[bytes]], list[bytes]], most: int
) -> tuple[list[int], bool]:
    """Return blocks that a table has, and whether these are all.

    Parameters
    ----------
    root : bytes
        Oid of the table.
    load_all : (oids) -> records
    most : int
        Limit of nodes that are read.

    Raises
    ------
    RecordError
        The table is damaged.
    """
    found: list[int] = []
    for count, (_, node) in enumerate(walk(root, from_records(load_all, "LO"))):
        if count == most:
            return found, False
        found += node.oids
    return found, True
