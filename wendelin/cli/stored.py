"""Objects of a database, read from its records: nothing is loaded, and none of their code runs.

ZBigArray and ZBigFile, mappings, lists and BTrees are read by their formats. An object of another
class is read by its attributes, which are the state of a Persistent. Whether a class is a mapping
is known only if this process has imported it; none is imported for this. A subclass of ZBigArray
has the state of one, whatever its name is.

Values
------
    Ref                          a persistent object: Database.get() gives it
    Stored                       its class and state
    StoredArray, StoredFile      the same, of an array and a file
    Pairs, Object, list, tuple   values in a state: see inert
"""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from persistent.list import PersistentList
from persistent.mapping import PersistentMapping
from ZODB.utils import z64

from wendelin.bigarray import BigArray
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.file_zodb import ZBigFile
from wendelin.bigfile.virtmem.backend import BigFile
from wendelin.bigfile.virtmem.handle import BigFileH
from wendelin.bigfile.zodb.blockfile import ZFile
from wendelin.bigfile.zodb.btree import AnyNode, GetNode, Todo, descend, walk
from wendelin.bigfile.zodb.formats import check_format, class_name
from wendelin.lib.adapters.connection import instance_of
from wendelin.lib.storage.inert import InertError, Object, Pairs, shown
from wendelin.lib.storage.inertdtype import dtype_of, scalar_of
from wendelin.lib.storage.record import Elsewhere, RecordError, Ref, inert_of

__all__ = [
    "Database",
    "Stored",
    "StoredArray",
    "StoredFile",
    "attributes",
    "class_of",
    "has_references",
    "is_leaf",
    "is_mapping",
    "is_read",
    "is_sequence",
    "is_subclass",
    "items",
    "items_by_record",
    "lookup",
    "may_hold",
    "name_of",
    "node_oids",
]

Pair = tuple[Any, Any]

_NAME = 4096  # of a key, as it is shown [characters]
_MOST_AXES = 64  # the limit of NumPy

_BTREE = re.compile(r"BTrees\.(?:\w\w)BTree\.(\w\w)(BTree|Bucket)(?:Py)?")
_INTEGERS = "ILUQ"  # families of BTrees whose keys are integers

_MAPPINGS = {
    "persistent.mapping.PersistentMapping",
    "persistent.dict.PersistentDict",
    "ZODB.PersistentMapping.PersistentMapping",
    "collections.UserDict",
    "UserDict.UserDict",
}
_LISTS = {
    "persistent.list.PersistentList",
    "ZODB.PersistentList.PersistentList",
    "collections.UserList",
    "UserList.UserList",
}
_SETS = {f"{of}.{name}" for of in ("builtins", "__builtin__") for name in ("set", "frozenset")}
_ORDERED = "collections.OrderedDict"

_ARRAY = "wendelin.bigarray.array_zodb.ZBigArray"
_FILE = "wendelin.bigfile.file_zodb.ZBigFile"


class Stored(NamedTuple):
    """A persistent object."""

    oid: bytes
    tid: bytes  # of the transaction that wrote it
    cls: str  # "module.name"
    state: Any
    database: Database


@dataclass(frozen=True)
class StoredFile:
    """A ZBigFile, with what inspect_blocks, verify_blocks and ZFile need of one."""

    _p_jar: Any
    _p_oid: bytes
    _p_serial: bytes
    cls: str
    blksize: int
    table: bytes  # oid

    @property
    def blktab(self) -> Any:
        """The block table."""
        return _Table(self.table)


@dataclass(frozen=True)
class _Table:
    _p_oid: bytes


