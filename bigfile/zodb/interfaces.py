"""Interfaces between the modules of this folder.

A handle (ZBigFileH) and its file (ZFile) hold each other: the handle owns the file, and the file
has a weak reference to the handle. Each knows the other by the interface here.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from wendelin.bigfile.virtmem.handle import BigFileH

if TYPE_CHECKING:
    from wendelin.bigfile.zodb.formats import ZBlkBase
    from wendelin.lib.storage.fsrecord import Located, Stat
    from wendelin.lib.zodb_boundary import Changes, Watch

__all__ = ["FileInDatabase", "FileOfHandle", "HandleOfFile", "PageSource", "RecordSource"]


class RecordSource(Protocol):
    """A source of records. In any thread."""

    def load(self, oid: bytes) -> bytes:
        """Return a record."""

    def load_all(self, oids: list[bytes]) -> list[bytes]:
        """Return records, in one request."""

    def locate(
        self, oids: list[bytes], *, wait: bool = True, small: dict[bytes, bytes] | None = None
    ) -> list[Located | None]:
        """Return where in a file the bytes of objects lie; None for objects that must be loaded.

        With wait=False, also None for those that would have to wait for the disk. `small` gets
        records of small objects that are not bytes: they were read on the way.
        """

    def stat(self, oids: list[bytes]) -> list[Stat]:
        """Return tids and sizes of records; for one that does not exist, the size is 0."""


class PageSource(Protocol):
    """The source of the bytes of a block that is stored."""

    def page_buffer(self, blk: int) -> memoryview:
        """Return the block [blksize bytes], read-only."""


class FileInDatabase(Protocol):
    """A ZBigFile, or an object that stands for one in a program that loads no objects."""

    @property
    def _p_jar(self) -> Any: ...

    @property
    def _p_oid(self) -> bytes | None: ...

    @property
    def _p_serial(self) -> bytes: ...

    @property
    def blksize(self) -> int:
        """Block size [bytes]."""

    @property
    def blktab(self) -> Any:
        """The block table. A reader needs only its oid."""


class HandleOfFile(BigFileH, ABC):
    """The interface of a handle for its file: a BigFileH, and its part in the transaction.

    Attributes
    ----------
    stored : dict
        Block objects that the running commit stores.
    watch : Watch
        The Watch of its Connection.
    """

    stored: dict[int, ZBlkBase]
    watch: Watch

    @abstractmethod
    def page_buffer(self, blk: int) -> memoryview:
        """Return the block [blksize bytes], read-only."""

    @abstractmethod
    def show_again(self, blks: Iterable[int]) -> None:
        """Show pages again that views showed before they were dropped, if that costs little."""

    @abstractmethod
    def others(self) -> Iterable[HandleOfFile]:
        """Return the other handles of its file, in its Connection."""

    @abstractmethod
    def mark_stored_clean(self) -> set[bytes]:
        """Make stored pages clean. Return the objects that they are made of."""


class FileOfHandle(Protocol):
    """The interface of a file for its handle: to follow the database, and to store changes."""

    handle: weakref.ref[Any] | None

    @property
    def conn(self) -> Any:
        """Its Connection."""

    @property
    def zfile(self) -> Any:
        """The ZBigFile."""

    @property
    def is_local(self) -> bool:
        """Say whether blocks can be mapped from a file of this machine."""

    #: first block, and number of blocks, of the last view that was taken
    view: tuple[int, int]

    def follow(self, changes: Changes, handle: Any) -> None:
        """Bring the handle's pages to the new state: see zodb_boundary.Follower."""

    def forget(self, handle: Any) -> None:
        """Drop all pages of the previous state: see zodb_boundary.Follower."""

    def store_retired(self, txn: Any) -> None:
        """Store the objects that others replace, after storeblk()."""

    def end(self) -> None:
        """Called when the transaction has ended."""

    def adopt_stored_blocks(self, handle: Any) -> set[bytes]:
        """Note that pages in memory are made of the objects that were stored, and return these."""
