"""A ZRagged in files: pieces as the arrays of a .npz file."""

from __future__ import annotations

import os
import zipfile

import numpy as np

from wendelin.cli.errors import Failure
from wendelin.cli.files.names import check_name
from wendelin.cli.stored import name_of
from wendelin.cli.storedragged import StoredRagged

__all__ = ["export_pieces"]


def export_pieces(ragged: StoredRagged, path: str) -> tuple[int, int]:
    """Write the pieces to a .npz file; return their number, and their size [bytes].

    Raises
    ------
    Failure
        A key cannot be a name in such a file, or two keys have the same name.
    BlockLoadError
        A block does not load.
    """
    pieces = ragged.pieces()
    keys: dict[str, object] = {}
    for key in pieces:
        name = name_of(key)
        check_name("npz", name)
        if name in keys:
            raise Failure(f"keys {keys[name]!r} and {key!r} would have the same name in the file")
        keys[name] = key
    size = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for key, one in pieces.items():
            data = one.segment.data
            data._fileh().file.verify = True  # what is copied is as it was stored
            values = data.read(slice(one.piece.start, one.piece.stop))
            with archive.open(f"{name_of(key)}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
            size += values.nbytes
    with open(path, "rb") as done:
        os.fsync(done.fileno())
    return len(pieces), size
