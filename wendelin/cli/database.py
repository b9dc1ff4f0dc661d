"""Databases, opened for a command: of now, or of a moment in the past.

A command that only reads opens a file such that it need not be free: others may have it open, and
nothing is made where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from typing import Any

import click
import transaction
from persistent.TimeStamp import TimeStamp
from zc.lockfile import LockError
from ZODB.POSException import POSKeyError, ReadOnlyError

from wendelin.cli.errors import Failure, explain
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen

__all__ = ["opened", "storage_opened", "tid_time"]


def tid_time(tid: bytes) -> datetime:
    """Return when a transaction was, in local time."""
    return datetime.fromtimestamp(TimeStamp(tid).timeTime()).astimezone()


def _refuse(url: str, error: Exception) -> Failure:
    """Return what is to be told of a database that cannot be opened."""
    if isinstance(error, LockError):
        return Failure(f"{url} is in use: another program has it open, to change it")
    if isinstance(error, ReadOnlyError):  # its root object could not be made
        return Failure(f"{url} is empty")
    if isinstance(error, ValueError):  # of the URL, or what is in the file
        return Failure(f"{url} cannot be opened: {error}")
    return Failure(f"{url} cannot be opened: {explain(error)}")


@contextmanager
def opened(url: str, *, write: bool = False, at: bytes | None = None) -> Iterator[Any]:
    """Open a database for a while; yield its root object.

    Parameters
    ----------
    url : str
    write : bool
        It is going to be changed.
    at : bytes, optional
        The last transaction that is to be seen.

    Raises
    ------
    Failure
        It cannot be opened, or there was nothing at that moment.
    """
    try:
        root = dbopen(url, read_only=not write)
    except (MemoryError, click.ClickException):
        raise
    except Exception as e:
        raise _refuse(url, e) from e
    try:
        if at is None:
            yield root
        else:
            with closing(_connection_at(root, at, url)) as conn:
                yield conn.root()
    finally:
        transaction.abort()
        with suppress(Exception):  # a server may be gone; what is told is what came of that
            dbclose(root)


def _connection_at(root: Any, at: bytes, url: str) -> Any:
    db = root._p_jar.db()
    conn = db.open(at=min(at, db.lastTransaction()))
    try:
        conn.root()._p_activate()
    except POSKeyError:
        conn.close()
        raise Failure(f"{url} had nothing in it at {tid_time(at)} (tid {at.hex()})") from None
    return conn


@contextmanager
def storage_opened(url: str, *, write: bool = False) -> Iterator[Any]:
    """Open the storage of a database for a while; see opened()."""
    try:
        storage = dbstoropen(url, read_only=not write)
    except (MemoryError, click.ClickException):
        raise
    except Exception as e:
        raise _refuse(url, e) from e
    try:
        yield storage
    finally:
        with suppress(Exception):
            storage.close()
