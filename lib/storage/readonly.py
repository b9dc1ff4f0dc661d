"""A storage of any kind, made read-only.

Files and ZEO servers have an option for that. This module is for storages of other resolvers of
URLs. It knows the methods that storages have.
"""

from __future__ import annotations

from typing import Any, NoReturn

from ZODB.POSException import ReadOnlyError

__all__ = ["made_read_only"]

#: methods that change something, or begin to
_WRITES = (
    "cleanup",
    "copyTransactionsFrom",
    "deleteObject",
    "new_oid",
    "pack",
    "restore",
    "restoreBlob",
    "store",
    "storeBlob",
    "tpc_begin",
    "undo",
    "zap_all",
)


def _refuse(*args: Any, **kw: Any) -> NoReturn:
    raise ReadOnlyError


def made_read_only(storage: Any) -> Any:
    """Make a storage read-only, and the instances that it makes, and return it.

    Raises
    ------
    AttributeError
        Its methods cannot be replaced.
    """
    for call in _WRITES:
        if hasattr(storage, call):
            setattr(storage, call, _refuse)
    storage.isReadOnly = lambda: True
    new_instance = getattr(storage, "new_instance", None)
    if new_instance is not None:  # one for each Connection, maybe of a past state
        storage.new_instance = lambda *a, **kw: made_read_only(new_instance(*a, **kw))
    return storage
