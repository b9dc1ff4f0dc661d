"""Names of arrays in files, made from keys of a database, which may be any text, or by the user.

A program that unpacks a file makes paths of them, so no name may lead out of a folder.
"""

from __future__ import annotations

import re

import click

__all__ = ["METADATA", "check_name", "name_in_group", "name_of_key"]

_MOST = 240  # of a name: with a suffix, a file's may have 255 [bytes]
#: names of files that Zarr has for itself
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


def name_of_key(key: str) -> str:
    """Return the name in a file of an array with this key in the database.

    Special characters of paths, and those that control a terminal, become _.
    """
    return _plain_name(key, "/\\:")


def name_in_group(key: str) -> str:
    """Return the same for a name in a group of an HDF5 file or a Zarr folder: a colon stays."""
    return _plain_name(key, "/\\")


def _plain_name(key: str, special: str) -> str:
    plain = "".join(c if c.isprintable() and c not in special else "_" for c in key)
    cut = plain.encode()[:_MOST].decode(errors="ignore")
    return cut if cut.strip(". '") else "array"  # '' is the empty key in a path


def check_name(kind: str, name: str) -> str:
    """Return the user's name of an array in a file, without / around it.

    Parameters
    ----------
    kind : {'npz', 'hdf5', 'zarr'}
        Of the file.
    name : str
        May have groups, separated by slashes.

    Raises
    ------
    click.UsageError
        It is not a valid name.
    """
    name = name.strip("/")
    names = name.split("/")
    why = ""
    if any(each in ("", ".", "..") for each in names):
        why = "between slashes there must be names, not empty, not . and not .."
    elif re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name):
        why = "it has characters that are not allowed in names"
    elif kind != "hdf5" and "\\" in name:
        why = "it has a backslash, which separates names on other systems"
    elif kind != "hdf5" and any(len(each.encode()) > _MOST for each in names):
        why = f"a name in it has more than {_MOST} bytes"
    elif kind == "zarr" and any(each in METADATA for each in names):
        why = "Zarr has files of its own with that name"
    if why:
        raise click.UsageError(f"{name!r} is not a name of an array in a {kind} file: {why}")
    return name
