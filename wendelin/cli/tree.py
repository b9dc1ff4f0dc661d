"""Objects in a database, by path, and all its arrays.

Names are keys of mappings and BTrees, indices of sequences, and attributes of other objects; in a
ZarrGroup names of its groups and arrays, in a ZRagged keys of its pieces. Nothing is loaded: see
stored. A database may be larger than memory, so objects are released after a look at them, and
blocks are not read.

This module knows names and references, but not what arrays and values have in them.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from typing import Any, NamedTuple

from transaction.interfaces import TransientError
from ZODB.POSException import POSKeyError

from wendelin.cli.address import Address, Path, quote
from wendelin.cli.errors import Failure
from wendelin.cli.matrices import StoredMatrix, is_matrix, matrix_of
from wendelin.cli.stored import (
    Database,
    Stored,
    StoredArray,
    StoredFile,
    attributes,
    class_of,
    has_references,
    is_leaf,
    is_read,
    is_sequence,
    items,
    items_by_record,
    lookup,
    may_hold,
    name_of,
)
from wendelin.cli.storedragged import StoredPiece, StoredRagged, ragged_of
from wendelin.cli.storedzarr import StoredZarr, zarr_of
from wendelin.lib.storage.record import RecordError, Ref
from wendelin.lib.storage.snapshot import SharedError
from wendelin.tree.containers import is_hidden

__all__ = [
    "PROGRESS",
    "SUFFIX",
    "Found",
    "FoundMatrix",
    "Progress",
    "Unknown",
    "Unreadable",
    "children",
    "find",
    "find_array",
    "is_of_object",
    "keys_of",
    "known",
    "progress_of",
    "visit",
    "walk",
    "walk_with_matrices",
]

_SHOWN = 8  # names that an error lists
_ALIKE = 1000  # names that a wrong one is compared with
_DEEP = 10_000  # names of a path: the paths of a chain take the square of its length

#: the object of an unfinished import has the array's name and this suffix: see transfer
SUFFIX = "~import"
PROGRESS = {"source", "done", "array"}  # keys


def known(obj: Any) -> Any:
    """Return an object as what it is: a ZarrGroup and a ZRagged have what only they can read.

    Raises
    ------
    RecordError
        It is a damaged one.
    """
    return zarr_of(obj) or ragged_of(obj) or obj


def _child(obj: Any, name: str) -> Any:
    """Return the value of a name in an object; a Ref for a persistent object.

    Raises
    ------
    KeyError
        There is none.
    _AmbiguousError
        There are several.
    """
    found: dict[str, Any] = {}
    if isinstance(obj, StoredZarr):
        node = obj.under(name)
        if node is not None:
            found[f"Zarr node {name!r}"] = node
    elif isinstance(obj, StoredRagged):
        pieces = obj.pieces()
        found = {f"piece {key!r}": pieces[key] for key in keys_of(name) if _is_piece(key, pieces)}
    for key in keys_of(name):
        for value in lookup(obj, key):
            what = "index" if is_sequence(obj) else "key"
            found[f"{what} {key!r}"] = value
    for attribute, value in _attributes(obj):
        if attribute == name:
            found[f"attribute {name!r}"] = value
    if len({_identity(value) for value in found.values()}) > 1:
        raise _AmbiguousError(", ".join(found))
    if not found:
        raise KeyError(name)
    return next(iter(found.values()))


def _identity(value: Any) -> object:
    return value.oid if isinstance(value, Ref) else id(value)


def _is_piece(key: Any, pieces: Mapping[Any, Any]) -> bool:
    return type(key) in (str, bytes, int) and key in pieces


def _attributes(obj: Any) -> list[tuple[str, Any]]:
    if isinstance(obj, StoredZarr | StoredRagged):
        return obj.others
    return attributes(obj)


class _AmbiguousError(Exception):
    """A name means several objects; the text lists them."""


def keys_of(name: str) -> list[Any]:
    """Return the keys that a name may mean."""
    try:
        key = ast.literal_eval(name)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [name]
    return [name, key]


def children(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of what is in an object, without what groups keep for themselves."""
    if isinstance(obj, StoredZarr):
        for name in obj.names():
            yield name, StoredZarr(obj.stored, f"{obj.prefix}{name}/")
    elif isinstance(obj, StoredRagged):
        for key, piece in obj.pieces().items():
            yield name_of(key), piece
    for key, value in items(obj):
        if not is_hidden(key):
            yield name_of(key), value
    for name, value in _attributes(obj):
        yield name_of(name), value


