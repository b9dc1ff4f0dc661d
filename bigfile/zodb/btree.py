"""BTrees of persistent objects, read without a Connection: from records.

The block table of a file, and the chunk table of a block, are BTrees with integers as keys; the
keys of a Zarr group are text. This module knows BTrees' states, but not the objects in the trees.

A node that is not as BTrees writes it is refused: a damaged one must not make a block look like a
hole, nor get to BTrees' own code, which trusts it, and crashes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import lt
from typing import Any, NamedTuple, TypeAlias, TypeVar

from transaction.interfaces import TransientError

from wendelin.bigfile.zodb.buckets import read_bucket
from wendelin.lib.storage.inert import shown
from wendelin.lib.storage.record import RecordError, Ref, class_of, state_of

__all__ = [
    "DEEPEST",
    "AnyNode",
    "Items",
    "Node",
    "Todo",
    "check_chains",
    "descend",
    "descend_all",
    "from_records",
    "read_items",
    "read_node",
    "soon",
    "walk",
]

#: (oids) -> records of the state that is read
LoadAll = Callable[[list[bytes]], list[bytes]]

#: int of an LOBTree or IOBTree, str of an OOBTree: all keys of a tree are of one type
Key: TypeAlias = Any

#: nodes that are to be visited, the next one last: (oid, low, high), its keys are in [low, high)
Todo = list[tuple[bytes, Key | None, Key | None]]

#: nodes that are read in C: (class, whether it is a tree) of a kind
_READ = {
    kind: tuple((f"BTrees.{kind}BTree\n{kind}{t}\n".encode(), t == "BTree") for t in types)
    for kind, types in {"LO": ("Bucket", "BTree"), "IO": ("BTree", "Bucket")}.items()
}
_NONE: list[bytes] = []  # children of a bucket
TOGETHER = 64  # nodes of one request
DEEPEST = 64  # levels of a tree
ENDLESS = "a damaged BTree: it does not end"


@dataclass(frozen=True, slots=True)
class AnyNode:
    """A node, as far as walk() and descend() know it, whatever is in the buckets.

    Of a tree, children[i] has the keys in [keys[i-1], keys[i]).
    """

    leaf: bool
    keys: Sequence[Key]  # ascending; of a bucket, all that it has
    children: list[bytes]  # oids

    def bounds(self, i: int, low: Key | None, high: Key | None) -> tuple[Key | None, Key | None]:
        """Return [low, high) of child i of a tree that is in [low, high)."""
        return (
            self.keys[i - 1] if i > 0 else low,
            self.keys[i] if i < len(self.keys) else high,
        )

    def check_within(self, low: Key | None, high: Key | None) -> None:
        """Check that all keys are in [low, high), the bounds of the nodes above; None: no bound.

        Raises
        ------
        RecordError
            They are not.
        """
        keys = self.keys
        if keys and (
            (low is not None and keys[0] < low) or (high is not None and keys[-1] >= high)
        ):
            raise RecordError(
                f"a damaged BTree: a node with keys [{shown(keys[0])}, {shown(keys[-1])}], not in "
                f"[{shown(low)}, {shown(high)})"
            )


@dataclass(frozen=True, slots=True)
class Node(AnyNode):
    """A node whose buckets have oids.

    Many are kept: a bucket takes 16 bytes for a key and its oid.
    """

    packed: bytes  # of a bucket: the oids, one after another
    next: bytes | None = None  # oid of the bucket after this one; of a tree, of its first bucket
    classes: tuple[str, ...] = ()  # of a bucket's oids, as references say; "" where one does not
    inline: bool = False  # a tree whose only bucket is in its own state

    def without_classes(self) -> Node:
        """Return a bucket in less memory."""
        if not self.classes:
            return self
        return Node(self.leaf, self.keys, self.children, self.packed, self.next, (), self.inline)

    @property
    def oids(self) -> dict[Key, bytes]:
        """What is in a bucket, ascending."""
        packed = self.packed
        return {key: packed[8 * i : 8 * i + 8] for i, key in enumerate(self.keys)} if packed else {}

    def find(self, key: Key) -> bytes | None:
        """Return what a bucket has for a key; None: nothing."""
        i = bisect_left(self.keys, key)
        if i == len(self.keys) or self.keys[i] != key:
            return None
        return self.packed[8 * i : 8 * i + 8]

    def find_ref(self, key: Key) -> Ref | None:
        """Return the reference that a bucket has for a key; None: there is none."""
        oid = self.find(key)
        return None if oid is None else Ref(oid, self.classes[bisect_left(self.keys, key)])


N = TypeVar("N", bound=AnyNode)

#: (oid, todo) -> node: see walk()
GetNode: TypeAlias = Callable[[bytes, Todo], N]
Get: TypeAlias = GetNode[Node]


def _ascend(keys: tuple[Any, ...], kind: str) -> bool:
    """Say whether keys are of this kind of BTree, and in order."""
    if kind == "OO":
        return all(type(k) is str for k in keys) and all(map(lt, keys, keys[1:]))
    return (
        all(type(k) is int for k in keys)
        and all(map(lt, keys, keys[1:]))
        and (not keys or (keys[0] >= -(1 << 63) and keys[-1] < 1 << 63))
    )


def _is_node(ref: object, kind: str, *types: str) -> bool:
    """Say whether a reference is to a node of this kind of BTree, as far as it has a class.

    ZODB gives an object the class that the reference has, whatever its record is.
    """
    return isinstance(ref, Ref) and ref.cls in _classes(kind, types or ("BTree", "Bucket"))


@cache
def _classes(kind: str, types: tuple[str, ...]) -> frozenset[str]:
    # not every writer says the class; the pure Python classes have the same states
    names = [f"BTrees.{kind}BTree.{kind}{t}" for t in types]
    return frozenset(("", *names, *(f"{name}Py" for name in names)))


def _next(state: tuple[object, ...], kind: str) -> bytes | None:
    """Return the oid of the bucket that the second item of a node's state refers to."""
    if len(state) == 1:
        return None
    ref = state[1]
    if not isinstance(ref, Ref) or not _is_node(ref, kind, "Bucket"):
        raise RecordError(f"a damaged {kind}BTree: {shown(ref)} for a bucket")
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
            raise RecordError(f"a damaged {kind}BTree: {shown(key)} -> {shown(ref)}")
    if not _ascend(keys, kind):
        raise RecordError(f"a damaged {kind}BTree: a bucket with keys not in order: {shown(keys)}")
    packed = b"".join([ref.oid for ref in refs])
    classes = tuple(ref.cls for ref in refs)
    packed_keys = keys if kind == "OO" else array("q", keys)
    return Node(True, packed_keys, [], packed, _next(state, kind), classes)


