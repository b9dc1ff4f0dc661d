"""Zarr folders and ZarrGroups: each file is a value, copied byte for byte; zarr is not needed.

An import works in transactions, and an export in steps, of limited size. Both go on where they were
interrupted: keys are copied in order, and their number is noted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import transaction
from persistent.mapping import PersistentMapping

from wendelin.cli.address import Address
from wendelin.cli.errors import Failure, explain
from wendelin.cli.output import Advance
from wendelin.cli.part import Part
from wendelin.cli.stored import Database, Stored, attributes, class_of
from wendelin.cli.transfer import Place
from wendelin.cli.tree import find
from wendelin.lib.storage.fssync import sync_folder
from wendelin.lib.storage.record import Ref
from wendelin.lib.zodb import zconn_before, zconn_load_all
from wendelin.zarr import ZarrGroup
from wendelin.zarr.keys import Keys
from wendelin.zarr.values import Values

__all__ = ["Folder", "GroupReader", "export_folder", "find_group", "import_folder"]

_METADATA = ("zarr.json", ".zarray", ".zgroup")
_CLASS = "wendelin.zarr.ZarrGroup"


class Folder:
    """A Zarr folder: key -> file.

    Parameters
    ----------
    path : str
    external : bool
        Follow symbolic links.

    Raises
    ------
    Failure
        It is not a Zarr folder, or has other things than files.
    """

    def __init__(self, path: str, external: bool = False) -> None:
        self.path = path
        self._external = external
        if not os.path.exists(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        if not os.path.isdir(path):
            raise Failure(f"{path} is not a Zarr folder: unpack a zip file first")
        self.sizes: dict[str, int] = dict(sorted(self._files(path, "")))
        if not any(name in self.sizes for name in _METADATA):
            raise Failure(f"{path} is not a Zarr folder: it has none of {', '.join(_METADATA)}")

    @property
    def size(self) -> int:
        """Size of all files [bytes]."""
        return sum(self.sizes.values())

    def _files(self, folder: str, prefix: str, above: tuple[tuple[int, int], ...] = ()) -> Any:
        state = os.stat(folder)
        here = state.st_dev, state.st_ino
        if here in above:
            raise Failure(f"{folder} is a link to a folder that it is in")
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    key = prefix + entry.name.encode(errors="surrogateescape").decode()
                except UnicodeDecodeError:
                    raise Failure(f"{entry.path!r} has a name that is not UTF-8") from None
                if entry.is_symlink() and not self._external:
                    raise Failure(
                        f"{entry.path} is a symbolic link: it is followed only with --external, if "
                        f"you trust the folder"
                    )
                if entry.is_dir():
                    yield from self._files(entry.path, f"{key}/", (*above, here))
                elif entry.is_file():
                    yield key, entry.stat().st_size
                else:
                    raise Failure(f"{entry.path} is neither a file nor a folder")

    def read(self, key: str) -> bytes:
        """Return a file."""
        nofollow = 0 if self._external else os.O_NOFOLLOW
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | nofollow
        fd = os.open(os.path.join(self.path, key), flags)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Failure(f"{self.path}/{key} is neither a file nor a folder")
            return file.read()


def import_folder(
    root: Any, address: Address, folder: Folder, replace: bool, step: int, tell: Advance
) -> int:
    """Make a ZarrGroup of a folder; return how many bytes were done before.

    Raises
    ------
    Failure
        Another object is there, or the import was interrupted.
    """
    place = Place(root, address)

    def check_there() -> None:
        there = place.obj
        if there is not None and not isinstance(there, ZarrGroup):
            raise Failure(f"{address} exists already: it is a {class_of(there)}, not a ZarrGroup")
        if there is not None and not replace:
            raise Failure(f"{address} exists already: --replace replaces it with the new one")

    check_there()
    source = {"kind": "zarr folder", "keys": len(folder.sizes), "bytes": folder.size}
    progress = place.progress
    if progress is not None and progress["source"] != source:
        if not replace:
            raise Failure(f"{address} was begun from another source: --replace begins again")
        progress = None
    if progress is None:
        progress = PersistentMapping(source=source, done=0, array=ZarrGroup())
        place.progress = progress
    table = progress["array"].live_table()
    keys = list(folder.sizes)
    done = int(progress["done"])
    before: int = sum(folder.sizes[key] for key in keys[:done])
    try:
        for some in _steps(keys[done:], folder.sizes, step):
            table.change({key: folder.read(key) for key in some})
            done += len(some)
            progress["done"] = done
            _commit(address, f"{done} values")
            tell(sum(folder.sizes[key] for key in some))
        check_there()
        place.obj = progress["array"]
        place.progress = None
        _commit(address, "complete")
    except (Exception, KeyboardInterrupt) as e:
        with suppress(Exception):
            transaction.abort()
        if isinstance(e, Failure):
            raise
        raise Failure(
            f"{explain(e)}: {address} has {done} of {len(keys)} values; the same command goes on "
            f"from there"
        ) from e
    return before


def _commit(address: Address, note: str) -> None:
    transaction.get().note(f"wendelin: {address.path[-1]!r} {note}")
    transaction.commit()


def _steps(keys: list[str], sizes: dict[str, int], step: int) -> Iterator[list[str]]:
    """Yield keys that are copied together: of about `step` bytes, or one larger value."""
    some: list[str] = []
    size = 0
    for key in keys:
        some.append(key)
        size += sizes[key]
        if size >= step or len(some) >= 10_000:
            yield some
            some, size = [], 0
    if some:
        yield some


class GroupReader:
    """A ZarrGroup of a database, read as data: none of its objects is loaded.

    Parameters
    ----------
    stored : Stored
    prefix : str
        Only keys with this prefix; it is '' or ends with a slash.
    """

    def __init__(self, stored: Stored, prefix: str) -> None:
        self._conn = conn = stored.database.conn
        self._keys = Keys(lambda oids: zconn_load_all(conn, oids), lambda: zconn_before(conn))
        self._values = Values(lambda: conn)
        table = dict(attributes(stored)).get("table")
        if not isinstance(table, Ref):
            raise Failure(f"object 0x{stored.oid.hex()} is a damaged ZarrGroup: it has no table")
        self._prefix = prefix
        found = self._keys.between(table.oid, prefix, prefix[:-1] + "0" if prefix else None)
        #: key -> value, ascending
        self.values = {key[len(prefix) :]: ref for key, ref in found}

    def read(self, key: str) -> memoryview | bytes | bytearray:
        """Return a value."""
        return self._values.read([(self.values[key], None)])[0]

    def sizes(self) -> dict[str, int]:
        """Return the sizes of all values [bytes]."""
        return {key: self._values.size(ref) for key, ref in self.values.items()}


def find_group(database: Database, address: Address) -> tuple[Stored, str] | None:
    """Return the ZarrGroup at or above an address, and the prefix of keys; None: there is none."""
    for n in range(len(address.path), 0, -1):
        try:
            found = find(database, Address(address.url, address.path[:n]))
        except Failure:
            continue
        if isinstance(found, Stored) and found.cls == _CLASS:
            rest = address.path[n:]
            return found, "".join(f"{name}/" for name in rest)
        return None
    return None


def export_folder(reader: GroupReader, part: Part, step: int, tell: Advance) -> None:
    """Write the values of a group to the files of a folder; go on if it was interrupted.

    Raises
    ------
    Failure
        A key is not a valid name of a file.
    """
    keys, sizes = list(reader.values), reader.sizes()
    files = set(keys)
    for key in keys:
        names = key.split("/")
        if "\0" in key or any(name in ("", ".", "..") for name in names):
            raise Failure(f"key {key!r} cannot be the name of a file")
        above = ["/".join(names[:n]) for n in range(1, len(names))]
        if not files.isdisjoint(above):
            raise Failure(f"key {key!r} is in another key: a file cannot be in a file")
    done = part.done
    os.makedirs(part.path, exist_ok=True)
    for some in _steps(keys[done:], sizes, step):
        folders = set()
        for key in some:
            path = os.path.join(part.path, key)
            folder = os.path.dirname(path)
            os.makedirs(folder, exist_ok=True)
            folders.add(folder)
            with open(path, "wb") as file:
                file.write(reader.read(key))
                file.flush()
                os.fsync(file.fileno())
        for folder in folders:
            sync_folder(folder)
        done += len(some)
        part.save(done, 0)
        tell(sum(sizes[key] for key in some))
