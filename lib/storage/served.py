"""What a client asks of our storage behind a ZEO server, for which ZEO has no call.

A server passes some calls to its storage as they are. One of them is loadSerial(oid, tid). For an
oid that no object has, AlignedFileStorage answers in bytes; any other storage says POSKeyError, and
the client knows that it must do without.

    loadSerial(PLACE, b"")                 which file it is: see Place
    loadSerial(REVISIONS, before + oids)   tids of the revisions that the state before a tid has

This module knows what is asked and answered. It does not know how a server is asked.
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from ZODB.POSException import POSKeyError
from ZODB.utils import z64

__all__ = ["ASKED", "PLACE", "REVISIONS", "Place", "answer", "place_in", "revisions_in", "token_of"]

PLACE = b"wc.file?"  #: no object has these oids
REVISIONS = b"wc.tids?"
ASKED = (PLACE, REVISIONS)

_ENDS = 4096  # that are compared at the beginning, and at the end [bytes]


class Place(NamedTuple):
    """Where a file is, and what it has."""

    path: str
    inode: int
    end: int  # of the last transaction [bytes]
    token: str


def token_of(fd: int, end: int) -> str:
    """Return what tells a file from others; end: of its last transaction [bytes]."""
    start = max(0, end - _ENDS)
    begin, last = os.pread(fd, min(end, _ENDS), 0), os.pread(fd, end - start, start)
    return sha256(begin + last).hexdigest()


class Asked(Protocol):
    """An AlignedFileStorage, as this module sees it."""

    path: str
    end: int
    readers: Any

    def stat(self, oids: list[bytes], before: bytes) -> list[Any]: ...


def answer(storage: Asked, oid: bytes, asked: bytes) -> bytes:
    """Return the answer of a storage; POSKeyError: that cannot be asked."""
    if oid == PLACE:
        with storage.readers.get() as file:
            fd, end = file.fileno(), storage.end
            inode = os.fstat(fd).st_ino
            place = Place(os.path.realpath(storage.path), inode, end, token_of(fd, end))
        return json.dumps(place).encode()
    if oid == REVISIONS and len(asked) % 8 == 0 and asked:
        oids = [asked[i : i + 8] for i in range(8, len(asked), 8)]
        found = storage.stat(oids, asked[:8])
        return b"".join(z64 if of is None else of.tid for of in found)
    raise POSKeyError(oid)


def place_in(data: bytes) -> Place:
    """Return the Place in an answer."""
    return Place(*json.loads(data))


def revisions_in(data: bytes) -> list[bytes | None]:
    """Return the tids in an answer; None: the state does not have the object."""
    tids = [data[i : i + 8] for i in range(0, len(data), 8)]
    return [None if tid == z64 else tid for tid in tids]