def _tree(state: object, kind: str) -> Node:
    """Return a tree from its state: None; ((bucket state,),); ((c0, k1, c1, ...), first).

    BTrees writes a tree of one bucket in the second form while the bucket has no oid. If deletes
    have left one bucket of many, it has an oid: this is the third form, with one child.
    """
    if state is None:
        return Node(True, [], [], b"", inline=True)
    if not (
        isinstance(state, tuple)
        and len(state) in (1, 2)
        and isinstance(state[0], tuple)
        and state[0]
    ):
        raise RecordError(f"a damaged {kind}BTree: a tree of another shape")
    flat = state[0]
    if len(state) == 1:
        if len(flat) != 1:
            raise RecordError(f"a damaged {kind}BTree: a tree of another shape")
        return replace(_bucket(flat[0], kind), inline=True)
    children, keys = flat[0::2], flat[1::2]
    if len(children) != len(keys) + 1 or not all(_is_node(c, kind) for c in children):
        raise RecordError(f"a damaged {kind}BTree: a tree of something else")
    if not _ascend(keys, kind):
        raise RecordError(f"a damaged {kind}BTree: a tree with keys {shown(keys)}")
    return Node(False, list(keys), [c.oid for c in children], b"", _next(state, kind))


@cache
def _empty(kind: str) -> Node:
    """Return an empty tree, one object for all: there may be thousands."""
    return Node(True, array("q"), _NONE, b"", None, (), inline=True)


