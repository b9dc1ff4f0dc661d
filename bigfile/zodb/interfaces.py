"""Interfaces between the modules of this folder, as Protocols.

A handle (ZBigFileH) and its file (ZFile) hold each other: the handle owns the file, and the file
has a weak reference to the handle. Each knows the other by the interface here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from wendelin.bigfile.zodb.formats import ZBlkBase
    from wendelin.bigfile.zodb.prefetch import ReadAhead
    from wendelin.lib.storage.fsrecord import Located

__all__ = ["FileInDatabase", "FileOfHandle", "HandleOfFile", "PageSource", "RecordSource"]


class RecordSource(Protocol):
    """A source of records. In any thread."""

    def load(self, oid: bytes) -> bytes:
        """Return a record."""

    def load_all(self, oids: list[bytes]) -> list[bytes]:
        """Return records, in one request."""

    def locate(self, oids: list[bytes]) -> list[Located | None]:
        """Return where in a file the bytes of objects lie; None for objects that must be loaded."""


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


class HandleOfFile(PageSource, Protocol):
    """The interface of a handle for its file: its pages, and its part in the transaction."""

    @property
    def stored(self) -> dict[int, ZBlkBase]:
        """Block objects that the running commit stores."""

    @property
    def watch(self) -> Any:
        """The Watch of its Connection."""

    def show_again(self, blks: Iterable[int]) -> None:
        """Show pages again that views showed before they were dropped, if they can be mapped."""

    def others(self) -> Iterable[HandleOfFile]:
        """Return the other handles of its Connection."""

    def mark_stored_clean(self) -> set[bytes]:
        """Make stored pages clean. Return the objects that they are made of."""

    def load(self, pgoffset: int, pglen: int) -> None:
        """Load pages that are not in memory."""

    def epoch(self) -> int:
        """Return what set_located() wants: call it before asking where blocks are."""

    def set_located(self, found: dict[int, Any], epoch: int) -> None:
        """Learn where blocks are; ignored if anything was invalidated since epoch()."""

    def invalidate_page(self, pgoffset: int) -> None:
        """Drop a page from memory, changes included."""

    def invalidate_loading(self) -> None:
        """Load again what is being loaded: the state that is asked is over."""

    def unpin_all(self) -> None:
        """Let no page be kept in memory any more."""


class FileOfHandle(Protocol):
    """The interface of a file for its handle: to follow the database, and to store changes."""

    handle: weakref.ref[Any] | None

    @property
    def conn(self) -> Any:
        """Its Connection."""

    @property
    def is_local(self) -> bool:
        """Say whether blocks can be mapped from a file of this machine."""

    @property
    def ahead(self) -> ReadAhead:
        """Loads ahead of a reader."""

    def follow(self, oids: list[bytes] | None, own: set[bytes], handle: Any) -> None:
        """Bring the handle's pages to the new state: see zodb_boundary.Follower."""

    def forget(self, handle: Any) -> None:
        """Drop all pages of the previous state: see zodb_boundary.Follower."""

    def store_retired(self, txn: Any) -> None:
        """Store the objects that others replace, after storeblk()."""

    def end(self) -> None:
        """Called when the transaction has ended."""

    def adopt_stored_blocks(self, handle: Any) -> set[bytes]:
        """Note that pages in memory are made of the objects that were stored, and return these."""
