"""Zarr folders and ZarrGroups: each file is a value, copied byte for byte; zarr is not needed.

An export works in steps of limited size, and goes on where it was interrupted: keys are copied in
order, and their number is noted. So does an import: see building.

This module knows keys and bytes, but not what they mean to zarr.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from wendelin.cli.building import Contents, steps
from wendelin.cli.errors import Failure
from wendelin.cli.output import Advance
from wendelin.cli.storedzarr import StoredZarr
from wendelin.cli.unfinished import UnfinishedFile
from wendelin.lib.storage.fssync import sync_folder
from wendelin.lib.utils import override
from wendelin.zarr import ZarrGroup

__all__ = ["Folder", "FolderContents", "export_folder"]

_METADATA = ("zarr.json", ".zarray", ".zgroup")


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


class FolderContents(Contents):
    """The files of a Zarr folder, as values of a ZarrGroup."""

    kind, what = ZarrGroup, "values"

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._keys, self.sizes = list(folder.sizes), list(folder.sizes.values())
        self.identity = {"kind": "zarr folder", "keys": len(self._keys), "bytes": folder.size}

    @override
    def make(self) -> ZarrGroup:
        return ZarrGroup()

    @override
    def add(self, obj: ZarrGroup, start: int, stop: int) -> None:
        obj.live_table().change({key: self._folder.read(key) for key in self._keys[start:stop]})


def export_folder(reader: StoredZarr, unfinished: UnfinishedFile, step: int, tell: Advance) -> None:
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
    os.makedirs(unfinished.path, exist_ok=True)
    for start, stop in steps(list(sizes.values()), unfinished.done, step):
        some = keys[start:stop]
        folders = set()
        for key in some:
            path = os.path.join(unfinished.path, key)
            folder = os.path.dirname(path)
            os.makedirs(folder, exist_ok=True)
            folders.add(folder)
            with open(path, "wb") as file:
                file.write(reader.read(key))
                file.flush()
                os.fsync(file.fileno())
        for folder in folders:
            sync_folder(folder)
        unfinished.save(stop, 0)
        tell(sum(sizes[key] for key in some))
