"""All arrays of a .npz file: see Contents. Slashes in names make groups."""

from __future__ import annotations

import zipfile
from functools import partial
from typing import Any

from wendelin.cli.errors import Failure, explain
from wendelin.cli.files.contents import Contents, Member
from wendelin.cli.files.flat import npz_source

__all__ = ["npz_contents"]


def npz_contents(path: str, identity: dict[str, Any]) -> Contents:
    """Return the contents of a .npz file.

    Raises
    ------
    Failure
        It is not one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = archive.namelist()
    except zipfile.BadZipFile as e:
        raise Failure(f"{path} is not an .npz file: {e}") from e
    members = [Member(())]
    for file in files:
        name = file.removesuffix(".npy")
        at = tuple(each for each in name.split("/") if each)
        if not file.endswith(".npy") or not at:
            members.append(Member(at or (file,), why="another file, not an array"))
            continue
        try:
            source = npz_source(path, name, identity)
        except (Failure, OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as e:
            members.append(Member(at, why=f"what is not read: {explain(e)}", damaged=True))
            continue
        source.close()
        dtype = source.layout.dtype
        if dtype.hasobject or not dtype.itemsize:
            members.append(Member(at, why=f"elements of dtype {dtype}"))
        else:
            opens = partial(npz_source, path, name, identity)
            members.append(Member(at, source.layout, open=opens))
    return Contents(path, members, identity)
