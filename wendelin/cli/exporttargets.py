"""Which files several arrays are exported into: one each, in a folder that exists.

FILE is a folder, for .npy; or it has a * in the place of the names, as in out/*.h5.

This module knows objects and names of files, and not how one is written.
"""

from __future__ import annotations

import os
from typing import Any

import click

from wendelin.cli.address import Address, join
from wendelin.cli.errors import Failure
from wendelin.cli.files import File, parse_file
from wendelin.cli.files.names import name_of_key
from wendelin.cli.files.recognize import kind_of_name
from wendelin.cli.globs import expand
from wendelin.cli.matrices import is_matrix
from wendelin.cli.output import warn
from wendelin.cli.stored import Database, Stored, StoredArray, class_of, is_mapping
from wendelin.cli.storedragged import StoredPiece, StoredRagged
from wendelin.cli.storedzarr import StoredZarr
from wendelin.cli.tree import find

__all__ = ["is_several", "targets"]

_WHOLE = ("hdf5", "zarr")  # kinds of files that take any group
_OF_MATRICES = ("npz", "h5ad", "daf")


def _is_folder(file: str) -> bool:
    return os.path.isdir(file) and kind_of_name(file.rstrip("/")) is None


def is_several(address: Address, file: str) -> bool:
    """Say whether an address means several objects, or FILE says only where, not the name."""
    wild = any("*" in name or "?" in name for name in address.path)
    return wild or "*" in file or _is_folder(file)


def targets(database: Database, address: Address, file: str) -> list[tuple[Address, str]]:
    """Return the address of each object that is exported, and its FILE[:NAME].

    What such files cannot have is left out, with a warning, if there are others.

    Raises
    ------
    click.UsageError
        FILE is for one object only.
    Failure
        There is none; or two of them would have one file.
    """
    paths = expand(database, address)
    pattern = os.path.join(file, "*.npy") if _is_folder(file) else file
    if "*" not in pattern and paths == [address.path]:
        return [(address, file)]  # a name that has such a character
    if pattern.count("*") != 1:
        raise click.UsageError(
            f"{address} means {len(paths)} object{'s' * (len(paths) != 1)}, and {file!r} does not "
            f"say where each goes: it must be a folder that exists, or have one * in the place of "
            f"the names, as in 'out/*.h5'"
        )
    given = parse_file(pattern, new=True)
    found: dict[str, Address] = {}
    for path in paths:
        at = Address(address.url, path, address.index)
        why = _why_not(find(database, at), given) if len(paths) > 1 else ""
        if why:
            warn("export", f"left out: {at} is {why}")
            continue
        name = name_of_key(path[-1]) if path else "array"
        to = pattern.replace("*", name)
        if to in found:
            raise Failure(
                f"{join(found[to].path)} and {join(path)} would both be {to}: export them one by "
                f"one, or the group that they are in"
            )
        found[to] = at
    if not found:
        raise Failure(f"{address} has nothing that {given.kind} files take")
    return [(at, to) for to, at in found.items()]


def _why_not(obj: Any, file: File) -> str:
    """Return what an object is, if such files do not take it; else ''."""
    if isinstance(obj, StoredArray | StoredPiece):
        return ""
    if isinstance(obj, StoredZarr):
        return "a group of Zarr" if file.kind != "zarr" and "" not in obj.described() else ""
    if isinstance(obj, StoredRagged):
        return "a ZRagged" if file.kind != "npz" else ""
    if is_matrix(obj):
        return "a sparse matrix" if file.kind not in _OF_MATRICES else ""
    if isinstance(obj, Stored) and is_mapping(obj):
        return "a group" if file.kind not in _WHOLE else ""
    return f"a {class_of(obj)}"
