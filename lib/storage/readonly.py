"""A storage that is opened to be read: nothing changes it, whatever kind of storage it is.

Files and ZEO servers know it by themselves. Here it is for what other resolvers of URLs open. It
knows the methods that storages have.
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
    """Return a storage, which cannot be changed from now on; nor can those that it makes.

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
    if new_instance is not None:  # one for each Connection, maybe of a moment in the past
        storage.new_instance = lambda *a, **kw: made_read_only(new_instance(*a, **kw))
    return storage
