"""Which records of a Data.fs can still be reached: FileStorage's walk, without reading payloads.

FileStorage's own walk goes over the headers of all records, and reads reachable objects, to find
their references. An object whose state is one piece of bytes, such as a block, has no references.
The head of a large record shows this, so only the head is read.

This module knows FileStorage's walk, and records. Pack and trim decide about unreachable records.
"""

from __future__ import annotations

from typing import Any

from wendelin.lib.adapters.filestorage import Reach
from wendelin.lib.storage.record import Payload, Read, RecordError, find_payload

__all__ = ["HEAD", "LARGE", "Reachable", "payload_of"]

#: for records of this size, and above, only heads are read [bytes]
LARGE = 1 << 14
#: of a record, which has the beginning of a payload: its class, a pad, an opcode [bytes]
HEAD = 1 << 13


def payload_of(head: bytes, size: int, read: Read) -> Payload | None:
    """Return where the bytes of a record are, from its beginning; None: it is of another kind."""
    try:
        return find_payload(head, size, read)
    except RecordError:
        return None


class Reachable(Reach):
    """Finds which revisions can be reached at the pack time, or later."""

    def findrefs(self, pos: int) -> Any:
        """Return the objects that a record refers to."""
        header = self.read_record(pos)
        while header.back:
            header = self.read_record(header.back)
        if header.plen >= LARGE:
            at = self.file.tell()

            def read(start: int, size: int) -> bytes:
                self.file.seek(at + start)
                return bytes(self.file.read(size))

            if payload_of(read(0, HEAD), header.plen, read) is not None:
                return []
            self.file.seek(at)
        return self.referencesf(self.file.read(header.plen)) if header.plen else []
