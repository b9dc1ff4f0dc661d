"""BTrees of persistent objects, with integers as keys, read without a Connection: from records.

The block table of a file, and the chunk table of a block, are such. It knows BTrees' states, and
nothing of what is in the trees.

What is not as BTrees write it is refused: a damaged node must not make a block look like a hole,
nor get to BTrees' own code, which takes some of it on trust, and crashes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import lt
from typing import Any, NamedTuple

from wendelin.lib.zrecord import RecordError, Ref, class_of, state_of

__all__ = ["Items", "Node", "read_items", "read_node", "read_nodes"]

#: (oids) -> records of the state that is read
LoadAll = Callable[[list[bytes]], list[bytes]]

_BATCH = 64  # nodes that are asked for at once


@dataclass(frozen=True)
class Node:
    """A node: of a tree, children[i] has the keys in [keys[i-1], keys[i]); of a bucket, oids."""

    leaf: bool
    keys: list[int]  # ascending
    children: list[bytes]  # oids
    oids: dict[int, bytes]  # ascending
    next: bytes | None = None  # oid of the bucket after this one; of a tree, of its first bucket
    classes: tuple[str, ...] = ()  # of a bucket's oids, as references say; "" where one does not

    def bounds(self, i: int, low: int | None, high: int | None) -> tuple[int | None, int | None]:
        """Return [low, high) of child i of a tree that is in [low, high)."""
        return (
            self.keys[i - 1] if i > 0 else low,
            self.keys[i] if i < len(self.keys) else high,
        )

    def check_within(self, low: int | None, high: int | None) -> None:
        """Check that all keys are in [low, high), as the nodes above say; None: there is no bound.

        Raises
        ------
        RecordError
            They are not.
        """
        keys = self.keys
        if self.leaf and self.oids:
            keys = [next(iter(self.oids)), next(reversed(self.oids))]
        if keys and (
            (low is not None and keys[0] < low) or (high is not None and keys[-1] >= high)
        ):
            raise RecordError(
                f"a damaged BTree: a node with keys [{keys[0]}, {keys[-1]}], where there are "
                f"those of [{low}, {high})"
            )


def _ascend(keys: tuple[Any, ...]) -> bool:
    """Say whether keys are integers, in the order of BTrees."""
    return all(type(k) is int for k in keys) and all(map(lt, keys, keys[1:]))


def _next(state: tuple[object, ...], kind: str) -> bytes | None:
    """Return the oid of the bucket that the second item of a node's state refers to."""
    if len(state) == 1:
        return None
    ref = state[1]
    name = f"BTrees.{kind}BTree.{kind}Bucket"
    # not every writer says the class
    if not isinstance(ref, Ref) or ref.cls not in ("", name, f"{name}Py"):
        raise RecordError(f"a damaged {kind}BTree: {ref!r} for a bucket")
    return ref.oid


def _bucket(state: object, kind: str) -> Node:
    """Return a bucket from its state ((k0, v0, k1, v1, ...), [next])."""
    if not (isinstance(state, tuple) and len(state) in (1, 2) and isinstance(state[0], tuple)):
        raise RecordError(f"a damaged {kind}BTree: a bucket of another shape")
    flat = state[0]
    if len(flat) % 2:
        raise RecordError(f"a damaged {kind}BTree: a bucket with a key and no value")
    keys, refs = flat[0::2], flat[1::2]
    for key, ref in zip(keys, refs, strict=True):
        if not isinstance(ref, Ref):
            raise RecordError(f"a damaged {kind}BTree: {key!r} -> {ref!r}")
    if not _ascend(keys):
        raise RecordError(f"a damaged {kind}BTree: a bucket with keys not in order: {keys!r:.100}")
    oids = {key: ref.oid for key, ref in zip(keys, refs, strict=True)}
    return Node(True, [], [], oids, _next(state, kind), tuple(ref.cls for ref in refs))


