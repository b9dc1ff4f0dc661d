"""open(): opens a database for its root group, and closes it.

This module knows URLs and Connections, but not the contents of groups.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from transaction import TransactionManager
from ZODB.POSException import POSKeyError, ReadOnlyError
from ZODB.utils import tid_repr

from wendelin.lib.zodb import dbclose, dbopen, zconn_check_open, zconn_name, zdb_last
from wendelin.tree.moments import Moment, moment, tid_time
from wendelin.tree.tags import read_tags, tag_moment

__all__ = ["MODES", "file_of", "moment_of", "open_root", "past_root"]

MODES = {
    "r": "read it; it must exist",
    "r+": "read and change it; it must exist",
    "a": "read and change it; it is made if it does not exist",
    "x": "make it; it must not exist",
}


def open_root(url: str | os.PathLike[str], mode: str, at: Moment | None) -> tuple[Any, Any]:
    """Open a database; return its root object, and a function that closes it.

    Raises
    ------
    ValueError
        The mode is not valid, or would change a past state; see dbopen() and moment_of().
    FileExistsError, FileNotFoundError
        It must not exist, but does; or the reverse.
    OSError, ZEO.Exceptions.ClientDisconnected
        See dbopen().
    """
    url = os.fspath(url)
    if mode not in MODES:
        known = ", ".join(f"{name!r} ({what})" for name, what in MODES.items())
        hint = "; to begin again, remove the file" if mode == "w" else ""
        raise ValueError(f"mode is {mode!r}: it must be one of {known}{hint}")
    if at is not None and mode not in ("r", "a"):
        raise ValueError(f"mode is {mode!r}: the past, at={at!r}, can only be read")
    path = file_of(url)
    if path is not None:
        there = os.path.exists(path)
        if there and mode == "x":
            raise FileExistsError(f"{path!r} exists already: mode 'a' or 'r+' opens it")
        if not there and (mode in ("r", "r+") or at is not None):
            raise FileNotFoundError(f"there is no database {path!r}: mode 'a' makes one")
    elif mode == "x":
        raise ValueError(f"mode is 'x': {url!r} is not a file, and exists already: use 'a'")
    try:
        root = dbopen(url, read_only=mode == "r" or at is not None)
    except ReadOnlyError as e:
        raise ValueError(f"{url!r} is empty: there is nothing to read") from e
    if at is None:
        return root, lambda: dbclose(root)
    try:
        past, close = past_root(root._p_jar, at)
    except BaseException:
        dbclose(root)
        raise

    def close_both() -> None:
        close()
        dbclose(root)

    return past, close_both


def file_of(url: str) -> str | None:
    """Return the path of the file that a URL means; None if it is not a file."""
    if url.startswith("file://"):
        path = url.removeprefix("file://").partition("?")[0]
        return path if os.path.lexists(path) else unquote(path)
    return None if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url) else url


def past_root(conn: Any, at: Moment) -> tuple[Any, Callable[[], None]]:
    """Return the root object of a past state, and a function that closes it; see moment_of().

    Raises
    ------
    ValueError
        The database was empty then.
    """
    zconn_check_open(conn)
    db = conn.db()
    tid = moment_of(conn, at)
    past = db.open(TransactionManager(), at=min(tid, zdb_last(db)))

    def close() -> None:
        with suppress(Exception):
            past.transaction_manager.abort()
        past.close()

    try:
        return past.root(), close
    except POSKeyError:
        close()
        raise ValueError(
            f"{zconn_name(conn)} has nothing of {tid_time(tid)} (tid {tid_repr(tid)}): it was made "
            f"later, or packed since"
        ) from None


def moment_of(conn: Any, at: Moment) -> bytes:
    """Return the tid of a moment of a database; a text may be a tag of it, too.

    Raises
    ------
    ValueError, TypeError
        It is not a moment: see moment().
    """
    if not isinstance(at, str):
        return moment(at)
    found = tag_moment(conn, at)
    if found is not None:
        return found
    try:
        return moment(at)
    except ValueError as e:
        tags = ", ".join(map(repr, read_tags(conn)))
        raise ValueError(f"{e}; or a tag of the database ({tags or 'it has none'})") from None
