"""Names that arrays get in files: out of keys of a database, which may be any text, or of the user.

Who unpacks a file makes paths of them: none may lead out of a folder.
"""

from __future__ import annotations

import re

import click

__all__ = ["check_name", "name_of_key"]

_MOST = 240  # of a name: files may have 255 with a suffix [bytes]
_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


def name_of_key(key: str) -> str:
    """Return the name that an array gets which has a key in the database.

    What means something in a path, or does something to a terminal, is _ in it.
    """
    plain = "".join(c if c.isprintable() and c not in "/\\:" else "_" for c in key)
    cut = plain.encode()[:_MOST].decode(errors="ignore")
    return cut if cut.strip(". '") else "array"  # '' is the empty key in a path


def check_name(kind: str, name: str) -> str:
    """Return a name that the user gives an array in a file, as it is written: without / around it.

    Parameters
    ----------
    kind : {'npz', 'hdf5', 'zarr'}
        Of the file.
    name : str
        May have groups, separated by slashes.

    Raises
    ------
    click.UsageError
        It is none.
    """
    name = name.strip("/")
    parts = name.split("/")
    why = ""
    if any(part in ("", ".", "..") for part in parts):
        why = "between slashes there must be names, neither empty nor . nor .."
    elif re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name):
        why = "it has characters that no name has"
    elif kind != "hdf5" and "\\" in name:
        why = "there is a backslash in it, which separates names elsewhere"
    elif kind != "hdf5" and any(len(part.encode()) > _MOST for part in parts):
        why = f"a name in it has more than {_MOST} bytes"
    elif kind == "zarr" and any(part in _METADATA for part in parts):
        why = "Zarr itself has files of that name"
    if why:
        raise click.UsageError(f"{name!r} is no name of an array in a {kind} file: {why}")
    return name
