"""The block table of a ZBigFile, read without a Connection: block number -> oid.

In the database it is a LOBTree of block objects. Here its nodes are read from their records,
and kept; which nodes and which blocks changed, the owner says: drop(), changed().

It knows tables, and asks for records. Locking: the GIL, for what is atomic under it; a
lookup that runs while nodes are dropped may return what was true before, and the owner loads
such a page again (BigFileH.invalidate_loading). Or it sees nodes of two states, which may not fit
together: so a table that looks damaged is looked at again, from its root.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from typing import TypeVar

from wendelin.bigfile.btree import Node, read_node
from wendelin.lib.zrecord import RecordError

__all__ = ["BlockTable", "stored_blocks"]

_T = TypeVar("_T")

_TOGETHER = 64  # nodes that are asked for at once
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

    def _get(self, oid: bytes, soon: Iterable[bytes] = ()) -> Node:
        """Return a node; if it has to be loaded, others with it that are asked for soon."""
        nodes = self._nodes
        node = nodes.get(oid)
        if node is None:
            oids = [oid, *(o for o in soon if o != oid and o not in nodes)]
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
        node = self._get(root)
        low: int | None = None
        high: int | None = None
        for _ in range(64):
            node.check_within(low, high)
            if node.leaf:
                return node.oids.get(blk)
            i = bisect_right(node.keys, blk)
            low, high = node.bounds(i, low, high)
            node = self._get(node.children[i])
        raise RecordError(_ENDLESS)

    def between(self, root: bytes, start: int, stop: int) -> dict[int, bytes]:
        """Return the oids of the block objects in [start, stop), by block, ascending; see lookup().

        The chain of the buckets there is checked as well: who changes the table goes along it.
        """
        return self._twice(lambda: self._between(root, start, stop))

    def _between(self, root: bytes, start: int, stop: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        seen: set[bytes] = set()
        last: Node | None = None  # bucket
        todo: list[tuple[bytes, int | None, int | None]] = [(root, None, None)]
        while todo:
            oid, low, high = todo.pop()
            if oid in seen:
                raise RecordError(_ENDLESS)
            node = self._get(oid, (o for o, _, _ in todo[:-_TOGETHER:-1]))
            node.check_within(low, high)
            if not node.leaf:
                children = range(bisect_right(node.keys, start), bisect_left(node.keys, stop) + 1)
                todo.extend((node.children[i], *node.bounds(i, low, high)) for i in children[::-1])
            elif last is not None and last.next != oid:
                raise RecordError("the block table is damaged: its buckets are not in a chain")
            else:
                last = node
                found.update((blk, of) for blk, of in node.oids.items() if start <= blk < stop)
            seen.add(oid)
        return found

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
    seen = {root}
    todo = [root]
    while todo and len(seen) <= most + len(todo):
        some, todo = todo[:_TOGETHER], todo[_TOGETHER:]
        for record in load_all(some):
            node = read_node(record, "LO")
            found += node.oids
            if not seen.isdisjoint(node.children):
                raise RecordError(_ENDLESS)
            seen.update(node.children)
            todo += node.children
    return found, not todo
