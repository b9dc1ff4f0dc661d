"""A ZarrGroup of a database, or a part of one, read from records: zarr is not needed.

Keys and values are those of the group's table (wendelin.zarr.group). What arrays are in it, the
metadata documents say: they are read as JSON, so a codec is a name here, and none of them runs.

It knows records and JSON, but not zarr, nor files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

from transaction.interfaces import TransientError
from ZODB.POSException import POSKeyError

from wendelin.bigfile.zodb.btree import from_records, walk
from wendelin.bigfile.zodb.records import Records
from wendelin.cli.stored import Stored, attributes, is_subclass
from wendelin.lib.storage.inert import shown
from wendelin.lib.storage.record import (
    ChecksumError,
    RecordError,
    Ref,
    bytes_state,
    class_of,
    find_payload,
    state_of,
)
from wendelin.lib.zodb import zconn_before, zconn_load_all
from wendelin.zarr import ZarrGroup
from wendelin.zarr.keys import Keys, after
from wendelin.zarr.layout import is_metadata, nodes_above
from wendelin.zarr.values import Values

__all__ = ["BadValue", "CheckedValues", "StoredZarr", "ZarrArray", "verify_values", "zarr_of"]

_TREE = "BTrees.OOBTree.OOBTree"
_OWN = ("table", "writes")
_VALUES = ("wendelin.zarr.ZarrValue", "wendelin.zarr.ZarrParts")
_AT_ONCE = 16 << 20  # of values in one request [bytes]
_TOGETHER = 512  # values in one request


def zarr_of(obj: Any) -> StoredZarr | None:
    """Return the ZarrGroup that an object is, also one of a subclass; None: it is another one."""
    if not isinstance(obj, Stored):
        return None
    found = dict(attributes(obj))
    if is_subclass(obj.cls, "wendelin.zarr.ZarrGroup", ZarrGroup):
        return StoredZarr(obj)
    refs = [found.get(name) for name in _OWN]
    if all(isinstance(ref, Ref) and ref.cls == _TREE for ref in refs):
        group = StoredZarr(obj)  # of a class that is not here?
        if group.first() in _VALUES:
            return group
    return None


class ZarrArray(NamedTuple):
    """An array of a group, as its metadata describes it."""

    path: str  # in the group
    shape: tuple[int, ...] | None  # None: the metadata does not say
    dtype: str
    chunks: tuple[int, ...] | None
    codecs: tuple[str, ...]
    values: int  # that are stored, with the metadata
    size: int  # of their records [bytes]
    tid: bytes  # of the last change


class StoredZarr:
    """A ZarrGroup, or what is under a path in it.

    Parameters
    ----------
    stored : Stored
    prefix : str
        Of keys; it is '' or ends with a slash.
    """

    def __init__(self, stored: Stored, prefix: str = "") -> None:
        self.stored, self.prefix = stored, prefix
        self.cls, self.oid = stored.cls, stored.oid
        self._conn = conn = stored.database.conn
        self._keys = Keys(lambda oids: zconn_load_all(conn, oids), lambda: zconn_before(conn))
        self._values = Values(lambda: conn)

    @property
    def table(self) -> bytes:
        """Oid of the tree of values.

        Raises
        ------
        RecordError
            There is none.
        """
        return self._tree("table")

    def _tree(self, name: str) -> bytes:
        found = dict(attributes(self.stored)).get(name)
        if not isinstance(found, Ref):
            raise RecordError(f"a damaged ZarrGroup: its {name} is {shown(found)}")
        return found.oid

    @property
    def writes(self) -> bytes:
        """Oid of the tree of numbers of writes. See table."""
        return self._tree("writes")

    @property
    def others(self) -> list[tuple[str, Any]]:
        """Other attributes, with names."""
        if self.prefix:
            return []
        return [(name, value) for name, value in attributes(self.stored) if name not in _OWN]

    def first(self) -> str:
        """Return the class of the first value; '': there is none."""
        try:
            for _, node in walk(self.table, from_records(Records(self._conn).load_all, "OO")):
                if node.leaf:
                    return next(iter(node.classes), "")
        except RecordError:
            pass
        return ""

    def bounds(self) -> tuple[str, str | None]:
        """Return [low, high) of keys."""
        return self.prefix, after(self.prefix) if self.prefix else None

    @cached_property
    def values(self) -> dict[str, Ref]:
        """Values by their keys under the path, ascending."""
        found = self._keys.between(self.table, *self.bounds())
        return {key[len(self.prefix) :]: ref for key, ref in found}

    def names(self) -> list[str]:
        """Return the names of the nodes in this one, ascending."""
        low = self.values
        return sorted({key.partition("/")[0] for key in low if is_metadata(key) and "/" in key})

    def under(self, name: str) -> StoredZarr | None:
        """Return what is under a name; None: there is nothing."""
        found = StoredZarr(self.stored, f"{self.prefix}{name}/")
        return found if found._keys.names(found.table, found.prefix) else None

    def read(self, key: str) -> memoryview | bytes | bytearray:
        """Return a value."""
        return self._values.read([(self.values[key], None)])[0]

    def sizes(self) -> dict[str, int]:
        """Return the sizes of all values [bytes]."""
        return {key: self._values.size(ref) for key, ref in self.values.items()}

    # ---- what is in it ----

    def stats(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield (key, size of its records [bytes], tid of the last change)."""
        records = Records(self._conn)
        items = list(self.values.items())
        for i in range(0, len(items), _TOGETHER):
            some = items[i : i + _TOGETHER]
            found = records.stat([ref.oid for _, ref in some])
            for (key, ref), (tid, size) in zip(some, found, strict=True):
                oids = [part.oid for part in self._values.parts_of(ref)]
                yield key, size + sum(stat.size for stat in records.stat(oids)), tid

    def described(self) -> dict[str, tuple[Any, ...]]:
        """Return shape, dtype, chunks and codecs of the arrays, by their paths."""
        facts = {}
        for key in self.values:
            name = key.rpartition("/")[2]
            if name in ("zarr.json", ".zarray"):
                try:
                    found = _described(self.read(key), name)
                except (RecordError, POSKeyError):  # verify says it
                    found = None, "?", None, ()
                if found is not None:
                    facts[key.rpartition("/")[0]] = found
        return facts

    def arrays(self) -> tuple[list[ZarrArray], ZarrArray]:
        """Return the arrays; and what is in none of them, as an array without a shape."""
        facts = self.described()
        totals = {path: [0, 0, b""] for path in [*facts, None]}
        for key, size, tid in self.stats():
            total: list[Any] = totals[next((p for p in nodes_above(key) if p in facts), None)]
            total[0] += 1
            total[1] += size
            total[2] = max(total[2], tid)
        found = [ZarrArray(path, *described, *totals[path]) for path, described in facts.items()]
        rest = ZarrArray("", None, "", None, (), *totals[None])  # type: ignore[arg-type]
        return sorted(found, key=lambda array: array.path), rest