class StoredArray(BigArray):
    """A ZBigArray, to be read.

    Parameters
    ----------
    stored : Stored
    attributes : list of (str, value)
        Of the state.
    file : Ref
    """

    def __init__(self, stored: Stored, attributes: Pairs, file: Ref) -> None:
        shape = attributes.get("_shape")
        if not isinstance(shape, tuple) or len(shape) > _MOST_AXES:
            raise RecordError(f"a damaged ZBigArray: a shape {shown(shape)}")
        try:
            order = attributes.get("_order", "C")  # early databases have none
            dtype = dtype_of(attributes.get("_dtype"))
            self._init([_axis(n) for n in shape], dtype, order)
            zblk_fmt = attributes.get("_zblk_fmt")
            self._zblk_fmt = None if zblk_fmt is None else check_format(zblk_fmt, "_zblk_fmt")
        except (InertError, TypeError, ValueError, NotImplementedError) as e:
            raise RecordError(f"a damaged ZBigArray: {type(e).__name__}: {e}") from e
        self._p_jar, self._p_oid, self._p_serial = stored.database.conn, stored.oid, stored.tid
        self.cls = stored.cls
        #: names of the attributes of users and subclasses
        self.others = sorted({n for n, _ in _own(stored) if n != "zfile" and n[:1] != "_"})
        #: what has its attributes: a Ref of it
        self.attrs = found if isinstance(found := attributes.get("_attrs"), Ref) else None
        self.zfile = _file(stored.database.stored(file))
        self._handle: BigFileH | None = None

    def _fileh(self) -> BigFileH:
        if self._handle is None:
            file = ZFile(self.zfile, self._p_jar, None)
            self._handle = handle = file.fileh_open()
            file.handle = weakref.ref(handle)  # type: ignore[arg-type]
            handle.read_only = True
        return self._handle

    def _expect(self, fileh: BigFileH, first: int, n: int) -> None:
        fileh.file.view = first, n


def _axis(n: object) -> int:
    """Return the length of an axis; early programs had NumPy's integers."""
    n = scalar_of(n)
    if isinstance(n, int) and n.bit_length() > 128:
        raise InertError(f"an axis of {shown(n)}")
    return n  # type: ignore[return-value]  # else it is refused


def _file(stored: Stored) -> StoredFile:
    state = stored.state
    if not (isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Ref)):
        raise RecordError(f"a damaged ZBigFile: {shown(state)} is not (blksize, LOBTree)")
    blksize, table = state
    try:
        if type(blksize) is not int:
            raise TypeError(f"blksize is {shown(blksize)}")
        BigFile(blksize)
    except (TypeError, ValueError, OverflowError) as e:
        raise RecordError(f"a damaged ZBigFile: {e}") from e
    conn = stored.database.conn
    return StoredFile(conn, stored.oid, stored.tid, stored.cls, blksize, table.oid)


class Database:
    """Objects of a database, by references to them.

    Parameters
    ----------
    conn : Snapshot or Connection
        Tells the records.
    """

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    @property
    def root(self) -> Any:
        """The root object."""
        return self.get(Ref(z64, ""))

    def stored(self, ref: Ref) -> Stored:
        """Return an object, whatever it is.

        Raises
        ------
        RecordError
            Its record is damaged.
        Exception
            What the storage raised.
        """
        data, tid = instance_of(self.conn).load(ref.oid)
        return Stored(ref.oid, tid, *inert_of(bytes(data)), self)

    def get(self, value: Any) -> Any:
        """Return the object of a Ref; any other value as it is. See stored()."""
        if not isinstance(value, Ref):
            return value
        stored = self.stored(value)
        kind = _kind(stored.cls)
        if kind.file:
            return _file(stored)
        state = stored.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Pairs):
            file = state[1].get("zfile")
            if isinstance(file, Ref) and isinstance(state[0], Pairs):
                return StoredArray(stored, state[0], file)
        if kind.array:
            raise RecordError(f"a damaged ZBigArray: {shown(state)}")
        return stored


# ---- classes ----


def _imported(cls: str) -> type | None:
    """Return the class of a name, if this process has imported it."""
    module, _, name = cls.rpartition(".")
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return found if isinstance(found, type) else None


def is_subclass(cls: str, name: str, base: type) -> bool:
    """Say whether a class is one of a name, or is known to be a subclass of it."""
    return cls == name or base in getattr(_imported(cls), "__mro__", ())


