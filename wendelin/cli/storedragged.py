"""A ZRagged of a database, and its pieces, read from records: none of its objects is loaded.

It knows the states of wendelin.ragged: segments, their indices, and their rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transaction.interfaces import TransientError

from wendelin.bigfile.zodb.inspect import Stored as Block
from wendelin.bigfile.zodb.inspect import inspect_blocks
from wendelin.cli.stored import Database, Stored, StoredArray, attributes, is_subclass, items
from wendelin.lib.storage.inert import Global, InertError, Pairs, shown
from wendelin.lib.storage.inertdtype import dtype_of
from wendelin.lib.storage.record import RecordError, Ref
from wendelin.ragged import ZRagged
from wendelin.ragged.segment import KINDS, Key

__all__ = ["Piece", "StoredPiece", "StoredRagged", "StoredSegment", "problems", "ragged_of"]

_OWN = ("dtype", "row", "blksize", "_segments")
_ATTRS = "_attrs"  # which early ones have not
_TREES = {int: "BTrees.LOBTree.LOBTree", bytes: "BTrees.OOBTree.OOBTree"}


def ragged_of(obj: Any) -> StoredRagged | None:
    """Return the ZRagged that an object is, also one of a subclass; None: it is another one.

    Raises
    ------
    RecordError
        It is a damaged one.
    """
    if not isinstance(obj, Stored):
        return None
    known = is_subclass(obj.cls, "wendelin.ragged.ragged.ZRagged", ZRagged)
    if known or set(_OWN) <= {name for name, _ in attributes(obj)}:
        return StoredRagged(obj)
    return None


class Piece(NamedTuple):
    """Where a piece is, in its segment."""

    key: Key
    start: int  # rows [start, stop)
    stop: int
    at: int  # time of the put [ns since 1970]


class StoredSegment:
    """The rows and the index of one writer.

    Parameters
    ----------
    name : str
        Of the writer.
    stored : Stored

    Raises
    ------
    RecordError
        It is damaged.
    """

    def __init__(self, name: str, stored: Stored) -> None:
        self.name, self.stored = name, stored
        state = dict(attributes(stored))
        used, live = state.get("used"), state.get("live")
        data = state.get("data")
        array = stored.database.get(data) if isinstance(data, Ref) else None
        if not isinstance(array, StoredArray):
            raise RecordError(f"a damaged segment {name!r}: its data are {shown(data)}")
        if not isinstance(used, int) or not isinstance(live, int):
            raise RecordError(f"a damaged segment {name!r}: {shown(used)}, {shown(live)} rows")
        self.used, self.live, self.data = used, live, array
        index = state.get("index")
        self._index: dict[type, Ref] = {}
        for kind, tree in index.pairs if isinstance(index, Pairs) else ():
            name_of_kind = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
            found = [k for k in KINDS if k.__name__ == name_of_kind]
            if not found or not isinstance(tree, Ref):
                raise RecordError(f"a damaged segment {name!r}: an index of {shown(kind)}")
            self._index[found[0]] = tree
        if len(self._index) != len(KINDS):
            raise RecordError(f"a damaged segment {name!r}: its index is {shown(index)}")

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces, by type of their keys.

        Raises
        ------
        RecordError
            The index is damaged.
        """
        for kind in KINDS:
            tree = self.stored.database.stored(self._index[kind])
            if tree.cls.removesuffix("Py") != _TREES.get(kind, _TREES[bytes]):
                raise RecordError(f"a damaged index of {self.name!r}: a {tree.cls}")
            for key, place in items(tree):
                yield self._piece(kind, key, place)

    def _piece(self, kind: type, key: Any, place: Any) -> Piece:
        ints = isinstance(place, tuple) and len(place) == 3 and all(type(n) is int for n in place)
        if not isinstance(key, str | bytes | int) or type(key) is not kind or not ints:
            raise RecordError(f"a damaged index of {self.name!r}: {shown(key)} is {shown(place)}")
        start, n, at = place
        if start < 0 or n < 0 or start + n > self.used or self.used > self.data.shape[0]:
            raise RecordError(
                f"a damaged index of {self.name!r}: {shown(key)} has rows [{start}, {start + n}), "
                f"and {self.used} rows of {self.data.shape[0]} are used"
            )
        return Piece(key, start, start + n, at)


