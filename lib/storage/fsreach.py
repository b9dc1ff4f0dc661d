"""Which records of a Data.fs can still be reached, as FileStorage finds it, without payloads.

FileStorage's own walk goes over the headers of all records, and reads the objects that it comes
to, to find what they refer to. An object whose state is one piece of bytes, as a block is, refers
to nothing: of a large record the head is read, which says so.

It knows FileStorage's walk, and records. What becomes of what cannot be reached, others know: pack
and trim.
"""

from __future__ import annotations

from typing import Any

from ZODB.FileStorage.fspack import GC

from wendelin.lib.storage.record import Payload, RecordError, find_payload

__all__ = ["HEAD", "LARGE", "Reachable", "payload_of"]

#: records of this size, and above, are looked at by their heads [bytes]
LARGE = 1 << 14
#: of a record, which has the beginning of a payload: its class, a pad, an opcode [bytes]
HEAD = 1 << 13


def payload_of(head: bytes, size: int) -> Payload | None:
    """Return where the bytes of a record are, by its beginning; None: it is something else."""
    try:
        return find_payload(head, size)
    except RecordError:
        return None


class Reachable(GC):  # type: ignore[misc]  # ZODB has no type hints
    """Finds which revisions can be reached at the pack time, or later."""

    def findrefs(self, pos: int) -> Any:
        """Return the objects that a record refers to."""
        header = self._read_data_header(pos)
        while header.back:
            header = self._read_data_header(header.back)
        if header.plen >= LARGE:
            at = self._file.tell()
            if payload_of(self._file.read(HEAD), header.plen) is not None:
                return []
            self._file.seek(at)
        return self.referencesf(self._file.read(header.plen)) if header.plen else []
