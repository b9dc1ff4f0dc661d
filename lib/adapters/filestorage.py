"""FileStorage: its state, what it calls when it opens, commits and aborts, and its pack.

A storage that writes to the same file in another way, follows a file that another process writes,
or packs it, has to know where FileStorage is in it. ZODB has public names for little of that.

StorageFile has public names for the state. What FileStorage calls by private names, it passes on
to public methods, which a subclass overrides: write_index(), for one, is FileStorage's
_save_index().
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ZODB.FileStorage import FileIterator, FileStorage
from ZODB.FileStorage.fspack import GC, FileStoragePacker, PackCopier

from wendelin.lib.adapters.lockfile import lock_file

__all__ = [
    "Copier",
    "Formatter",
    "PackBase",
    "Reach",
    "StorageFile",
    "TransactionsOf",
    "files_of",
    "options_of",
    "renew_lock",
]

#: class -> private names of its instances
PRIVATE = {
    "ZODB.FileStorage.FileStorage": (
        "_abort",
        "_blob_init",
        "_clear_temp",
        "_commit_lock",
        "_data_find",
        "_file",
        "_file_name",
        "_files",
        "_finish",
        "_index",
        "_initIndex",
        "_loadBack_impl",
        "_lock",
        "_lock_file",
        "_ltid",
        "_nextpos",
        "_oid",
        "_pack_gc",
        "_pack_is_in_progress",
        "_pos",
        "_quota",
        "_read_data_header",
        "_read_num",
        "_read_txn_header",
        "_remove_blob_files_tagged_for_removal_during_pack",
        "_resolved",
        "_restore_index",
        "_save_index",
        "_saved",
        "_tfile",
        "_tfmt",
        "_thl",
        "_tid",
        "_tindex",
        "_transaction",
        "_ude",
        "_undoDataInfo",
        "_used_index",
    ),
    "ZODB.FileStorage.FileStorage.TempFormatter": ("_file",),
    "ZODB.FileStorage.FileStorage.FilePool": ("_files", "_out"),
    "ZODB.FileStorage.FileIterator": (
        "_file",
        "_file_name",
        "_file_size",
        "_pos",
        "_skip_to_start",
        "_start",
        "_stop",
    ),
    "ZODB.FileStorage.fspack.FileStoragePacker": (
        "_commit_lock",
        "_copier",
        "_file",
        "_read_data_header",
        "_read_txn_header",
        "_stop",
        "_tfile",
    ),
    "ZODB.FileStorage.fspack.GC": ("_file", "_read_data_header"),
    "ZODB.FileStorage.fspack.PackCopier": (
        "_data_find",
        "_file",
        "_read_data_header",
        "_read_txn_header",
    ),
}


def _named(name: str, doc: str) -> Any:
    """Return a property for a private attribute."""

    def get(self: Any) -> Any:
        return getattr(self, name)

    def put(self: Any, value: Any) -> None:
        setattr(self, name, value)

    return property(get, put, doc=doc)


class Formatter:
    """What reads records in a file of FileStorage: the storage, its pack, or a copier of that."""

    file = _named("_file", "The file; while a pack copies, what it copies from.")

    def read_transaction(self, pos: int) -> Any:
        """Return the header of the transaction at a position."""
        return self._read_txn_header(pos)  # type: ignore[attr-defined]

    def read_record(self, pos: int) -> Any:
        """Return the header of the record at a position; the file is behind it then."""
        return self._read_data_header(pos)  # type: ignore[attr-defined]


class StorageFile(Formatter, FileStorage):  # type: ignore[misc]  # ZODB has no type hints
    """A FileStorage, with public names."""

    # ---- the file ----

    path = _named("_file_name", "Its absolute path.")
    readers = _named("_files", "The pool of files to read, and the lock of it.")
    end = _named("_pos", "Behind the last transaction [bytes].")
    index = _named("_index", "oid -> position of the last record.")
    changed = _named("_tindex", "The same, of the running transaction.")
    newest_oid = _named("_oid", "The last one that was given.")
    newest_tid = _named("_ltid", "The last one that was committed.")
    used_index = _named("_used_index", "Whether a saved index was used: 1 or 0.")
    index_saved = _named("_saved", "How many times the index was saved.")
    pack_gc = _named("_pack_gc", "Whether a pack drops what nothing refers to.")
    packing = _named("_pack_is_in_progress", "Whether a pack runs. Protected by: state_lock.")

    # ---- the running transaction ----

    state_lock = _named("_lock", "Of the state.")
    commit_lock = _named("_commit_lock", "Held by the running transaction.")
    running = _named("_transaction", "The running transaction, or None.")
    new_tid = _named("_tid", "The tid that it gets.")
    texts = _named("_ude", "Its user, description and extension.")
    header_size = _named("_thl", "The size of its header [bytes].")
    next_end = _named("_nextpos", "Where it ends [bytes]; 0: it was not voted for.")
    resolved = _named("_resolved", "oids of its conflicts that were resolved.")

    @property
    def changes(self) -> Any:
        """The file that has the records of the running transaction."""
        return self._tfile

    @changes.setter
    def changes(self, file: Any) -> None:
        self._tfile = self._tfmt._file = file

    def files_to_close(self) -> list[Any]:
        """Return the files that are open, if it could not be opened as a whole."""
        names = "_file", "_tfile", "_lock_file", "_files"
        has = self.__dict__
        return [has[name] for name in names if has.get(name) is not None]

    def read_number(self, pos: int) -> int:
        """Return the number at a position of the file."""
        return int(self._read_num(pos))

    def remove_packed_blobs(self) -> None:
        """Remove the blobs that a pack has found to be of no use."""
        self._remove_blob_files_tagged_for_removal_during_pack()

    # ---- what FileStorage calls ----

    def _restore_index(self) -> Any:
        return self.read_index()

    def read_index(self) -> Any:
        """Return (index, end, tid) of the file, which was opened; None: there is no index."""
        return super()._restore_index()

    def _save_index(self) -> None:
        self.write_index()

    def write_index(self) -> None:
        """Save the index. Called with the lock."""
        super()._save_index()

    def _initIndex(self, index: Any, tindex: Any) -> None:
        self.set_index(index, tindex)

    def set_index(self, index: Any, changed: Any) -> None:
        """Have another index: of the file that was opened, or of that which a pack has made."""
        super()._initIndex(index, changed)

    def _blob_init(self, blob_dir: str, layout: str = "automatic") -> None:
        self.open_blobs(blob_dir, layout)

    def open_blobs(self, blob_dir: str, layout: str) -> None:
        """Prepare the folder of blobs, when the file was opened."""
        super()._blob_init(blob_dir, layout)

    def _read_data_header(self, pos: int, oid: bytes | None = None, _file: Any = None) -> Any:
        header = super()._read_data_header(pos, oid, _file)
        self.check_record(pos, oid, header)
        return header

    def check_record(self, pos: int, oid: bytes | None, header: Any) -> None:
        """Look at the header of a record at a position, which is about to be used."""

    def _finish(self, tid: bytes, u: bytes, d: bytes, e: bytes) -> None:
        self.before_finish()
        super()._finish(tid, u, d, e)

    def before_finish(self) -> None:
        """Do what is to be done before the transaction counts."""

    def _abort(self) -> None:
        self.before_abort()
        super()._abort()

    def before_abort(self) -> None:
        """Do what is to be done before the transaction is aborted."""

    def _clear_temp(self) -> None:
        self.before_clear()
        super()._clear_temp()

    def before_clear(self) -> None:
        """Do what is to be done before another transaction begins with nothing."""

    def _data_find(self, tpos: int, oid: bytes, data: bytes) -> int:
        return self.find_data(tpos, oid, data)

    def find_data(self, tpos: int, oid: bytes, data: bytes) -> int:
        """Return where the transaction at a position has this data for an object; or 0."""
        return int(super()._data_find(tpos, oid, data))

    def load(self, oid: bytes, version: str = "") -> tuple[bytes, bytes]:
        """See IStorage."""
        data, tid = super().load(oid, version)
        return self.sent_data(data), tid

    def loadBefore(self, oid: bytes, tid: bytes) -> tuple[bytes, bytes, bytes | None] | None:
        """See IStorage."""
        found = super().loadBefore(oid, tid)
        return None if found is None else (self.sent_data(found[0]), *found[1:])

    def loadSerial(self, oid: bytes, serial: bytes) -> Any:
        """See IStorage."""
        return self.sent_data(super().loadSerial(oid, serial))

    def sent_data(self, data: bytes) -> bytes:
        """Return a record of the file as others get it."""
        return data

    def _undoDataInfo(self, oid: bytes, pos: int, tpos: int) -> tuple[bytes, int, bytes]:
        tid, pos, data = super()._undoDataInfo(oid, pos, tpos)
        return tid, pos, self.plain_data(data) if data else data

    def _loadBack_impl(
        self, oid: bytes, back: int, fail: bool = True, _file: Any = None
    ) -> tuple[bytes | None, bytes, int, int]:
        data, tid, pos, tpos = super()._loadBack_impl(oid, back, fail, _file)
        return self.plain_data(data) if data else data, tid, pos, tpos

    def load_back(self, oid: bytes, back: int) -> bytes | None:
        """Return the data of an earlier record that another one refers to; None: it is gone."""
        data = self._loadBack_impl(oid, back, fail=False)[0]
        return None if data is None else bytes(data)

    def plain_data(self, data: bytes) -> bytes:
        """Return an earlier record as it is to be stored again."""
        return data


class _Sent:
    """A file that returns all that is read of it in another form."""

    def __init__(self, file: Any, sent: Callable[[bytes], bytes]) -> None:
        self._file = file
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int) -> bytes:
        """Read bytes."""
        return self._sent(self._file.read(size))


class TransactionsOf(FileIterator):  # type: ignore[misc]  # ZODB has no type hints
    """Iterates over transactions of a file up to a position: what is behind may be anything.

    Parameters
    ----------
    name : str
    pos : int
        Where the first transaction is [bytes].
    end : int
        Behind the last one [bytes].
    stop : bytes, optional
        None after this tid.
    sent : callable
        Given what is read of the file, such as a record, returns it as others get it.
    """

    def __init__(
        self,
        name: str,
        pos: int,
        end: int,
        stop: bytes | None = None,
        sent: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self._file = _Sent(open(name, "rb"), sent)  # noqa: SIM115
        self._file_name = name
        self._file_size = end
        self._pos = pos
        self._start, self._stop = None, stop

    def skip_to(self, start: bytes) -> None:
        """Begin with the first transaction of this tid, or a later one."""
        self._skip_to_start(start)

    def __next__(self) -> Any:
        if self._pos >= self._file_size:
            self.close()
            raise StopIteration
        return super().__next__()

    next = __next__


# ---- pack ----


class PackBase(Formatter, FileStoragePacker):  # type: ignore[misc]  # ZODB has no type hints
    """What packs a file, with public names."""

    packed = _named("_tfile", "The file that it writes.")
    commit_lock = _named("_commit_lock", "The storage's.")
    stop = _named("_stop", "The pack time, as a tid.")
    copier = _named("_copier", "What copies transactions after the pack time: a Copier.")


class Reach(Formatter, GC):  # type: ignore[misc]  # ZODB has no type hints
    """What finds the records that can be reached."""


class Copier(Formatter, PackCopier):  # type: ignore[misc]  # ZODB has no type hints
    """What copies transactions after the pack time."""

    def _data_find(self, tpos: int, oid: bytes, data: bytes) -> int:
        return self.find_data(tpos, oid, data)

    def find_data(self, tpos: int, oid: bytes, data: bytes) -> int:
        """Return where the transaction at a position has this data for an object; or 0."""
        return int(super()._data_find(tpos, oid, data))


# ---- of any FileStorage ----


def options_of(storage: FileStorage) -> tuple[str, bool, Any]:
    """Return the path of a FileStorage, whether its pack collects garbage, and its quota."""
    return storage._file_name, bool(storage._pack_gc), storage._quota


def renew_lock(storage: FileStorage, lock: Any) -> None:
    """Have another lock in place of a FileStorage's, which nothing will give back."""
    storage._lock = lock


def files_of(storage: Any) -> Iterator[Any]:
    """Yield the files that a FileStorage, or what keeps savepoints, has open; some may be None."""
    has = getattr(storage, "__dict__", {})
    for name in "_file", "_tfile":
        yield has.get(name)
    yield lock_file(has.get("_lock_file"))
    pool = has.get("_files")
    yield from (*getattr(pool, "_files", ()), *getattr(pool, "_out", ()))
