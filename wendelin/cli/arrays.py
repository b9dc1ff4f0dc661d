"""Arrays in databases, as sources and destinations that work range by range: see files.base.

This module knows arrays that are read as data, and arrays that are filled, but no kind of file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wendelin.bigarray import BigArray
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.virtmem.abilities import FileRange
from wendelin.bigfile.virtmem.backend import HOLE
from wendelin.bigfile.zodb.inspect import inspect_blocks, stored_numbers
from wendelin.cli.files.base import Layout, Source
from wendelin.cli.files.convert import plain
from wendelin.cli.files.flat import FlatSink
from wendelin.cli.stored import StoredArray
from wendelin.cli.storedragged import StoredPiece
from wendelin.lib.calc import mul
from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.storage.record import ChecksumError
from wendelin.lib.utils import override

__all__ = ["ArraySource", "PieceSource", "flat_bytes", "layout_of", "place_of"]


def layout_of(array: ZBigArray | StoredArray) -> Layout:
    """Return shape, dtype and order of an array."""
    return Layout(array.shape, plain(array.dtype), array._order)


def flat_bytes(array: ZBigArray | StoredArray) -> BigArray:
    """Return all bytes of an array, in their order; changes belong to its transaction."""
    return BigArray((array.nbytes,), np.uint8, array._fileh())


def place_of(file: Any, blk: int) -> Any:
    """Return the FileRange of a block that lies in a file as a whole, HOLE, or None.

    Parameters
    ----------
    file : ZFile
        If its `verify` is set, the block is compared with its checksum. None if that differs: a
        load of the block raises the right error.
    blk : int
    """
    try:
        place = file.mapblk(blk)
    except ChecksumError:
        return None
    if place is None or place is HOLE:
        return place
    if not isinstance(place, FileRange):
        return None  # it lies there in chunks
    whole = place.size in (None, file.blksize) and place.offset % ALIGNMENT == 0
    return place if whole else None


class ArraySource(Source):
    """An array of a database.

    Parameters
    ----------
    array : StoredArray
    identity : dict
        What identifies the array; the time of its last change is added.
    run : (Layout, int), optional
        Only a run of elements of the array, which follow each other: the layout of these, and which
        element of the array is the first one.
    """

    #: compare with checksums also what a file shares with the database, see copy_to()
    check = False

    def __init__(
        self,
        array: StoredArray,
        identity: dict[str, Any],
        run: tuple[Layout, int] | None = None,
    ) -> None:
        self.layout, self._first = run or (layout_of(array), 0)
        self._array = array
        self._bytes = flat_bytes(array)
        array._fileh().file.verify = True  # what is copied to somewhere else is as it was stored
        self._identity = identity
        self._numbers: Iterator[int] | None = None
        self._next = -1  # the last block that was taken from these

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        """See Source.

        Raises
        ------
        BlockLoadError
            A block does not load.
        """
        itemsize = self.layout.dtype.itemsize
        first, last = (self._first + start) * itemsize, (self._first + stop) * itemsize
        data: NDArray[np.uint8] = self._bytes.read(slice(first, last))
        return data.view(self.layout.dtype)

    def copy_to(self, sink: FlatSink, start: int, stop: int) -> None:
        """Copy elements [start, stop) to a file that has them byte by byte.

        What lies in a file in whole blocks, both files share, if the file system can do this: it is
        not read then, except if `check` is set. Else the kernel copies it, after it was compared
        with its checksum.

        Raises
        ------
        BlockLoadError, OSError
            A block does not load.
        """
        itemsize, size = self.layout.dtype.itemsize, self._array.zfile.blksize
        file = self._array._fileh().file
        first = self._first * itemsize
        begin, end = first + start * itemsize, first + stop * itemsize
        while begin < end:
            blk = begin // size
            to = min(end, (blk + 1) * size)
            if not self.check and sink.shares and self._share(sink, blk, begin, to):
                begin = to
                continue
            place = place_of(file, blk)
            if isinstance(place, FileRange):
                sink.copy(begin - first, place.fd, place.offset + begin - blk * size, to - begin)
            elif place is not HOLE:
                sink.write_bytes(begin - first, self._bytes.read(slice(begin, to)))
            begin = to

    def _share(self, sink: FlatSink, blk: int, begin: int, end: int) -> bool:
        """Share bytes [begin, end) of a block with a file; return False: they are to be copied."""
        file = self._array._fileh().file
        file.verify = False  # it would read the block
        try:
            place = place_of(file, blk)
        finally:
            file.verify = True
        if not isinstance(place, FileRange):
            return False
        first = self._first * self.layout.dtype.itemsize
        at = place.offset + begin - blk * self._array.zfile.blksize
        return sink.share(begin - first, place.fd, at, end - begin)

    def next_data(self, start: int) -> int:
        """See Source. Starts must ascend."""
        zfile = self._array.zfile
        if self._numbers is None:
            self._numbers = stored_numbers(zfile)
        itemsize = int(self.layout.dtype.itemsize)
        first = (self._first + start) * itemsize // zfile.blksize
        while self._next < first:
            number = next(self._numbers, None)
            if number is None:
                return self.layout.size
            self._next = number
        found = int(self._next * zfile.blksize // itemsize) - self._first
        return int(min(max(start, found), self.layout.size))

    @override
    def identity(self) -> dict[str, Any]:
        if "changed" not in self._identity:
            tid = self._array._p_serial
            for blocks in inspect_blocks(self._array.zfile):
                tid = max(tid, *(block.tid for block in blocks))
            self._identity["changed"] = tid.hex()
        return self._identity


class PieceSource(ArraySource):
    """A piece of a ZRagged.

    Parameters
    ----------
    found : StoredPiece
    identity : dict
        What identifies it.
    """

    def __init__(self, found: StoredPiece, identity: dict[str, Any]) -> None:
        data = found.segment.data
        rows = found.piece.stop - found.piece.start
        layout = Layout((rows, *data.shape[1:]), plain(data.dtype), "C")
        super().__init__(data, identity, (layout, found.piece.start * mul(data.shape[1:])))
