"""Objects of many values in a database - a ZarrGroup, a ZRagged - that are filled from a source.

It works in transactions of limited size, as transfer does for arrays: until the object is complete,
it is in a small object with its name and `~import`, which says what the source is, and how many
values are done. The same command goes on from there.

This module knows such objects by what their Contents say. It knows no kind of file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import transaction
from persistent.mapping import PersistentMapping

from wendelin.cli.address import Address
from wendelin.cli.attributes import attrs_of
from wendelin.cli.committing import in_steps, step_done
from wendelin.cli.errors import Failure, explain
from wendelin.cli.output import Advance
from wendelin.cli.stored import class_of
from wendelin.cli.storedragged import StoredRagged
from wendelin.cli.storedzarr import StoredZarr
from wendelin.cli.transfer import Place
from wendelin.lib.utils import override
from wendelin.ragged import ZRagged
from wendelin.zarr import ZarrGroup

__all__ = ["Contents", "GroupContents", "RaggedContents", "build", "steps"]

_MOST = 10_000  # values in a transaction


class Contents(ABC):
    """Values that an object is made of, in an order that stays."""

    kind: type  #: of the object
    what: str  #: the values are called so
    sizes: Sequence[int]  #: of the values [bytes]
    #: whether it is the same source, if the command is repeated
    identity: dict[str, Any]

    @abstractmethod
    def make(self) -> Any:
        """Return a new object."""

    @abstractmethod
    def add(self, obj: Any, start: int, stop: int) -> None:
        """Put values [start, stop) into it."""


class GroupContents(Contents):
    """The values of a ZarrGroup, byte for byte.

    Parameters
    ----------
    group : StoredZarr
    url : str
    """

    kind, what = ZarrGroup, "values"

    def __init__(self, group: StoredZarr, url: str) -> None:
        self._group = group
        sizes = group.sizes()
        self._keys, self.sizes = list(sizes), list(sizes.values())
        last = max((tid for _, _, tid in group.stats()), default=b"")
        self.identity = {
            "kind": "zarr group",
            "url": url,
            "oid": group.oid.hex(),
            "prefix": group.prefix,
            "changed": last.hex(),
            "keys": len(sizes),
        }

    @override
    def make(self) -> ZarrGroup:
        return ZarrGroup()

    @override
    def add(self, obj: ZarrGroup, start: int, stop: int) -> None:
        obj.live_table().change({key: self._group.read(key) for key in self._keys[start:stop]})


class RaggedContents(Contents):
    """The pieces of a ZRagged; each is put by the writer that has put it.

    Parameters
    ----------
    ragged : StoredRagged
    url : str
    """

    kind, what = ZRagged, "pieces"

    def __init__(self, ragged: StoredRagged, url: str) -> None:
        self._ragged = ragged
        self._pieces = list(ragged.pieces().values())
        row = ragged.dtype.itemsize
        for n in ragged.row:
            row *= n
        self.sizes = [(one.piece.stop - one.piece.start) * row for one in self._pieces]
        tids = [block.tid for blocks in ragged.blocks() for block in blocks]
        tids += [segment.stored.tid for segment in ragged.segments()]
        for segment in {one.segment.name: one.segment for one in self._pieces}.values():
            segment.data._fileh().file.verify = True  # what is copied is as it was stored
        self.identity = {
            "kind": "ragged",
            "url": url,
            "oid": ragged.oid.hex(),
            "changed": max(tids, default=b"").hex(),
            "pieces": len(self._pieces),
        }

    @override
    def make(self) -> ZRagged:
        R = ZRagged(self._ragged.dtype, self._ragged.row, self._ragged.blksize)
        R.attrs.update(attrs_of(self._ragged.database, self._ragged)[0])
        return R

    @override
    def add(self, obj: ZRagged, start: int, stop: int) -> None:
        for one in self._pieces[start:stop]:
            data = one.segment.data.read(slice(one.piece.start, one.piece.stop))
            obj.writer(one.segment.name).put(one.piece.key, data)


def build(
    root: Any, address: Address, contents: Contents, replace: bool, step: int, tell: Advance
) -> int:
    """Make an object; return how many bytes were done before.

    Raises
    ------
    Failure
        Another object is there, or it was interrupted.
    """
    place = Place(root, address)
    kind, name = contents.kind, contents.kind.__name__

    def check_there() -> None:
        there = place.obj
        if there is not None and not isinstance(there, kind):
            raise Failure(f"{address} exists already: it is a {class_of(there)}, not a {name}")
        if there is not None and not replace:
            raise Failure(f"{address} exists already: --replace replaces it with the new one")

    check_there()
    sizes = contents.sizes
    source = contents.identity
    progress = place.progress if in_steps() else None
    if progress is not None and progress["source"] != source:
        if not replace:
            raise Failure(f"{address} was begun from another source: --replace begins again")
        progress = None
    begins = progress is None
    if progress is None:
        progress = PersistentMapping(source=source, done=0, array=contents.make())
        place.progress = progress
    done = int(progress["done"])
    before: int = sum(sizes[:done])
    try:
        if begins and kind is ZRagged:  # which is written when it is in a database
            step_done(repr(address.path[-1]), "begun", make=True)
        for start, stop in steps(sizes, done, step):
            contents.add(progress["array"], start, stop)
            progress["done"] = stop
            step_done(repr(address.path[-1]), f"{stop} {contents.what}")
            done = stop
            tell(sum(sizes[start:stop]))
        check_there()
        place.obj = progress["array"]
        place.progress = None
        step_done(repr(address.path[-1]), "complete")
    except (Exception, KeyboardInterrupt) as e:
        with suppress(Exception):
            transaction.abort()
        if isinstance(e, Failure):
            raise
        if not in_steps():
            raise Failure(f"{explain(e)}: nothing was imported") from e
        raise Failure(
            f"{explain(e)}: {address} has {done} of {len(sizes)} {contents.what}; the same command "
            f"goes on from there"
        ) from e
    return before


def steps(sizes: Sequence[int], start: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of values that are copied together: of about `step` bytes, or one larger one."""
    size = 0
    for i in range(start, len(sizes)):
        size += sizes[i]
        if size >= step or i + 1 - start >= _MOST:
            yield start, i + 1
            start, size = i + 1, 0
    if start < len(sizes):
        yield start, len(sizes)
