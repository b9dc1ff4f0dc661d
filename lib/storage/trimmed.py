"""What is left of a revision whose payload was given back: an object that says so.

Its class path is in databases, and stays.
"""

from __future__ import annotations

from wendelin.lib.storage.record import RecordError

__all__ = ["HEAD", "PACKED_AWAY", "PackedAway", "TrimmedError"]

#: "module.name" of the class in databases
PACKED_AWAY = "wendelin.lib.storage.trimmed.PackedAway"

#: a record of it: class and state, as ZODB pickles them; what follows it in a file is not read
HEAD = b"\x80\x03cwendelin.lib.storage.trimmed\nPackedAway\nq\x01.\x80\x03N."


class TrimmedError(RecordError):
    """A revision that is asked for was trimmed: the database keeps no state as old as that."""


class PackedAway:
    """An object whose revision was trimmed; it has no state."""

    def __setstate__(self, state: None) -> None:
        """Take no state."""