def _tree(state: object, kind: str) -> Node:
    """Return a tree from its state: None; ((bucket state,),); ((c0, k1, c1, ...), first).

    BTrees writes a tree of one bucket in the second form while the bucket has no oid. A bucket that
    deletes have left of many has one: that is the third form, with one child.
    """
    if state is None:
        return Node(True, [], [], {})
    if not (
        isinstance(state, tuple)
        and len(state) in (1, 2)
        and isinstance(state[0], tuple)
        and state[0]
    ):
        raise RecordError(f"a damaged {kind}BTree: a tree of another shape")
    flat = state[0]
    if len(state) == 1:
        if len(flat) != 1 or not isinstance(flat[0], tuple) or len(flat[0]) != 1:
            raise RecordError(f"a damaged {kind}BTree: a tree of another shape")
        return _bucket(flat[0], kind)
    children, keys = flat[0::2], flat[1::2]
    if len(children) != len(keys) + 1 or not all(isinstance(c, Ref) for c in children):
        raise RecordError(f"a damaged {kind}BTree: a tree of something else")
    if not _ascend(keys):
        raise RecordError(f"a damaged {kind}BTree: a tree with keys {keys!r:.100}")
    return Node(False, list(keys), [c.oid for c in children], {}, _next(state, kind))


def read_node(record: bytes, kind: str) -> Node:
    """Return a node of a BTree.

    Parameters
    ----------
    record : bytes
    kind : {'LO', 'IO'}
        Of which family the BTree is.

    Raises
    ------
    RecordError
        It is no such node, or damaged.
    """
    name = class_of(record)
    # the pure Python classes have the same states
    of = name.removeprefix(f"BTrees.{kind}BTree.").removesuffix("Py")
    if of == f"{kind}BTree":
        return _tree(state_of(record), kind)
    if of == f"{kind}Bucket":
        return _bucket(state_of(record), kind)
    raise RecordError(f"a damaged {kind}BTree: a {name} in it")


def read_nodes(root: bytes, load_all: LoadAll, kind: str) -> Iterator[tuple[bytes, Node]]:
    """Yield (oid, node) for all nodes of a BTree, its buckets in their order; see read_node().

    Parameters
    ----------
    root : bytes
        Oid of the tree.
    load_all
        Is asked for many nodes at once.
    kind
    """
    seen: set[bytes] = set()
    last: Node | None = None  # bucket
    todo: deque[tuple[bytes, int | None, int | None]] = deque([(root, None, None)])
    while todo:
        batch = [todo.popleft() for _ in range(min(len(todo), _BATCH))]
        children: list[tuple[bytes, int | None, int | None]] = []
        records = load_all([oid for oid, _, _ in batch])
        for (oid, low, high), record in zip(batch, records, strict=True):
            if oid in seen:
                raise RecordError(f"a damaged {kind}BTree: a node is there twice")
            seen.add(oid)
            node = read_node(record, kind)
            node.check_within(low, high)
            if node.leaf:
                # who goes along the buckets has to see the same
                if last is not None and last.next != oid:
                    raise RecordError(f"a damaged {kind}BTree: its buckets are not in a chain")
                last = node
            yield oid, node
            children += [(c, *node.bounds(i, low, high)) for i, c in enumerate(node.children)]
        todo.extendleft(reversed(children))
    if last is not None and last.next is not None:
        raise RecordError(f"a damaged {kind}BTree: its buckets do not end")


class Items(NamedTuple):
    """What is in a BTree."""

    oids: dict[int, bytes]  # ascending by key
    nodes: frozenset[bytes]  # oids of the nodes


def read_items(root: bytes, load_all: LoadAll, kind: str) -> Items:
    """Return all that is in a BTree; see read_nodes()."""
    oids: dict[int, bytes] = {}
    nodes: list[bytes] = []
    for oid, node in read_nodes(root, load_all, kind):
        nodes.append(oid)
        oids.update(node.oids)
    return Items(oids, frozenset(nodes))