def find(database: Database, address: Address, start: Any = None) -> Any:
    """Return the object at an address, from the root, or another object: see stored, known().

    Raises
    ------
    Failure
        There is none.
    """
    obj = database.root if start is None else start
    for i, name in enumerate(address.path):
        try:
            obj = known(database.get(_child(obj, name)))
        except POSKeyError:
            raise
        except _AmbiguousError as e:
            raise Failure(
                f"{Address(address.url, address.path[:i])} has more than one {quote(name)}: {e}. A "
                f"path cannot distinguish them: rename one of them in a program"
            ) from None
        except KeyError:
            names = [name for name, _ in islice(children(obj), _ALIKE)]
            with suppress(KeyError):
                _child(obj, name + SUFFIX)  # which children() hides
                names.insert(0, name + SUFFIX)
            have = ", ".join(map(quote, names[:_SHOWN])) + (", ..." if names[_SHOWN:] else "")
            if alike := get_close_matches(name, names, 1):
                have += f". Did you mean {quote(alike[0])}?"
            raise Failure(
                f"{Address(address.url, address.path[:i])} has no {name!r}: "
                + (f"it has {have}" if names else f"it is a {class_of(obj)}, and empty")
            ) from None
    return obj


def find_array(database: Database, address: Address) -> StoredArray:
    """Return the array at an address.

    Raises
    ------
    Failure
        There is none.
    """
    obj = find(database, address)
    if not isinstance(obj, StoredArray):
        raise Failure(f"{address} is not an array: it is a {class_of(obj)}")
    return obj


class Progress(NamedTuple):
    """How much of the import of an array is done."""

    done: int  # elements
    array: StoredArray


def progress_of(database: Database, address: Address) -> Progress | None:
    """Return the progress of the import of an array, and the array; None if there is none."""
    *names, name = address.path
    try:
        obj = find(database, Address(address.url, (*names, name + SUFFIX)))
    except Failure:
        return None
    if not isinstance(obj, Stored):
        return None
    found = {key: value for key, value in items(obj) if isinstance(key, str)}
    done, array = found.get("done"), found.get("array")
    if found.keys() != PROGRESS or not isinstance(done, int) or not isinstance(array, Ref):
        return None
    array = database.get(array)
    return Progress(done, array) if isinstance(array, StoredArray) else None


class Found(NamedTuple):
    """An array of a database, or several: a ZarrGroup, a ZRagged."""

    path: Path
    obj: StoredArray | StoredFile | StoredZarr | StoredRagged | StoredPiece


class FoundMatrix(NamedTuple):
    """A sparse matrix of a database; its arrays are found, too, after it."""

    path: Path
    obj: StoredMatrix


class Unreadable(NamedTuple):
    """An object that does not load."""

    path: Path
    error: Exception


class Unknown(NamedTuple):
    """An object with others in it that only its class can read; the class is not loaded."""

    path: Path
    cls: str

    def __str__(self) -> str:
        """Return the line to print."""
        return f"{self.cls}: not loaded, so its contents are unknown"


class _Node(NamedTuple):
    """An object on the way; its path is made when it is needed."""

    obj: Any
    name: str
    parent: _Node | None
    depth: int

    def path(self) -> Path:
        names = []
        node: _Node | None = self
        while node is not None and node.parent is not None:
            names.append(node.name)
            node = node.parent
        return tuple(reversed(names))


def is_of_object(error: Exception) -> bool:
    """Say whether an exception is about one object, so that others may be readable."""
    return not isinstance(error, TransientError | MemoryError | SharedError)


def walk(
    database: Database,
    start: Any,
    path: Path = (),
    tell: Callable[[int], None] = lambda n: None,
) -> Iterator[Found | Unreadable | Unknown]:
    """Yield all arrays that can be reached from an object; each once, by the shortest path.

    Parameters
    ----------
    database : Database
    start : object
        An object of it, or a value in one. Memory holds the oids of all objects under it, and
        for most of them nothing else.
    path : tuple of str
        Of the object.
    tell
        Called with the number of objects that were read.
    """
    for found in walk_with_matrices(database, start, path, tell):
        if not isinstance(found, FoundMatrix):
            yield found


