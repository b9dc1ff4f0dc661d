"""An array of a database that is filled from a source: in bounded transactions, and resumable.

Until it is complete, the array is in a small object with its name and `~import`. Each transaction
writes there what the source is, and how much of it is done. So an import that was killed can go on,
and a reader finds no incomplete array by the name. The last transaction puts the array in its
place, and removes the object.

This module knows sources, and arrays as destinations. It knows no kind of file.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import transaction
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB.broken import Broken

from wendelin.bigarray import BigArray
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.file_zodb import ZBigFile
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.cli.address import Address
from wendelin.cli.arrays import flat_bytes, layout_of
from wendelin.cli.committing import in_steps, step_done
from wendelin.cli.errors import Failure, explain
from wendelin.cli.files.base import Source
from wendelin.cli.files.convert import as_bytes
from wendelin.cli.output import Advance
from wendelin.cli.stored import Database, Stored, class_of
from wendelin.cli.tree import PROGRESS, SUFFIX, find

__all__ = ["STEP", "Place", "Target", "element_ranges", "fill", "put_elements"]

STEP = 32 << 20  # of a transaction, by default [bytes]

_NO_CONTAINERS = (Broken, ZBigArray, ZBigFile, Sequence)
_CHECKED = 1 << 20  # at the end of what is done, compared before an import goes on [bytes]

#: of a source, or of its values: the same command fails of the same
_LASTING = (Failure, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


def element_ranges(
    source: Source, start: int, step: int, sparse: bool = True
) -> Iterator[tuple[int, int]]:
    """Yield ranges of elements, ascending, that are to be read together.

    Parameters
    ----------
    source : Source
    start : int
        Element to begin with.
    step : int
        Ranges end at its multiples [bytes].
    sparse : bool
        Ranges of zeros are left out.
    """
    itemsize, size = source.layout.dtype.itemsize, source.layout.size
    while start < size:
        first = source.next_data(start) if sparse else start
        stop = min(size, (first * itemsize // step + 1) * step // itemsize)
        # an element may be larger than a step
        stop = max(stop, min(size, first + 1))
        yield first, stop
        start = stop


class Place:
    """Where in a database an array is to be: container and name. Missing containers are made."""

    def __init__(self, root: Any, address: Address) -> None:
        *names, self.name = address.path
        self.container = root
        self._where = Address(address.url, ())
        objects = Database(root._p_jar)
        for i in range(len(names)):
            where = Address(address.url, tuple(names[: i + 1]))
            try:
                found = find(objects, where)
                self.container = root._p_jar.get(found.oid) if isinstance(found, Stored) else found
            except Failure:
                self._set(names[i], OOBTree())
                self.container = self._get(names[i])
            self._where = where
        self._check()

    def _check(self) -> None:
        container = self.container
        ok = isinstance(container, Persistent) and not isinstance(container, _NO_CONTAINERS)
        if not ok:
            raise Failure(
                f"{self._where} is a {class_of(container)}: an array can be put only into a "
                f"persistent mapping, a BTree, or another persistent object"
            )

    def _is_mapping(self) -> bool:
        return isinstance(self.container, MutableMapping)

    def _get(self, name: str) -> Any:
        if self._is_mapping():
            return self.container.get(name)
        self.container._p_activate()
        return vars(self.container).get(name)

    def _set(self, name: str, value: Any) -> None:
        self._check()
        try:
            if self._is_mapping():
                self.container[name] = value
            else:
                setattr(self.container, name, value)
        except TypeError as e:  # a BTree with keys of another type
            raise Failure(f"{self._where} has no names for keys: {e}") from e

    def _delete(self, name: str) -> None:
        if self._is_mapping():
            del self.container[name]
        else:
            delattr(self.container, name)

    @property
    def obj(self) -> Any:
        """What is there."""
        return self._get(self.name)

    @obj.setter
    def obj(self, value: Any) -> None:
        self._set(self.name, value)

    @property
    def progress(self) -> PersistentMapping | None:
        """How far it is, and the array; None: nobody fills it."""
        found = self._get(self.name + SUFFIX)
        if found is None:
            return None
        if not isinstance(found, PersistentMapping) or found.keys() != PROGRESS:
            raise Failure(
                f"{Address(self._where.url, (*self._where.path, self.name + SUFFIX))} is a "
                f"{class_of(found)}: the import needs that name"
            )
        return found

    @progress.setter
    def progress(self, value: PersistentMapping | None) -> None:
        if value is not None:
            self._set(self.name + SUFFIX, value)
        elif self.progress is not None:
            self._delete(self.name + SUFFIX)


def _plain(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that is compared: a file may be moved."""
    return {name: value for name, value in identity.items() if name != "file"}


