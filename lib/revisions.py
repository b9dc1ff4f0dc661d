"""Which revisions of objects a Connection sees, without loading them; and which database it is of.

That is what a cache of blocks has to know (lib.storage.blockcache).
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ZODB.utils import maxtid, p64, u64, z64

from wendelin.lib.adapters.connection import Asker, instance_of, past_of, under
from wendelin.lib.storage.blockcache import Lineage
from wendelin.lib.storage.dburl import opened_by, shown_name
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.relational import RelationalInTurn
from wendelin.lib.storage.zeokind import is_our_client
from wendelin.lib.zodb import zconn_before, zconn_is_remote

__all__ = ["Revision", "zconn_lineage", "zconn_past", "zconn_revisions"]


class Revision(NamedTuple):
    """A revision of an object."""

    tid: bytes
    digest: bytes | None = None  # XXH3-64 of its bytes, if it is a block, and the storage says it


def zconn_revisions(conn: Any, oids: list[bytes]) -> list[Revision | None]:
    """Return which revisions of objects a Connection sees; None where that is not known.

    This takes one request, and loads no record.
    """
    before = zconn_before(conn)
    instance = instance_of(conn)
    storage = under(instance)
    if before is None or not oids:
        return [None for _ in oids]
    if isinstance(instance, RelationalInTurn):
        return [None if tid is None else Revision(tid) for tid in instance.revisions(oids)]
    if isinstance(storage, AlignedFileStorage):
        located = storage.locate(oids, before) if storage.align else [None for _ in oids]
        return [
            None if of is None else Revision(of.tid, None if at is None else at.digest)
            for of, at in zip(storage.stat(oids, before), located, strict=True)
        ]
    if is_our_client(storage):
        tids = storage.revisions(oids, before)
        return [None if tid is None else Revision(tid) for tid in tids]
    return [None for _ in oids]


def zconn_past(conn: Any, tid: bytes) -> Asker:
    """Return what stands for a Connection that sees the state after a transaction, to load from."""
    instance = instance_of(conn)
    storage = under(instance)
    return past_of(instance if storage is None else storage, p64(u64(tid) + 1))


def zconn_lineage(conn: Any) -> Lineage | None:
    """Return what tells the database of a Connection from others; None: its blocks are not cached.

    They are not, if it is in memory, or if it consists of several storages.
    """
    instance = instance_of(conn)
    storage = under(instance)
    is_file = isinstance(storage, AlignedFileStorage)
    if not is_file and not zconn_is_remote(conn):
        return None
    main = conn.db().storage  # an instance of RelStorage has no URL, and a name of its own
    storage = instance if storage is None else storage
    name = shown_name(main)
    if is_file:
        where = os.path.realpath(storage.path)
    elif is_our_client(main):  # options of the URL do not matter
        where = f"{name} {main.getName()}"
    else:
        where = opened_by(main) or f"{name} {main.getName()}"
    if is_file or is_our_client(main):
        storage.sync()  # else it could be behind what another process has noted just now
    root = storage.loadBefore(z64, maxtid)
    if root is None:
        return None
    return Lineage(
        where,
        name,
        bytes(root[1]),
        bytes(root[0]),
        bytes(storage.lastTransaction()),
        lambda tid: _root_at(storage, tid),
    )


def _root_at(storage: Any, tid: bytes) -> tuple[bytes, bytes] | None:
    try:
        found = storage.loadBefore(z64, p64(u64(tid) + 1))
    except KeyError:  # NEO's is not a POSKeyError
        return None
    return None if found is None else (bytes(found[0]), bytes(found[1]))
