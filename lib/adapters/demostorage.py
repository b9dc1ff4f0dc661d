"""DemoStorage: packs what it keeps changes in.

DemoStorage.pack() asks for an attribute that it has only if it has made the storage of changes
itself: else it ends with an AttributeError, and does not come to the storage to pack.
"""

from __future__ import annotations

from ZODB.DemoStorage import DemoStorage

__all__ = ["let_pack"]

#: class -> private names of its instances
PRIVATE = {"ZODB.DemoStorage.DemoStorage": ("_temporary_changes",)}


def let_pack() -> None:
    """Let any DemoStorage be packed."""
    if not hasattr(DemoStorage, "_temporary_changes"):
        DemoStorage._temporary_changes = False