def _document(data: memoryview | bytes | bytearray) -> dict[str, Any]:
    try:
        found = json.loads(bytes(data))
    except (ValueError, RecursionError) as e:
        raise RecordError(f"the metadata is not JSON: {e}") from None
    if not isinstance(found, dict):
        raise RecordError("the metadata is JSON, but not an object")
    return found


def _described(data: memoryview | bytes | bytearray, name: str) -> tuple[Any, ...] | None:
    """Return shape, dtype, chunks and codecs of a metadata document; None: it is not an array's."""
    try:
        found = _document(data)
    except RecordError:
        return None
    if name == ".zarray":
        codecs = [*(_list(found.get("filters"))), found.get("compressor")]
        dtype, chunks = found.get("dtype"), found.get("chunks")
    elif found.get("node_type") == "array":
        codecs, dtype = _list(found.get("codecs")), found.get("data_type")
        grid = found.get("chunk_grid")
        grid = grid.get("configuration") if isinstance(grid, dict) else None
        chunks = grid.get("chunk_shape") if isinstance(grid, dict) else None
    else:
        return None
    names = tuple(filter(None, map(_codec, codecs)))
    return _shape(found.get("shape")), _text(dtype), _shape(chunks), names


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _shape(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(n) is int and n >= 0 for n in value):
        return tuple(value)
    return None


def _text(dtype: Any) -> str:
    if isinstance(dtype, dict):
        dtype = dtype.get("name")
    return dtype if isinstance(dtype, str) else json.dumps(dtype)


def _codec(codec: Any) -> str:
    """Return the name of a codec; of shards, with those that are in them."""
    if not isinstance(codec, dict):
        return codec if isinstance(codec, str) else ""
    name = str(codec.get("name") or codec.get("id") or "?")
    inner = codec.get("configuration")
    if isinstance(inner, dict) and isinstance(inner.get("codecs"), list):
        name += f"({', '.join(filter(None, map(_codec, inner['codecs'])))})"
    return name


# ---- whether it is whole ----


class BadValue(NamedTuple):
    """A value, or a node of the tree, that is damaged."""

    key: str | None  # None: it is a node
    oid: bytes
    error: Exception
    tid: bytes | None  # of the transaction that wrote it; None: the storage does not say


class CheckedValues(NamedTuple):
    """The result for some values."""

    values: int
    checksums: int
    bad: list[BadValue]


