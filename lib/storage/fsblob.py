"""Blobs of a FileStorage on disk: their files and folders are there before a commit counts.

FileStorage moves a blob's file to its place at the store, and syncs nothing. After a power failure,
a committed blob can be empty or without a name. And if the marker of the layout is blank, ZODB
refuses the folder of blobs for ever.

This module knows ZODB's two layouts of folders of blobs. ZODB stores, moves and removes blobs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wendelin.lib.storage.fssync import sync_folder

__all__ = ["blank_layout", "missing_folders", "sync_blobs", "sync_new_folder", "write_layout"]

_MARKER = ".layout"
_NOT_BLOBS = {_MARKER, "tmp", ".removed"}


def blank_layout(folder: str) -> str | None:
    """Return the layout of a folder of blobs whose marker is blank; None: ZODB finds out.

    The marker is made with the folder. It is blank if the power failed before it was on disk. That
    can be long after, if stock FileStorage has made it.
    """
    top = Path(folder)
    bushy = any(top.glob("0x*/0x??"))  # oids, a folder a byte; or lawn: a folder an oid
    try:
        if (top / _MARKER).read_bytes().strip(b"\0\n "):
            return None
    except FileNotFoundError:
        return "bushy" if bushy else None
    used = {path.name for path in top.iterdir()} - _NOT_BLOBS
    return "lawn" if used and not bushy else "bushy"


def write_layout(folder: str, layout: str) -> None:
    """Write the marker of a folder of blobs."""
    (Path(folder) / _MARKER).write_text(layout)


def missing_folders(folder: str) -> list[str]:
    """Return a folder and those above it that do not exist, the innermost first."""
    missing = []
    while not os.path.exists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def sync_new_folder(folder: str, made: Iterable[str]) -> None:
    """Sync a folder of blobs to the disk, with its marker, and the folders that were made for it.

    Raises
    ------
    OSError
        It may not be on disk.
    """
    _sync_file(os.path.join(folder, _MARKER))
    for path in {folder, os.path.dirname(folder), *map(os.path.dirname, made)}:
        sync_folder(path)


def sync_blobs(helper: Any, blobs: Iterable[tuple[bytes, bytes]]) -> None:
    """Sync blobs to the disk, with their names.

    Parameters
    ----------
    helper : ZODB.blob.FilesystemHelper
    blobs : iterable of (oid, tid)

    Raises
    ------
    OSError
        They may not be on disk.
    """
    folders: set[str] = set()
    for oid, tid in blobs:
        name = helper.getBlobFilename(oid, tid)
        _sync_file(name)
        folders.update(_folders_above(name, helper.base_dir.rstrip(os.sep)))
    # Each of these may be new, as a pack removes empty ones. A sync of an old one is short.
    for folder in folders:
        sync_folder(folder)


def _folders_above(name: str, top: str) -> Iterator[str]:
    while name != top:
        name = os.path.dirname(name)
        yield name


def _sync_file(name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
