"""transact(): calls a function, commits its changes, and calls it again after a conflict.

This module knows transaction managers, but not databases.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import transaction
from transaction.interfaces import NoTransaction

from wendelin.lib.adapters.transactions import resources_of

__all__ = ["has_changes", "transact"]

_T = TypeVar("_T")

_PAUSE = 0.01  # at most, before the second try; twice as long before each next one [s]
_MOST = 1.0  # limit of a pause [s]


def has_changes(manager: Any) -> bool:
    """Say whether a transaction has changes: readers do not join it."""
    try:
        return bool(resources_of(manager.get()))
    except NoTransaction:  # where they are explicit
        return False


def transact(f: Callable[[], _T], tries: int = 10, *, manager: Any = None) -> _T:
    """Call a function, and commit; if another client has changed the same data, try again.

    Changes of the function are aborted before it is called again. So the function must read all
    data from the database itself, and do nothing that cannot be done twice.

    Parameters
    ----------
    f : () -> result
    tries : int
        How often it is called, at most.
    manager : TransactionManager, optional
        Of a Connection that has its own; by default that of the thread.

    Returns
    -------
    The function's result, after the commit of its changes.

    Raises
    ------
    ConflictError, TransientError
        The last try had a conflict, too.
    Exception
        The exception of the function, or of the commit; its changes are aborted.
    ValueError
        tries is not a positive number; or there are changes already, which would be committed, or
        aborted, together with its own.
    """
    if not callable(f):
        raise TypeError(f"{f!r} is not callable: transact() takes a function, as in transact(work)")
    if isinstance(tries, bool) or not isinstance(tries, int) or tries < 1:
        raise ValueError(f"tries is {tries!r}: it must be a positive integer")
    manager = transaction.manager if manager is None else manager
    if has_changes(manager):
        raise ValueError(
            "there are changes that are not committed: transaction.commit() or transaction.abort() "
            "before transact(), which commits, or aborts, all changes of the thread"
        )
    for n in range(1, tries + 1):
        manager.begin()
        try:
            result = f()
            manager.commit()
            return result
        except BaseException as e:
            again = isinstance(e, Exception) and manager.get().isRetryableError(e)
            manager.abort()
            if not again:
                raise
            if n == tries:
                e.add_note(f"transact() has tried it {n} times")
                raise
        # at random, as clients in a conflict would meet again
        time.sleep(random.uniform(0, min(_MOST, _PAUSE * 2**n)))
    raise AssertionError
