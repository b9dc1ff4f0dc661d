"""Keys of a Zarr group -> oids of their values, read from records: any thread, no Connection.

The keys are in an OOBTree. Its nodes are read as a lookup comes to them, all of one level together,
and kept until they change.

A lookup sees one state of the database. The Connection may move on in the middle of it, in another
thread: then nodes of two states may not fit together, and a key that both states have may be in
neither of the nodes that were looked at. So a lookup notes before which transaction it reads, and
looks again if that has changed. Nodes that are kept are of the state that follow() was told of;
until it is told of the next one, a lookup in that keeps none.

It knows BTrees in records. Which values there are, and what was changed and is not committed, it
does not know. Locking: the GIL. A dict of nodes is only added to; follow() puts another in its
place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from ZODB.POSException import POSKeyError, ReadConflictError

from wendelin.bigfile.zodb.btree import (
    Node,
    Todo,
    descend,
    descend_all,
    read_node,
    soon,
    walk,
)
from wendelin.lib.storage.record import RecordError, Ref

__all__ = ["Keys", "NotKeptError", "after"]

MOST = 1 << 14  # nodes that are kept

T = TypeVar("T")


class NotKeptError(Exception):
    """A node has to be loaded first."""


class _Kept(NamedTuple):
    """Nodes of one state."""

    before: bytes | None  # see zconn_before()
    nodes: dict[bytes, Node]


class Keys:
    """Key -> oid of the value, and the name of its class.

    Parameters
    ----------
    load_all : (oids) -> records
        Of the state that is to be read.
    before : () -> bytes or None
        Before which transaction that is.
    """

    def __init__(
        self, load_all: Callable[[list[bytes]], list[bytes]], before: Callable[[], bytes | None]
    ) -> None:
        self._load_all = load_all
        self._before = before
        self._kept = _Kept(before(), {})

    def follow(self, changed: set[bytes] | None) -> None:
        """Be told which objects the new state has changed; None: any may be."""
        nodes = self._kept.nodes.copy()  # atomic under the GIL: lookups add to it
        if changed is None or len(nodes) > MOST:
            nodes = {}
        elif changed:
            nodes = {oid: node for oid, node in nodes.items() if oid not in changed}
        self._kept = _Kept(self._before(), nodes)

    def one_state(self, look: Callable[[], T]) -> T:
        """Return what a call returns that reads one state of the database, in any thread."""
        while True:
            before = self._before()
            try:
                found = look()
            except (RecordError, POSKeyError, ReadConflictError):
                if self._before() == before:
                    raise
                continue
            if self._before() == before:
                return found

    def _nodes(self) -> dict[bytes, Node]:
        kept = self._kept
        return kept.nodes if kept.before == self._before() else {}

    # ---- some keys ----

    def find_kept(self, root: bytes, key: str) -> Ref | None:
        """Return what find() does of one key, without any waiting.

        Raises
        ------
        NotKeptError
            It would take some.
        """
        kept = self._kept
        if kept.before != self._before():
            raise NotKeptError

        def get(oid: bytes, todo: Todo) -> Node:
            node = kept.nodes.get(oid)
            if node is None:
                raise NotKeptError
            return node

        return descend(root, get, key).find_ref(key)

    def find(self, root: bytes, keys: Iterable[str]) -> dict[str, Ref | None]:
        """Return the values of keys; None: it is not there.

        Parameters
        ----------
        root : bytes
            Oid of the tree.

        Raises
        ------
        RecordError
            The tree is damaged.
        Exception
            What load_all raised.
        """
        keys = list(keys)
        return self.one_state(lambda: self._find(root, keys))

    def _find(self, root: bytes, keys: list[str]) -> dict[str, Ref | None]:
        nodes = self._nodes()

        def get_all(oids: list[bytes]) -> list[Node]:
            missing = [oid for oid in oids if oid not in nodes]
            if missing:
                read = [read_node(record, "OO") for record in self._load_all(missing)]
                nodes.update(zip(missing, read, strict=True))
            return [nodes[oid] for oid in oids]

        leaves = descend_all(root, get_all, keys)
        return {key: leaf.find_ref(key) for key, leaf in leaves.items()}

    # ---- ranges ----

    def between(self, root: bytes, low: str, high: str | None) -> list[tuple[str, Ref]]:
        """Return keys in [low, high) and their values, ascending; see find()."""
        return self.one_state(lambda: list(self._between(root, low, high)))

    def _between(self, root: bytes, low: str, high: str | None) -> Iterator[tuple[str, Ref]]:
        nodes = self._nodes()

        def get(oid: bytes, todo: Todo) -> Node:
            if oid not in nodes:
                oids = [oid, *(o for o in soon(todo) if o != oid and o not in nodes)]
                read = [read_node(record, "OO") for record in self._load_all(oids)]
                nodes.update(zip(oids, read, strict=True))
            return nodes[oid]

        for _, node in walk(root, get, low, high):
            for (key, oid), cls in zip(node.oids.items(), node.classes, strict=True):
                if low <= key and (high is None or key < high):
                    yield key, Ref(oid, cls)

    def names(self, root: bytes, prefix: str) -> list[str]:
        """Return what comes after prefix in keys, up to the next slash; ascending; see find().

        What is behind that slash is not looked at: a folder of many keys costs one lookup.
        """
        return self.one_state(lambda: self._names(root, prefix))

    def _names(self, root: bytes, prefix: str) -> list[str]:
        names: list[str] = []
        low, high = prefix, after(prefix)
        while True:
            key = ""
            for key, _ in self._between(root, low, high):
                name, slash, _ = key[len(prefix) :].partition("/")
                if slash:
                    break
                names.append(name)
            else:
                return names
            if name not in names[-1:]:
                names.append(name)
            low = after(f"{prefix}{name}/") or ""


def after(prefix: str) -> str | None:
    """Return the first text that is behind all that begins with a prefix; None: there is none."""
    last = prefix.rstrip(chr(0x10FFFF))
    return last[:-1] + chr(ord(last[-1]) + 1) if last else None
