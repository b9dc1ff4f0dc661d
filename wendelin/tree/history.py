"""Transactions of a database: their times, users, notes and changes.

A record of a block does not name its array. So the block tables of all arrays are read, as records:
nothing is loaded. An object that the newest state does not have is looked up in the state that the
transaction made.

This module knows storages, records and block tables. A Place says where an array is.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from persistent.mapping import PersistentMapping
from transaction import TransactionManager
from ZODB.POSException import POSKeyError, UndoError
from ZODB.utils import p64, tid_repr, u64, z64

from wendelin.bigarray import BigArray
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.zodb.btree import from_records, walk
from wendelin.bigfile.zodb.formats import class_name
from wendelin.lib.adapters.trees import is_tree
from wendelin.lib.shown import shown
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.record import class_of
from wendelin.lib.storage.tags import TAGS
from wendelin.lib.zodb import btree_nodes, zconn_at, zconn_load_all, zconn_name, zdb_last
from wendelin.tree.containers import ATTRS, is_container
from wendelin.tree.moments import tid_time

__all__ = ["Change", "Entry", "Place", "last_transactions", "log", "resolve", "undo"]

#: what of an array or a group that may change, in this order
_WHAT = ["", "created", "changed", "names", "tags", "attributes", "rows"]
_ROWS = 4  # ranges of rows that are shown
_MINUTE = 32  # bits of a tid below its minutes
_CHUNKS = ("ZData", "IOBTree", "IOBucket")  # of a ZBlk1, which is stored with them


@dataclass
class Change:
    """The change of an array, a group or another object in a transaction.

    Attributes
    ----------
    path : str
        From the root.
    what : list of str
        'created'; 'changed', of an array's shape, say; 'names' in a group; 'tags'; 'attributes';
        'rows'.
    rows : list of (int, int)
        Ranges [start, stop) along the major axis: of the blocks that were stored.
    """

    path: str
    what: list[str] = field(default_factory=list)
    rows: list[tuple[int, int]] = field(default_factory=list)

    def __str__(self) -> str:
        changes = [what for what in self.what if what != "rows"]
        if self.rows:
            ranges = ", ".join(f"{lo}:{hi}" for lo, hi in self.rows[:_ROWS])
            changes.append(f"rows {ranges}{', …' if self.rows[_ROWS:] else ''}")
        return f"{shown(self.path) or '/'}: {', '.join(changes)}"


@dataclass
class Entry:
    """A transaction of Group.log().

    Attributes
    ----------
    tid : bytes
        Its id, of 8 bytes: what undo(), at() and tag() take.
    time : datetime
        In local time, with its zone.
    user, note : str
        What the transaction says of itself: `transaction.get().note(text)`.
    changes : list of Change
    others : int
        How many objects it stored besides.
    """

    tid: bytes
    time: datetime
    user: str
    note: str
    changes: list[Change] = field(default_factory=list)
    others: int = 0

    def __str__(self) -> str:
        when = f"{self.time:%Y-%m-%d %H:%M:%S}"
        head = [self.tid.hex(), when, self.user, self.note]
        lines = ["  ".join(shown(text) for text in head if text)]
        lines += [f"    {change}" for change in self.changes]
        if self.others:
            lines.append(f"    {self.others} other object{'s' * (self.others != 1)}")
        return "\n".join(lines)

    __repr__ = __str__


class Transaction(NamedTuple):
    """A transaction of a storage."""

    tid: bytes
    user: str
    note: str
    records: list[tuple[bytes, str]]  # (oid, name of the class; "" where there is no state)


class Place(NamedTuple):
    """An object of a database with its path, and the oids of its parts."""

    path: str
    own: list[bytes]  # a container has those of its nodes
    attrs: bytes | None = None
    file: bytes | None = None  # ZBigFile
    table: bytes | None = None  # block table
    blksize: int = 0
    array: BigArray | None = None
    extra: Mapping[bytes, str] = MappingProxyType({})  # oid -> what it is


State = tuple[Any, Iterable[Place]]  # a Connection, and what is in the database then


# ---- transactions ----


def last_transactions(storage: Any, count: int, stop: bytes | None = None) -> list[Transaction]:
    """Return the last transactions of a storage, the newest one first.

    Parameters
    ----------
    storage : storage
    count : int
        How many, at most.
    stop : bytes, optional
        No transaction after this tid.

    Raises
    ------
    NotImplementedError
        The storage cannot list its transactions.
    """
    if isinstance(storage, AlignedFileStorage):
        found = storage.last_transactions(count, stop)
        return [Transaction(tid, _text(u), _text(n), records) for tid, u, n, records in found]
    if not hasattr(storage, "iterator"):
        raise NotImplementedError(f"a {type(storage).__name__} cannot list its transactions")
    begin = _begin(storage, count, stop) or _begin_by_heads(storage, count, stop)
    last: deque[Transaction] = deque(maxlen=count)
    for txn in storage.iterator(begin, stop):
        records = [(r.oid, class_of(bytes(r.data)) if r.data else "") for r in txn]
        last.append(Transaction(txn.tid, _text(txn.user), _text(txn.description), records))
    return list(reversed(last))


def _begin(storage: Any, count: int, stop: bytes | None) -> bytes | None:
    """Return the tid to begin with, as undoInfo() has it; None: that does not say it."""
    tids: list[bytes] = []
    first = 0
    while len(tids) < count:
        try:
            infos = storage.undoInfo(first, -count)
        except Exception:  # it may have no undo, and say so by any
            return None
        found = [_tid_of(info["id"]) for info in infos]
        if not found or None in found:
            return None
        first += len(found)
        tids += [tid for tid in found if tid is not None and (stop is None or tid <= stop)]
    return tids[count - 1]


def _begin_by_heads(storage: Any, count: int, stop: bytes | None) -> bytes | None:
    """Return the tid to begin with, by heads of transactions: their records are not read.

    None: there are no more than count. The last minute is looked at first, then longer times.
    """
    end = u64(storage.lastTransaction() if stop is None else stop)
    span = 1 << _MINUTE
    while span <= end:
        heads = storage.iterator(p64(end - span), stop)
        tids = deque((txn.tid for txn in heads), maxlen=count)
        if len(tids) == count:
            return bytes(tids[0])
        span *= 8
    return None


def _tid_of(undo_id: Any) -> bytes | None:
    """Return the tid that an id of undoLog() stands for."""
    raw = undo_id.encode() if isinstance(undo_id, str) else bytes(undo_id)
    try:
        tid = base64.decodebytes(raw + b"\n")
    except ValueError:
        return None
    return tid if len(tid) == 8 else None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def log(conn: Any, count: int) -> list[Entry]:
    """Return the last transactions that a Connection sees, and what they changed."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"count is {count!r}: it must be a number of transactions")
    db = conn.db()
    zdb_last(db)  # it knows then what is not in the future
    found = last_transactions(db.storage, count, zconn_at(conn)) if count else []

    @contextmanager
    def places_at(tid: bytes | None) -> Iterator[State]:
        past = db.open(TransactionManager(), at=zconn_at(conn) if tid is None else tid)
        try:
            yield past, _places(past.root())
        finally:
            past.transaction_manager.abort()
            past.close()

    return resolve(found, places_at)


