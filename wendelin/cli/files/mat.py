"""MATLAB files before version 7.3, by scipy: numbers, texts, and structures as groups.

See Contents. Each variable is read as a whole. Cells and sparse matrices are left out. MATLAB 7.3
files are HDF5: see hdf5tree.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from wendelin.cli.errors import Failure, explain
from wendelin.cli.files.base import Layout, Source
from wendelin.cli.files.contents import Contents, Member, Path
from wendelin.cli.files.convert import plain
from wendelin.cli.files.derived import ArrayInMemory

__all__ = ["mat_contents"]

_DEEP = 64  # levels of structures


def mat_contents(path: str, identity: dict[str, Any]) -> Contents:
    """Return the contents of a MATLAB file.

    Raises
    ------
    Failure
        It is not one; or scipy is not installed.
    """
    try:
        io = import_module("scipy.io")
    except ImportError as e:
        raise Failure(
            f"scipy is needed, but not installed: pip install 'wendelin.core[sparse]': {path} is "
            f"a MATLAB file before version 7.3"
        ) from e
    members = [Member(())]
    try:
        with warnings.catch_warnings(action="ignore"):  # of scipy, about what it does not read
            names = [name for name, _, _ in io.whosmat(path)]
    except FileNotFoundError:
        raise
    except Exception as e:  # of any kind, of a damaged file
        raise Failure(f"{path} is not a readable MATLAB file: {explain(e)}") from e
    for name in names:
        try:
            value = _value(io, path, name)
        except Exception as e:
            members.append(Member((name,), why=f"what is not read: {explain(e)}", damaged=True))
            continue
        members += _members(io, path, (name,), value, identity)
    return Contents(path, members, identity)


def _value(io: Any, path: str, name: str) -> Any:
    with warnings.catch_warnings(action="ignore"):
        found = io.loadmat(path, variable_names=[name], chars_as_strings=True)
    return found[name]


def _members(
    io: Any, path: str, at: Path, value: Any, identity: dict[str, Any]
) -> Iterator[Member]:
    """Yield the members of a value."""
    why = ""
    if not isinstance(value, np.ndarray):
        why = "a sparse matrix" if hasattr(value, "tocoo") else f"a {type(value).__name__}"
    elif value.dtype.names is not None and value.size == 1 and len(at) < _DEEP:
        yield Member(at)
        for name in value.dtype.names:
            yield from _members(io, path, (*at, name), value.reshape(-1)[0][name], identity)
        return
    elif value.dtype.names is not None:
        why = "an array of structures"
    elif value.dtype.hasobject:
        why = "cells"
    elif not value.dtype.itemsize:
        why = "elements without bytes"
    if why:
        yield Member(at, why=why)
        return
    layout = _layout(value)
    yield Member(at, layout, open=partial(_source, io, path, at, identity))


def _layout(value: Any) -> Layout:
    fortran = value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous
    return Layout(value.shape, plain(value.dtype), "F" if fortran else "C")


def _source(io: Any, path: str, at: Path, identity: dict[str, Any]) -> Source:
    value = _value(io, path, at[0])
    for name in at[1:]:
        value = value.reshape(-1)[0][name]
    return ArrayInMemory(value, _layout(value), {**identity, "member": "/".join(at)})
