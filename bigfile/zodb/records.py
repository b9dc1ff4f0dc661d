"""Records of a Connection: the one way in which this folder reads them, in any thread.

No objects are made, so the Connection's cache, and the changes of its transaction, are not seen.
"""

from __future__ import annotations

from typing import Any

from wendelin.bigfile.zodb.interfaces import RecordSource
from wendelin.lib.storage.fsrecord import Located, Stat
from wendelin.lib.utils import override
from wendelin.lib.zodb import zconn_load_revisions, zconn_locate, zconn_stat, zconn_tid

__all__ = ["NotedRecords", "Records"]


class Records(RecordSource):
    """Records that a Connection sees.

    Parameters
    ----------
    conn : ZODB.Connection.Connection
    """

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    @override
    def load(self, oid: bytes) -> bytes:
        return self.load_all([oid])[0]

    @override
    def load_all(self, oids: list[bytes]) -> list[bytes]:
        return [record for record, _ in zconn_load_revisions(self.conn, oids)]

    @override
    def locate(
        self, oids: list[bytes], *, wait: bool = True, small: dict[bytes, bytes] | None = None
    ) -> list[Located | None]:
        return zconn_locate(self.conn, oids, wait=wait, small=small)

    @override
    def stat(self, oids: list[bytes]) -> list[Stat]:
        return [found or Stat(b"\0" * 8, 0) for found in zconn_stat(self.conn, oids)]

    def tid(self, oid: bytes) -> bytes:
        """Return the transaction that wrote an object; see zconn_tid()."""
        return zconn_tid(self.conn, oid)


class NotedRecords(Records):
    """Records of a Connection; `tids` has the transactions that wrote those that were read."""

    def __init__(self, conn: Any) -> None:
        super().__init__(conn)
        self.tids: dict[bytes, bytes] = {}

    @override
    def load_all(self, oids: list[bytes]) -> list[bytes]:
        found = zconn_load_revisions(self.conn, oids)
        self.tids.update((oid, tid) for oid, (_, tid) in zip(oids, found, strict=True))
        return [record for record, _ in found]

    @override
    def tid(self, oid: bytes) -> bytes:
        return self.tids.get(oid) or super().tid(oid)
