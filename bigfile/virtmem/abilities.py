"""Optional abilities of a file besides loading and storing, as Protocols, and their results.

The pager checks once, when a handle is opened, which of these a file has. A class has one if it
defines all of its methods. It may name it as a base, for a type checker.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

__all__ = [
    "CountsCache",
    "ExplainsMismatch",
    "FilePieces",
    "FileRange",
    "FirstChange",
    "HasFolder",
    "MapsAhead",
    "MapsBlocks",
    "MayBeRemote",
    "NamedFile",
    "SeesTransactions",
    "Truncates",
    "able",
]


class FileRange(NamedTuple):
    """Where the bytes of a block lie in a file.

    `size` None: the file has all of the block, which is mapped; the offset is a multiple of the
    OS page. With a size: it is copied, without Python. With a digest: it is mapped if possible,
    else copied, and the copy is compared.
    """

    fd: int  # open as long as the handle lives
    offset: int  # [bytes]
    size: int | None = None  # [bytes] that the file has of the block; zeros follow
    digest: bytes | None = None  # XXH3-64 of these bytes, the highest first; see checksum.AVAILABLE


OS_PAGE = os.sysconf("SC_PAGESIZE")  # [bytes]

#: pieces of a block: each is a mapping, of which the kernel gives a process 65530
MOST_MAPPED = 16


class FilePieces(NamedTuple):
    """Where a block lies that has its bytes in several pieces of one file.

    It is mapped if there are not more than MOST_MAPPED of them, all at multiples of the OS page;
    otherwise, it is copied without Python.
    """

    fd: int  # open as long as the handle lives
    #: start in the block, offset in the file, size [bytes each], digest or None as in FileRange;
    #: ascending and not overlapping: zeros are between them, and after them
    pieces: Sequence[tuple[int, int, int, bytes | None]]

    @property
    def is_mapped(self) -> bool:
        """Say whether the block is mapped, and not copied."""
        return len(self.pieces) <= MOST_MAPPED and all(
            (start | offset | size) % OS_PAGE == 0 for start, offset, size, _ in self.pieces
        )


class NamedFile(NamedTuple):
    """A file that begins with the bytes of a block, all of them, in a folder.

    Its name is `first-second`, in hexadecimal digits. The pager opens it to map it, and closes it
    again: there may be more such files than descriptors. It may be removed at any time: then the
    pager asks for the block once more. Until then, its bytes never change.
    """

    folder: int  # a descriptor, open as long as the handle lives
    first: bytes  # 8 bytes
    second: bytes  # 8 bytes
    size: int  # [bytes] of the block before the zeros at its end
    digest: bytes  # XXH3-64 of these bytes, the highest first: copied bytes are compared with it


def able(obj: object, protocol: type) -> bool:
    """Return isinstance(obj, protocol), which takes long unless the class names the protocol."""
    return protocol in type(obj).__mro__ or isinstance(obj, protocol)


@runtime_checkable
class MapsBlocks(Protocol):
    """A file that knows where its blocks are, so that they can be mapped."""

    def mapblk(self, blk: int) -> Any:
        """Return the FileRange of a block, or a tuple of its items; HOLE: a block of zeros.

        FilePieces: it lies in several pieces. NamedFile: it is a file. None: it must be loaded.
        """


@runtime_checkable
class MapsAhead(Protocol):
    """A file that knows where many blocks are as cheaply as where one is."""

    def mapahead(self, start: int, stop: int) -> dict[int, Any]:
        """Return {block: result of mapblk()} for the known ones among blocks [start, stop).

        Its exceptions are ignored.
        """


@runtime_checkable
class MayBeRemote(Protocol):
    """A file that says whether its blocks lie on this machine; without it, the pager assumes so."""

    @property
    def is_local(self) -> bool:
        """Say whether blocks can be mapped from a file of this machine."""


@runtime_checkable
class HasFolder(Protocol):
    """A file that lies in a folder; changes that are larger than memory go there.

    Only a class that names this Protocol as a base has this ability.
    """

    @property
    def folder(self) -> str | None:
        """The folder; None: it is not on this machine, or not known."""

    @property
    def shares(self) -> bool:
        """Say whether a file of the folder has whole blocks, and can share bytes (reflinks)."""


@runtime_checkable
class Truncates(Protocol):
    """A file that can be cut."""

    def truncate(self, blk: int) -> None:
        """Drop stored blocks from `blk` on."""


@runtime_checkable
class ExplainsMismatch(Protocol):
    """A file that can explain why a block does not match its digest."""

    def mismatch(self, blk: int) -> Exception:
        """Return the exception to raise."""


@runtime_checkable
class CountsCache(Protocol):
    """A file whose blocks may be in a cache."""

    @property
    def cache_counts(self) -> tuple[int, int]:
        """How many blocks were found there, and how many were not."""


@runtime_checkable
class SeesTransactions(Protocol):
    """A file that shows the state of a transaction."""

    @property
    def tid(self) -> bytes | None:
        """The last transaction that is visible; None if there is none, or it is unknown."""


@runtime_checkable
class FirstChange(Protocol):
    """A handle that is informed when its pages are changed."""

    def first_change(self) -> None:
        """Called, in any thread, before the first change of a page in a transaction.

        Also called when a touch failed. Its exception refuses the change.
        """
