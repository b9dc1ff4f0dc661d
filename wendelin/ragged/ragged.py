"""ZRagged: pieces of different lengths by key, in segments that do not conflict.

    ZRagged ──► table of segments: name ──► Segment     one of each writer; "" is that of put()

A reader looks for a key in all segments, of which there are as many as writers. If two writers put
the same key, it has the piece that was put last, by their clocks.

It knows segments and references; how a segment has its rows, it does not know.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from heapq import merge
from itertools import accumulate, groupby, pairwise
from operator import attrgetter
from typing import Any

import numpy as np
from BTrees.OOBTree import OOBTree
from numpy.typing import ArrayLike, DTypeLike, NDArray
from ZODB.POSException import ConnectionStateError

from wendelin.bigarray import workers
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigarray.attrs import Attributes, new_table
from wendelin.bigarray.meaning import elements_of
from wendelin.lib.references import object_at, reference_to
from wendelin.lib.storage.shared import zconn_is_shared
from wendelin.lib.zodb import LivePersistent, zobj_is_committed
from wendelin.ragged.segment import KINDS, Key, Piece, Segment, check_key

__all__ = ["Writer", "ZRagged", "ragged_at"]

# A Connection loads objects for one thread at a time: threads that read pieces take turns.
_loading = threading.RLock()

Pieces = Mapping[Any, ArrayLike] | Iterable[tuple[Any, ArrayLike]]


def ragged_at(url: str, oid: bytes, tid: bytes) -> ZRagged:
    """Return a ZRagged as it was at a tid: of a database that a process opens once.

    Its index is loaded as a whole, as other threads load objects of that Connection, too.

    Raises
    ------
    TypeError, ZODB.POSException.POSKeyError, ValueError, OSError
        See object_at().
    """
    workers.arrived()
    with object_at((url, oid, tid), ZRagged) as R:
        R.load_index()
        return R


class ZRagged(LivePersistent):
    """Arrays of different lengths, by key, persistent: commit saves, abort discards.

    It is made, filled and used so::

        root["R"] = R = ZRagged("f4")
        transaction.commit()
        R.put("first", [1, 2, 3])
        R["first"]                      # a view, of shape (3,)

    Keys are str, bytes, and integers of 64 bits. keys() and items() go by type, integers first,
    and in a type by key. Pickled for another process, it is a reference to the committed state.

    Several processes write at a time through a writer each, whose changes do not conflict::

        R.writer("process 1").put("second", [4, 5])

    Parameters
    ----------
    dtype : data-type
    row : tuple of int
        Shape of a row: a piece of n rows has the shape `(n, *row)`.
    blksize : int
        See ZBigArray.

    Raises
    ------
    TypeError, ValueError
        There are no such arrays: see ZBigArray.
    """

    _kept = ("_v_index",)
    _attrs: MutableMapping[str, Any] | None = None
    _v_index: dict[Key, tuple[Segment, Piece]] | None = None  # of a past state: see load_index()

    def __init__(
        self, dtype: DTypeLike, row: tuple[int, ...] = (), blksize: int = 2 * 1024 * 1024
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.row = tuple(int(n) for n in row)
        self.blksize = blksize
        self._segments = OOBTree({"": Segment(self.dtype, self.row, blksize)})

    @classmethod
    def of_arrays(cls, data: ZBigArray, keys: Sequence[Key], offsets: Sequence[int]) -> ZRagged:
        """Return a ZRagged that has these rows, which are not copied.

        Parameters
        ----------
        data : ZBigArray of shape ``(n, *row)``
            In C order.
        keys : sequence of str, bytes or int
        offsets : sequence of int
            Rows [offsets[i], offsets[i+1]) are the piece of keys[i].

        Raises
        ------
        TypeError, ValueError
            These are not pieces of the rows.
        """
        if data.ndim == 0 or data._order != "C":
            raise ValueError(f"{data!r} has no rows in C order")
        self = cls(data.dtype, data.shape[1:], data.zfile.blksize)
        self._segments[""] = Segment.of_rows(data, keys, offsets)
        return self

    # ---- attributes ----

    @property
    def attrs(self) -> MutableMapping[str, Any]:
        """Names, units, numbers, small arrays that belong to it, as ZBigArray.attrs does."""
        return Attributes(repr(self), lambda: self._attrs, self._make_attrs)

    @attrs.setter
    def attrs(self, values: Mapping[str, Any]) -> None:
        values, attrs = dict(values), self.attrs
        for name in attrs.keys() - values.keys():
            del attrs[name]
        attrs.update(values)

    def _make_attrs(self) -> MutableMapping[str, Any]:
        if self._attrs is None:
            self._attrs = new_table()
        return self._attrs

    # ---- writing ----

    def put(self, key: Key, values: ArrayLike) -> None:
        """Set the piece of a key.

        Parameters
        ----------
        key : str, bytes or int
        values : array_like of shape `(n, *row)`
            Copied, and converted as by assignment.

        Raises
        ------
        TypeError, ValueError
            The key is of another type, or the shape of values is another one.
        ConnectionStateError
            It does not belong to a Connection yet.
        """
        self.writer("").put(key, values)

    def update(self, pieces: Pieces) -> None:
        """Set pieces, of a mapping or of (key, values) pairs: see put()."""
        self.writer("").update(pieces)

    def writer(self, name: str) -> Writer:
        """Return what writes a segment of its own, which is made if it is new.

        Transactions that use writers of different names do not conflict. Two that make writers
        at the same time conflict now and then: make them first, or use transact().

        Parameters
        ----------
        name : str
            Keep it for the next time: a writer goes on behind its rows.
        """
        if not isinstance(name, str):
            raise TypeError(f"a writer's name is a str, not {name!r:.100}")
        if self._p_jar is None:
            raise ConnectionStateError(
                f"{self!r} can be written once it belongs to a Connection: add it to the database "
                f"and commit (root['R'] = R; transaction.commit()), or conn.add(R)"
            )
        with _loading:
            segment = self._segments.get(name)
            if segment is None:
                segment = self._segments[name] = Segment(self.dtype, self.row, self.blksize)
            for new in segment, segment.data:
                if new._p_jar is None:
                    self._p_jar.add(new)
        return Writer(self, name, segment)

    def writers(self) -> list[str]:
        """Return the names of the writers that there are; "" is that of put() and update()."""
        with _loading:
            return list(self._segments)

    def __delitem__(self, key: Key) -> None:
        """Remove a piece, of whatever writer. Its rows stay until compact()."""
        key = check_key(key)
        with _loading:
            if not sum(segment.remove(key) for segment in self._segments.values()):
                raise KeyError(key)

    def compact(self) -> int:
        """Give back the room of pieces that were replaced or removed; return how many rows.

        Pieces keep their values and keys; views taken before show others. Page memory has to hold
        what is moved: all rows behind the first one that is free. A writer that writes at the
        same time conflicts.
        """
        with _loading:
            self._drop_replaced()
            return sum(segment.compact() for segment in self._segments.values())

    def _drop_replaced(self) -> None:
        """Remove pieces whose key another writer has put later."""
        if len(self._segments) > 1:
            for key, found in self._merged():
                last = max(found, key=lambda one: one[1][2])
                for segment, piece in found:
                    if piece is not last[1]:
                        segment.remove(key)

    # ---- reading ----

    def __getitem__(self, key: Key | slice) -> NDArray[Any]:
        """Return a piece, as a view; or rows of all pieces, of a slice.

        Rows are in the order in which they were put, those of one writer after those of another,
        by their names; see ranges(). Rows of several writers are copied, of one they are a view.

        Raises
        ------
        KeyError
            The key has no piece.
        ValueError
            A slice, and there are rows of pieces that are gone: compact().
        """
        if isinstance(key, slice):
            return self._rows(key)
        found = self._find(check_key(key))
        if found is None:
            raise KeyError(key)
        segment, (start, n, _) = found
        with _loading:
            return segment.view(start, start + n)

    def get(self, key: Key, default: Any = None) -> Any:
        """Return a piece, or the default."""
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        try:
            return self._find(check_key(key)) is not None
        except (TypeError, ValueError):
            return False

    def __len__(self) -> int:
        """Return the number of keys, in time proportional to it."""
        with _loading:
            if self._v_index is not None:
                return len(self._v_index)
            if len(self._segments) == 1:
                return len(self._segments[""])
        return sum(1 for _ in self.keys())

    def __bool__(self) -> bool:
        with _loading:
            return any(self._segments.values())

    def __iter__(self) -> Iterator[Key]:
        return self.keys()

    def keys(self) -> Iterator[Key]:
        """Return the keys."""
        return (key for key, _ in self._pieces())

    def items(self) -> Iterator[tuple[Key, NDArray[Any]]]:
        """Return (key, piece) pairs; pieces are views."""
        for key, (segment, (start, n, _)) in self._pieces():
            yield key, segment.view(start, start + n)

    def values(self) -> Iterator[NDArray[Any]]:
        """Return the pieces, as views, in the order of keys()."""
        return (values for _, values in self.items())

    def ranges(self) -> Iterator[tuple[Key, int, int]]:
        """Return (key, start, stop): the piece of a key is R[start:stop]."""
        with _loading:
            segments = list(self._segments.values())
        first = dict(
            zip(map(id, segments), accumulate((s.used for s in segments), initial=0), strict=False)
        )
        for key, (segment, (start, n, _)) in self._pieces():
            at = first[id(segment)] + start
            yield key, at, at + n

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all rows as one array: see R[:]."""
        return np.array(self[:], dtype, copy=copy)

    def _rows(self, rows: slice) -> NDArray[Any]:
        with _loading:
            segments = [s for s in self._segments.values() if s.used]
            gone = sum(s.used - s.live for s in segments)
            if gone:
                raise ValueError(
                    f"{self!r} has {gone} rows of pieces that were replaced or removed among its "
                    f"rows: R.compact() gives them back"
                )
            ends = list(accumulate((s.used for s in segments), initial=0))
            start, stop, step = rows.indices(ends[-1])
            low, high = (start, stop) if step > 0 else (stop + 1, start + 1)
            views = [
                s.view(max(low - a, 0), min(high, b) - a)
                for s, (a, b) in zip(segments, pairwise(ends), strict=True)
                if a < high and b > low
            ]
        if low >= high:
            return np.empty((0, *self.row), self.dtype)
        found = views[0] if len(views) == 1 else np.concatenate(views)
        return found[::step]

    # ---- the index ----

    def load_index(self) -> None:
        """Load the whole index, and keep it: of a past state."""
        with _loading:
            if self._v_index is None:
                for segment in self._segments.values():
                    segment.keep_alive()
                self._v_index = dict(self._pieces())

    def lives(self) -> bool:
        """Say whether the index is kept. See LivePersistent."""
        return self._v_index is not None

    def _find(self, key: Key) -> tuple[Segment, Piece] | None:
        with _loading:
            if self._v_index is not None:
                return self._v_index.get(key)
            found = [
                (segment, piece)
                for segment in self._segments.values()
                if (piece := segment.get(key)) is not None
            ]
        return max(found, key=lambda one: one[1][2]) if found else None

    def _pieces(self) -> Iterator[tuple[Key, tuple[Segment, Piece]]]:
        """Return (key, where its piece is), in the order of keys()."""
        if self._v_index is not None:
            yield from self._v_index.items()
            return
        for key, found in self._merged():
            yield key, max(found, key=lambda one: one[1][2])

    def _merged(self) -> Iterator[tuple[Key, list[tuple[Segment, Piece]]]]:
        """Return (key, its piece in each segment that has it)."""
        with _loading:
            segments = list(self._segments.values())
        for kind in KINDS:
            entries = merge(*(_Entry.all_of(s, kind) for s in segments), key=attrgetter("key"))
            for key, same in groupby(entries, key=attrgetter("key")):
                yield key, [(entry.segment, entry.piece) for entry in same]

    # ---- references ----

    def __reduce__(self) -> tuple[Any, tuple[str, bytes, bytes]]:
        """Be pickled as a reference. A database asks __getstate__() instead.

        Raises
        ------
        pickle.PicklingError
            There are changes that are not committed.
        NotImplementedError
            No URL names the database: see zstor_2zurl().
        """
        objects = [self, self._segments]
        for segment in self._segments.values():
            objects += [segment, segment.data]
        return ragged_at, reference_to(self, committed=all(map(zobj_is_committed, objects)))

    def __repr__(self) -> str:
        row = f", row={self.row}" if self.row else ""
        if self._p_jar is not None and not zconn_is_shared(self._p_jar):
            with _loading:
                rows = sum(segment.live for segment in self._segments.values())
            return f"<ZRagged {self.dtype}{row}, {rows} rows>"
        return f"<ZRagged {self.dtype}{row}>"


