"""Which storages are clients of ZEO servers: known without an import of ZEO.

ZEO takes asyncio and TLS along, a third of the time in which wendelin.core is imported; a program
that opens a file needs none of it. A client of ZEO can only be there if ZEO was imported.

It knows names of modules. Locking: none.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from ZEO.ClientStorage import ClientStorage

    from wendelin.lib.storage.zeoclient import ZEOClient

__all__ = ["WAIT", "is_client", "is_our_client"]

WAIT = 30  # for a connection, or an answer [s]


def is_client(storage: object) -> TypeGuard[ClientStorage]:
    """Say whether a storage is a client of a ZEO server."""
    module = sys.modules.get("ZEO.ClientStorage")
    return module is not None and isinstance(storage, module.ClientStorage)


def is_our_client(storage: object) -> TypeGuard[ZEOClient]:
    """Say whether a storage is a client of a ZEO server, as dbopen() makes it."""
    module = sys.modules.get("wendelin.lib.storage.zeoclient")
    return module is not None and isinstance(storage, module.ZEOClient)
