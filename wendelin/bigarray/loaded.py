"""Rows that are accessible to anybody for a while: also to the kernel, and to foreign threads.

It knows a handle, whose pages it lets go.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from wendelin.bigfile.virtmem import BigFileH

__all__ = ["Loaded"]


class Loaded:
    """What A.load(idx) returns: rows that stay accessible until the next transaction boundary.

    As a context manager it gives the view A[idx], and lets go at the end:

        with A.load(slice(0, 1000)) as a:
            sock.sendall(a)

    Attributes
    ----------
    view : ndarray or scalar
        A[idx].
    """

    def __init__(self, view: Any, fileh: BigFileH | None, pages: tuple[int, int]) -> None:
        self.view = view
        self._fileh = fileh
        self._pages = pages

    @property
    def holds(self) -> bool:
        """Say whether the rows are still kept accessible."""
        return self._fileh is not None and self._pages in self._fileh.pins

    def release(self) -> None:
        """Let go: the rows may be given back. Changes stay in the transaction."""
        fileh, self._fileh = self._fileh, None
        if fileh is not None:
            fileh.unpin(*self._pages)

    def __enter__(self) -> Any:
        return self.view

    def __exit__(
        self,
        cls: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
