"""Formats of blocks in ZODB: how a block of a ZBigFile is kept in objects.

A format is a persistent class, registered by the name under which databases have it. It is
used in two ways that do not meet:

- to read, by any thread that faults: load_block() finds the bytes in the records of the
  storage. No object is made, the Connection is not touched.
- to write, by the thread that commits: the objects, in the Connection's cache, are given the
  page that they are to be stored from; they take its bytes when they are pickled. So memory
  holds one block more than the pages, not all of them twice.

The states are fixed: see docs/formats.md. This room knows pickles and blocks; it does not
know which block of which file it deals with.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from persistent import Persistent

from wendelin.lib import zrecord

__all__ = ["FORMATS", "ZBlk0", "ZBlkBase", "default_format", "is_plain", "load_block", "trimmed"]

#: (oid) -> record of the state that is read
Load = Callable[[bytes], bytes]


class Page(Protocol):
    """Where a block that is stored gets its bytes."""

    #: pickled objects are replaced by their record() when they are stored
    takes_records: bool

    def page_buffer(self, blk: int) -> memoryview:
        """Return the block [blksize bytes], read-only."""


def trimmed(buf: memoryview | bytes) -> memoryview:
    """Return buf without its trailing zero bytes."""
    data = np.frombuffer(buf, np.uint8)
    stop = len(data)
    step = 4096
    # From the end, a little at first: most blocks end in something.
    while stop > 0:
        start = max(0, stop - step)
        nonzero = np.flatnonzero(data[start:stop])
        if len(nonzero):
            return memoryview(buf)[: start + int(nonzero[-1]) + 1]
        stop = start
        step = min(2 * step, 1 << 20)
    return memoryview(buf)[:0]


def _state(buf: memoryview) -> memoryview:
    """Return what of a block is stored: trailing zeros are cut, if there are enough of them.

    A few - the last number's high bytes, say - are not worth it: a block that is stored whole can
    be mapped from the file.
    """
    cut = trimmed(buf)
    return buf if 0 < len(buf) - len(cut) < len(buf) // 512 else cut


class ZBlkBase(Persistent):  # type: ignore[misc]  # persistent has no type hints
    """A block as a persistent object.

    It has no bytes of its own but while it is stored: `_v_page` then says where they are.
    """

    @classmethod
    @abstractmethod
    def load(cls, record: bytes, load: Load) -> memoryview | bytes:
        """Return the block's bytes, as its record and others hold them.

        Raises
        ------
        zrecord.RecordError
            The record is not of this format.
        """

    @abstractmethod
    def store_from(self, page: Page, blk: int) -> bool:
        """Take the bytes of a page, when this object is pickled.

        Called in the thread of the Connection, the object being in it. Marks itself, and what
        it consists of, as changed where the bytes differ from what is stored.

        Returns whether anything is to be stored.
        """


class ZBlk0(ZBlkBase):
    """Format 0: the block as one object, whose state is its bytes, trailing zeros cut."""

    # where databases have it
    __module__ = "wendelin.bigfile.file_zodb"

    _p_changed: Any  # by Persistent
    _v_page: tuple[Page, int] | None
    _v_data: bytes | None

    @classmethod
    def load(cls, record: bytes, load: Load) -> memoryview | bytes:
        """See ZBlkBase."""
        return zrecord.bytes_state(record)

    def store_from(self, page: Page, blk: int) -> bool:
        """See ZBlkBase."""
        if self._p_serial != b"\0" * 8 or self._p_changed is None:
            record, _ = self._p_jar._storage.load(self._p_oid)
            old, new = trimmed(zrecord.bytes_state(record)), trimmed(page.page_buffer(blk))
            if np.array_equal(np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)):
                return False
        self._v_data = None
        self._v_page = (page, blk)
        self._p_changed = True
        return True

    def __getstate__(self) -> bytes:
        source = getattr(self, "_v_page", None)
        if source is not None:
            page, blk = source
            # in place of the bytes, which record() gives then
            return b"" if page.takes_records else bytes(_state(page.page_buffer(blk)))
        data = getattr(self, "_v_data", None)
        return data if data is not None else b""

    def record(self, like: bytes) -> zrecord.BytesRecord:
        """Return the record to be stored, its bytes not copied; `like`: as it was pickled."""
        assert self._v_page is not None
        page, blk = self._v_page
        return zrecord.BytesRecord(like, _state(page.page_buffer(blk)))

    def __setstate__(self, state: Any) -> None:
        self._v_page = None
        self._v_data = zrecord.as_bytes(state)


#: name of the class in databases -> class; ZBlk is what ZBlk0 was called in early ones
FORMATS: dict[str, type[ZBlkBase]] = {"ZBlk0": ZBlk0, "ZBlk": ZBlk0}


def default_format() -> type[ZBlkBase]:
    """Return the format in which new blocks are written.

    Raises
    ------
    ValueError
        WENDELIN_CORE_ZBLK_FMT names no format.
    """
    name = os.environ.get("WENDELIN_CORE_ZBLK_FMT", "ZBlk0")
    if name not in FORMATS or name == "ZBlk":
        known = ", ".join(n for n in FORMATS if n != "ZBlk")
        raise ValueError(f"WENDELIN_CORE_ZBLK_FMT is {name!r}: it must be one of {known}")
    return FORMATS[name]


def _format_of(record: memoryview | bytes) -> type[ZBlkBase] | None:
    """Return the format of a record, or of the beginning of one; None: it is no block."""
    return FORMATS.get(zrecord.class_of(record).removeprefix("wendelin.bigfile.file_zodb."))


@lru_cache(64)  # there are as many heads as writers
def is_plain(head: bytes) -> bool:
    """Say whether the state of such a record is the block's bytes; head is its beginning."""
    return _format_of(head) is ZBlk0


def load_block(oid: bytes, load: Load) -> memoryview | bytes:
    """Return the bytes of a block object of any format.

    Raises
    ------
    zrecord.RecordError
        It is no block, or damaged.
    Exception
        What the storage raised.
    """
    record = load(oid)
    cls = _format_of(record)
    if cls is None:
        known = ", ".join(FORMATS)
        raise zrecord.RecordError(
            f"object {oid.hex()} is a {zrecord.class_of(record)}, which is no block format "
            f"(known: {known})"
        )
    return cls.load(record, load)
