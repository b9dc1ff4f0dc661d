"""Rows that PostgreSQL sends in binary, by COPY: a third of its work, and of ours, of a SELECT.

By a SELECT, psycopg2 gets bytes as text, two digits for each.

This module knows the format of COPY BINARY, and tables of RelStorage.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from ZODB.utils import p64, u64

__all__ = ["records_of", "revisions_of"]

_BEGIN = b"PGCOPY\n\xff\r\n\0"
_HEAD = Struct("!11siI")  # _BEGIN, flags, size of what follows
_ROW = Struct("!hiqiqi")  # 3 columns: oid and tid with their sizes, and the size of the record
_END = -1  # number of columns
_NULL = -1  # size

_NOW = (
    "SELECT zoid, tid, state FROM current_object JOIN object_state USING (zoid, tid)"
    " WHERE zoid IN ({oids}) AND state IS NOT NULL"
)
_NOW_WITHOUT_HISTORY = (
    "SELECT zoid, tid, state FROM object_state WHERE zoid IN ({oids}) AND state IS NOT NULL"
)
_PAST = (
    "SELECT DISTINCT ON (zoid) zoid, tid, state FROM object_state"
    " WHERE zoid IN ({oids}) AND tid < {before} ORDER BY zoid, tid DESC"
)


def records_of(
    cursor: Any, oids: list[bytes], history: bool, before: bytes | None = None
) -> list[tuple[bytes, bytes] | None]:
    """Return records of objects, and the transactions that wrote them; None where there is none.

    Parameters
    ----------
    cursor : cursor of psycopg2
        In a transaction: it sees one state.
    oids : list of bytes
    history : bool
        Whether the database keeps previous revisions.
    before : bytes, optional
        Return the last revisions before this tid; by default the last ones in that state.

    Raises
    ------
    psycopg2.Error
    """
    query = _PAST if before is not None else _NOW if history else _NOW_WITHOUT_HISTORY
    asked = ",".join(str(u64(oid)) for oid in oids)
    rows = _Rows()
    query = query.format(oids=asked, before=None if before is None else u64(before))
    cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT binary)", rows)
    return [rows.found.get(oid) for oid in oids]


def revisions_of(
    cursor: Any, oids: list[bytes], history: bool, before: bytes | None = None
) -> list[bytes | None]:
    """Return the transactions that wrote records, without these; see records_of()."""
    query = _PAST if before is not None else _NOW if history else _NOW_WITHOUT_HISTORY
    asked = ",".join(str(u64(oid)) for oid in oids)
    query = query.replace("zoid, tid, state FROM", "zoid, tid FROM")
    cursor.execute(query.format(oids=asked, before=None if before is None else u64(before)))
    found = {p64(oid): p64(tid) for oid, tid in cursor.fetchall()}
    return [found.get(oid) for oid in oids]


class _Rows:
    """A file that takes what COPY sends: a row at a time, or any other pieces."""

    def __init__(self) -> None:
        self.found: dict[bytes, tuple[bytes, bytes]] = {}
        self._rest = b""
        self._begun = False
        self._ended = False

    def write(self, data: bytes) -> int:
        """Take a piece."""
        piece = self._rest + data if self._rest else data
        at = 0
        if not self._begun:
            at = self._begin(piece)
        while self._begun and not self._ended:
            after = self._row(piece, at)
            if after is None:
                break
            at = after
        self._rest = piece[at:]
        return len(data)

    def _begin(self, piece: bytes) -> int:
        if len(piece) < _HEAD.size:
            return 0
        begin, _, extension = _HEAD.unpack_from(piece)
        if begin != _BEGIN:
            raise ValueError(f"PostgreSQL has sent {begin!r} in place of {_BEGIN!r}")
        if len(piece) < _HEAD.size + extension:
            return 0
        self._begun = True
        return _HEAD.size + int(extension)

    def _row(self, piece: bytes, at: int) -> int | None:
        """Take the row at a place; return where it ends. None: it is not all there."""
        if len(piece) < at + 2:
            return None
        if int.from_bytes(piece[at : at + 2], signed=True) == _END:
            self._ended = True
            return at + 2
        if len(piece) < at + _ROW.size:
            return None
        _, _, oid, _, tid, size = _ROW.unpack_from(piece, at)
        at += _ROW.size
        if size == _NULL:
            return at
        if len(piece) < at + size:
            return None
        self.found[p64(oid)] = (piece[at : at + size], p64(tid))
        return at + int(size)