def read_node(record: bytes, kind: str) -> Node:
    """Return a node of a BTree.

    Parameters
    ----------
    record : bytes
    kind : {'LO', 'IO', 'OO'}
        The family of the BTree; with text as keys: 'OO'.

    Raises
    ------
    RecordError
        It is not such a node, or is damaged.
    """
    for cls, tree in _READ.get(kind, ()):
        found = read_bucket(record, cls, tree)
        if found is not None:
            keys, packed, after, classes = found
            if tree and not packed:
                return _empty(kind)
            return Node(True, keys, _NONE, packed, after, classes, inline=tree)
    name = class_of(record)
    # the pure Python classes have the same states
    of = name.removeprefix(f"BTrees.{kind}BTree.").removesuffix("Py")
    if of == f"{kind}BTree":
        return _tree(state_of(record), kind)
    if of == f"{kind}Bucket":
        return _bucket(state_of(record), kind)
    raise RecordError(f"a damaged {kind}BTree: a {name} in it")


def walk(
    root: bytes,
    get: GetNode[N],
    start: Key | None = None,
    stop: Key | None = None,
    bad: Callable[[bytes, Exception], None] | None = None,
) -> Iterator[tuple[bytes, N]]:
    """Yield (oid, node) for the nodes of a BTree, from its root down, its leaves in order.

    The separators of the nodes above say where a key is, as in BTrees' own lookups. The chain of
    the buckets is ignored, as BTrees itself breaks it: if deletes in one transaction leave one new
    bucket of a new inner node, the node is stored with that bucket in it. The chain has a second
    copy of the bucket, which does not change any more.

    Parameters
    ----------
    root : bytes
        Oid of the tree.
    get : (oid, todo) -> node
        Gets a node, an AnyNode. At the end of todo are the nodes that follow, as (oid, ...).
    start, stop : int, optional
        Only nodes on the way to keys in [start, stop).
    bad : (oid, exception) -> None, optional
        Called for nodes that are damaged, or cannot be loaded; they are left out.

    Raises
    ------
    RecordError
        The tree is damaged.
    Exception
        The exception of get.
    """
    seen: set[bytes] = set()
    todo: Todo = [(root, None, None)]
    while todo:
        oid, low, high = todo.pop()
        try:
            if oid in seen:
                raise RecordError("a damaged BTree: a node is there twice")
            seen.add(oid)
            node = get(oid, todo)
            node.check_within(low, high)
        except (TransientError, MemoryError):
            raise
        except Exception as e:
            if bad is None:
                raise
            bad(oid, e)
            continue
        yield oid, node
        if not node.leaf:
            first = 0 if start is None else bisect_right(node.keys, start)
            last = len(node.keys) if stop is None else bisect_left(node.keys, stop)
            children = range(last, first - 1, -1)
            todo += [(node.children[i], *node.bounds(i, low, high)) for i in children]


def soon(todo: Todo) -> Iterator[bytes]:
    """Yield the oids of nodes to load together with one that walk() gets."""
    return (oid for oid, _, _ in todo[:-TOGETHER:-1])


def from_records(load_all: LoadAll, kind: str) -> Get:
    """Return a function that gets nodes for walk(), many at once, and does not keep them.

    If one of them cannot be loaded, each is loaded on its own: others may be intact.
    """
    known: dict[bytes, bytes] = {}

    def get(oid: bytes, todo: Todo) -> Node:
        if oid not in known:
            oids = [oid, *soon(todo)]
            try:
                known.update(zip(oids, load_all(oids), strict=True))
            except (TransientError, MemoryError):
                raise
            except Exception:
                known.update(zip(oids[:1], load_all(oids[:1]), strict=True))
        return read_node(known.pop(oid), kind)

    return get


