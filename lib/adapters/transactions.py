"""Transactions: what has joined one, and what state it is in.

transaction tells neither by a public name.
"""

from __future__ import annotations

from typing import Any

from transaction._transaction import Status

__all__ = ["Status", "leave", "resources_of"]

#: class, or module -> private names of it
PRIVATE = {
    "transaction": ("_transaction",),
    "transaction._transaction.Transaction": ("_resources", "_unjoin"),
}


def resources_of(txn: Any) -> list[Any]:
    """Return what has joined a transaction."""
    return list(txn._resources)


def leave(txn: Any, resource: Any) -> None:
    """Take what has joined a transaction out of it."""
    txn._unjoin(resource)
