"""ZBigArray: an array in ZODB.

Its format in the database is fixed: see docs/formats.md.

When a program pickles an array to send it to another process, the pickle is a reference: (URL, oid,
tid). The receiver gets the array in the same state, read-only, without a copy.

This module knows persistent objects, and a ZBigFile by its handle. It does not know how blocks are
stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any, NoReturn, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike
from persistent.timestamp import TimeStamp
from ZODB.POSException import ConnectionStateError
from ZODB.utils import oid_repr, z64

from wendelin.bigarray import workers
from wendelin.bigarray.array import BigArray, Order
from wendelin.bigarray.attrs import Attributes, new_table
from wendelin.bigarray.html import Overview
from wendelin.bigarray.plain import PlainContainerWarning, warn_of_changes
from wendelin.bigfile.file_zodb import ZBigFile, ZBigFileH
from wendelin.bigfile.virtmem.handle import BigFileH
from wendelin.bigfile.zodb.blocktable import stored_blocks
from wendelin.bigfile.zodb.formats import check_format
from wendelin.bigfile.zodb.inspect import stored_size
from wendelin.bigfile.zodb.records import Records
from wendelin.lib.adapters.connection import changed_objects
from wendelin.lib.references import object_at, reference_to
from wendelin.lib.storage.record import RecordError
from wendelin.lib.utils import renamed
from wendelin.lib.zodb import (
    LivePersistent,
    zconn_at,
    zconn_check_database,
    zconn_is_open,
    zobj_is_committed,
    zstor_2zurl,
)

__all__ = ["ZBigArray"]

#: how much of a database is read to show an array
_MOST_NODES = 1000  # of the block table
_MOST_SIZES = 2000  # of records

State = tuple[dict[str, Any], dict[str, Any]]


def array_at(url: str, oid: bytes, tid: bytes) -> ZBigArray:
    """Return an array in its state at a tid. A process opens each database once.

    Raises
    ------
    TypeError, ZODB.POSException.POSKeyError, ValueError, OSError
        See object_at().
    """
    workers.arrived()
    with object_at((url, oid, tid), ZBigArray) as A:
        A._fileh()  # while no other thread loads objects
        return A


def _is_closed(A: ZBigArray) -> bool:
    """Say whether an array cannot be loaded any more, without loading it."""
    return A._p_jar is not None and not zconn_is_open(A._p_jar)


def _warn_once(conn: Any) -> None:
    """Warn of new arrays inside plain containers, when the first one is stored by a transaction."""
    txn = conn.transaction_manager.get()
    try:
        told: set[int] = txn.data(PlainContainerWarning)
    except KeyError:
        told = set()
        txn.set_data(PlainContainerWarning, told)
    if id(conn) not in told:
        told.add(id(conn))
        warn_of_changes(changed_objects(conn))


class ZBigArray(BigArray, LivePersistent):
    """A persistent array: commit saves its data, abort discards the changes, as for any object.

    Keep it in any object of a database: `root['A'] = A`. Its data can be touched once it belongs
    to a Connection: after the first commit, or `conn.add(A)`.

    Its attributes, `A.attrs["unit"] = "mV"`, go into files of other formats, too. It also takes
    attributes like any persistent object: a commit saves `A.unit = "mV"`, except for names that
    begin with `_v_`. A subclass may extend __getstate__() and __setstate__().

    Parameters
    ----------
    shape, dtype, order
        See BigArray.
    blksize : int
        Size of a block [bytes], a multiple of the OS page. Each block is loaded, changed and
        stored as a whole.
    zblk_fmt : {None, 'ZBlk0', 'ZBlk1', 'auto'}
        Format in which blocks are stored: 'ZBlk0', each as one object, for fast reads; 'ZBlk1', in
        chunks of 4 KiB, for small changes; 'auto', by what changes. It is kept with the array;
        None: what WENDELIN_CORE_ZBLK_FMT says where it is written, or auto. All are read.

    Raises
    ------
    ValueError
        zblk_fmt is none of these; or see BigArray.
    """

    __slots__ = ("zfile",)  # as databases have it

    # values that a subclass caches in other attributes are of a state that is gone
    _kept = ("_v_fileh", "_v_vma", "_v_loaded")

    zfile: ZBigFile
    _v_fileh: ZBigFileH | None = None
    _p_changed: bool | None
    _zblk_fmt: str | None = None
    _attrs: MutableMapping[str, Any] | None = None

    @renamed(dtype_="dtype")
    def __init__(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        dtype: DTypeLike,
        order: Order = "C",
        blksize: int = 2 * 1024 * 1024,
        zblk_fmt: str | None = None,
    ) -> None:
        LivePersistent.__init__(self)
        self._create(shape, dtype, order)
        if zblk_fmt is not None:
            self._zblk_fmt = check_format(zblk_fmt)
        self.zfile = ZBigFile(blksize)

    # The state is that of Persistent, (attributes, slots). So attributes of users and subclasses
    # are kept, also by earlier versions.

    def __getstate__(self) -> State:
        if self._p_serial == z64 and self._p_jar is not None:
            _warn_once(self._p_jar)
        state: State = super().__getstate__()
        return state

    def __setstate__(self, state: State) -> None:
        try:
            attributes, slots = state
            zfile, shape, dtype = slots["zfile"], attributes["_shape"], attributes["_dtype"]
            if not (isinstance(zfile, ZBigFile) and isinstance(dtype, np.dtype)):
                raise TypeError(f"its file is {zfile!r:.100}, its dtype {dtype!r:.100}")
            zblk_fmt = attributes.get("_zblk_fmt")
            if zblk_fmt is not None:
                check_format(zblk_fmt, "_zblk_fmt")
            super().__setstate__(state)
            # early databases have no order
            self._init(shape, dtype, attributes.get("_order", "C"))
        except Exception as e:
            raise RecordError(f"a damaged ZBigArray: {type(e).__name__}: {e}") from e

    # ---- attributes ----

    @property
    def attrs(self) -> MutableMapping[str, Any]:
        """Names, units, numbers, small arrays that belong to the array; see Attributes.

        If an older program kept a value by this name, it is returned as it is.
        """
        own: MutableMapping[str, Any] | None = self._own_attrs()
        return Attributes(repr(self), self._find_attrs, self._make_attrs) if own is None else own

    @attrs.setter
    def attrs(self, values: Mapping[str, Any]) -> None:
        if self._own_attrs() is not None:
            self.__dict__["attrs"] = values
            self._p_changed = True
            return
        values = dict(values)
        attrs = self.attrs
        for name in attrs.keys() - values.keys():
            del attrs[name]
        attrs.update(values)

    def _own_attrs(self) -> Any:
        self._p_activate()
        return self.__dict__.get("attrs")

    def _find_attrs(self) -> MutableMapping[str, Any] | None:
        return self._attrs

    def _make_attrs(self) -> MutableMapping[str, Any]:
        if self._attrs is None:
            self._attrs = new_table()
        return self._attrs

    # ---- references ----

    def __reduce__(self) -> tuple[Any, tuple[str, bytes, bytes]]:
        """Return a pickle that is a reference. A database calls __getstate__() instead.

        Raises
        ------
        pickle.PicklingError
            There are changes, which no state of the database has.
        NotImplementedError
            No URL names the database: see zstor_2zurl().
        ConnectionStateError
            The Connection is closed.
        """
        conn = self._p_jar
        if conn is not None:
            zconn_check_database(conn)
        committed = zobj_is_committed(self) and self.zfile.is_of_database()
        return array_at, reference_to(self, committed=committed)

    def __copy__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} has no copy: np.array(A) copies its data; or make another array in the "
            f"database, B, and B[:] = A[:]"
        )

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def _is_frozen(self) -> bool:
        """Say whether no commit can save a change: opened read-only, or a past state."""
        conn = self._p_jar
        return conn is not None and (super()._is_frozen() or bool(conn.isReadOnly()))

    # ---- shown ----

    def __repr__(self) -> str:
        if not _is_closed(self):
            return super().__repr__()
        if self._p_changed is None:  # a ghost, which cannot be loaded
            return f"<closed ZBigArray {oid_repr(self._p_oid)}>"
        return f"<closed {super().__repr__()}>"

    def _repr_html_(self) -> str | None:
        """Return HTML for a notebook; nothing is loaded. If closed, return repr()."""
        return None if _is_closed(self) else super()._repr_html_()

    def _overview(self) -> Overview:
        about = super()._overview()
        conn = self._p_jar
        if conn is None:
            return replace(about, rows=[("Database", "none yet")])
        try:
            url = zstor_2zurl(conn.db().storage)
        except NotImplementedError:
            url = str(conn.db().storage.getName())
        rows = [("Database", url), ("Object", oid_repr(self._p_oid))]
        if conn.before is not None:
            rows.append(("State of", f"{TimeStamp(zconn_at(conn))} UTC"))
        try:
            blocks, is_all = self._stored_blocks()
            known = is_all and 0 < len(blocks) <= _MOST_SIZES
            size = stored_size(self.zfile, _MOST_SIZES) if known else None
        except Exception as e:  # a server that is gone, for one
            rows.append(("Stored", f"not known: {type(e).__name__}: {e}"))
            return replace(about, rows=rows)
        return replace(about, rows=rows, stored=blocks, all_stored=is_all, stored_size=size)

    def _stored_blocks(self) -> tuple[list[int], bool]:
        """Return numbers of stored blocks, and whether they are all of them; none is loaded."""
        table = self.zfile.blktab  # with which the file is not a ghost
        if self.zfile._p_jar is None or self.zfile._p_serial == z64:
            return [], True
        return stored_blocks(table._p_oid, Records(self._p_jar).load_all, _MOST_NODES)

    def _blksize(self) -> int:
        return int(self.zfile.blksize)

    def lives(self) -> bool:
        """Say whether there are views, or changes that are not committed. See LivePersistent."""
        fileh = self._v_fileh
        return fileh is not None and fileh.isused()

    def _fileh(self) -> ZBigFileH:
        """Return the handle; opened at first use, and kept while it is in use.

        When the array is not used, the Connection's cache may drop the handle with the object.
        Then its pages are read again, as any object's state.

        Raises
        ------
        ConnectionStateError
            The array does not belong to a Connection yet; or the database was closed.
        """
        conn = self._p_jar
        if conn is None:
            raise ConnectionStateError(
                f"the data of {self!r} can be touched once the array belongs to a Connection: add "
                f"it to the database and commit (root['A'] = A; transaction.commit()), or "
                f"conn.add(A)"
            )
        zconn_check_database(conn)
        fileh = self._v_fileh
        # an array whose creation was aborted may be added elsewhere
        if fileh is None or fileh.conn is not conn:
            if self.zfile._p_jar is None:
                conn.add(self.zfile)
            fileh = self._v_fileh = self.zfile.fileh_open(self._zblk_fmt)
        if workers.limits_are_due:
            workers.limit_memory()
        return fileh

    def _expect(self, fileh: BigFileH, first: int, n: int) -> None:
        fileh.file.view = first, n

    def _drop(self, start: int, stop: int) -> None:
        # No data can have been touched before it belongs to a Connection.
        if self._p_jar is not None:
            super()._drop(start, stop)