def verify_values(group: StoredZarr) -> Iterator[CheckedValues]:
    """Load all values, and compare them with their checksums; check that metadata is JSON.

    Raises
    ------
    TransientError
        The storage is not available now, which says nothing about the group.
    """
    check = _Check(group)
    yield from check.tree(group.table, group.bounds(), check.values)
    if not group.prefix:
        yield from check.tree(group.writes, ("", None), check.counts)


class _Check:
    """The check of a group."""

    def __init__(self, group: StoredZarr) -> None:
        self._group = group
        self._records = Records(group.stored.database.conn)

    def _bad(self, key: str | None, oid: bytes, error: Exception) -> BadValue:
        try:
            tid = self._records.tid(oid)
        except Exception:  # this may be the damage
            tid = None
        return BadValue(key, oid, error, tid)

    def tree(
        self, root: bytes, bounds: tuple[str, str | None], look: Any
    ) -> Iterator[CheckedValues]:
        """Go through a tree, also after nodes that are damaged."""
        bad: list[BadValue] = []
        low, high = bounds
        get = from_records(self._records.load_all, "OO")

        def note(oid: bytes, error: Exception) -> None:
            bad.append(self._bad(None, oid, error))

        for oid, node in walk(root, get, low, high, bad=note):
            items = list(node.oids.items())
            wrong = [key for key, _ in items if not isinstance(key, str)]
            if wrong:
                note(oid, RecordError(f"a damaged ZarrGroup: key {shown(wrong[0])}"))
                items = [item for item in items if isinstance(item[0], str)]
            items = [(k, v) for k, v in items if low <= k and (high is None or k < high)]
            if bad:
                yield CheckedValues(0, 0, bad.copy())
                bad.clear()
            yield from look(items)
        if bad:
            yield CheckedValues(0, 0, bad)

    def values(self, items: list[tuple[str, bytes]]) -> Iterator[CheckedValues]:
        """Check values, some at a time."""
        sizes = [stat.size for stat in self._records.stat([oid for _, oid in items])]
        some: list[tuple[str, bytes]] = []
        waiting = 0
        for item, size in zip(items, sizes, strict=True):
            some.append(item)
            waiting += size
            if waiting >= _AT_ONCE or len(some) >= _TOGETHER:
                yield self._values(some)
                some, waiting = [], 0
        if some:
            yield self._values(some)

    def _each(self, items: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes, Any]]:
        """Yield (key, oid, record, or the exception of its load)."""
        try:
            records: list[Any] = list(self._records.load_all([oid for _, oid in items]))
        except (TransientError, MemoryError):
            raise
        except Exception:  # of one of them
            records = []
            for _, oid in items:
                try:
                    records.append(self._records.load(oid))
                except (TransientError, MemoryError):
                    raise
                except Exception as e:
                    records.append(e)
        for (key, oid), record in zip(items, records, strict=True):
            yield key, oid, record

    def _values(self, items: list[tuple[str, bytes]]) -> CheckedValues:
        checksums = 0
        bad = []
        for key, oid, record in self._each(items):
            try:
                if isinstance(record, Exception):
                    raise record
                checksums += self._value(key, record)
            except (TransientError, MemoryError):
                raise
            except Exception as e:
                checksums += isinstance(e, ChecksumError)
                bad.append(self._bad(key, oid, e))
        return CheckedValues(len(items), checksums, bad)

    def _value(self, key: str, record: bytes) -> bool:
        """Check a value; say whether it, or all of its parts, have a checksum."""
        cls = class_of(record)
        if cls == _VALUES[1]:
            return self._parts(record)
        if cls != _VALUES[0]:
            raise RecordError(f"a {cls}, which is not a value of a ZarrGroup")
        data = bytes_state(record)
        if is_metadata(key):
            _document(data)
        return _has_checksum(record)

    def _parts(self, record: bytes) -> bool:
        size, part_size, refs = Values.parts_in(state_of(record))
        checked = True
        for i, ref in enumerate(refs):
            piece = self._records.load(ref.oid)
            if class_of(piece) != _VALUES[0]:
                raise RecordError(f"part {i} is a {class_of(piece)}, not a value")
            expected = min(part_size, size - i * part_size)
            if (n := len(bytes_state(piece))) != expected:
                raise RecordError(f"part {i} has {n} bytes, not {expected}")
            checked = checked and _has_checksum(piece)
        return checked

    def counts(self, items: list[tuple[str, bytes]]) -> Iterator[CheckedValues]:
        """Check the numbers of writes."""
        bad = []
        for key, oid, record in self._each(items):
            if isinstance(record, Exception):
                bad.append(self._bad(key, oid, record))
            elif type(found := state_of(record)) is not int:
                error = RecordError(f"a number of writes that is {shown(found)}")
                bad.append(self._bad(key, oid, error))
        yield CheckedValues(0, 0, bad)


def _has_checksum(record: bytes) -> bool:
    found = find_payload(record)
    return found is not None and found.digest is not None