# ---- changes ----


def resolve(
    transactions: list[Transaction],
    places_at: Callable[[bytes | None], AbstractContextManager[State]],
) -> list[Entry]:
    """Return the changes of transactions.

    Parameters
    ----------
    transactions : list of Transaction
        The newest one first.
    places_at : (tid) -> context manager of (Connection, places)
        Has the places of the database at a tid; None: in its newest state.
    """
    whole = {t.tid: dict(t.records) for t in transactions}
    roles: dict[bytes, dict[bytes, _Role]] = {t.tid: {} for t in transactions}
    tried: set[bytes] = set()
    made: set[tuple[bytes, bytes]] = set()  # (tid, oid)
    at: bytes | None = None
    while transactions:
        wanted = {oid for tid, oids in whole.items() for oid in oids if oid not in roles[tid]}
        # a state that was packed may not be there
        with suppress(POSKeyError), places_at(at) as (conn, places):
            known = _find(wanted, places, conn)
            storage = conn.db().storage
            for tid, oids in whole.items():
                new = {oid: known[oid] for oid in oids if oid in known}
                roles[tid].update(new)
                made |= {(tid, o) for o, p in new.items() if _is_made(p, o, tid, storage)}
        # parts of what is not there any more
        left = (
            tid
            for tid, oids in whole.items()
            if tid not in tried
            and any(_has_place(c) for o, c in oids.items() if o not in roles[tid])
        )
        at = next(left, None)
        if at is None:
            break
        tried.add(at)
    return [_entry(t, roles[t.tid], made) for t in transactions]


