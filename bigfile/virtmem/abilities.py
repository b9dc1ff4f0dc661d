"""What a file may be able to do besides loading and storing: Protocols, and what they answer.

The pager asks once, when a handle is opened, which of these a file has; a class has one if it
defines all of its methods. To name it as a base is of use to a type checker.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

__all__ = [
    "ExplainsMismatch",
    "FileRange",
    "FirstChange",
    "MapsAhead",
    "MapsBlocks",
    "MayBeRemote",
    "SeesTransactions",
    "Truncates",
]


class FileRange(NamedTuple):
    """Where the bytes of a block lie in a file.

    `size` None: the file has all of the block, and it is mapped; the offset is a multiple of the
    OS page then. With a size: it is copied, without Python. With a digest: it is mapped if it can
    be, and else copied, and the copy is compared.
    """

    fd: int  # open as long as the handle lives
    offset: int  # [bytes]
    size: int | None = None  # [bytes] that the file has of the block; zeros follow
    digest: bytes | None = None  # XXH3-64 of these bytes, the highest first; see checksum.AVAILABLE


@runtime_checkable
class MapsBlocks(Protocol):
    """A file that knows where its blocks are, so that they can be mapped."""

    def mapblk(self, blk: int) -> Any:
        """Return the FileRange of a block, or a tuple of its items; HOLE: a block of zeros.

        None: the block is to be loaded.
        """


@runtime_checkable
class MapsAhead(Protocol):
    """A file that knows where many blocks are as cheaply as where one is."""

    def mapahead(self, start: int, stop: int) -> dict[int, Any]:
        """Return what mapblk() returns of blocks [start, stop), for those that it knows.

        What it raises is ignored.
        """


@runtime_checkable
class MayBeRemote(Protocol):
    """A file that says whether its blocks lie on this machine. Others do, to the pager."""

    @property
    def is_local(self) -> bool:
        """Say whether blocks can be mapped from a file of this machine."""


@runtime_checkable
class Truncates(Protocol):
    """A file that can be cut."""

    def truncate(self, blk: int) -> None:
        """Forget what was stored of blocks from `blk` on."""


@runtime_checkable
class ExplainsMismatch(Protocol):
    """A file that can say more of a block that does not match its digest."""

    def mismatch(self, blk: int) -> Exception:
        """Return what is to be told."""


@runtime_checkable
class SeesTransactions(Protocol):
    """A file that is seen as of a transaction."""

    @property
    def tid(self) -> bytes | None:
        """The last transaction that is seen; None: none, or it is not known."""


@runtime_checkable
class FirstChange(Protocol):
    """A handle that is to know when its pages are changed."""

    def first_change(self) -> None:
        """Be told, in any thread, that a page is changed for the first time in a transaction.

        Also that a touch failed. What it raises refuses the change.
        """
