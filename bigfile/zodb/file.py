"""ZBigFile: a file in ZODB, as a persistent object.

Organization
------------
    ZBigFile ──► LOBTree ──► ZBlk…          persistent objects: what commits write
    ZBigFileH ──► ZFile ──► ZBigFile        the handle; ZFile (blockfile) is the BigFile under it
                    │
                BlockTable, formats           what faults read: records, not objects

This module knows the state of a file in a database. Its handles know its pages (handle), and their
ZFile its blocks (blockfile). These two do not know each other's classes, only their interfaces
(interfaces).
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from BTrees.LOBTree import LOBTree, LOBTreePy
from ZODB.POSException import ConnectionStateError

from wendelin.bigfile.virtmem.backend import BigFile
from wendelin.bigfile.zodb.blockfile import ZFile
from wendelin.bigfile.zodb.handle import ZBigFileH, handles_of
from wendelin.lib.storage.record import RecordError
from wendelin.lib.zodb import LivePersistent, zobj_is_committed

__all__ = ["ZBigFile"]


class ZBigFile(LivePersistent):
    """A file in ZODB: blocks in a table, holes where there are none.

    Parameters
    ----------
    blksize : int
        Block size [bytes], a multiple of the OS page.
    """

    __module__ = "wendelin.bigfile.file_zodb"  # where databases have it

    _v_handles: list[weakref.ref[ZBigFileH]] | None = None

    def __init__(self, blksize: int) -> None:
        self.__setstate__((BigFile(blksize).blksize, LOBTree()))

    def __setattr__(self, name: str, value: Any) -> None:
        keeps = name.startswith(("_v_", "_p_")) or name in ("blksize", "blktab")
        if not keeps and type(self).__getstate__ is ZBigFile.__getstate__:
            raise AttributeError(
                f"a ZBigFile cannot keep {name!r}: a database has only its blocks and their size. "
                f"Keep it in the array, or in another object"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> tuple[int, LOBTree]:
        return (self.blksize, self.blktab)

    def __setstate__(self, state: Any) -> None:
        types = [type(x) for x in state] if isinstance(state, tuple) else []
        # programs for 0.x may have given an integer of NumPy, which was stored as it is
        if not (
            len(types) == 2
            and issubclass(types[0], int | np.integer)
            and types[0] is not bool
            and types[1] in (LOBTree, LOBTreePy)
        ):
            raise RecordError(f"a damaged ZBigFile: {state!r:.200} is not (blksize, LOBTree)")
        put = super().__setattr__
        put("blksize", int(state[0]))
        put("blktab", state[1])

    def lives(self) -> bool:
        """Say whether there are handles of it."""
        return bool(handles_of(self))

    def is_of_database(self) -> bool:
        """Say whether the file is unchanged since its Connection loaded it."""
        return zobj_is_committed(self) and all(h.is_of_database() for h in handles_of(self))

    def fileh_open(self, zblk_fmt: str | None = None) -> ZBigFileH:
        """Return a new handle.

        Parameters
        ----------
        zblk_fmt : {'ZBlk0', 'ZBlk1', 'auto', None}
            Format in which it stores blocks; None: that of WENDELIN_CORE_ZBLK_FMT.

        Raises
        ------
        ConnectionStateError
            The file does not belong to a Connection yet.
        """
        conn = self._p_jar
        if conn is None:
            raise ConnectionStateError(
                "the file does not belong to a Connection yet: add it to the database and commit, "
                "or conn.add() it"
            )
        if self.blktab._p_jar is None:
            conn.add(self.blktab)
        handle = ZBigFileH(ZFile(self, conn, zblk_fmt))
        # not a WeakSet, which takes long to make: there may be thousands of files
        self._v_handles = [weakref.ref(h) for h in (*handles_of(self), handle)]
        return handle
