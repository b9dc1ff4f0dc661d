"""ZODB: databases by path or URL, objects that never turn into ghosts, what a Connection sees."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from persistent import Persistent
from ZODB.DB import DB
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ConnectionStateError
from ZODB.utils import p64, u64, z64

from wendelin.lib.adapters.connection import (
    begins,
    instance_of,
    invalidate_all,
    saved_of,
    seen_before,
    under,
)
from wendelin.lib.adapters.trees import first_bucket, next_bucket
from wendelin.lib.pool import together
from wendelin.lib.storage.dburl import resolve, shown_name
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.forked import is_inherited, let_go, of_this_process
from wendelin.lib.storage.fsalign import SMALLEST
from wendelin.lib.storage.fsholds import Hold
from wendelin.lib.storage.fsrecord import Located, OpenFile, Stat
from wendelin.lib.storage.relational import RelationalInTurn, look_again
from wendelin.lib.storage.serverfile import ServerFile
from wendelin.lib.storage.storthreads import asks_in_parallel, class_of
from wendelin.lib.storage.storurl import zstor_2zurl
from wendelin.lib.storage.zeokind import is_our_client
from wendelin.lib.utils import renamed

__all__ = [
    "LivePersistent",
    "btree_nodes",
    "btree_values",
    "dbclose",
    "dbopen",
    "dbstoropen",
    "deactivate_btree",
    "zconn_at",
    "zconn_before",
    "zconn_changed",
    "zconn_check_database",
    "zconn_check_open",
    "zconn_forget",
    "zconn_has_open",
    "zconn_is_open",
    "zconn_is_remote",
    "zconn_load_all",
    "zconn_load_revisions",
    "zconn_locate",
    "zconn_name",
    "zconn_read_current",
    "zconn_stat",
    "zconn_takes_bytes_records",
    "zconn_tid",
    "zdb_last",
    "zobj_is_committed",
    "zobj_is_saved",
    "zstor_2zurl",
]


# ---- databases ----


@renamed(uri="url")
def dbstoropen(url: str | os.PathLike[str], *, read_only: bool = False) -> Any:
    """Return the storage of a path or URL; see dbopen()."""
    storage = resolve(os.fspath(url), read_only)[0]()
    of_this_process(storage)
    return storage


@renamed(uri="url")
def dbopen(url: str | os.PathLike[str], *, read_only: bool = False) -> Any:
    """Open a database, and return its root object.

    Parameters
    ----------
    url : str or path
        A path: a file, made on first use. Or a URL of any scheme that zodburi knows: file://,
        zeo://, demo:, memory://, and whatever resolvers are installed, such as neo://.
        zeo:// and neo:// wait for a server as long as their option wait_timeout says, by default
        30 s; docs/cluster.md has the other options.
        Paths and file:// are AlignedFileStorages. file:// has the options read_only, create,
        quota, blobstorage_dir, pack_gc, pack_keep_old, align_from=SIZE: smaller blocks are
        copied into memory and not mapped, and align=false: a plain FileStorage, whose blocks
        are all copied.
    read_only : bool
        Whatever would change the database raises ReadOnlyError, with any kind of storage. A file
        may be in use by another program then.

    Returns
    -------
    persistent.mapping.PersistentMapping
        The root; dbclose() closes what was opened for it.

    Raises
    ------
    ValueError
        The scheme is unknown, or the URL is wrong; or what it opens cannot be read only.
    OSError
        The file cannot be opened; no master of NEO has answered in time (TimeoutError).
    ZEO.Exceptions.ClientDisconnected
        No ZEO server has answered in time.
    """
    factory, arguments = resolve(os.fspath(url), read_only)
    storage = factory()
    try:
        db = DB(storage, **arguments)
        of_this_process(db)
        root = db.open().root()
        zconn_name(root._p_jar)  # for when it is closed
        return root
    except BaseException:
        storage.close()
        raise


def dbclose(root: Any) -> None:
    """Close the Connection, the database and the storage of a root that dbopen() returned.

    In a child of a fork, a database of the parent is only forgotten; the parent's stays open.

    Raises
    ------
    ZODB.POSException.ConnectionStateError
        There are changes: commit or abort first.
    """
    conn = root._p_jar
    db = conn.db()
    if is_inherited(conn):
        let_go(conn)
        return
    try:
        conn.close()
    except ConnectionStateError as e:
        raise ConnectionStateError(
            f"{zconn_name(conn)} has changes that are not committed: transaction.commit() "
            f"or transaction.abort() first, then dbclose()"
        ) from e
    db.close()


# ---- objects ----


_here = threading.local()  # .forgets: see zconn_forget()


class LivePersistent(Persistent):  # type: ignore[misc]  # persistent has no type hints
    """A persistent object that holds live objects, and is not a ghost as long as it does.

    The Connection's cache may not drop its state. When it is invalidated, by an abort or a change
    of others, it reads its new state at once. Attributes `_v_...` stay as they were, except those
    that __setstate__() sets.
    """

    _kept: tuple[str, ...] = ("_v_",)  # prefixes of names that stay

    def lives(self) -> bool:
        """Say whether there is an object to keep alive. Called if this object is not a ghost."""
        return True

    def __setstate__(self, state: Any) -> None:
        # Persistent clears all attributes. If its state could not be read when it was invalidated,
        # the ghost has the attributes that it keeps.
        if not self.__dict__:
            super().__setstate__(state)
            return
        volatile = self._volatile()
        try:
            super().__setstate__(state)
        finally:
            self.__dict__.update(volatile | self.__dict__)

    def _volatile(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k.startswith(self._kept)}

    def _p_deactivate(self) -> None:
        """Become a ghost, unless it lives."""
        if self._p_changed is not None and not self.lives():
            super()._p_deactivate()

    def _p_invalidate(self) -> None:
        """Become a ghost; if it lives, read the new state at once."""
        if self._p_changed is None or self._p_jar is None or not self.lives():
            super()._p_invalidate()
            return
        volatile = self._volatile()
        super()._p_invalidate()
        try:
            # The object may be gone, or the database. Do not raise here, as other objects are still
            # to be invalidated. It stays a ghost, and its next user gets the error.
            with suppress(Exception):
                if not getattr(_here, "forgets", False):
                    self._p_activate()
        finally:
            self.__dict__.update(volatile | self.__dict__)


def zconn_forget(conn: Any) -> None:
    """Invalidate all objects of a Connection, without reading and without waiting."""
    _here.forgets = True
    try:
        invalidate_all(conn)
    finally:
        _here.forgets = False


def zobj_is_committed(obj: Any) -> bool:
    """Say whether an object is unchanged since the last boundary of its Connection.

    A change before a savepoint counts, as the savepoint keeps it.
    """
    conn = obj._p_jar
    if conn is None:
        return False
    obj._p_activate()
    if obj._p_serial == z64 or obj._p_changed:
        return False
    return not zobj_is_saved(obj)


def zobj_is_saved(obj: Any) -> bool:
    """Say whether an object was changed before a savepoint, and waits in a file of that."""
    conn = obj._p_jar
    saved = None if conn is None else saved_of(conn)
    return saved is not None and obj._p_oid in saved.index


def btree_nodes(btree: Any) -> list[Any]:
    """Return the nodes of a BTree that are in memory, without ghosts. Loads nothing."""
    nodes: dict[int, Any] = {}
    todo = [btree]
    while todo:
        node = todo.pop()
        if node._p_changed is not None:
            nodes[id(node)] = node
            todo += _children(node)
    # Buckets are in a chain, too, which has those whose tree node is a ghost.
    bucket = first_bucket(btree) if nodes else None
    while bucket is not None and bucket._p_changed is not None:
        nodes[id(bucket)] = bucket
        bucket = next_bucket(bucket)
    return list(nodes.values())


def deactivate_btree(btree: Any) -> None:
    """Turn all unchanged nodes and values of a BTree that are in memory into ghosts. Loads nothing.

    Values that are not persistent objects go with the nodes; a LivePersistent that lives stays.
    """
    nodes = btree_nodes(btree)
    for obj in [value for node in nodes for value in btree_values(node)]:
        if isinstance(obj, Persistent):
            obj._p_deactivate()
    for node in nodes:
        node._p_deactivate()


def btree_values(node: Any) -> list[Any]:
    """Return the values in a node of a BTree, not a ghost: of a bucket, also one in its tree."""
    state = node.__getstate__()
    if state is None or (hasattr(node, "insert") and len(state) == 2):
        return []  # a tree of nodes
    flat = state[0][0][0] if hasattr(node, "insert") else state[0]
    return list(flat[1::2])


def _children(btree: Any) -> list[Any]:
    """Return the nodes under a tree's node; a bucket has none."""
    state = btree.__getstate__()
    if not (isinstance(state, tuple) and len(state) == 2 and hasattr(btree, "insert")):
        return []
    return [c for c in state[0][0::2] if isinstance(c, Persistent)]


