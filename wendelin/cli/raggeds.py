"""A ZRagged in files: pieces as the arrays of a .npz file; pieces out of a file of bigarray.

This module knows pieces that are read as data, and both files.
"""

from __future__ import annotations

import os
import zipfile

import numpy as np

from wendelin.cli.building import Contents
from wendelin.cli.errors import Failure
from wendelin.cli.files.bigarrays import PointerFile
from wendelin.cli.files.names import check_name
from wendelin.cli.stored import name_of
from wendelin.cli.storedragged import StoredRagged
from wendelin.lib.utils import override
from wendelin.ragged import ZRagged

__all__ = ["PointerContents", "export_pieces"]


class PointerContents(Contents):
    """The pieces of a file of bigarray, for a ZRagged.

    Parameters
    ----------
    file : PointerFile
    blksize : int
        See ZRagged.
    """

    kind, what = ZRagged, "pieces"

    def __init__(self, file: PointerFile, blksize: int) -> None:
        self._file, self._blksize = file, blksize
        self._pieces = list(file.pieces.items())
        self.sizes = file.sizes()
        state = os.stat(file.path)
        self.identity = {
            "kind": "bigarray",
            "size": state.st_size,
            "changed": state.st_mtime_ns,
            "pieces": len(self.sizes),
        }

    @override
    def make(self) -> ZRagged:
        return ZRagged(self._file.dtype, self._file.shape[1:], self._blksize)

    @override
    def add(self, obj: ZRagged, start: int, stop: int) -> None:
        for key, rows in self._pieces[start:stop]:
            obj.put(key, self._file.read(*rows))


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
