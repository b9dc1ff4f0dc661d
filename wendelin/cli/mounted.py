"""Arrays of a database as .npy files in folders, at one moment: what a mount shows.

    Tree ──► Folder: name -> Ref of a folder, or File      listed when they are looked at
             File: the header of a .npy, and the bytes of an array behind it

A name that cannot be one of a file is changed; of two that are the same then, the later gets ~2.
Nothing is loaded that the database names. Bytes come from the database's file where a block lies
there, else from its page.

It knows objects that are read as data, and not FUSE. Locking: `_lock` while a folder is listed; it
is held while the storage reads, and not while a block is read.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from errno import EIO, EISDIR, ENOENT, ENOTDIR
from typing import Any

from wendelin.bigfile.virtmem.abilities import FileRange
from wendelin.bigfile.virtmem.backend import HOLE
from wendelin.cli.arrays import flat_bytes, layout_of, place_of
from wendelin.cli.files.convert import is_described
from wendelin.cli.files.flat import write_npy_header
from wendelin.cli.files.names import name_of_key
from wendelin.cli.stored import (
    Database,
    Stored,
    StoredArray,
    StoredFile,
    has_references,
    is_leaf,
    is_read,
)
from wendelin.cli.tree import children, is_of_object
from wendelin.lib.storage.record import Ref

__all__ = ["File", "Folder", "Tree"]

_SUFFIX = ".npy"
_PLACES = 4096  # of blocks, that a file remembers


class File:
    """A .npy file of an array.

    Parameters
    ----------
    array : StoredArray
    """

    def __init__(self, array: StoredArray) -> None:
        self._array = array
        layout = layout_of(array)
        head = io.BytesIO()
        write_npy_header(head, layout)
        self._head = head.getvalue()
        self.size = len(self._head) + array.nbytes
        self._bytes: Any = None  # made when it is read: a handle has memory
        self._places: dict[int, Any] = {}  # block -> FileRange, HOLE, or None

    def read(self, offset: int, size: int) -> bytes | FileRange:
        """Return bytes of the file, or where they lie in another one; fewer at the end.

        Raises
        ------
        OSError
            A block cannot be loaded.
        """
        stop = min(self.size, offset + size)
        if offset >= stop:
            return b""
        at, pieces = offset, []
        if at < len(self._head):
            pieces.append(self._head[at:stop])
            at += len(pieces[0])
        at, end = at - len(self._head), stop - len(self._head)
        blksize = self._array.zfile.blksize
        while at < end:
            blk = at // blksize
            to = min(end, (blk + 1) * blksize)
            place = self._place(blk)
            if isinstance(place, FileRange):
                if not pieces and to == end:
                    return FileRange(place.fd, place.offset + at - blk * blksize, to - at)
                pieces.append(_pread(place.fd, to - at, place.offset + at - blk * blksize))
            elif place is HOLE:
                pieces.append(bytes(to - at))
            else:
                pieces.append(self._load(at, to))
            at = to
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _place(self, blk: int) -> Any:
        try:
            return self._places[blk]
        except KeyError:
            pass
        file = self._array._fileh().file
        file.verify = True  # what others read is as it was stored
        if len(self._places) >= _PLACES:
            self._places = {}
        place = self._places[blk] = place_of(file, blk)
        return place

    def _load(self, start: int, stop: int) -> bytes:
        try:
            if self._bytes is None:
                self._bytes = flat_bytes(self._array)
            data: bytes = self._bytes.read(slice(start, stop)).tobytes()
            return data
        except Exception as e:
            if isinstance(e, OSError) and e.errno:
                raise
            raise OSError(EIO, f"a block cannot be loaded: {e}") from e


def _pread(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise OSError(EIO, "the database's file ends in a block")
    return data


class Folder:
    """The names in a folder.

    Parameters
    ----------
    tree : Tree
    obj : Stored
    """

    def __init__(self, tree: Tree, obj: Any) -> None:
        self.names: dict[str, Ref | Stored | File] = {}
        for key, value in children(obj):
            try:
                found = tree.database.get(value) if isinstance(value, Ref) else value
            except Exception as e:
                if not is_of_object(e):
                    raise
                tree.tell(f"{key!r:.200} is left out: {e}")
                continue
            if isinstance(found, StoredArray):
                self._add(tree, key, found)
            elif isinstance(value, Ref) and _is_folder(value, found):
                self.names[self._free(name_of_key(key), "")] = value

    def _add(self, tree: Tree, key: str, array: StoredArray) -> None:
        layout = layout_of(array)
        if not is_described(layout.dtype):
            tree.tell(f"{key!r:.200} is left out: a .npy cannot have its dtype, {layout.dtype}")
            return
        self.names[self._free(name_of_key(key), _SUFFIX)] = File(array)

    def _free(self, name: str, suffix: str) -> str:
        found, n = f"{name}{suffix}", 1
        while found in self.names:
            n += 1
            found = f"{name}~{n}{suffix}"
        return found


def _is_folder(ref: Ref, obj: Any) -> bool:
    return (
        isinstance(obj, Stored)
        and not isinstance(obj, StoredFile)
        and not is_leaf(ref)
        and is_read(obj)
        and (has_references(obj) or "apping" in obj.cls or "BTree" in obj.cls)
        and not obj.cls.startswith("wendelin.zarr.")
    )


class Tree:
    """All folders and files of a database.

    Parameters
    ----------
    database : Database
    root : Stored
        What the uppermost folder shows.
    tell : (str) -> None
        Called with what is left out, in any thread.
    """

    def __init__(self, database: Database, root: Stored, tell: Callable[[str], None]) -> None:
        self.database, self._root, self.tell = database, root, tell
        self._lock = threading.Lock()
        self._folders: dict[bytes, Folder] = {}  # oid -> folder

    def find(self, path: str) -> Folder | File:
        """Return what is at a path, such as /run/x.npy.

        Raises
        ------
        OSError
            Nothing is there; or an object does not load.
        """
        try:
            with self._lock:
                return self._find(path)
        except OSError:
            raise
        except Exception as e:
            raise OSError(EIO, f"{path} cannot be read: {e}") from e

    def _find(self, path: str) -> Folder | File:
        here: Folder | File = self._folder(self._root)
        for name in filter(None, path.split("/")):
            if isinstance(here, File):
                raise OSError(ENOTDIR, os.strerror(ENOTDIR), path)
            found = here.names.get(name)
            if found is None:
                raise OSError(ENOENT, os.strerror(ENOENT), path)
            here = found if isinstance(found, File) else self._folder(found)
        return here

    def _folder(self, value: Any) -> Folder:
        oid = value.oid
        folder = self._folders.get(oid)
        if folder is None:
            folder = self._folders[oid] = Folder(self, self.database.get(value))
        return folder

    def file(self, path: str) -> File:
        """Return the file at a path.

        Raises
        ------
        OSError
            There is none.
        """
        found = self.find(path)
        if isinstance(found, Folder):
            raise OSError(EISDIR, os.strerror(EISDIR), path)
        return found

    def names(self, path: str) -> Iterator[str]:
        """Yield the names in a folder.

        Raises
        ------
        OSError
            There is none.
        """
        found = self.find(path)
        if isinstance(found, File):
            raise OSError(ENOTDIR, os.strerror(ENOTDIR), path)
        return iter(list(found.names))