def _has_place(cls: str) -> bool:
    """Say whether objects of a class are of an array or a group, if they are in the tree."""
    known = cls.startswith(("wendelin.big", "BTrees.LO", "BTrees.OO"))
    return known or class_name(cls) in ("ZBlk0", "ZBlk1") or cls.endswith(".PersistentMapping")


class _Role(NamedTuple):
    """What an object is: the place that it belongs to, and what of it."""

    place: Place
    what: str
    blk: int = -1


def _is_made(role: _Role, oid: bytes, tid: bytes, storage: Any) -> bool:
    """Say whether a transaction has made an array or a group."""
    if oid not in role.place.own[:1] or role.what not in ("changed", "names"):
        return False
    try:
        return storage.loadBefore(oid, tid) is None
    except (KeyError, AttributeError):  # there is nothing before; or that is not told
        return True


def _find(wanted: set[bytes], places: Iterable[Place], conn: Any) -> dict[bytes, _Role]:
    """Return what objects are."""
    found: dict[bytes, _Role] = {}

    def note(oid: bytes | None, place: Place, what: str, blk: int = -1) -> None:
        if oid in wanted and oid is not None:
            found.setdefault(oid, _Role(place, what, blk))

    for place in places:
        for oid in place.own:
            note(oid, place, "changed" if place.array is not None else "names")
        for oid, what in place.extra.items():
            note(oid, place, what)
        note(place.attrs, place, "attributes")
        note(place.file, place, "")
        if place.table is None:
            continue
        nodes = walk(place.table, from_records(lambda oids: zconn_load_all(conn, oids), "LO"))
        for oid, node in nodes:
            note(oid, place, "")
            for blk, block in node.oids.items():
                note(block, place, "rows", blk)
        if len(found) == len(wanted):
            break
    return found


def _entry(t: Transaction, roles: dict[bytes, _Role], made: set[tuple[bytes, bytes]]) -> Entry:
    entry = Entry(t.tid, tid_time(t.tid), t.user, t.note)
    changes: dict[str, Change] = {}
    blocks: dict[str, tuple[Place, list[int]]] = {}
    has_chunks = any(class_name(cls) == "ZBlk1" for _, cls in t.records)
    for oid, cls in t.records:
        role = roles.get(oid)
        if role is None:
            entry.others += not (has_chunks and cls.rpartition(".")[2] in _CHUNKS)
            continue
        place = role.place
        change = changes.setdefault(place.path, Change(place.path))
        what = "created" if (t.tid, oid) in made else role.what
        if what and what not in change.what:
            change.what.append(what)
        if role.what == "rows":
            blocks.setdefault(place.path, (place, []))[1].append(role.blk)
    for path, (place, numbers) in blocks.items():
        changes[path].rows = rows_of(place, sorted(numbers))
    for change in changes.values():
        change.what.sort(key=_WHAT.index)
    entry.changes = sorted((c for c in changes.values() if c.what), key=lambda c: c.path)
    return entry