def zdb_last(db: DB) -> bytes:
    """Return the last transaction of a database. In any thread.

    db.lastTransaction() of RelStorage is of a state that its storage has looked at some time ago,
    and db.open(at=) takes what comes later for the future. This lets it look again.
    """
    look_again(db.storage)
    return bytes(db.lastTransaction())


# ---- Connections ----


def zconn_before(conn: Any) -> bytes | None:
    """Return the tid before which a Connection sees all; None if its storage does not say."""
    storage = instance_of(conn)
    before = seen_before(storage)
    if before is None:
        visible = getattr(storage, "highest_visible_tid", 0)  # of RelStorage; 0: of nothing yet
        before = p64(visible + 1) if isinstance(visible, int) and visible else None
    return before if isinstance(before, bytes) and len(before) == 8 else None


def zconn_is_open(conn: Any) -> bool:
    """Say whether a Connection and its database are open."""
    return conn.opened is not None and instance_of(conn) is not None


def zconn_check_open(conn: Any) -> None:
    """Raise ConnectionStateError if a Connection or its database was closed."""
    if not zconn_is_open(conn):
        raise ConnectionStateError(
            f"{zconn_name(conn)} is closed: open the database again, and take the object from "
            f"there, as in root = dbopen(url); A = root['A']"
        )


