"""The rows and the index of one writer of a ZRagged.

    data    rows of the pieces, in the order of the puts; behind the `used` rows there is room
    index   type of keys -> key -> (first row, rows, time of the put [ns])
    live    how many rows are of pieces; the others are of pieces that were replaced, or removed

Rows are written into views of `data`, so a put costs a copy, an entry of a BTree, and a number.
Two segments have no object in common: transactions that change different ones do not conflict.

It knows one ZBigArray and BTrees; which segments there are, it does not know.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from numpy.typing import NDArray
from ZODB.utils import z64

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigarray.holders import ArrayHolder

__all__ = ["KINDS", "Key", "Piece", "Segment", "check_key"]

Key = str | bytes | int
#: first row, rows, time of the put [ns since 1970]
Piece = tuple[int, int, int]

_ROOM = 1 << 20  # behind the rows that are used, at first [bytes]
_MOST_ROOM = 64 << 20  # [bytes]
_WINDOW = 1 << 30  # of a view that is kept [bytes]

KINDS: tuple[type, ...] = (int, bytes, str)  #: types of keys, in the order of keys()


def check_key(key: object) -> Key:
    """Return a key of a piece as a BTree has it.

    Raises
    ------
    TypeError
        It is not a str, bytes, or an integer.
    ValueError
        It is an integer of more than 64 bits.
    """
    if type(key) is str or type(key) is bytes:
        return key
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not -(1 << 63) <= key < 1 << 63:
            raise ValueError(f"key {key}: an integer key has 64 bits")
        return int(key)
    if isinstance(key, str):  # np.str_
        return str(key)
    if isinstance(key, bytes):
        return bytes(key)
    raise TypeError(f"key {key!r:.100} is a {type(key).__name__}: a key is a str, bytes or int")


class _Window:
    """A mapping of rows, from `first` on.

    It holds the mapping, and not an ndarray: the collector does not see what an ndarray refers to,
    so the Connection, which the mapping refers to, would never be freed.
    """

    def __init__(self, first: int, rows: NDArray[Any]) -> None:
        self.first, self.stop = first, first + len(rows)
        self._dtype, self._row, self._size = rows.dtype, rows.shape[1:], rows[:1].nbytes
        self._writeable = rows.flags.writeable
        mapping: Any = rows
        while isinstance(mapping, np.ndarray):
            mapping = mapping.base
        self._mapping = mapping
        if mapping is not None:
            begin = np.ndarray(1, np.uint8, mapping).ctypes.data
            self._offset = rows.ctypes.data - begin - first * self._size

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows [start, stop)."""
        shape = (stop - start, *self._row)
        if start == stop or self._mapping is None:
            return np.empty(shape, self._dtype)
        found = np.ndarray(shape, self._dtype, self._mapping, self._offset + start * self._size)
        found.flags.writeable = self._writeable
        return found


