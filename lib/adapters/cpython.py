"""What CPython has of frames and signals, and the library under xxhash.

The two functions of `sys` are documented, as what other Pythons need not have. `_signal` is what
`signal` is made of.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # it has no type hints
import ctypes
import sys

__all__ = ["current_frame", "getsignal", "library_of_xxhash", "running_frames", "set_handler"]

#: module -> private names of it
PRIVATE = {
    "_signal": ("getsignal", "signal"),
    "sys": ("_current_frames", "_getframe"),
    "xxhash": ("_xxhash",),
}

# They are these functions themselves, not functions that call them: the frame is the caller's.
current_frame = sys._getframe
running_frames = sys._current_frames
# signal.py makes enums of what these return, which takes ten times as long
getsignal = _signal.getsignal
set_handler = _signal.signal


def library_of_xxhash() -> ctypes.CDLL | None:
    """Return the C library that xxhash was built with, in its extension module; None: unknown."""
    module = sys.modules.get("xxhash._xxhash")
    path = getattr(module, "__file__", None)
    try:
        return ctypes.CDLL(path) if path is not None else None
    except OSError:
        return None
