"""Databases for tests: one class a kind of storage, all with the same few methods.

WENDELIN_CORE_TEST_DB says which kind: fs. zeo and neo are to come with their servers; a kind
adds a class here and nothing elsewhere.
"""

import os
from pathlib import Path
from typing import Protocol


class Database(Protocol):
    """A database of its own for one test, with whatever has to run for it."""

    url: str  # for dbopen(), by any number of clients

    def __init__(self, folder: Path) -> None:
        """Start what has to run; data goes to the folder."""

    def stop(self) -> None:
        """Stop what was started."""

    @staticmethod
    def describe() -> str:
        """Return what the header of a test run says."""


class FileStorageDatabase:
    """A file. One client at a time may have it open."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder / "test.fs")

    def stop(self) -> None:
        """Nothing runs."""

    @staticmethod
    def describe() -> str:
        from importlib.metadata import version

        import ZODB

        return f"fs: ZODB.FileStorage of ZODB {version(ZODB.__name__)}"


KINDS: dict[str, type[Database]] = {"fs": FileStorageDatabase}


def kind() -> type[Database]:
    """Return the kind of storage that this test run is for."""
    name = os.environ.get("WENDELIN_CORE_TEST_DB", "fs")
    if name not in KINDS:
        raise ValueError(f"WENDELIN_CORE_TEST_DB is {name!r}: it must be one of {', '.join(KINDS)}")
    return KINDS[name]