class Segment(ArrayHolder):
    """Pieces of one writer.

    Parameters
    ----------
    dtype : dtype
    row : tuple of int
        Shape of a row.
    blksize : int
        Size of a block of `data` [bytes].
    """

    _came = "rows were put into a ZRagged"
    _v_window: _Window | None = None

    def __init__(self, dtype: np.dtype[Any], row: tuple[int, ...], blksize: int) -> None:
        self.data = ZBigArray((0, *row), dtype, blksize=blksize)
        self.used = self.live = 0
        self.index: dict[type, Any] = {int: LOBTree(), bytes: OOBTree(), str: OOBTree()}

    @classmethod
    def of_rows(cls, data: ZBigArray, keys: Sequence[Key], offsets: Sequence[int]) -> Segment:
        """Return a segment of these rows: [offsets[i], offsets[i+1]) is the piece of keys[i].

        Raises
        ------
        TypeError, ValueError
            They are not.
        """
        self = cls(data.dtype, data.shape[1:], data.zfile.blksize)
        at = time.time_ns()
        if len(offsets) != len(keys) + 1 or offsets[0] != 0 or offsets[-1] != len(data):
            raise ValueError(f"{len(offsets)} offsets, of {len(keys)} pieces of {len(data)} rows")
        for key, (start, stop) in zip(map(check_key, keys), pairwise(offsets), strict=True):
            index = self.index[type(key)]
            if start > stop or key in index:
                raise ValueError(f"piece {key!r} is there twice, or ends before it begins")
            index[key] = (start, stop - start, at)
        self.data, self.used, self.live = data, len(data), len(data)
        return self

    # ---- the index ----

    def get(self, key: Key) -> Piece | None:
        """Return where a piece is, or None."""
        piece: Piece | None = self.index[type(key)].get(key)
        return piece

    def keys(self, kind: type) -> Iterator[Key]:
        """Return the keys of a type, ascending."""
        return iter(self.index[kind].keys())

    def keep_alive(self) -> None:
        """Load rows' array, and stay loaded: for threads that may not load objects."""
        self._v_live = True
        if self.used:
            self.view(0, 1)

    def __len__(self) -> int:
        return sum(len(tree) for tree in self.index.values())

    def __bool__(self) -> bool:
        return any(self.index.values())

    def remove(self, key: Key) -> bool:
        """Remove a piece; say whether it was there. Its rows stay until compact()."""
        tree = self.index[type(key)]
        piece = tree.get(key)
        if piece is None:
            return False
        del tree[key]
        self.live -= piece[1]
        return True

    # ---- rows ----

    def view(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows [start, stop) as a view.

        A mapping of many rows is kept, as an ndarray over one costs much less than a mapping.
        """
        kept = self._v_window
        if kept is None or start < kept.first or stop > kept.stop:
            rows = max(1, _WINDOW // self._row())
            first = start - start % rows
            kept = self._v_window = _Window(first, self.data[first : max(stop, first + rows)])
        return kept.rows(start, stop)

    def put(self, key: Key, values: NDArray[Any]) -> None:
        """Add a piece behind the others, in place of the one that had its key.

        Parameters
        ----------
        key : Key
        values : ndarray
            Of the dtype and the row of the segment.
        """
        tree, n = self.index[type(key)], len(values)
        start, stop = self.used, self.used + n
        if stop > len(self.data):
            room = min(max(_ROOM, int(self.data.nbytes)), _MOST_ROOM) // self._row()
            self.data.resize((stop + room, *self.data.shape[1:]))
        if n:
            self.view(start, stop)[...] = values
        old = tree.get(key)
        tree[key] = (start, n, time.time_ns())
        if self._p_serial == z64:
            self._v_first_oid = self._p_oid
        self.live += n - (old[1] if old else 0)
        self.used = stop

    def _row(self) -> int:
        """Return the size of a row [bytes]; of one without bytes, 1."""
        row = np.prod(self.data.shape[1:], dtype=np.int64) * self.data.dtype.itemsize
        return max(1, int(row))

    def compact(self) -> int:
        """Move pieces together, over rows of pieces that are gone; return how many rows went.

        A piece moves towards the beginning only, in the order of rows, so no row is needed twice.
        """
        pieces = sorted(
            (piece, key, kind) for kind in KINDS for key, piece in self.index[kind].items()
        )
        self._v_window = None
        to = 0
        for (start, n, at), key, kind in pieces:
            if start != to and n:
                self._move(start, to, n)
            if start != to:
                self.index[kind][key] = (to, n, at)
            to += n
        gone = self.used - to
        if to != len(self.data):
            self.data.resize((to, *self.data.shape[1:]))
        if gone:
            self.used = to
        return gone

    def _move(self, start: int, to: int, n: int) -> None:
        """Move n rows to an earlier place, in steps that page memory has room for."""
        step = max(1, _MOST_ROOM // self._row())
        for done in range(0, n, step):
            some = min(step, n - done)
            self.data[to + done : to + done + some] = np.array(
                self.data[start + done : start + done + some]
            )