def rows_of(place: Place, blocks: list[int]) -> list[tuple[int, int]]:
    """Return the ranges of rows, along the major axis, with bytes in these blocks."""
    A = place.array
    if A is None or not A.shape or not A.nbytes:
        return []
    n = A.shape[A._major]
    row = A.nbytes // n
    rows: list[tuple[int, int]] = []
    for blk in blocks:
        lo, hi = blk * place.blksize // row, min(n, -(-(blk + 1) * place.blksize // row))
        if lo >= hi:
            continue
        if rows and lo <= rows[-1][1]:
            rows[-1] = rows[-1][0], max(hi, rows[-1][1])
        else:
            rows.append((lo, hi))
    return rows


def _places(root: Any) -> Iterator[Place]:
    """Yield the places of a database, from its root object."""
    seen = {root._p_oid}
    todo = [("", root)]
    tags: Place | None = None
    while todo:
        path, container = todo.pop()
        below = []
        for key in list(container):
            value = container[key]
            if not hasattr(value, "_p_oid") or key == ATTRS or value._p_oid in seen:
                continue
            if key == TAGS:
                # others may use the name
                named = value.values() if hasattr(value, "values") else ()
                oids = [value._p_oid, *(t._p_oid for t in named if hasattr(t, "_p_oid"))]
                tags = Place("", [], extra=dict.fromkeys(oids, "tags"))
                continue
            at = f"{path}/{key}" if path else str(key)
            seen.add(value._p_oid)
            if isinstance(value, ZBigArray):
                yield _array_place(at, value)
            elif is_container(value):
                below.append((at, value))
            else:
                yield Place(at, [value._p_oid])
        attrs = container[ATTRS] if ATTRS in _names_of(container) else None
        own = [node._p_oid for node in btree_nodes(container)] if is_tree(container) else []
        own = [oid for oid in [container._p_oid, *own] if oid is not None]
        yield Place(path, own, attrs._p_oid if attrs is not None else None)
        if tags is not None:
            yield tags
            tags = None
        container._p_deactivate()
        todo += reversed(below)


def _names_of(container: Any) -> Any:
    return container if isinstance(container, PersistentMapping) or _has_names(container) else ()


def _has_names(container: Any) -> bool:
    try:
        return ATTRS in container
    except TypeError:
        return False


def _array_place(path: str, A: ZBigArray) -> Place:
    A._p_activate()
    attrs = A._attrs
    zfile = A.zfile
    return Place(
        path,
        [A._p_oid],
        getattr(attrs, "_p_oid", None),
        zfile._p_oid,
        zfile.blktab._p_oid,
        A._blksize(),
        A,
    )


# ---- undo ----


def undo(conn: Any, tid: bytes) -> None:
    """Undo a transaction, in one of its own; then the Connection sees it.

    Raises
    ------
    ValueError
        There is no such transaction, or the storage cannot undo.
    UndoError
        A later one has changed the same objects.
    """
    db = conn.db()
    if not db.supportsUndo():
        raise ValueError(
            f"{zconn_name(conn)} cannot undo: its storage has no undo. Read the earlier state with "
            f"g.at(), and write it again"
        )
    if tid == z64 or tid > zdb_last(db):
        raise ValueError(f"{zconn_name(conn)} has no transaction {tid_repr(tid)}: g.log() has them")
    manager = TransactionManager()
    txn = manager.begin()
    txn.note(f"undo of {tid.hex()}")
    db.undo(_undo_id(db.storage, tid), txn)
    try:
        txn.commit()
    except UndoError as e:
        manager.abort()
        raise UndoError(
            f"transaction {tid_repr(tid)} of {zconn_name(conn)} cannot be undone: a later one has "
            f"changed the same, or it was packed or does not exist ({e}). g.log() lists them; "
            f"undo the later ones first"
        ) from e
    conn.transaction_manager.begin()


def _undo_id(storage: Any, tid: bytes) -> Any:
    """Return a storage's id of a transaction, for undo()."""
    return base64.encodebytes(tid).rstrip()