class _Kind(NamedTuple):
    """How objects of a class are read."""

    array: bool
    file: bool
    container: type | None  # Pairs or list, if an attribute has one
    keys: str = ""  # "I", "O", ...: the type of the keys of a BTree
    bucket: bool = False


def _kind(cls: str) -> _Kind:
    return _kind_of(cls, _imported(cls)) if len(cls) < _NAME else _Kind(False, False, None)


@lru_cache(1024)
def _kind_of(cls: str, found: type | None) -> _Kind:
    """Return the kind of a class, or of one that it is known to be a subclass of."""
    bases: tuple[type, ...] = found.__mro__ if found is not None else ()
    container: type | None = None
    if cls in _MAPPINGS or PersistentMapping in bases:
        container = Pairs
    elif cls in _LISTS or PersistentList in bases:
        container = list
    names = [cls, *(f"{base.__module__}.{base.__qualname__}" for base in bases)]
    tree = next(filter(None, map(_BTREE.fullmatch, names)), None)
    keys, bucket = (tree[1][0], tree[2] == "Bucket") if tree is not None else ("", False)
    array, file = cls == _ARRAY or ZBigArray in bases, cls == _FILE or ZBigFile in bases
    return _Kind(array, file, container, keys, bucket)


def class_of(value: Any) -> str:
    """Return "module.name" of the class of a value."""
    if isinstance(value, Stored | StoredArray | StoredFile | Object):
        return value.cls
    if isinstance(cls := getattr(value, "cls", None), str) and not isinstance(value, Ref):
        return cls  # of what tree.known() returns
    if isinstance(value, Ref):
        return value.cls or "an object"
    if isinstance(value, Pairs):
        return "builtins.dict"
    if isinstance(value, Elsewhere):
        return value.what
    return f"{type(value).__module__}.{type(value).__qualname__}"


def is_leaf(ref: Ref) -> bool:
    """Say whether there are no arrays in an object: it is a block, or a value, or a part of one."""
    return ref.cls in _LEAVES or class_name(ref.cls) in _BLOCKS


_BLOCKS = {"ZBlk0", "ZBlk1"}
_LEAVES = {
    "wendelin.bigfile.file_zodb.ZData",
    "wendelin.zarr.ZarrParts",
    "wendelin.zarr.ZarrValue",
}


# ---- contents of objects ----


def _states(value: Any) -> list[Any]:
    return value.states if isinstance(value, Object) else [value.state]


