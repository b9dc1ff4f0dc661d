"""Databases, opened for a command: of now, or of a moment in the past.

A command that only reads opens a file such that it need not be free: others may have it open, and
nothing is made where there is none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import transaction
from persistent.TimeStamp import TimeStamp
from zc.lockfile import LockError
from ZODB.POSException import POSKeyError, ReadOnlyError
from ZODB.utils import p64, u64

from wendelin.cli.errors import Failure, explain
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen

__all__ = ["MomentType", "opened", "storage_opened", "tid_time"]


def tid_time(tid: bytes) -> datetime:
    """Return when a transaction was, in local time."""
    return datetime.fromtimestamp(TimeStamp(tid).timeTime()).astimezone()


class MomentType(click.ParamType):
    """A moment of a database: a tid, or the end of the day, minute or second that is named."""

    name = "TID|TIME"

    def convert(
        self, value: str | bytes, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        """Return the last tid that is of the moment."""
        if isinstance(value, bytes):
            return value
        if match := re.fullmatch(r"(?:0x)?([0-9a-fA-F]{16})", value):
            return bytes.fromhex(match[1])
        try:
            begin = datetime.fromisoformat(value).astimezone()
            if begin.timestamp() > time.time():
                self.fail(f"{value!r} is in the future", param, ctx)
            end = begin + _precision(value)
            at = end.astimezone(UTC)
            stamp = TimeStamp(*at.timetuple()[:5], at.second + at.microsecond / 1e6).raw()
            return p64(u64(stamp) - 1)  # type: ignore[no-any-return]
        except (ValueError, OverflowError, OSError) as e:
            self.fail(
                f"{value!r} is neither a tid, 16 hexadecimal digits, nor a time, as in "
                f"2026-01-31T18:30 ({e})",
                param,
                ctx,
            )


def _precision(text: str) -> timedelta:
    """Return how long what a time names takes: a day, or down to a microsecond."""
    match = re.match(r"[^T ]+([T ]\d\d(:?\d\d(:?\d\d([.,]\d+)?)?)?)?", text)
    hours, minutes, seconds, fraction = match.groups() if match else (None,) * 4
    if fraction:
        return timedelta(microseconds=10 ** max(0, 7 - len(fraction)))
    if seconds:
        return timedelta(seconds=1)
    if minutes:
        return timedelta(minutes=1)
    return timedelta(hours=1) if hours else timedelta(days=1)


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
