"""A Zarr folder, read-only, without anything outside of it: no symbolic link, `..`, pipe or device.

zarr takes keys from metadata, which a stranger may have written. So each key is opened name by name
from the folder on, and only regular files under it are read. This module needs zarr.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import IO

from wendelin.cli.errors import Failure
from wendelin.cli.files.readonlystore import ReadOnlyStore
from wendelin.lib.utils import override

__all__ = ["FolderStore"]

_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class FolderStore(ReadOnlyStore):
    """The contents of a folder.

    Parameters
    ----------
    path : str
        Of the folder; it may be a symbolic link itself.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FolderStore) and other._path == self._path

    def __str__(self) -> str:
        return self._path

    # ---- files ----

    @contextmanager
    def _folder(self, names: list[str]) -> Iterator[int]:
        """Open a folder under the folder."""
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for i, name in enumerate(names):
                self._check(fd, name, names[: i + 1])
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                inner = os.open(name, flags, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _check(self, fd: int, name: str, names: list[str]) -> os.stat_result:
        """Return the status of a name in an open folder.

        Raises
        ------
        Failure
            It is, or may be, outside of the folder.
        """
        if name == ".." or "\0" in name:
            raise Failure(f"{'/'.join([self._path, *names])} is requested, but not in the folder")
        state = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISLNK(state.st_mode):
            raise Failure(
                f"{'/'.join([self._path, *names])} is a symbolic link: it is followed only with "
                f"--external, if you trust the folder"
            )
        return state

    def _file(self, key: str) -> IO[bytes]:
        """Open the file of a key, to be read."""
        *folders, name = _names(key) or [""]
        with self._folder(folders) as fd:
            state = self._check(fd, name, [*folders, name])
            if stat.S_ISDIR(state.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            if not stat.S_ISREG(state.st_mode):
                raise Failure(f"{self._path}/{key} is neither a file nor a folder")
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return os.fdopen(os.open(name, flags, dir_fd=fd), "rb")

    # ---- as zarr asks ----

    @override
    def read(self, key: str, byte_range: slice) -> bytes | None:
        try:
            with self._file(key) as file:
                start, stop, _ = byte_range.indices(os.fstat(file.fileno()).st_size)
                file.seek(start)
                return file.read(max(0, stop - start))
        except _NOT_THERE:
            return None

    @override
    async def exists(self, key: str) -> bool:
        try:
            self._file(key).close()
        except _NOT_THERE:
            return False
        return True

    @override
    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        try:
            with self._folder(_names(prefix)) as fd:
                names = os.listdir(fd)
        except _NOT_THERE:
            return
        for name in names:
            yield name

    @override
    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        at = "/".join(_names(prefix))
        async for name in self.list_dir(at):
            key = f"{at}/{name}" if at else name
            if await self.exists(key):
                yield key
            else:
                async for inner in self.list_prefix(key):
                    yield inner

    @override
    def again(self) -> FolderStore:
        return FolderStore(self._path)


def _names(key: str) -> list[str]:
    return [name for name in key.split("/") if name not in ("", ".")]