def zconn_check_database(conn: Any) -> None:
    """Raise ConnectionStateError if the database of a Connection was closed."""
    if instance_of(conn) is None:
        zconn_check_open(conn)


_names: WeakKeyDictionary[DB, str] = WeakKeyDictionary()
_folders: WeakKeyDictionary[FileStorage, str] = WeakKeyDictionary()


def zconn_name(conn: Any) -> str:
    """Return the name of a Connection's database in messages: its path, or URL, in quotes.

    After the Connection is closed, it is known only if this function was called before.
    """
    db = conn.db()
    name = _names.get(db)
    if name is None:
        if "storage" not in vars(db):
            return repr(conn)
        name = _names[db] = repr(shown_name(db.storage))
    return name


def zconn_at(conn: Any) -> bytes:
    """Return the tid of the last transaction that a Connection sees.

    If the Connection was opened at a time in the past, it is the last possible tid of that time.
    db.open(at=tid) sees the same.

    Raises
    ------
    ConnectionStateError
        The Connection is closed, or waits for a transaction to begin, so it sees nothing.
    TypeError
        The storage of the Connection does not say.
    """
    zconn_check_open(conn)
    before = zconn_before(conn)
    if before is None:
        if conn.explicit_transactions and begins(instance_of(conn)):
            raise ConnectionStateError(f"no transaction of {conn!r} was begun")
        raise TypeError(f"{class_of(instance_of(conn))} does not say what {conn!r} sees")
    return bytes(p64(u64(before) - 1))


def zconn_locate(
    conn: Any,
    oids: Iterable[bytes],
    *,
    wait: bool = True,
    small: dict[bytes, bytes] | None = None,
) -> list[Located | None]:
    """Return where the bytes of objects lie in a file, as a Connection sees them.

    None for objects whose bytes are not in a file: all of them, if the storage is not an
    AlignedFileStorage. With wait=False, also None for those that would have to wait for the disk.
    `small` gets records of small objects that are not bytes: they were read on the way.
    """
    storage, before = _mapped_of(conn)
    if before is None or storage is None:
        return [None for _ in oids]
    return storage.locate(oids, before, wait=wait, small=small)


def zconn_hold(conn: Any, hold: Hold | None) -> Hold | None:
    """Hold the state that a Connection sees, in place of an earlier one: see fsholds."""
    storage, before = under(instance_of(conn)), zconn_before(conn)
    if before is None:
        return hold
    file: AlignedFileStorage | ServerFile
    if is_our_client(storage):
        file = storage.server_file
        file.follow()
    elif isinstance(storage, AlignedFileStorage):
        file = storage
    else:
        return hold
    if hold is None or not file.holds(hold):
        return file.hold(before)
    hold.move(before)
    return hold


def zconn_changed(conn: Any, oids: set[bytes], tid: bytes | None) -> set[bytes] | None:
    """Return the objects among some that have changed at a tid or later, in the newest state.

    None if the storage has no cheap way to find out.
    """
    ask = getattr(under(instance_of(conn)), "changed_since", None)
    if ask is None or tid is None:
        return None
    changed: set[bytes] | None = ask(oids, tid)
    return changed


def zconn_load_all(conn: Any, oids: list[bytes]) -> list[bytes]:
    """Return the records of objects as a Connection sees them, in one request if possible.

    Safe in any thread, once the Connection has a handle of an array (storthreads). Uncommitted
    changes of the Connection are not seen.
    """
    return [record for record, _ in zconn_load_revisions(conn, oids)]


