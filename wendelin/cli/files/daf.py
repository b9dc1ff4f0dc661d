"""Plain files that any language maps, as daf's: an array or a sparse matrix, and a .yaml about it.

    NAME.array                             elements, rows one after another
    NAME.data, NAME.indices, NAME.indptr   a matrix in compressed rows
    NAME.yaml                              which of these it is: versions, dtypes, shape, numbers

All is little-endian. NAME.yaml is written last, and removed first: if it is there, the others are
complete. The format is of https://github.com/tanaylab/daf, "memory_mapping".

It knows files. PyYAML reads the .yaml of others: pip install 'wendelin.core[daf]'.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from wendelin.cli.errors import Failure
from wendelin.cli.files.base import Source
from wendelin.cli.files.flat import raw_source
from wendelin.lib.storage.fssync import sync_folder

__all__ = [
    "FIXED_DTYPES",
    "Described",
    "check_dtype",
    "daf_files",
    "daf_matrix",
    "daf_source",
    "read_yaml",
]

FIXED_DTYPES = (
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    "float32",
    "float64",
)

SUFFIXES = (".array", ".data", ".indices", ".indptr")
_MATRIX = ("data", "indices", "indptr")


class Described(NamedTuple):
    """What a .yaml says."""

    shape: tuple[int, ...]
    dtypes: dict[str, np.dtype[Any]]  # suffix without dot -> dtype
    nnz: int | None  # None: an array


def check_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Return a dtype as these files have it: little-endian.

    Raises
    ------
    Failure
        They have none such.
    """
    if dtype.name not in FIXED_DTYPES or dtype.names is not None:
        raise Failure(
            f"{name} is of dtype {dtype}: such files have {', '.join(FIXED_DTYPES)}; .npy has any"
        )
    little: np.dtype[Any] = dtype.newbyteorder("<")
    return little


def _name(path: str) -> str:
    return path[: -len(".yaml")]


def read_yaml(path: str) -> Described:
    """Return what a .yaml says of its files.

    Raises
    ------
    Failure
        It is not one of these, or of a later version; PyYAML is not installed.
    OSError
        It cannot be read.
    """
    try:
        import yaml
    except ImportError as e:
        raise Failure(
            "PyYAML is needed, but not installed: pip install 'wendelin.core[daf]'"
        ) from e
    with open(path, encoding="utf-8") as file:
        try:
            found = yaml.safe_load(file.read(1 << 16))
        except (yaml.YAMLError, ValueError) as e:
            raise Failure(f"{path} is not YAML: {e}") from e
    try:
        if found["version"][0] != 1:
            raise Failure(f"{path} has version {found['version']}: 1 is known")
        shape = tuple(found["shape"])
        if not (1 <= len(shape) <= 2 and all(type(n) is int and n >= 0 for n in shape)):
            raise ValueError(f"shape {shape}")
        if "nnz" not in found:
            return Described(shape, {"array": _dtype(found["dtype"], path)}, None)
        if len(shape) != 2 or type(found["nnz"]) is not int or found["nnz"] < 0:
            raise ValueError(f"shape {shape}, nnz {found['nnz']!r}")
        dtypes = {name: _dtype(found[f"{name}_dtype"], path) for name in _MATRIX}
        return Described(shape, dtypes, found["nnz"])
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise Failure(
            f"{path} does not describe an array or a matrix: {type(e).__name__}: {e}"
        ) from e


def _dtype(name: Any, path: str) -> np.dtype[Any]:
    if name not in FIXED_DTYPES:
        raise Failure(f"{path} has dtype {name!r}: it must be one of {', '.join(FIXED_DTYPES)}")
    little: np.dtype[Any] = np.dtype(str(name)).newbyteorder("<")
    return little


def daf_source(path: str, identity: dict[str, Any]) -> Source:
    """Return the array that a .yaml describes.

    Raises
    ------
    Failure, OSError
        See read_yaml(); or it describes a sparse matrix.
    """
    what = read_yaml(path)
    if what.nnz is not None:
        raise Failure(f"{path} describes a sparse matrix: import it with --as sparse")
    return raw_source(f"{_name(path)}.array", what.dtypes["array"], what.shape, "C", 0, identity)


def daf_matrix(path: str) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the shape of the matrix that a .yaml describes, and its arrays, mapped.

    Raises
    ------
    Failure, OSError
        See read_yaml(); or it describes an array, or files have another size.
    """
    what = read_yaml(path)
    if what.nnz is None:
        raise Failure(f"{path} describes an array: import it without --as sparse")
    sizes = {"data": what.nnz, "indices": what.nnz, "indptr": what.shape[0] + 1}
    arrays: dict[str, Any] = {}
    for array, dtype in what.dtypes.items():
        name, size = f"{_name(path)}.{array}", sizes[array]
        if os.path.getsize(name) != size * dtype.itemsize:
            raise Failure(
                f"{name} has {os.path.getsize(name)} bytes, and {path} says "
                f"{size * dtype.itemsize}: {size} of {dtype}"
            )
        arrays[array] = np.memmap(name, dtype, "r", shape=(size,)) if size else np.empty(0, dtype)
    return (what.shape[0], what.shape[1]), arrays


@contextmanager
def daf_files(path: str, force: bool) -> Iterator[dict[str, str]]:
    """Write the files of a NAME.yaml: give the text of each suffix's dtype, and finish them.

    Parameters
    ----------
    path : str
    force : bool
        Replace files that exist.

    Yields
    ------
    dict
        To be filled: what NAME.yaml says, key -> text. Meanwhile, files are written to
        `unfinished_path(path, name)`; those that were get their names.

    Raises
    ------
    Failure
        Files exist already.
    """
    name = _name(path)
    there = [name + suffix for suffix in (*SUFFIXES, ".yaml") if os.path.lexists(name + suffix)]
    if there and not force:
        raise Failure(f"{there[0]} exists already: --force replaces it, and others of that name")
    facts: dict[str, str] = {"version": "[1, 0]"}
    unfinished = [unfinished_path(path, suffix[1:]) for suffix in (*SUFFIXES, ".yaml")]
    try:
        yield facts
        with open(unfinished[-1], "w", encoding="utf-8") as file:
            file.write("".join(f"{key}: {value}\n" for key, value in facts.items()))
            file.flush()
            os.fsync(file.fileno())
        folder = os.path.dirname(os.path.abspath(path))
        with suppress(FileNotFoundError):
            os.unlink(path)
        sync_folder(folder)
        for suffix, new in zip((*SUFFIXES, ".yaml"), unfinished, strict=True):
            if os.path.lexists(new):
                os.replace(new, name + suffix)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(name + suffix)
        sync_folder(folder)
    except BaseException:
        for new in unfinished:
            with suppress(FileNotFoundError):
                os.unlink(new)
        raise


def unfinished_path(path: str, name: str) -> str:
    """Return where a file is written until all are complete."""
    return f"{_name(path)}.{name}.part~"
