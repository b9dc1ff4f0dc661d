"""An array of a database that is filled from a source: in bounded transactions, and resumable.

Beside the array, by its name and `~import`, is a small object, which is changed in each of the
transactions: what the source is, and how much of it is there. So who was killed goes on where he
was, and what is not complete is seen to be so. The last transaction removes it.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import transaction
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB.broken import Broken
from ZODB.POSException import ConflictError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.file_zodb import ZBigFile
from wendelin.bigfile.virtmem import ram_stat
from wendelin.cli.address import Address
from wendelin.cli.arrays import flat_bytes, layout_of
from wendelin.cli.errors import Failure, explain
from wendelin.cli.files.base import Source
from wendelin.cli.output import Advance
from wendelin.cli.tree import find

__all__ = ["STEP", "Target", "check_complete", "fill", "parts", "progress_of"]

STEP = 32 << 20  # of a transaction, if nothing else is said [bytes]

_NO_CONTAINERS = (Broken, ZBigArray, ZBigFile, Sequence)
_SUFFIX = "~import"
_CHECKED = 1 << 20  # of what is there already, when it is gone on with [bytes]


def parts(source: Source, start: int, step: int, sparse: bool = True) -> Iterator[tuple[int, int]]:
    """Yield ranges of elements, ascending, that are to be read together.

    Parameters
    ----------
    source : Source
    start : int
        Element to begin with.
    step : int
        Ranges end at its multiples [bytes].
    sparse : bool
        What is zeros is left out.
    """
    itemsize, size = source.layout.dtype.itemsize, source.layout.size
    while start < size:
        first = source.next_data(start) if sparse else start
        stop = min(size, (first * itemsize // step + 1) * step // itemsize)
        # an element may be larger than a step
        stop = max(stop, min(size, first + 1))
        yield first, stop
        start = stop


class _Place:
    """Where in a database something is: in what, by which name."""

    def __init__(self, root: Any, address: Address, make: bool) -> None:
        self.address = address
        *names, self.name = address.path
        self.container = root
        path: tuple[str, ...] = ()
        for name in names:
            path = (*path, name)
            if make and self._get(name) is None:
                self._set(name, OOBTree())
            self.container = find(root, Address(address.url, path))
        self._check()

    def _check(self) -> None:
        container = self.container
        ok = isinstance(container, Persistent) and not isinstance(container, _NO_CONTAINERS)
        if not ok:
            kind = f"{type(container).__module__}.{type(container).__qualname__}"
            where = Address(self.address.url, self.address.path[:-1])
            raise Failure(
                f"{where} is a {kind}: an array can be put into a persistent mapping, a "
                f"BTree, or another persistent object"
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
            where = Address(self.address.url, self.address.path[:-1])
            raise Failure(f"{where} has no names for keys: {e}") from e

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
        """How far it is; None: nobody fills it."""
        found = self._get(self.name + _SUFFIX)
        return found if isinstance(found, PersistentMapping) else None

    @progress.setter
    def progress(self, value: PersistentMapping | None) -> None:
        if value is not None:
            self._set(self.name + _SUFFIX, value)
        elif self.progress is not None:
            self._delete(self.name + _SUFFIX)


def progress_of(root: Any, address: Address) -> PersistentMapping | None:
    """Return how far the import of an array is; None: it is complete."""
    try:
        return _Place(root, address, make=False).progress
    except Failure:
        return None


def check_complete(root: Any, address: Address) -> None:
    """See that an array is complete.

    Raises
    ------
    Failure
        Its import was interrupted.
    """
    if (progress := progress_of(root, address)) is not None:
        raise Failure(
            f"{address} is not complete: it has {progress['done']} elements of what was to be "
            f"imported; the same `wendelin import` goes on, or `wendelin copy`"
        )


def _plain(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what of an identity is compared: a file may be moved."""
    return {name: value for name, value in identity.items() if name != "file"}