def zconn_load_revisions(conn: Any, oids: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return records, as zconn_load_all() does, and the transactions that wrote them."""
    storage = instance_of(conn)
    zconn_check_database(conn)

    def load(oid: bytes) -> tuple[bytes, bytes]:
        record, tid = storage.load(oid)
        return bytes(record), bytes(tid)

    if isinstance(storage, RelationalInTurn):
        loaded = storage.load_all(oids)
        return [load(oid) if it is None else it for oid, it in zip(oids, loaded, strict=True)]
    if len(oids) == 1 or not zconn_is_remote(conn) or not asks_in_parallel(storage):
        return [load(oid) for oid in oids]
    before = zconn_before(conn)
    client = under(storage)
    if before is None or not is_our_client(client):
        return together(load, oids)
    found = client.load_all(oids, before)
    # load() raises the right exception
    return [
        load(oid) if record is None else (bytes(record[0]), bytes(record[1]))
        for oid, record in zip(oids, found, strict=True)
    ]


def zconn_tid(conn: Any, oid: bytes) -> bytes:
    """Return the transaction that wrote an object, as a Connection sees it.

    Of a file, the object is not loaded for that.
    """
    file, before = _file_of(conn), zconn_before(conn)
    if file is not None and before is not None:
        found = file.stat([oid], before)[0]
        if found is not None:
            return found.tid
    return bytes(instance_of(conn).load(oid)[1])


def zconn_stat(conn: Any, oids: list[bytes]) -> list[Stat | None]:
    """Return tids and sizes of objects' records; None for objects that do not exist.

    For a file and a ZEO server, records are not loaded. For a server, it is the newest record,
    which the Connection may not see yet.
    """
    file, before = _file_of(conn), zconn_before(conn)
    if file is not None and before is not None:
        return file.stat(oids, before)
    storage = conn.db().storage
    if is_our_client(storage):
        return [
            None if entry is None else Stat(entry["tid"], entry["size"] or 8)
            for entry in storage.histories(oids)
        ]
    return [_stat(conn, storage, oid, before) for oid in oids]


def _stat(conn: Any, storage: Any, oid: bytes, before: bytes | None) -> Stat | None:
    """Return the Stat of an object.

    history() of some storages has it, too, but is not called: it unpickles the notes of a
    transaction, which may call anything.
    """
    if isinstance(storage, DemoStorage):
        layers = (storage.changes, storage.base)
        return next(filter(None, (_stat(conn, layer, oid, before) for layer in layers)), None)
    if isinstance(storage, AlignedFileStorage) and before is not None:
        return storage.stat([oid], before)[0]
    try:
        if storage is conn.db().storage or before is None:
            found = instance_of(conn).load(oid)
        else:
            found = storage.loadBefore(oid, before)
        return None if found is None else Stat(found[1], len(found[0]))
    except KeyError:  # NEO's is not a POSKeyError
        return None


def zconn_read_current(conn: Any, obj: Any) -> None:
    """Let the commit be a conflict if another client has changed an object meanwhile."""
    if hasattr(instance_of(conn), "checkCurrentSerialInTransaction"):
        conn.readCurrent(obj)


_LOCAL = (FileStorage, MappingStorage, DemoStorage)


def zconn_is_remote(conn: Any) -> bool:
    """Say whether a request to the storage of a Connection waits for a server."""
    instance = instance_of(conn)
    storage = under(instance)
    storage = instance if storage is None else storage  # which is MVCC itself
    return not isinstance(storage, _LOCAL)


def zconn_maps(conn: Any) -> bool:
    """Say whether blocks of a Connection lie in a file of this machine that can be mapped."""
    storage, _ = _mapped_of(conn)
    return storage is not None and storage.align


def zconn_folder(conn: Any) -> str | None:
    """Return the folder of a Connection's database; None: it is not a file of this machine."""
    storage = under(instance_of(conn))
    if not isinstance(storage, FileStorage):
        return None
    folder = _folders.get(storage)
    if folder is None:
        folder = _folders[storage] = os.path.dirname(os.path.abspath(str(storage.getName())))
    return folder


def zconn_aligns_from(conn: Any) -> int:
    """Return from which size on the storage of a Connection aligns payloads [bytes]."""
    storage = _file_of(conn)
    return SMALLEST if storage is None else storage.align_from


def zconn_has_open(conn: Any, file: OpenFile) -> bool:
    """Say whether a file of a result of zconn_locate() is still the database's."""
    storage, _ = _mapped_of(conn)
    return storage is not None and storage.has_open(file)


def zconn_takes_bytes_records(conn: Any) -> bool:
    """Say whether the storage of a Connection takes a BytesRecord as well as bytes."""
    return _file_of(conn) is not None


def _mapped_of(conn: Any) -> tuple[AlignedFileStorage | None, bytes | None]:
    """Return the file that has the state that a Connection sees, and before which tid that is.

    It is the storage itself, or the file of a server, if it can be opened here.
    """
    storage, before = under(instance_of(conn)), zconn_before(conn)
    if is_our_client(storage):
        return None if before is None else storage.server_file.at(before), before
    return storage if isinstance(storage, AlignedFileStorage) else None, before


def _file_of(conn: Any) -> AlignedFileStorage | None:
    storage = under(instance_of(conn))
    return storage if isinstance(storage, AlignedFileStorage) else None