class Target:
    """An array that is filled from a source: a new one, or one to go on with.

    Parameters
    ----------
    root : object
        Of the database.
    address : Address
        Of the array; missing mappings on the way to it are made.
    source : Source
    replace : bool
        Replace another array that is there, when this one is complete.
    blksize : int
    zblk_fmt : str, optional
        See ZBigArray.

    Raises
    ------
    Failure
        Another object is there, or an unfinished import from another source.
    """

    def __init__(
        self,
        root: Any,
        address: Address,
        source: Source,
        replace: bool,
        blksize: int,
        zblk_fmt: str | None,
    ) -> None:
        self.address = address
        self._root, self._replace = root, replace
        self._place = Place(root, address)
        self._check_there()
        if source.layout.dtype.hasobject:
            raise Failure(
                f"{source.identity().get('file', 'the source')}: {source.layout.dtype} holds "
                f"objects, not numbers or bytes"
            )
        identity = {**_plain(source.identity()), **source.layout.as_dict()}
        progress = self._place.progress
        self.resumed = False
        if progress is not None and progress["done"] and in_steps():
            self.array, self._progress = progress["array"], progress
            differs = self._differs(progress, identity)
            self.resumed = not differs and self._is_of(source)
            if self.resumed:
                return
            if not replace:
                why = (
                    f"was begun from another source ({differs})"
                    if differs
                    else "or its source was changed since its import was interrupted"
                )
                raise Failure(f"{address} {why}: --replace begins again")
        try:
            shape, dtype, order = source.layout
            self.array = ZBigArray(shape, dtype, order, blksize, zblk_fmt)
            self.array.attrs.update(source.attrs)
        except (TypeError, ValueError) as e:
            raise Failure(f"{source.identity().get('file', 'the source')}: {e}") from e
        self._progress = PersistentMapping(source=identity, done=0, array=self.array)

    def _check_there(self) -> None:
        """Check that the name is free, or its object may be replaced."""
        there = self._place.obj
        if there is None:
            return
        if not isinstance(there, ZBigArray):
            raise Failure(f"{self.address} exists already: it is a {class_of(there)}, not an array")
        if not self._replace:
            raise Failure(f"{self.address} exists already: --replace replaces it with the new one")

    @staticmethod
    def _differs(progress: PersistentMapping, identity: dict[str, Any]) -> str:
        """Return the names of facts that differ; '' if none does."""
        before, layout = progress["source"], layout_of(progress["array"]).as_dict()
        names = [n for n in {**before, **identity} if before.get(n) != identity.get(n)]
        if not names and any(before[n] != value for n, value in layout.items()):
            names.append("shape")
        return ", ".join(names)

    def _is_of(self, source: Source) -> bool:
        """Say whether the last elements that are done are those of the source."""
        itemsize = self.array.itemsize
        first = max(0, self.done - max(1, _CHECKED // itemsize))
        if first == self.done:
            return True
        expected = as_bytes(source.read(first, self.done))
        there = flat_bytes(self.array).read(slice(first * itemsize, self.done * itemsize))
        return np.array_equal(expected, there)

    @property
    def done(self) -> int:
        """Elements that are done."""
        return int(self._progress["done"])

    def begin(self) -> None:
        """Commit an array of zeros, to be filled."""
        if self._progress._p_jar is None:
            self._place.progress = self._progress
            if not in_steps():  # its pages can be written from now on
                for obj in (self._progress, self.array):
                    self._root._p_jar.add(obj)
            self._commit("begun")

    def advance(self, done: int) -> None:
        """Commit what was written: `done` elements in all."""
        self._check_ours()
        self._progress["done"] = done
        self._commit(f"{done} elements")

    def finish(self) -> None:
        """Put the complete array in its place."""
        self._check_ours()
        self._check_there()  # another client may have put one there
        self._place.obj = self.array
        self._place.progress = None
        self._commit("complete")

    def discard(self) -> None:
        """Remove what was begun, when it cannot be completed."""
        if self._place.progress is None:
            return
        self._check_ours()
        self._place.progress = None
        self._commit("given up")

    def _check_ours(self) -> None:
        if self._place.progress is not self._progress:
            raise Failure(f"another import of {self.address} has begun meanwhile")

    def _commit(self, note: str) -> None:
        step_done(repr(self.address.path[-1]), note)


def put_elements(array: ZBigArray, source: Source, step: int) -> None:
    """Put all elements of a source into an array of zeros, in parts of about `step` bytes."""
    flat = flat_bytes(array)
    for start, stop in element_ranges(source, 0, step):
        if start < stop:
            data = as_bytes(source.read(start, stop))
            flat[start * array.itemsize : stop * array.itemsize] = data


def fill(target: Target, source: Source, step: int, tell: Advance) -> None:
    """Fill an array, from where it is on, to its end.

    Parameters
    ----------
    target : Target
    source : Source
    step : int
        About how much one transaction writes [bytes].
    tell
        Called with the number of bytes that were added.
    """
    array = target.array
    itemsize, blksize = array.itemsize, array.zfile.blksize
    limit, _, _ = ram_stat()
    # whole blocks: so that none is stored twice
    step = max(blksize, min(step, limit // 4) // blksize * blksize)
    flat: BigArray | None = None
    done = target.done
    try:
        for start, stop in element_ranges(source, done, step):
            data = as_bytes(source.read(start, stop)) if start < stop else None
            target.begin()  # not before: now the source could be read
            if data is not None:
                flat = flat_bytes(array) if flat is None else flat
                flat[start * itemsize : stop * itemsize] = data
            target.advance(stop)
            tell((stop - done) * itemsize)
            done = stop
        target.begin()
        target.finish()
    except (Exception, KeyboardInterrupt) as e:
        # it may have come when the database had committed, and we did not know yet
        with suppress(Exception):
            transaction.abort()
            done = target.done
        if not in_steps():
            raise Failure(f"{explain(e)}: nothing was imported") from e
        lasting = isinstance(e, _LASTING)
        if lasting and not done:
            with suppress(Exception):
                target.discard()
            raise Failure(explain(e)) from e
        then = "--replace begins again" if lasting else "the same command goes on from there"
        raise Failure(
            f"{explain(e)}: {target.address} has {done} of {source.layout.size} elements; {then}"
        ) from e
