"""The block table of a ZBigFile, read without a Connection: block number -> oid.

In the database it is a LOBTree of block objects. Here its nodes are read from their records,
and kept; which nodes and which blocks changed, the owner says: drop(), changed().

It knows tables, and asks for records. Locking: the GIL, for what is atomic under it; a
lookup that runs while nodes are dropped may return what was true before, and the owner loads
such a page again (BigFileH.invalidate_loading). Or it sees nodes of two states, which may not fit
together: so a table that looks damaged is looked at again, from its root.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import TypeVar

from wendelin.bigfile.zodb.btree import Node, Todo, from_records, read_node, soon, walk
from wendelin.lib.storage.record import RecordError

__all__ = ["BlockTable", "stored_blocks"]

_T = TypeVar("_T")

_ENDLESS = "the block table is damaged: it does not end"


class BlockTable:
    """Block number -> oid of the block object.

    Parameters
    ----------
    load_all : (oids) -> records
        Gives records of the state that is to be read.
    """

    def __init__(self, load_all: Callable[[list[bytes]], list[bytes]]) -> None:
        self._load_all = load_all
        self._nodes: dict[bytes, Node] = {}
        # oids of all nodes that were ever looked at: noted before they are loaded, so that a lookup
        # in another thread cannot have gone through a node which changed() does not know
        self._seen: set[bytes] = set()
        # _seen has every node that what the owner depends on was found in
        self._complete = True

    def _get(self, oid: bytes, todo: Todo) -> Node:
        """Return a node; if it has to be loaded, others with it that are asked for soon."""
        nodes = self._nodes
        node = nodes.get(oid)
        if node is None:
            oids = [oid, *(o for o in soon(todo) if o != oid and o not in nodes)]
            self._seen.update(oids)
            read = [read_node(record, "LO") for record in self._load_all(oids)]
            # into the dict we began with: drop() leaves that one behind
            nodes.update(zip(oids, read, strict=True))
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
        # walk() to one block, in half of the time: a boundary looks up all blocks in memory
        node = self._get(root, [])
        low: int | None = None
        high: int | None = None
        for _ in range(64):
            node.check_within(low, high)
            if node.leaf:
                return node.oids.get(blk)
            i = bisect_right(node.keys, blk)
            low, high = node.bounds(i, low, high)
            node = self._get(node.children[i], [])
        raise RecordError(_ENDLESS)

    def between(self, root: bytes, start: int, stop: int) -> dict[int, bytes]:
        """Return the oids of block objects in [start, stop), by block, ascending; see lookup()."""
        return self._twice(lambda: self._between(root, start, stop))

    def _between(self, root: bytes, start: int, stop: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for _, node in walk(root, self._get, start, stop):
            found.update((blk, of) for blk, of in node.oids.items() if start <= blk < stop)
        return found

    def deletable(self, root: bytes, start: int) -> list[int]:
        """Return the blocks from `start` on, which BTrees is going to delete; see lookup().

        BTrees goes along the chain of the buckets for that, and takes what is there on trust.

        Raises
        ------
        RecordError
            There is something else than buckets in the chain, or it does not end.
        """
        return self._twice(lambda: self._deletable(root, start))

    def _deletable(self, root: bytes, start: int) -> list[int]:
        nodes = list(walk(root, self._get, start))
        # the bucket before is changed as well, if the next one is taken out
        low = [node.keys[: bisect_right(node.keys, start)][-1:] for _, node in nodes]
        before = max(low, default=[])
        if before:
            nodes = list(walk(root, self._get, before[0] - 1))
        ended: set[bytes] = set()  # from these on, the chain ends
        for oid, node in nodes:
            way = {oid}
            while node.next is not None and node.next not in ended:
                if node.next in way:
                    raise RecordError(_ENDLESS)
                way.add(node.next)
                node = self._get(node.next, [])
                if not node.leaf or node.inline:
                    raise RecordError("the block table is damaged: a tree in a chain of buckets")
            ended |= way
        return [blk for _, node in nodes for blk in node.oids if blk >= start]

    def drop(self) -> None:
        """Forget all nodes."""
        self._nodes = {}
        self._complete = False

    def not_asked(self) -> None:
        """The owner depends on blocks that it has not looked up."""
        self._complete = False

    def changed(self, oids: set[bytes]) -> bool:
        """Forget nodes that changed, and say whether lookups may have other results now.

        If so, the caller looks up again whatever it depends on.
        """
        maybe = not self._seen.isdisjoint(oids) or not self._complete
        nodes = self._nodes.copy()  # atomic under the GIL: lookups in other threads add to it
        self._nodes = {oid: node for oid, node in nodes.items() if oid not in oids}
        self._complete = True
        return maybe


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
        No more nodes are read.

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
