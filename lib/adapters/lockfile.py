"""zc.lockfile: the file that a lock has open, for a child of a fork to let go of."""

from __future__ import annotations

from typing import Any

__all__ = ["lock_file"]

#: class -> private names of its instances
PRIVATE = {"zc.lockfile.LockFile": ("_fp",)}


def lock_file(lock: Any) -> Any:
    """Return the file of a lock; None: it was given back, or there is no lock."""
    return getattr(lock, "_fp", None)