def walk_with_matrices(
    database: Database, start: Any, path: Path, tell: Callable[[int], None]
) -> Iterator[Found | FoundMatrix | Unreadable | Unknown]:
    """Yield the same, and sparse matrices, each before its arrays."""
    for at, obj in visit(database, start, path, tell, known):
        if isinstance(obj, Exception):
            yield Unreadable(at, obj)
        elif isinstance(obj, StoredArray | StoredFile | StoredZarr | StoredRagged | StoredPiece):
            yield Found(at, obj)
        elif is_matrix(obj):
            try:
                yield FoundMatrix(at, matrix_of(obj))
            except RecordError as e:
                yield Unreadable(at, e)
        elif not is_read(obj) and has_references(obj):
            yield Unknown(at, class_of(obj))


def visit(
    database: Database,
    start: Any,
    path: Path = (),
    tell: Callable[[int], None] = lambda n: None,
    as_what: Callable[[Any], Any] = lambda obj: obj,
) -> Iterator[tuple[Path, Any]]:
    """Yield (path, object) of all persistent objects that can be reached; see walk().

    An exception stands for an object that does not load. With known() as `as_what`, a ZarrGroup and
    a ZRagged are one object each; what they are made of is not told.
    """
    todo = deque([_Node(start, "", None, 0)])
    seen: set[bytes] = set()
    if isinstance(start, Stored | StoredZarr | StoredRagged):
        seen.add(start.oid)
    elif isinstance(start, StoredArray | StoredFile):
        seen.add(start._p_oid)
    while todo:
        node = todo.popleft()
        try:
            obj = as_what(database.get(node.obj))
            if not isinstance(obj, StoredArray | StoredFile):
                todo.extend(_children(node._replace(obj=obj), seen))
        except Exception as e:
            if not is_of_object(e):
                raise
            obj = e
        yield path + node.path(), obj
        tell(1)


def _children(node: _Node, seen: set[bytes]) -> Iterator[_Node]:
    """Yield the new persistent objects in an object; also those in containers in it."""
    # not the object: a node stays as long as an object under it is to be read
    at = node._replace(obj=None)
    if at.depth > _DEEP:
        raise RecordError(f"a path of more than {_DEEP} names")
    holds = False
    for pairs in _pairs_by_record(node.obj):
        for key, value in pairs:
            if isinstance(value, Ref):
                yield from _new(key, value, at, seen)
            holds = holds or may_hold(value)
    if holds:
        # again, so that objects directly in it are found there; a BTree goes record by record, so
        # that memory holds containers of one record at a time
        for pairs in _pairs_by_record(node.obj):
            yield from _inside(pairs, at, seen)


def _pairs_by_record(obj: Any) -> Iterator[list[tuple[Any, Any]]]:
    yield from items_by_record(obj)
    yield _attributes(obj)


def _new(key: Any, ref: Ref, parent: _Node, seen: set[bytes]) -> Iterator[_Node]:
    if ref.oid not in seen and not is_leaf(ref):
        seen.add(ref.oid)
        yield _Node(ref, name_of(key), parent, parent.depth + 1)


def _inside(pairs: list[tuple[Any, Any]], at: _Node, seen: set[bytes]) -> Iterator[_Node]:
    """Yield the persistent objects in containers."""
    todo = deque(
        (value, _Node(None, name_of(k), at, at.depth + 1)) for k, value in pairs if may_hold(value)
    )
    inside: dict[int, Any] = {}  # keeps the container, so that its id is not used again
    while todo:
        container, node = todo.popleft()
        if id(container) in inside:
            continue
        inside[id(container)] = container
        if node.depth > _DEEP:
            raise RecordError(f"a path of more than {_DEEP} names")
        for some in _pairs_by_record(container):
            for key, value in some:
                if isinstance(value, Ref):
                    yield from _new(key, value, node, seen)
                elif may_hold(value) and id(value) not in inside:
                    todo.append((value, _Node(None, name_of(key), node, node.depth + 1)))
