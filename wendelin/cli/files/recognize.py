"""Kinds of files: by the first bytes of a file, else by the suffix of its name.

A name may be anything: .nc files are HDF5 or of an older format, and .nwb, .h5ad, .mat may be HDF5.
"""

from __future__ import annotations

import os
import stat
import zipfile

__all__ = ["KINDS", "MATLAB_73", "kind_of", "kind_of_name"]

#: kind -> suffixes
KINDS = {
    "npy": (".npy",),
    "npz": (".npz",),
    "hdf5": (".h5", ".hdf5", ".hdf", ".he5", ".nc", ".nc4", ".nwb", ".h5mu"),
    "netcdf": (".cdf", ".nc3"),
    "mat": (".mat",),
    "zarr": (".zarr",),
    "csv": (".csv", ".tsv", ".txt"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather"),
    "raw": (".raw", ".bin", ".dat"),
    "daf": (".yaml",),
    "h5ad": (".h5ad",),
}
MATLAB_73 = b"MATLAB 7.3 MAT-file"
_ZARR = ("zarr.json", ".zarray", ".zgroup")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEADS = {
    b"\x93NUMPY": "npy",
    b"CDF\x01": "netcdf",
    b"CDF\x02": "netcdf",
    b"CDF\x05": "netcdf",
    b"ARROW1\0\0": "arrow",
    b"MATLAB 5.0 MAT-file": "mat",
}


def _of_content(path: str) -> str | None:
    """Return the kind of a file by its bytes; None if they do not say it.

    Raises
    ------
    OSError
        It cannot be read.
    """
    try:
        state = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if stat.S_ISDIR(state.st_mode):
        return "zarr" if any(os.path.exists(os.path.join(path, file)) for file in _ZARR) else None
    if not stat.S_ISREG(state.st_mode):
        return None
    with open(path, "rb") as file:
        head = file.read(128)
        for magic, kind in _HEADS.items():
            if head.startswith(magic):
                return kind
        if head.startswith(b"PAR1") and state.st_size >= 12:  # a text may begin so
            file.seek(-4, os.SEEK_END)
            if file.read(4) == b"PAR1":
                return "parquet"
        if head.startswith(b"PK\x03\x04") and _has_npy(path):
            return "npz"
        at = 0
        while at + len(_HDF5) <= state.st_size:  # behind a block of the user's, of 512, 1024, ...
            file.seek(at)
            if file.read(len(_HDF5)) == _HDF5:
                return "hdf5"
            at = 2 * at or 512
    return None


def _has_npy(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def kind_of_name(path: str) -> str | None:
    """Return the kind of a file by its suffix, a key of KINDS; None if it is not known."""
    name = path.rstrip("/").lower()
    return next((kind for kind, ends in KINDS.items() if name.endswith(ends)), None)


def kind_of(path: str, *, raw: bool = False) -> str | None:
    """Return the kind of an existing file, a key of KINDS; None if it is not known.

    Parameters
    ----------
    path : str
    raw : bool
        The user says of which dtype it is: then it is text, or raw bytes.
    """
    named = kind_of_name(path)
    if raw and named in (None, "raw", "csv"):
        return named
    if named in ("h5ad", "daf"):  # HDF5 with a matrix; text
        return named
    return _of_content(path) or named