class Target:
    """An array that is filled from a source: a new one, or one to go on with.

    Parameters
    ----------
    root : object
        Of the database.
    address : Address
        Of the array; mappings on the way to it are made, if they are not there.
    source : Source
    replace : bool
        Something else may be there, and is replaced.
    blksize : int
    zblk_fmt : str, optional
        See ZBigArray.

    Raises
    ------
    Failure
        Something else is there, or what is there was begun from another source.
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
        self._place = _Place(root, address, make=True)
        identity = {**_plain(source.identity()), **source.layout.as_dict()}
        progress, array = self._place.progress, self._place.obj
        self.resumed = False
        if progress is not None and isinstance(array, ZBigArray):
            differs = self._differs(progress, array, identity)
            if not differs:
                self.array, self._progress = array, progress
                self.resumed = self._is_of(source)
                if self.resumed:
                    return
            if not replace:
                why = (
                    f"was begun from another source ({differs})"
                    if differs
                    else "was changed since its import was interrupted, or the source was"
                )
                raise Failure(f"{address} {why}: --replace begins anew")
        elif array is not None and not replace:
            raise Failure(f"{address} is there already: --replace puts the new one in its place")
        try:
            shape, dtype, order = source.layout
            self.array = ZBigArray(shape, dtype, order, blksize, zblk_fmt)
        except (TypeError, ValueError) as e:
            raise Failure(f"{source.identity().get('file', 'the source')}: {e}") from e
        self._progress = PersistentMapping(source=identity, done=0)
        self._place.obj = self.array
        self._place.progress = self._progress
        if self.array._p_jar is None:
            root._p_jar.add(self.array)
        self._progress["array"] = self.array._p_oid.hex()
        self._commit(f"wendelin: {address.path[-1]!r} begun")

    @staticmethod
    def _differs(progress: PersistentMapping, array: ZBigArray, identity: dict[str, Any]) -> str:
        """Return what is not as it was; nothing, if all is."""
        before = progress["source"]
        names = [n for n in {**before, **identity} if before.get(n) != identity.get(n)]
        if progress["array"] != array._p_oid.hex():
            names.append("array")
        elif any(before[n] != value for n, value in layout_of(array).as_dict().items()):
            names.append("shape")
        return ", ".join(names)

    def _is_of(self, source: Source) -> bool:
        """Say whether the last of what is there is the source's."""
        itemsize = self.array.itemsize
        first = max(0, self.done - max(1, _CHECKED // itemsize))
        if first == self.done:
            return True
        expected = source.read(first, self.done).view(np.uint8)
        there = flat_bytes(self.array).read(slice(first * itemsize, self.done * itemsize))
        return np.array_equal(expected, there)

    @property
    def done(self) -> int:
        """Elements that are there."""
        return int(self._progress["done"])

    def advance(self, done: int) -> None:
        """Commit what was written; that many elements are there now."""
        self._progress["done"] = done
        self._commit(f"wendelin: {self.address.path[-1]!r}")

    def finish(self) -> None:
        """It is complete."""
        self._place.progress = None
        self._commit(f"wendelin: {self.address.path[-1]!r} complete")

    def _commit(self, note: str) -> None:
        transaction.get().note(note)
        try:
            transaction.commit()
        except ConflictError as e:
            transaction.abort()
            raise Failure(
                f"{self.address}: somebody else has changed it, or what it is in, at the same "
                f"time; the same command goes on ({e})"
            ) from e


def fill(target: Target, source: Source, step: int, tell: Advance) -> None:
    """Fill an array, from where it is on, to its end.

    Parameters
    ----------
    target : Target
    source : Source
    step : int
        How much goes into one transaction, about [bytes].
    tell
        Is told how many bytes are there, besides those that were.
    """
    array = target.array
    itemsize, blksize = array.itemsize, array.zfile.blksize
    limit, _, _ = ram_stat()
    # whole blocks: so that none is stored twice
    step = max(blksize, min(step, limit // 4) // blksize * blksize)
    flat = flat_bytes(array)
    done = target.done
    try:
        for start, stop in parts(source, done, step):
            if start < stop:
                flat[start * itemsize : stop * itemsize] = source.read(start, stop).view(np.uint8)
            target.advance(stop)
            tell((stop - done) * itemsize)
            done = stop
        target.finish()
    except (Exception, KeyboardInterrupt) as e:
        # it may have come when the database had committed, and we did not know yet
        with suppress(Exception):
            transaction.abort()
            done = target.done
        raise Failure(
            f"{explain(e)}: {target.address} has {done} of {source.layout.size} elements; the same "
            f"command goes on from there"
        ) from e
