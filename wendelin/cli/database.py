"""Databases, opened for a command: of now, or of a moment in the past.

A command that only reads opens a file such that it need not be free: others may have it open, and
nothing is made where there is none. And it loads no objects: what is in a database may be of a
stranger, and it runs no code of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import click
import transaction
from persistent.TimeStamp import TimeStamp
from zc.lockfile import LockError
from ZODB.POSException import POSKeyError, ReadOnlyError
from ZODB.utils import z64

from wendelin.cli.errors import Failure, explain
from wendelin.cli.stored import Database
from wendelin.lib.storage.snapshot import Snapshot
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen

__all__ = ["opened", "opened_to_write", "storage_opened", "tid_time"]


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
def opened(url: str, *, at: bytes | None = None, once: bool = False) -> Iterator[Database]:
    """Open a database for a while, to read it; yield its objects. None of them is loaded.

    Parameters
    ----------
    url : str
    at : bytes, optional
        The last transaction that is to be seen.
    once : bool
        Each object is looked at once: see Snapshot.

    Raises
    ------
    Failure
        It cannot be opened, or there was nothing at that moment.
    """
    with storage_opened(url) as storage:
        try:
            snapshot = Snapshot(storage, at, once=once)
        except (MemoryError, click.ClickException):
            raise
        except Exception as e:
            raise _refuse(url, e) from e
        try:
            snapshot.load(z64)
        except POSKeyError:
            if at is None:
                raise Failure(f"{url} is empty") from None
            when = f"{tid_time(at)} (tid {at.hex()})"
            raise Failure(f"{url} had nothing in it at {when}") from None
        yield Database(snapshot)


@contextmanager
def opened_to_write(url: str) -> Iterator[Any]:
    """Open a database for a while, to change it; yield its root object.

    Objects are loaded: this is not for a database of a stranger.

    Raises
    ------
    Failure
        It cannot be opened.
    """
    try:
        root = dbopen(url)
    except (MemoryError, click.ClickException):
        raise
    except Exception as e:
        raise _refuse(url, e) from e
    try:
        yield root
    finally:
        transaction.abort()
        with suppress(Exception):  # a server may be gone; what is told is what came of that
            dbclose(root)


@contextmanager
def storage_opened(url: str, *, write: bool = False) -> Iterator[Any]:
    """Open the storage of a database for a while."""
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
