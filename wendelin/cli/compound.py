"""Objects that are made of arrays, in files: a ZSparse and a ZRagged are groups of arrays there.

    csr_matrix      data, indices, indptr; attribute shape      as AnnData has it, in .h5ad and Zarr
    ragged-array    data, offsets, keys                         rows [offsets[i], offsets[i+1]) are
                                                                the piece of keys[i]

The attribute `encoding-type` of the group says which it is. An import makes such a group, and then
the object out of its arrays, without a copy.

This module knows what these objects consist of, but not how files are written.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.cli.arrays import ArraySource
from wendelin.cli.attributes import attrs_of
from wendelin.cli.errors import Failure
from wendelin.cli.files.base import Layout, Source
from wendelin.cli.files.derived import ArrayInMemory
from wendelin.cli.matrices import is_matrix, matrix_of
from wendelin.cli.storedragged import StoredPiece, StoredRagged, ragged_of
from wendelin.lib.calc import mul
from wendelin.lib.utils import override
from wendelin.ragged import ZRagged
from wendelin.sparse import ZSparse
from wendelin.tree.containers import is_container
from wendelin.tree.group import Group

__all__ = ["Compound", "compound_of", "convert"]

_TYPE, _VERSION = "encoding-type", "encoding-version"
_CSR, _RAGGED = "csr_matrix", "ragged-array"


class Compound(NamedTuple):
    """What an object is in a file: a group."""

    attrs: dict[str, Any]
    unread: list[str]  # names of attributes that are not read
    arrays: dict[str, tuple[Layout, Callable[[], Source]]]


def _given(source: Source) -> Source:
    return source


def compound_of(obj: Any) -> Compound | None:
    """Return what a ZSparse or a ZRagged of a database is in a file; None: it is another object.

    Raises
    ------
    Failure
        A file cannot have its keys.
    RecordError
        It is damaged.
    """
    if is_matrix(obj):
        matrix = matrix_of(obj)
        attrs: dict[str, Any] = {_TYPE: _CSR, _VERSION: "0.1.0"}
        attrs["shape"] = np.array(matrix.shape, np.int64)
        sources = {name: ArraySource(array, {}) for name, array in matrix.arrays.items()}
        return Compound(attrs, [], {n: (s.layout, partial(_given, s)) for n, s in sources.items()})
    ragged = ragged_of(obj)
    return None if ragged is None else _ragged(ragged)


def _ragged(ragged: StoredRagged) -> Compound:
    pieces = list(ragged.pieces().values())
    keys = [one.piece.key for one in pieces]
    kinds = {type(key) for key in keys} or {int}
    if len(kinds) > 1:
        raise Failure("a ZRagged with keys of several types")
    if any(not isinstance(key, int) and (not key or key[-1] in ("\0", 0)) for key in keys):
        raise Failure("a ZRagged with a key that is empty, or ends with a NUL")
    found = np.array(keys, np.int64 if kinds == {int} else None)
    offsets = np.array([0, *accumulate(n.piece.stop - n.piece.start for n in pieces)], np.int64)
    rows = _Rows(ragged, pieces, offsets)
    arrays: dict[str, tuple[Layout, Callable[[], Source]]] = {
        "data": (rows.layout, partial(_given, rows))
    }
    for name, values in ("offsets", offsets), ("keys", found):
        layout = Layout(values.shape, values.dtype, "C")
        arrays[name] = layout, partial(ArrayInMemory, values, layout, {})
    attrs, unread = attrs_of(ragged.database, ragged)
    return Compound({**attrs, _TYPE: _RAGGED, _VERSION: "0.1.0"}, unread, arrays)


class _Rows(Source):
    """The rows of all pieces, one after the other."""

    def __init__(
        self, ragged: StoredRagged, pieces: list[StoredPiece], offsets: NDArray[np.int64]
    ) -> None:
        self._pieces, self._offsets = pieces, offsets.tolist()
        self._row = mul(ragged.row)  # elements
        self.layout = Layout((self._offsets[-1], *ragged.row), ragged.dtype, "C")
        for one in pieces:
            one.segment.data._fileh().file.verify = True  # what is copied is as it was stored

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        result = np.empty(stop - start, self.layout.dtype)
        at = start
        while at < stop:
            i = bisect_right(self._offsets, at // self._row) - 1
            segment, piece = self._pieces[i].segment, self._pieces[i].piece
            first, last = at // self._row, min(-(-stop // self._row), self._offsets[i + 1])
            begin = piece.start - self._offsets[i]
            values = segment.data.read(slice(begin + first, begin + last)).reshape(-1)
            values = values[at - first * self._row :][: stop - at]
            result[at - start : at - start + len(values)] = values
            at += len(values)
        return result

    @override
    def identity(self) -> dict[str, Any]:
        return {}


# ---- out of a file ----


def convert(container: Any) -> None:
    """Put an object in the place of each group that describes one, at any depth.

    A group that is described wrongly, or has more than the object takes, stays a group.
    """
    made: dict[int, Any] = {}
    seen: set[int] = set()
    todo = [container]
    while todo:
        at = todo.pop()
        for name, value in list(at.items()):
            if not is_container(value) or name.startswith("~"):
                continue
            if id(value) not in made and id(value) not in seen:
                obj = _made(value)
                if obj is None:
                    seen.add(id(value))
                    todo.append(value)
                    continue
                made[id(value)] = obj
                container._p_jar.add(obj)
            if id(value) in made:
                at[name] = made[id(value)]


def _made(container: Any) -> Any:
    """Return the object that a group describes, made of its arrays; None: it is a group."""
    group = Group(container, "")
    attrs = dict(group.attrs)
    kind = attrs.pop(_TYPE, None)
    attrs.pop(_VERSION, None)
    wanted = {_CSR: {"data", "indices", "indptr"}, _RAGGED: {"data", "offsets", "keys"}}
    if not isinstance(kind, str) or set(group) != wanted.get(kind):
        return None
    arrays = {name: group[name] for name in group}
    if not all(isinstance(array, ZBigArray) and not array.attrs for array in arrays.values()):
        return None
    try:
        if kind == _RAGGED:
            keys = arrays["keys"][:].tolist()
            R = ZRagged.of_arrays(arrays["data"], keys, arrays["offsets"][:].tolist())
            R.attrs.update(attrs)
            return R
        shape = [int(n) for n in attrs.pop("shape")]
        return None if attrs else ZSparse.of_arrays((shape[0], shape[1]), **arrays)
    except (TypeError, ValueError, KeyError, IndexError):
        return None
