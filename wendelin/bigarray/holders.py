"""Persistent objects that have rows in arrays of their own: a ZSparse, a segment of a ZRagged.

It knows when such an object stays loaded, and when its rows are lost. What its arrays are, its
class knows.
"""

from __future__ import annotations

from typing import Any

from wendelin.lib.utils import override
from wendelin.lib.zodb import LivePersistent

__all__ = ["ArrayHolder"]


class ArrayHolder(LivePersistent):
    """A persistent object with arrays of its own.

    A class that loads its arrays to stay loaded sets `_v_live`; one that writes rows before the
    first commit sets `_v_first_oid`.
    """

    _kept: tuple[str, ...] = ("_v_live",)
    _v_live = False
    _v_first_oid: bytes | None = None  # what it had when rows came before the first commit
    _came = "rows came to an object"  # how, in errors

    @override
    def lives(self) -> bool:
        return self._v_live

    def __getstate__(self) -> Any:
        if self._v_first_oid not in (None, self._p_oid):
            raise ValueError(
                f"{self._came} before the transaction that added it to a database was aborted, and "
                f"are lost: make another one, not {self!r} again"
            )
        return super().__getstate__()
