"""Databases, opened for a command, in their present or a past state.

A command that only reads can open a file that other programs have open. It makes no file if there
is none. And it loads no objects: a database may be a stranger's, and none of its code is run.

This module knows URLs, storages and moments, but not what a database has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
import transaction
from zc.lockfile import LockError
from ZODB.POSException import POSKeyError, ReadOnlyError
from ZODB.utils import z64

from wendelin.cli.errors import Failure, explain
from wendelin.cli.stored import Database
from wendelin.lib.storage.dburl import without_password
from wendelin.lib.storage.fsholder import lock_holder
from wendelin.lib.storage.snapshot import Snapshot
from wendelin.lib.storage.tags import tags_of
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen
from wendelin.tree.moments import EXAMPLES, tid_time
from wendelin.tree.opening import file_of

__all__ = ["opened", "opened_to_write", "storage_opened", "tid_time"]


def _refuse(url: str, error: Exception) -> Failure:
    """Return the failure to report for a database that cannot be opened."""
    shown = without_password(url)
    if isinstance(error, LockError):
        path = file_of(url)
        holder = lock_holder(os.path.realpath(path)) if path is not None else ""
        return Failure(f"{shown} is in use: {holder or 'another program'} has it open to write")
    if isinstance(error, ReadOnlyError):  # its root object could not be made
        return Failure(f"{shown} is empty")
    if isinstance(error, ValueError):  # because of the URL, or of bytes in the file
        return Failure(f"{shown} cannot be opened: {error}")
    return Failure(f"{shown} cannot be opened: {explain(error)}")


@contextmanager
def opened(url: str, *, at: bytes | str | None = None, once: bool = False) -> Iterator[Database]:
    """Open a database to read it; yield its objects. None of them is loaded.

    Parameters
    ----------
    url : str
    at : bytes or str, optional
        The last transaction that is visible; or a tag.
    once : bool
        Each object is read once: see Snapshot.

    Raises
    ------
    Failure
        It cannot be opened, or was empty at that moment.
    """
    with storage_opened(url) as storage:
        at = _tagged(url, storage, at) if isinstance(at, str) else at
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
                raise Failure(f"{without_password(url)} is empty") from None
            when = f"{tid_time(at)} (tid {at.hex()})"
            raise Failure(f"{without_password(url)} was empty at {when}") from None
        yield Database(snapshot)


def _tagged(url: str, storage: Any, tag: str) -> bytes:
    """Return the tid of a tag.

    Raises
    ------
    Failure
        There is no such tag.
    """
    tags = tags_of(storage)
    if tag not in tags:
        have = ", ".join(map(repr, tags)) or "none"
        raise Failure(
            f"{tag!r} is neither {EXAMPLES}; nor a tag of {without_password(url)}, which has {have}"
        )
    return tags[tag]


@contextmanager
def opened_to_write(url: str) -> Iterator[Any]:
    """Open a database to change it; yield its root object.

    Objects are loaded: do not use this for a database of a stranger.

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
        with suppress(Exception):  # a server may be gone; the error of the command is reported
            dbclose(root)


@contextmanager
def storage_opened(url: str, *, write: bool = False) -> Iterator[Any]:
    """Open the storage of a database, and close it at the end."""
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
