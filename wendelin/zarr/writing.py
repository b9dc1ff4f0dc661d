"""Changes of a Zarr group -> its objects, in the thread of the transaction, when it is committed.

What is as it was is not stored again, where it costs nothing to know: of a local file the size and
the checksum tell. A shard is cut into parts, of which those are stored that have changed.

It knows the objects of a group (group) and metadata (layout). Readers and transactions it does not
know.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from BTrees.Length import Length
from ZODB.utils import z64

from wendelin.lib.storage.record import Ref, digest_of
from wendelin.lib.zodb import zconn_read_current, zobj_is_saved
from wendelin.zarr.group import ZarrGroup, ZarrParts, ZarrValue
from wendelin.zarr.layout import ARRAY, folder_of, is_metadata, is_sharded, layouts, nodes_above
from wendelin.zarr.values import Values

__all__ = ["LONGEST", "PART_SIZE", "TreeWriter"]

PART_SIZE = 1 << 20  # of a shard [bytes]
LONGEST = 1 << 30  # of a value that is one object [bytes]


class _Array(NamedTuple):
    """An array that chunks are in."""

    path: str
    metadata: ZarrValue
    sharded: bool


class TreeWriter:
    """Changes the objects of a group.

    Parameters
    ----------
    group : ZarrGroup
    values : Values
        Reads what the database has.
    conn : Connection or None
        New objects are added to it, in the order of keys; None: it finds them itself.
    """

    def __init__(self, group: ZarrGroup, values: Values, conn: Any) -> None:
        self._group = group
        self._values = values
        self._conn = conn
        #: objects whose bytes the Connection is about to store
        self.stored: list[ZarrValue] = []

    def write(self, changes: dict[str, memoryview | None]) -> None:
        """Set values, and delete keys (None)."""
        above: dict[str, _Array | None] = {}
        resized: set[str] = set()
        added: set[str] = set()
        for key in sorted(changes, key=lambda key: not is_metadata(key)):  # these first
            value = changes[key]
            if is_metadata(key):
                resized.update(self._set_metadata(key, value))
            else:
                array = self._array_of(key, above)
                if array is not None and self._conn is not None:
                    self._read_current(array.metadata)
                if array is not None and value is not None and key not in self._group.table:
                    added.add(array.path)
                self._set_value(key, value, array is not None and array.sharded)
        for path in added - resized:
            if path in self._group.writes:
                self._group.writes[path].change(1)

    def _add(self, obj: Any) -> Any:
        if self._conn is not None:
            self._conn.add(obj)
        if isinstance(obj, ZarrValue):
            self.stored.append(obj)
        return obj

    def _set_metadata(self, key: str, data: memoryview | None) -> set[str]:
        """Set a metadata document; return the paths of arrays that it makes, resizes or deletes."""
        old = self._group.table.get(key)
        before = layouts(key, None if old is None else old._v_data)
        if data is None:
            if old is not None:
                del self._group.table[key]
                self._change_metadata(old, b"")  # a conflict with clients that have read it
        elif not isinstance(old, ZarrValue):
            self._group.table[key] = self._add(ZarrValue(data))
        elif bytes(old._v_data) != data:
            self._change_metadata(old, data)
        now = layouts(key, data)
        path = folder_of(key)
        if before.get(path) == now.get(path):
            return set()
        writes = self._group.writes
        if path in writes and self._conn is not None:
            self._read_current(writes[path])
        if path not in now:
            writes.pop(path, None)
        elif path not in writes:
            writes[path] = Length()
        return {path}

    def _change_metadata(self, value: ZarrValue, data: memoryview | bytes) -> None:
        value.set_data(data)
        self.stored.append(value)

    def _set_value(self, key: str, data: memoryview | None, cut: bool) -> None:
        if data is None:
            self._group.table.pop(key, None)
            return
        old = self._group.table.get(key)
        ref = self._ref(old)
        if cut or len(data) > LONGEST:
            self._group.table[key] = self._in_parts(data, ref, old, PART_SIZE if cut else LONGEST)
        elif ref is None or not self._has(ref, data):
            self._group.table[key] = self._add(ZarrValue(data))

    def _in_parts(self, data: memoryview, ref: Ref | None, old: Any, part_size: int) -> ZarrParts:
        """Return a value in parts; those that are as they were are not stored again."""
        before = self._values.parts_of(ref) if ref is not None else []
        same: tuple[ZarrValue, ...] = old.values if before and old.part_size == part_size else ()
        values = []
        changed = len(before) != -(-len(data) // part_size) or not same
        for i, start in enumerate(range(0, len(data), part_size)):
            piece = data[start : start + part_size]
            if i < len(same) and self._has(before[i], piece):
                values.append(same[i])
            else:
                values.append(self._add(ZarrValue(piece)))
                changed = True
        if not changed and old.size == len(data):
            return old  # type: ignore[no-any-return]
        return self._add(ZarrParts(len(data), part_size, tuple(values)))  # type: ignore[no-any-return]

    def _ref(self, value: Any) -> Ref | None:
        """Return what readers know a value by; None: it is not in the database."""
        if value is None or value._p_oid is None:
            return None
        if value._p_serial == z64 and value._p_changed is not None:  # a ghost's is, too
            return None
        if zobj_is_saved(value):
            return None
        return Ref(value._p_oid, f"wendelin.zarr.{type(value).__name__}")

    def _has(self, ref: Ref, data: memoryview) -> bool:
        """Say whether a value that is stored has these bytes; where it is cheap to know."""
        place = self._values.place(ref)
        if place is None or place.size != len(data) or place.digest != digest_of([data]):
            return False
        return self._values.read([(ref, None)])[0] == data

    def _array_of(self, key: str, above: dict[str, _Array | None]) -> _Array | None:
        """Return the array that a key is in, as the tree has its metadata.

        Parameters
        ----------
        key
        above
            Folders that were looked at.
        """
        looked: list[str] = []
        found = None
        for folder in nodes_above(key):
            if folder in above:
                found = above[folder]
                break
            looked.append(folder)
            documents = [self._group.table.get("/".join(filter(None, (folder, n)))) for n in ARRAY]
            value = next((v for v in documents if v is not None), None)
            if value is not None:
                found = _Array(folder, value, is_sharded(value._v_data))
                break
        above.update(dict.fromkeys(looked, found))
        return found

    def _read_current(self, obj: Any) -> None:
        """Let the commit be a conflict if another client has changed an object meanwhile."""
        obj._p_activate()  # a ghost has no serial
        if obj._p_serial == z64 or obj._p_changed:
            return
        zconn_read_current(self._conn, obj)
