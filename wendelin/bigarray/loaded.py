"""Rows that stay accessible for a while, also to the kernel and to foreign threads.

This module knows a handle, whose pages it releases, and the array, which keeps them until then.
"""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

from wendelin.bigfile.virtmem.handle import BigFileH
from wendelin.bigfile.virtmem.pins import pinned, unpin

__all__ = ["Loaded"]


class Loaded:
    """The result of A.load(idx): rows that stay accessible until the next transaction boundary.

    As a context manager it returns the view A[idx], and releases the rows at the end:

        with A.load(slice(0, 1000)) as a:
            sock.sendall(a)

    Attributes
    ----------
    view : ndarray or scalar
        A[idx].
    """

    def __init__(
        self,
        view: Any,
        fileh: BigFileH | None = None,
        pages: tuple[int, int] = (0, 0),
        array: Any = None,
    ) -> None:
        self.view = view
        self._fileh = fileh
        self._pages = pages
        # The array keeps it, and so the mapping, for views that are taken later.
        self._array = None if array is None else weakref.ref(array)
        if array is not None:
            kept = [other for other in getattr(array, "_v_loaded", ()) if other.holds]
            array._v_loaded = [*kept, self]

    @property
    def holds(self) -> bool:
        """Say whether the rows are still kept accessible."""
        return self._fileh is not None and self._pages in pinned(self._fileh)

    def release(self) -> None:
        """Release the rows: the pager may give them back. Changes stay in the transaction."""
        fileh, self._fileh = self._fileh, None
        if fileh is not None:
            unpin(fileh, *self._pages)
        array = self._array() if self._array is not None else None
        kept = vars(array).get("_v_loaded") if array is not None else None  # also of a ghost
        if kept:
            kept[:] = [other for other in kept if other is not self and other.holds]

    def __enter__(self) -> Any:
        return self.view

    def __exit__(
        self,
        cls: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