def descend(root: bytes, get: GetNode[N], key: Key) -> N:
    """Return the leaf where a key is, if it is in a BTree: walk() to one key, in half of the time.

    Raises
    ------
    RecordError, Exception
        See walk().
    """
    node = get(root, [])
    low: Key | None = None
    high: Key | None = None
    for _ in range(DEEPEST):
        node.check_within(low, high)
        if node.leaf:
            return node
        i = bisect_right(node.keys, key)
        low, high = node.bounds(i, low, high)
        node = get(node.children[i], [])
    raise RecordError(ENDLESS)


def descend_all(
    root: bytes, get_all: Callable[[list[bytes]], list[N]], keys: Iterable[Key]
) -> dict[Key, N]:
    """Return descend() of many keys: the nodes of one level are got together.

    Parameters
    ----------
    root : bytes
        Oid of the tree.
    get_all : (oids) -> nodes
    keys : iterable

    Raises
    ------
    RecordError, Exception
        See walk().
    """
    leaves: dict[Key, N] = {}
    level: dict[tuple[bytes, Key | None, Key | None], list[Key]] = {(root, None, None): list(keys)}
    for _ in range(DEEPEST):
        below: dict[tuple[bytes, Key | None, Key | None], list[Key]] = {}
        nodes = get_all([oid for oid, _, _ in level])
        for node, ((_, low, high), some) in zip(nodes, level.items(), strict=True):
            node.check_within(low, high)
            if node.leaf:
                leaves.update(dict.fromkeys(some, node))
                continue
            for key in some:
                i = bisect_right(node.keys, key)
                child = (node.children[i], *node.bounds(i, low, high))
                below.setdefault(child, []).append(key)
        if not below:
            return leaves
        level = below
    raise RecordError(ENDLESS)


def check_chains(nodes: Iterable[tuple[bytes, Node]], get: Get) -> None:
    """Check the chains of buckets that begin at some nodes, which BTrees' own code goes along.

    It takes what is there on trust: it crashes on anything else than buckets, and does not end in
    a circle.

    Raises
    ------
    RecordError
        There is something else than buckets in a chain, or it does not end.
    Exception
        What get raised.
    """
    ended: set[bytes] = set()  # from these on, the chain ends
    for oid, node in nodes:
        way = {oid}
        while node.next is not None and node.next not in ended:
            if node.next in way:
                raise RecordError(ENDLESS)
            way.add(node.next)
            node = get(node.next, [])
            if not node.leaf or node.inline:
                raise RecordError("a damaged BTree: a tree in a chain of buckets")
        ended |= way


class Items(NamedTuple):
    """The contents of a BTree."""

    oids: dict[int, bytes]  # ascending by key
    nodes: frozenset[bytes]  # oids of the nodes
    chained: bool  # the chain of the buckets is right, so BTrees' own code may change them


def read_items(root: Ref, load_all: LoadAll, kind: str, values: str) -> Items:
    """Return the contents of a BTree; see walk().

    Parameters
    ----------
    root : Ref
    load_all, kind
        See from_records().
    values : str
        The class of its values, as references have it.
    """
    if not _is_node(root, kind):
        raise RecordError(f"{shown(root)} in the place of a {kind}BTree")
    oids: dict[int, bytes] = {}
    nodes: list[bytes] = []
    chained = True
    last: Node | None = None  # bucket
    get = from_records(load_all, kind)
    top = get(root.oid, [])
    if top.leaf and set(top.classes) <= {"", values}:  # most are small
        return Items(top.oids, frozenset((root.oid,)), top.next is None)
    for oid, node in walk(root.oid, lambda oid, todo: top if oid == root.oid else get(oid, todo)):
        for cls in node.classes:
            if cls not in ("", values):
                raise RecordError(f"a {cls} in the place of a {values}")
        nodes.append(oid)
        oids.update(node.oids)
        if node.leaf:
            chained &= (last is None or last.next == oid) and (not node.inline or oid == root.oid)
            last = node
    chained &= last is not None and last.next is None
    return Items(oids, frozenset(nodes), chained)
