"""Tags: names for moments of a database, which a pack keeps.

They are in the root object, as `~tags`: a PersistentMapping of names to tags. A tag is a
PersistentMapping, too, that is written once. It means the transaction of its `tid`. If this is
None, it means the transaction that wrote the tag, so that both are committed together.

This module reads them without a Connection, as data, since a pack of a storage has none. It knows
records.
"""

from __future__ import annotations

import logging
from typing import Any

from persistent.TimeStamp import TimeStamp
from ZODB.POSException import POSKeyError
from ZODB.utils import load_current, z64

from wendelin.lib.storage.inert import Object, Pairs
from wendelin.lib.storage.record import NoClassError, RecordError, Ref, inert_of
from wendelin.lib.storage.relational import look_again

__all__ = ["TAGS", "oldest_tag", "pack_time", "tags_of"]

log = logging.getLogger(__name__)

#: their name in the root object
TAGS = "~tags"


def tags_of(storage: Any) -> dict[str, bytes]:
    """Return the tags of a database: names and tids.

    Raises
    ------
    RecordError
        The object of that name is not a mapping of tags.
    Exception
        What the storage raised.
    """
    look_again(storage)
    root = _mapping(storage, z64)
    ref = root[0].get(TAGS) if root is not None else None
    if ref is None:
        return {}
    found = _mapping(storage, ref.oid) if isinstance(ref, Ref) else None
    if found is None:
        raise RecordError(f"{TAGS!r} of the root object is not a mapping of tags")
    tags: dict[str, bytes] = {}
    for name, tag in found[0].items():
        of = _mapping(storage, tag.oid) if isinstance(tag, Ref) else None
        tid = of[0].get("tid") if of is not None else b""
        if of is None or not (tid is None or (isinstance(tid, bytes) and len(tid) == 8)):
            raise RecordError(f"the tag {name!r} is damaged")
        tags[str(name)] = of[1] if tid is None else tid
    return tags


def _mapping(storage: Any, oid: bytes) -> tuple[dict[Any, Any], bytes] | None:
    """Return the pairs of a PersistentMapping, and the tid that wrote it; None: it is not one."""
    try:
        data, tid = load_current(storage, oid)
    except (POSKeyError, KeyError):
        return None
    try:
        cls, state = inert_of(bytes(data))
    except NoClassError:  # some other program's object, and not damage
        return None
    except RecordError:
        if data[:1] == b".":  # no pickle begins so: encoded by a storage around this one
            return None
        raise
    if not cls.endswith("PersistentMapping") or not isinstance(state, Pairs):
        return None
    pairs = state.get("data", state.get("_container"))
    if isinstance(pairs, Object):
        pairs = None
    return (dict(pairs.pairs) if isinstance(pairs, Pairs) else {}), bytes(tid)


def oldest_tag(storage: Any) -> tuple[str, bytes] | None:
    """Return the tag of the earliest moment, and its tid; None if there is none. See tags_of()."""
    tags = tags_of(storage)
    return min(tags.items(), key=lambda item: item[1]) if tags else None


def pack_time(storage: Any, t: float) -> float:
    """Return a time for a pack, not later than t, at which all tags keep their moments.

    Parameters
    ----------
    storage : storage
    t : float
        The requested time [s since 1970].

    Raises
    ------
    RecordError, Exception
        See tags_of().
    """
    tag = oldest_tag(storage)
    if tag is None:
        return t
    name, tid = tag
    at = TimeStamp(tid)
    # a microsecond before: floats are less exact than tids, and later revisions are kept
    when: float = at.timeTime() - 1e-6
    if t <= when:
        return t
    log.warning(
        "%s: packed as of %s UTC, not later: the tag %r keeps that moment",
        storage.getName(),
        at,
        name,
    )
    return when