class _Entry:
    """A key of a segment, where that has its piece."""

    __slots__ = ("key", "piece", "segment")

    def __init__(self, segment: Segment, key: Key, piece: Piece) -> None:
        self.segment, self.key, self.piece = segment, key, piece

    @classmethod
    def all_of(cls, segment: Segment, kind: type) -> Iterator[_Entry]:
        for key, piece in segment.index[kind].items():
            yield cls(segment, key, piece)


class Writer:
    """Writes one segment of a ZRagged: see ZRagged.writer()."""

    def __init__(self, ragged: ZRagged, name: str, segment: Segment) -> None:
        self.ragged = ragged
        self.name = name
        self._segment = segment

    def put(self, key: Key, values: ArrayLike) -> None:
        """Set the piece of a key: see ZRagged.put()."""
        dtype, row = self.ragged.dtype, self.ragged.row
        # structures are tuples, which asarray() takes for rows
        found = np.asarray(elements_of(values), dtype if dtype.names is not None else None)
        if found.ndim != 1 + len(row) or found.shape[1:] != row:
            if found.size == 0 and found.ndim == 1:  # an empty list
                found = found.reshape(0, *row)
            else:
                raise ValueError(
                    f"values of shape {found.shape} are not a piece of {self.ragged!r}: one of n "
                    f"rows has the shape {('n', *row)}".replace("'", "")
                )
        self._segment.put(check_key(key), found)

    def update(self, pieces: Pieces) -> None:
        """Set pieces, of a mapping or of (key, values) pairs."""
        for key, values in pieces.items() if isinstance(pieces, Mapping) else pieces:
            self.put(key, values)

    def __repr__(self) -> str:
        return f"<writer {self.name!r} of {self.ragged!r}>"
