"""BTrees of persistent objects, with integers as keys, read without a Connection: from records.

The block table of a file, and the chunk table of a block, are such. It knows BTrees' states, and
nothing of what is in the trees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from wendelin.lib.zrecord import RecordError, Ref, class_of, state_of

__all__ = ["Items", "Node", "read_items", "read_node", "read_nodes"]

#: (oids) -> records of the state that is read
LoadAll = Callable[[list[bytes]], list[bytes]]

_BATCH = 64  # nodes that are asked for at once


@dataclass(frozen=True)
class Node:
    """A node: of a tree, children[i] has the keys in [keys[i-1], keys[i]); of a bucket, oids."""

    leaf: bool
    keys: list[int]
    children: list[bytes]  # oids
    oids: dict[int, bytes]
    classes: tuple[str, ...] = ()  # of a bucket's oids, as references say; "" where one does not


def _bucket(state: object, kind: str) -> Node:
    """Return a bucket from its state ((k0, v0, k1, v1, ...), [next])."""
    if not (isinstance(state, tuple) and len(state) in (1, 2) and isinstance(state[0], tuple)):
        raise RecordError(f"a damaged {kind}BTree: a bucket of another shape")
    flat = state[0]
    if len(flat) % 2:
        raise RecordError(f"a damaged {kind}BTree: a bucket with a key and no value")
    oids: dict[int, bytes] = {}
    for key, ref in zip(flat[0::2], flat[1::2], strict=True):
        if not isinstance(key, int) or not isinstance(ref, Ref):
            raise RecordError(f"a damaged {kind}BTree: {key!r} -> {ref!r}")
        oids[key] = ref.oid
    if 2 * len(oids) != len(flat):
        raise RecordError(f"a damaged {kind}BTree: a bucket with a key twice")
    return Node(True, [], [], oids, tuple(ref.cls for ref in flat[1::2]))


def _tree(state: object, kind: str) -> Node:
    """Return a tree from its state: None; ((bucket state,),); ((c0, k1, c1, ...), first)."""
    if state is None:
        return Node(True, [], [], {})
    if not (isinstance(state, tuple) and state and isinstance(state[0], tuple) and state[0]):
        raise RecordError(f"a damaged {kind}BTree: a tree of another shape")
    flat = state[0]
    if len(state) == 1:
        return _bucket(flat[0], kind)
    children, keys = flat[0::2], flat[1::2]
    if len(children) != len(keys) + 1 or not all(isinstance(c, Ref) for c in children):
        raise RecordError(f"a damaged {kind}BTree: a tree of something else")
    if not all(isinstance(k, int) for k in keys):
        raise RecordError(f"a damaged {kind}BTree: a tree with keys that are no integers")
    return Node(False, list(keys), [c.oid for c in children], {})


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
    todo = deque([root])
    while todo:
        batch = [todo.popleft() for _ in range(min(len(todo), _BATCH))]
        children: list[bytes] = []
        for oid, record in zip(batch, load_all(batch), strict=True):
            if oid in seen:
                raise RecordError(f"a damaged {kind}BTree: a node is there twice")
            seen.add(oid)
            node = read_node(record, kind)
            yield oid, node
            children += node.children
        todo.extendleft(reversed(children))


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
    return Items(dict(sorted(oids.items())), frozenset(nodes))