class StoredPiece(NamedTuple):
    """A piece of a ZRagged."""

    ragged: StoredRagged
    segment: StoredSegment
    piece: Piece

    @property
    def cls(self) -> str:
        """What it is called."""
        return f"a piece of a {self.ragged.cls}"

    def view(self) -> NDArray[Any]:
        """Return its rows, as a view; none is loaded."""
        return np.asarray(self.segment.data[self.piece.start : self.piece.stop])


class StoredRagged:
    """A ZRagged.

    Parameters
    ----------
    stored : Stored

    Raises
    ------
    RecordError
        It is damaged.
    """

    def __init__(self, stored: Stored) -> None:
        self.stored, self.cls, self.oid = stored, stored.cls, stored.oid
        state = dict(attributes(stored))
        row, segments = state.get("row"), state.get("_segments")
        try:
            self.dtype = dtype_of(state.get("dtype"))
        except InertError as e:
            raise RecordError(f"a damaged ZRagged: {e}") from e
        if not isinstance(row, tuple) or not all(type(n) is int and n >= 0 for n in row):
            raise RecordError(f"a damaged ZRagged: rows of shape {shown(row)}")
        if not isinstance(segments, Ref):
            raise RecordError(f"a damaged ZRagged: its segments are {shown(segments)}")
        blksize = state.get("blksize")
        if not isinstance(blksize, int):
            raise RecordError(f"a damaged ZRagged: blocks of {shown(blksize)} bytes")
        self.row, self.blksize, self._segments = row, blksize, segments
        self.attrs = found if isinstance(found := state.get(_ATTRS), Ref) else None

    @property
    def database(self) -> Database:
        """Where it is."""
        return self.stored.database

    @property
    def others(self) -> list[tuple[str, Any]]:
        """Other attributes, with names."""
        return [
            (name, value) for name, value in attributes(self.stored) if name not in (*_OWN, _ATTRS)
        ]

    def segments(self) -> Iterator[StoredSegment]:
        """Yield the segments. See StoredSegment."""
        for name, ref in items(self.database.stored(self._segments)):
            if not isinstance(name, str) or not isinstance(ref, Ref):
                raise RecordError(f"a damaged ZRagged: segment {shown(name)} is {shown(ref)}")
            yield StoredSegment(name, self.database.stored(ref))

    def pieces(self) -> dict[Key, StoredPiece]:
        """Return the pieces, in the order of rows; of those with one key the one put last."""
        found: dict[Key, StoredPiece] = {}
        for segment in self.segments():
            for piece in segment.pieces():
                there = found.get(piece.key)
                if there is None or piece.at > there.piece.at:
                    found[piece.key] = StoredPiece(self, segment, piece)
        return dict(
            sorted(found.items(), key=lambda one: (one[1].segment.name, one[1].piece.start))
        )

    def blocks(self) -> Iterator[list[Block]]:
        """Yield the blocks of all segments: see inspect_blocks()."""
        for segment in self.segments():
            yield from inspect_blocks(segment.data.zfile)


def problems(ragged: StoredRagged) -> Iterator[tuple[bytes, Exception]]:
    """Yield (oid, error) of segments whose index, or number of rows, is damaged.

    Raises
    ------
    TransientError
        The storage is not available now, which says nothing about the pieces.
    """
    for name, ref in items(ragged.database.stored(ragged._segments)):
        oid = ref.oid if isinstance(ref, Ref) else ragged.oid
        try:
            if not isinstance(name, str) or not isinstance(ref, Ref):
                raise RecordError(f"segment {shown(name)} is {shown(ref)}")
            _check(ragged, StoredSegment(name, ragged.database.stored(ref)))
        except (TransientError, MemoryError):
            raise
        except Exception as e:
            yield oid, e


def _check(ragged: StoredRagged, segment: StoredSegment) -> None:
    """Check a segment.

    Raises
    ------
    RecordError
        It is damaged.
    """
    data = segment.data
    if data.dtype != ragged.dtype or data.shape[1:] != ragged.row:
        raise RecordError(
            f"segment {segment.name!r} has rows of {data.dtype} {data.shape[1:]}, and the ZRagged "
            f"of {ragged.dtype} {ragged.row}"
        )
    last, live = 0, 0
    for start, stop, key in sorted((p.start, p.stop, repr(p.key)) for p in segment.pieces()):
        if start < last:
            raise RecordError(f"segment {segment.name!r}: piece {key} overlaps another one")
        last = max(last, stop)
        live += stop - start
    if live != segment.live:
        raise RecordError(
            f"segment {segment.name!r} has pieces of {live} rows, and counts {segment.live}"
        )
