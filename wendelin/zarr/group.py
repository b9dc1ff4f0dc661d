"""ZarrGroup: the keys and values of a Zarr group, in ZODB. It needs no zarr.

In the database
---------------
    ZarrGroup ──► table, an OOBTree: key ──► ZarrValue    bytes of a value
          │                            └───► ZarrParts ──► ZarrValue…   a shard: read by parts
          └─────► writes, an OOBTree: path of an array ──► Length

The value of a chunk is not changed any more: another value takes its place in the tree, and what
two clients do to one key is a conflict there. That of a metadata document is changed in its place:
a client that writes chunks says that it has read it, so it has a conflict with one that changes it
and commits first. A client that adds chunks adds to the Length of the array, which two may do at a
time; one that resizes or deletes the array says that it has read that, so it has a conflict with
one that has added chunks which it does not know. (Else these would be there still, and be seen when
the array grows again.)

Bytes come to the storage past the pickle, as those of blocks do (Watch.records); with a checksum.

It knows persistent objects. Transactions and readers are in ZarrTable (table).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from BTrees.OOBTree import OOBTree
from persistent import Persistent

from wendelin.lib.storage.pad import BytesRecord
from wendelin.lib.storage.record import as_bytes
from wendelin.lib.zodb import LivePersistent, zconn_name
from wendelin.lib.zodb_boundary import watch_of

if TYPE_CHECKING:
    from wendelin.zarr.store import ZODBStore
    from wendelin.zarr.table import ZarrTable

__all__ = ["ZarrGroup", "ZarrParts", "ZarrValue"]

_MODULE = "wendelin.zarr"  # where databases have the classes


class ZarrValue(Persistent):  # type: ignore[misc]  # persistent has no type hints
    """Bytes of a value, or of a part of a ZarrParts."""

    __module__ = _MODULE

    _p_changed: Any  # by Persistent

    def __init__(self, data: memoryview | bytes = b"") -> None:
        self._v_data: memoryview | bytes = data

    def set_data(self, data: memoryview | bytes) -> None:
        """Be changed."""
        self._p_changed = True  # a ghost is loaded for that
        self._v_data = data

    def __getstate__(self) -> bytes:
        data, conn = self._v_data, self._p_jar
        if conn is None:
            return bytes(data)
        watch_of(conn).records[self._p_oid] = lambda like: BytesRecord(like, memoryview(data))
        return b""

    def __setstate__(self, state: Any) -> None:
        self._v_data = as_bytes(state)


class ZarrParts(Persistent):  # type: ignore[misc]  # persistent has no type hints
    """A value in parts.

    Parameters
    ----------
    size : int
        Of all of it [bytes].
    part_size : int
        Of each part, but the last [bytes].
    values : tuple of ZarrValue
    """

    __module__ = _MODULE

    def __init__(self, size: int, part_size: int, values: tuple[ZarrValue, ...]) -> None:
        self.size, self.part_size, self.values = size, part_size, values

    def __getstate__(self) -> tuple[int, int, tuple[ZarrValue, ...]]:
        return self.size, self.part_size, self.values

    def __setstate__(self, state: Any) -> None:
        self.size, self.part_size, self.values = state


class ZarrGroup(LivePersistent):
    """A Zarr group in the database: arrays in chunks along several axes, compressed.

    Keep it in any persistent object: `root["g"] = ZarrGroup()`. What is in it, zarr reads and
    writes, through store(); also before the group belongs to a Connection.

    Any other attribute is kept, and stored, too.
    """

    __module__ = _MODULE

    _v_table: ZarrTable | None

    def __init__(self) -> None:
        self.table = OOBTree()
        self.writes = OOBTree()

    def __repr__(self) -> str:
        oid, conn = self._p_oid, self._p_jar
        where = f" in {zconn_name(conn)}" if conn is not None else ""
        return f"<ZarrGroup{f' 0x{oid.hex()}' if oid else ''}{where}>"

    def lives(self) -> bool:
        """Say whether there is a store, or anything that is not committed."""
        table = self.__dict__.get("_v_table")
        return table is not None and table.lives()

    def __getstate__(self) -> Any:
        table = self.__dict__.get("_v_table")
        if table is not None and self._p_jar is not None:
            table.stored_as_new()
        return super().__getstate__()

    def live_table(self) -> ZarrTable:
        """Return what reads and changes it; one, in its Connection."""
        from wendelin.zarr.table import ZarrTable

        self._p_activate()
        table: ZarrTable | None = self.__dict__.get("_v_table")
        if table is None:
            table = self._v_table = ZarrTable(self)
        return table

    def store(self, *, at: Any = None, read_only: bool = False) -> ZODBStore:
        """Return it as a store, for zarr and all that takes zarr's stores.

        It reads what the Connection of the group sees, and all changes of its transaction; what is
        written is committed and aborted with that. So `zarr.open_group(g.store())`,
        `xarray.open_zarr(g.store())`, `ds.to_zarr(g.store())`.

        Parameters
        ----------
        at : bytes, datetime or TimeStamp, optional
            A past state: the tid of the last transaction that it has, or a time. It is read only,
            and stays as it is.
        read_only : bool
            Whatever would write raises ValueError.

        Raises
        ------
        ImportError
            zarr is not installed: `pip install wendelin.core[zarr]`.
        ValueError
            The database had no such group then; or it is a time to come.
        """
        from wendelin.zarr import ZODBStore

        return ZODBStore(self, at=at, read_only=read_only)
