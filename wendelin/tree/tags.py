"""Sets and removes tags of a database: wendelin.lib.storage.tags describes them.

This module knows names and the transaction that sets them, but not how they are stored.
"""

from __future__ import annotations

from typing import Any

from persistent.mapping import PersistentMapping
from ZODB.POSException import ConnectionStateError
from ZODB.utils import z64

from wendelin.lib.storage.tags import TAGS

__all__ = ["read_tags", "remove_tag", "set_tag"]


def read_tags(conn: Any) -> dict[str, bytes | None]:
    """Return the tags that a Connection sees, and their tids; None for the next commit."""
    found = {}
    for name, tag in (conn.root().get(TAGS) or {}).items():
        tid = tag["tid"]  # which loads it
        if tid is None and tag._p_serial != z64 and not tag._p_changed:
            tid = tag._p_serial
        found[name] = tid
    return found


def set_tag(conn: Any, name: str, tid: bytes | None) -> None:
    """Name a moment; None: that of the next commit.

    Raises
    ------
    TypeError
        The name is not a str.
    ValueError
        It names another moment already; it is empty, or looks like a tid.
    """
    check_name(name)
    root = conn.root()
    tags = root.get(TAGS)
    if tags is None:
        tags = root[TAGS] = PersistentMapping()
    if name in tags:
        raise ValueError(f"there is a tag {name!r} already: remove it first, by g.untag({name!r})")
    tags[name] = PersistentMapping(tid=tid)


def remove_tag(conn: Any, name: str) -> None:
    """Remove a name; then a pack may drop the moment.

    Raises
    ------
    KeyError
        There is no such tag.
    """
    tags = conn.root().get(TAGS) or {}
    if name not in tags:
        raise KeyError(unknown_tag(name, tags))
    del tags[name]


def unknown_tag(name: str, tags: Any) -> str:
    """Return the message for a name that is not a tag."""
    have = ", ".join(map(repr, tags)) or "none"
    return f"there is no tag {name!r}: the database has {have}"


def check_name(name: Any) -> None:
    """Check that a name can be a tag; see set_tag()."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a tag is {name!r}: it must be a str")
    if not name or not name.isprintable() or name != name.strip():
        raise ValueError(f"the name of a tag is {name!r}: it must be printable text")


def tag_moment(conn: Any, name: str) -> bytes | None:
    """Return the tid of a tag; None if there is no such tag.

    Raises
    ------
    ConnectionStateError
        It names the next commit.
    """
    tags = read_tags(conn)
    if name not in tags:
        return None
    tid = tags[name]
    if tid is None:
        raise ConnectionStateError(f"the tag {name!r} is not committed yet: commit first")
    return tid