def _own(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and values in the state of an object, as Persistent, or object, writes it."""
    if not isinstance(value, Stored | Object):
        return
    for state in _states(value):
        dicts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if not all(each is None or isinstance(each, Pairs) for each in dicts):
            continue
        for each in filter(None, dicts):
            yield from ((k, v) for k, v in each.pairs if type(k) is str)


def _container(value: Any) -> Any:
    """Return the dict or list in an attribute of a mapping or a list; None if it is neither."""
    if not isinstance(value, Stored | Object):
        return None
    kind = _kind(value.cls).container
    if kind is None:
        return None
    found = [v for k, v in _own(value) if k in ("data", "_container")]
    return found[-1] if found and isinstance(found[-1], kind) else kind()


def attributes(value: Any) -> list[tuple[str, Any]]:
    """Return the persistent attributes of an object."""
    if isinstance(value, StoredArray | StoredFile):
        return []
    contains = isinstance(value, Stored | Object) and _kind(value.cls).container is not None
    skipped = ("data", "_container") if contains else ()
    return [
        (name, what)
        for name, what in _own(value)
        if not name.startswith(("_p_", "_v_")) and name not in skipped
    ]


def items(value: Any) -> Iterator[Pair]:
    """Yield (key, value) of the contents of an object, without its attributes."""
    for pairs in items_by_record(value):
        yield from pairs


def items_by_record(value: Any) -> Iterator[list[Pair]]:
    """Yield (key, value) of the contents of an object, without its attributes, record by record.

    Raises
    ------
    RecordError
        A BTree is damaged.
    Exception
        What the storage raised.
    """
    if isinstance(value, Stored) and _kind(value.cls).keys:
        yield from _tree_items(value)
        return
    container = _container(value)
    if container is not None:
        value = container
    if isinstance(value, Pairs):
        yield value.pairs
    elif is_sequence(value):
        yield list(enumerate(value))
    elif isinstance(value, Object):
        yield _object_items(value)


def _object_items(value: Object) -> list[Pair]:
    """Return the contents of an object that is a subclass of dict or list."""
    if value.pairs or value.cls in _SETS:
        return value.pairs
    if value.cls == _ORDERED and value.args and type(value.args[0]) is list:  # of Python 2
        return [(p[0], p[1]) for p in value.args[0] if type(p) in (list, tuple) and len(p) == 2]
    return list(enumerate(value.items))


def is_sequence(value: Any) -> bool:
    """Say whether a value is a list, whose keys are indices."""
    return type(value) in (list, tuple) or type(_container(value)) is list


def is_mapping(value: Any) -> bool:
    """Say whether an object is a mapping of names, or other keys, as a group is."""
    return isinstance(value, Stored) and (
        bool(_kind(value.cls).keys) or _kind(value.cls).container is Pairs
    )


def may_hold(value: Any) -> bool:
    """Say whether a value that is not a persistent object may have such in it."""
    if isinstance(value, Object):
        return bool(value.pairs or value.items or value.cls == _ORDERED)
    return type(value) in (Pairs, list, tuple)


def lookup(value: Any, key: Any) -> list[Any]:
    """Return the values of an object for a key: none, one, or the last of several."""
    if isinstance(value, Stored) and (kind := _kind(value.cls)).keys:
        if kind.keys in _INTEGERS and type(key) is not int:
            return []
        pairs: Iterator[Pair] = _tree_bucket(value, key)
    else:
        pairs = items(value)
    return [found for k, found in pairs if _same(k, key)][-1:]


def _same(key: Any, other: Any) -> bool:
    key = _plain(key)
    try:
        return bool(key == other)
    except Exception:  # NumPy's, of shapes that do not fit
        return False


def is_read(value: Any) -> bool:
    """Say whether the contents of an object are known: its state is one that is read here."""
    if not isinstance(value, Stored) or value.state is None or value.cls.startswith("BTrees."):
        return True
    if _kind(value.cls).keys:
        return True
    return _container(value) is not None or next(_own(value), None) is not None


def has_references(value: Stored) -> bool:
    """Say whether a state has references to other objects in it."""
    todo = [value.state]
    seen: set[int] = set()
    while todo:
        found = todo.pop()
        if isinstance(found, Ref):
            return True
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, list | tuple):
            todo += found
        if isinstance(found, Pairs | Object):
            todo += (x for pair in found.pairs for x in pair)
        if isinstance(found, Object):
            todo += (*found.args, *found.states, *found.items)
    return False


# ---- BTrees ----


@dataclass(frozen=True, slots=True)
class _Node(AnyNode):
    """A node of any BTree. Its keys are as their program had them, if they are plain."""

    pairs: list[Pair]  # of a bucket

    def check_within(self, low: Any, high: Any) -> None:
        """See AnyNode; keys whose order only their classes know are as they are."""
        with suppress(TypeError, ValueError):
            AnyNode.check_within(self, low, high)


def _bucket_pairs(state: Any) -> list[Pair]:
    """Return the state of a bucket: ((k0, v0, k1, v1, ...), [next])."""
    if state is None:
        return []
    flat = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(flat, tuple) or len(flat) % 2 or isinstance(flat, Ref):
        raise RecordError("a damaged BTree: a bucket of another shape")
    return list(zip(flat[0::2], flat[1::2], strict=True))


def _node(tree: Stored, node: Stored) -> _Node:
    """Return a node of a BTree from its state: see btree."""
    kind = _kind(node.cls)
    if not kind.keys and node.cls != tree.cls:
        raise RecordError(f"a damaged BTree: a {node.cls} in it")
    state = node.state
    if kind.bucket or state is None:
        return _leaf(state)
    if not isinstance(state, tuple) or len(state) not in (1, 2) or not isinstance(state[0], tuple):
        raise RecordError("a damaged BTree: a tree of another shape")
    flat = state[0]
    if len(state) == 1:
        if len(flat) != 1 or isinstance(flat, Ref):
            raise RecordError("a damaged BTree: a tree of another shape")
        return _leaf(flat[0])
    children = flat[0::2]
    if not len(flat) % 2 or not all(isinstance(c, Ref) for c in children):
        raise RecordError("a damaged BTree: a tree without nodes")
    return _Node(False, [_plain(k) for k in flat[1::2]], [c.oid for c in children], [])


def _leaf(state: Any) -> _Node:
    pairs = _bucket_pairs(state)
    return _Node(True, [_plain(k) for k, _ in pairs], [], pairs)


def _get(tree: Stored) -> GetNode[_Node]:
    """Return what gets nodes of a BTree for walk() and descend()."""

    def get(oid: bytes, todo: Todo) -> _Node:
        return _node(tree, tree if oid == tree.oid else tree.database.stored(Ref(oid, "")))

    return get


def node_oids(value: Stored) -> list[bytes]:
    """Return the oids of an object's records: of a BTree, those of its nodes, its own first."""
    if not _kind(value.cls).keys:
        return [value.oid]
    return [oid for oid, _ in walk(value.oid, _get(value))]


def _tree_items(tree: Stored) -> Iterator[list[Pair]]:
    for _, node in walk(tree.oid, _get(tree)):
        if node.leaf:
            yield node.pairs


def _tree_bucket(tree: Stored, key: Any) -> Iterator[Pair]:
    """Yield the items of a tree that may have a key."""
    try:
        yield from descend(tree.oid, _get(tree), key).pairs
        return
    except (TypeError, ValueError):  # keys of another type, which have no order with it
        pass
    yield from (pair for pairs in _tree_items(tree) for pair in pairs)


# ---- names ----


def _plain(key: Any) -> Any:
    """Return a key as its program had it, if it is a number or a date."""
    if not isinstance(key, Object):
        return key
    try:
        if key.cls in ("datetime.datetime", "datetime.date") and len(key.args) == 1:
            (data,) = key.args
            data = data.encode("latin1") if isinstance(data, str) else data
            if isinstance(data, bytes) and len(data) <= 10:
                return (datetime if len(data) == 10 else date)(data)  # type: ignore[arg-type, call-arg]
        return scalar_of(key)
    except (InertError, TypeError, ValueError):
        return key


def name_of(key: Any) -> str:
    """Return the name that a key has in paths.

    Raises
    ------
    RecordError
        It would be too long.
    """
    name = key if isinstance(key, str) else _text(key, 20)
    if len(name) > _NAME:
        raise RecordError(f"a key of {len(name)} characters")
    return name


def _text(key: Any, depth: int) -> str:
    key = _plain(key)
    if type(key) is tuple:
        if depth == 0 or len(key) > _NAME:
            raise RecordError("a key that is too long for a name")
        texts: list[str] = []
        for item in key:
            texts.append(_text(item, depth - 1))
            if sum(map(len, texts)) > _NAME:
                raise RecordError("a key that is too long for a name")
        return f"({', '.join(texts)}{',' * (len(key) == 1)})"
    if isinstance(key, Ref):
        return f"<{key.cls or 'object'} 0x{key.oid.hex()}>"
    if isinstance(key, list):
        return "<list>"
    if isinstance(key, str | bytes) and len(key) > _NAME:
        raise RecordError("a key that is too long for a name")
    return shown(key) if isinstance(key, int) else repr(key)
