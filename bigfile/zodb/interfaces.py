"""What the modules of this folder ask of one another: contracts, as Protocols.

A handle (ZBigFileH) and its file (ZFile) hold each other: the handle owns the file, and the file
has a weak reference to the handle. Each of them knows of the other what is here.
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
    """Where records are read. In any thread."""

    def load(self, oid: bytes) -> bytes:
        """Return a record."""

    def load_all(self, oids: list[bytes]) -> list[bytes]:
        """Return records, asked for together."""

    def locate(self, oids: list[bytes]) -> list[Located | None]:
        """Return where in a file the bytes of objects lie; None for what is better loaded."""


class PageSource(Protocol):
    """Where a block that is stored gets its bytes."""

    def page_buffer(self, blk: int) -> memoryview:
        """Return the block [blksize bytes], read-only."""


class FileInDatabase(Protocol):
    """What is asked of a ZBigFile; a program that loads no objects has something else for one."""

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
        """The block table. What only reads asks for its oid."""


class HandleOfFile(PageSource, Protocol):
    """What a file asks of its handle: its pages, and its place in the transaction."""

    @property
    def stored(self) -> dict[int, ZBlkBase]:
        """Block objects that the running commit stores."""

    @property
    def watch(self) -> Any:
        """The Watch of its Connection."""

    def show_again(self, blks: Iterable[int]) -> None:
        """Show what views showed of blocks before they were dropped, where it can be mapped."""

    def others(self) -> Iterable[HandleOfFile]:
        """Return the other handles of its Connection."""

    def mark_stored_clean(self) -> set[bytes]:
        """Pages that were stored are clean. Return what they are made of."""

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
    """What a handle asks of its file: to follow the database, and the other way."""

    handle: weakref.ref[Any] | None

    @property
    def conn(self) -> Any:
        """Its Connection."""

    @property
    def is_local(self) -> bool:
        """Say whether blocks can be mapped from a file of this machine."""

    @property
    def ahead(self) -> ReadAhead:
        """What loads ahead of a reader."""

    def follow(self, oids: list[bytes] | None, own: set[bytes], handle: Any) -> None:
        """Let the handle's pages be of the new state: see zodb_boundary.Follower."""

    def forget(self, handle: Any) -> None:
        """Let no page be of what was before: see zodb_boundary.Follower."""

    def store_retired(self, txn: Any) -> None:
        """Store the objects that others replace, after storeblk()."""

    def end(self) -> None:
        """Be told that the transaction has ended."""

    def adopt_stored_blocks(self, handle: Any) -> set[bytes]:
        """Pages in memory are made of the objects that were stored now, and returned."""
