"""ZEO's server: where what a client stores waits for the vote.

A commit log pickles it by protocol 1, which has no bytes: each store is encoded as text, by UTF-8,
which makes it half as long again, and decoded at the vote. This is three fifths of the server's
work for a commit. Protocol 3 has bytes.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

__all__ = ["keep_bytes"]

#: of names that have no underscore, but no documentation either; see zeo
UNDOCUMENTED = {"ZEO.StorageServer.CommitLog": ("file", "pickler")}


def keep_bytes() -> None:
    """Let commit logs of this process keep bytes as bytes, if it is a ZEO server."""
    # runzeo opens its storages first
    if not {"ZEO.StorageServer", "ZEO.runzeo"} & sys.modules.keys():
        return
    server: Any = import_module("ZEO.StorageServer")
    if server.CommitLog.__module__ == server.__name__:
        server.CommitLog = _log_of_bytes(server.CommitLog)


def _log_of_bytes(base: Any) -> type[Any]:
    class CommitLog(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            _begin(self)

    return CommitLog


def _begin(log: Any) -> None:
    log.pickler = type(log.pickler)(log.file, 3)
    log.pickler.fast = 1  # no memo: stores have nothing in common
