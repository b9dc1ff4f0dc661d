"""Databases for tests: one class a kind of storage, all with the same few methods.

WENDELIN_CORE_TEST_DB says which kind: fs, or fscopy. zeo and neo are to come with their servers; a
kind adds a class here and nothing elsewhere.
"""

import os
from pathlib import Path
from typing import Protocol

from wendelin.lib import fsalign


class Database(Protocol):
    """A database of its own for one test, with whatever has to run for it."""

    url: str  # for dbopen(), by any number of clients

    def __init__(self, folder: Path) -> None:
        """Start what has to run; data goes to the folder."""

    def stop(self) -> None:
        """Stop what was started."""

    @classmethod
    def describe(cls) -> str:
        """Return what the header of a test run says."""


class FileStorageDatabase:
    """A file, out of which blocks are mapped, small as they are here. One client at a time."""

    options = ""

    def __init__(self, folder: Path) -> None:
        self.url = f"file://{folder}/test.fs{self.options}"
        self.smallest = fsalign.SMALLEST
        fsalign.SMALLEST = fsalign.ALIGNMENT

    def stop(self) -> None:
        """Nothing runs."""
        fsalign.SMALLEST = self.smallest

    @classmethod
    def describe(cls) -> str:
        from importlib.metadata import version

        import ZODB

        return f"file://{cls.options}: FileStorage of ZODB {version(ZODB.__name__)}"


class CopiedFileStorageDatabase(FileStorageDatabase):
    """A file, whose blocks are copied as those of any storage are."""

    options = "?align=false"


KINDS: dict[str, type[Database]] = {
    "fs": FileStorageDatabase,
    "fscopy": CopiedFileStorageDatabase,
}


def kind() -> type[Database]:
    """Return the kind of storage that this test run is for."""
    name = os.environ.get("WENDELIN_CORE_TEST_DB", "fs")
    if name not in KINDS:
        raise ValueError(f"WENDELIN_CORE_TEST_DB is {name!r}: it must be one of {', '.join(KINDS)}")
    return KINDS[name]
