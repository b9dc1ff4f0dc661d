"""References to objects of a database, as other processes get them: (URL, oid, tid).

Such an object is pickled as a reference to its committed state. In the other process it is read
from a database that is opened once, for all references.

This module knows persistent objects, but not what they have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import PicklingError
from typing import Any, TypeVar

from ZODB.utils import oid_repr

from wendelin.lib.storage.shared import zconn_past
from wendelin.lib.zodb import zconn_at, zstor_2zurl

__all__ = ["Reference", "object_at", "reference_to"]

#: URL of the database, oid, and tid of the last transaction that is visible
Reference = tuple[str, bytes, bytes]

T = TypeVar("T")


def reference_to(obj: Any, *, committed: bool) -> Reference:
    """Return a reference to an object, in the state that its Connection sees.

    Parameters
    ----------
    obj : Persistent
    committed : bool
        Whether the database has that state, of the object and of all that belongs to it.

    Raises
    ------
    pickle.PicklingError
        There are changes that are not committed.
    NotImplementedError
        No URL names the database: see zstor_2zurl().
    """
    if not committed:
        raise PicklingError(
            f"{obj!r} has changes that are not committed, and a pickle of it is a reference to the "
            f"database: commit them first"
        )
    conn = obj._p_jar
    return zstor_2zurl(conn.db().storage), obj._p_oid, zconn_at(conn)


@contextmanager
def object_at(reference: Reference, cls: type[T]) -> Iterator[T]:
    """Yield the object of a reference; no other thread loads objects of its Connection meanwhile.

    Raises
    ------
    TypeError
        The object is of another class.
    ZODB.POSException.POSKeyError
        There is no such object, or a pack has removed it.
    ValueError, OSError, ZEO.Exceptions.ClientDisconnected
        See zconn_past().
    """
    url, oid, tid = reference
    with zconn_past(url, tid) as conn:
        obj = conn.get(oid)
        if not isinstance(obj, cls):
            raise TypeError(
                f"object {oid_repr(oid)} of {url} is a {type(obj).__name__}, not a {cls.__name__}"
            )
        yield obj
