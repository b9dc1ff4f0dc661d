"""The block table of a ZBigFile, read without a Connection: block number -> oid.

In the database it is a LOBTree of block objects. Here its nodes are read from their records,
and kept; which nodes and which blocks changed, the owner says: drop(), changed().

It knows BTrees' states, and asks for records. Locking: the GIL, for what is atomic under it; a
lookup that runs while nodes are dropped may return what was true before, and the owner loads
such a page again (BigFileH.invalidate_loading).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from wendelin.lib.zrecord import RecordError, Ref, class_of, state_of

__all__ = ["BlockTable"]


@dataclass(frozen=True)
class _Node:
    """A node: of a tree, children[i] has the keys in [keys[i-1], keys[i]); of a bucket, items."""

    leaf: bool
    keys: list[int]
    children: list[object]  # Ref, or for a tree of one bucket the bucket itself
    oids: dict[int, bytes]


def _bucket(state: object) -> _Node:
    """Return a bucket from its state ((k0, v0, k1, v1, ...), [next])."""
    if not (isinstance(state, tuple) and len(state) in (1, 2) and isinstance(state[0], tuple)):
        raise RecordError("the block table is damaged: a bucket of another shape")
    flat = state[0]
    oids: dict[int, bytes] = {}
    for key, ref in zip(flat[0::2], flat[1::2], strict=True):
        if not isinstance(key, int) or not isinstance(ref, Ref):
            raise RecordError(f"the block table is damaged: {key!r} -> {ref!r}")
        oids[key] = ref.oid
    return _Node(True, [], [], oids)


def _tree(state: object) -> _Node:
    """Return a tree from its state: None; ((bucket state,),); ((c0, k1, c1, ...), first)."""
    if state is None:
        return _Node(True, [], [], {})
    if not (isinstance(state, tuple) and state and isinstance(state[0], tuple)):
        raise RecordError("the block table is damaged: a tree of another shape")
    flat = state[0]
    if len(state) == 1:
        return _bucket(flat[0])
    if any(not isinstance(c, Ref) for c in flat[0::2]):
        raise RecordError("the block table is damaged: a tree of something else")
    return _Node(False, list(flat[1::2]), list(flat[0::2]), {})


def _node(record: bytes) -> _Node:
    name = class_of(record)
    # the pure Python classes have the same states
    kind = name.removeprefix("BTrees.LOBTree.").removesuffix("Py")
    if kind == "LOBTree":
        return _tree(state_of(record))
    if kind == "LOBucket":
        return _bucket(state_of(record))
    raise RecordError(f"the block table is damaged: a {name} in it")


class BlockTable:
    """Block number -> oid of the block object.

    Parameters
    ----------
    load : (oid) -> record
        Gives records of the state that is to be read.
    """

    def __init__(self, load: Callable[[bytes], bytes]) -> None:
        self._load = load
        self._nodes: dict[bytes, _Node] = {}
        # _nodes has every node that lookups since the last changed() went through
        self._complete = True

    def _get(self, oid: bytes) -> _Node:
        nodes = self._nodes
        node = nodes.get(oid)
        if node is None:
            node = _node(self._load(oid))
            # into the dict we began with: drop() leaves that one behind
            nodes[oid] = node
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
            What load raised.
        """
        node = self._get(root)
        for _ in range(64):
            if node.leaf:
                return node.oids.get(blk)
            child = node.children[bisect_right(node.keys, blk)]
            assert isinstance(child, Ref)
            node = self._get(child.oid)
        raise RecordError("the block table is damaged: it does not end")

    def between(self, root: bytes, start: int, stop: int, depth: int = 64) -> dict[int, bytes]:
        """Return the oids of the block objects in [start, stop), by block; see lookup()."""
        node = self._get(root)
        if node.leaf:
            return {blk: oid for blk, oid in node.oids.items() if start <= blk < stop}
        if depth == 0:
            raise RecordError("the block table is damaged: it does not end")
        found: dict[int, bytes] = {}
        first, last = bisect_right(node.keys, start), bisect_left(node.keys, stop)
        for child in node.children[first : last + 1]:
            assert isinstance(child, Ref)
            found.update(self.between(child.oid, start, stop, depth - 1))
        return found

    def drop(self) -> None:
        """Forget all nodes."""
        self._nodes = {}
        self._complete = False

    def changed(self, oids: set[bytes]) -> bool:
        """Forget nodes that changed, and say whether lookups may have other results now.

        If so, the caller looks up again whatever it depends on.
        """
        kept = {oid: node for oid, node in self._nodes.items() if oid not in oids}
        maybe = len(kept) != len(self._nodes) or not self._complete
        self._nodes = kept
        self._complete = True
        return maybe
