"""All that is in a Zarr folder, of version 2 or 3: see Contents.

Folders are looked through for metadata, so groups may be implicit: folders without metadata of
their own.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

from wendelin.cli.errors import Failure, explain
from wendelin.cli.files.attributes import from_zarr
from wendelin.cli.files.contents import Contents, Member, Path
from wendelin.cli.files.datasets import library
from wendelin.cli.files.zarrs import array_source, check_codecs, folder_store

__all__ = ["zarr_contents"]

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


def zarr_contents(path: str, member: str, external: bool, identity: dict[str, Any]) -> Contents:
    """Return the contents of a Zarr folder, or of a group in it.

    Raises
    ------
    Failure
        It is not a Zarr folder; it has no such group.
    """
    library("zarr", "zarr")
    start = tuple(name for name in member.split("/") if name)
    folder = os.path.join(path, *start)
    if ".." in start or not os.path.isdir(folder):
        raise Failure(f"{path} has no group {member!r}")
    members = list(_members(path, start, external))
    if not any(m.path for m in members):
        raise Failure(f"{path} has no arrays: it is not a Zarr folder, or empty")
    changed = [
        os.stat(os.path.join(folder, *m.path, name)).st_mtime_ns
        for m in members
        for name in _METADATA[:2]
        if os.path.exists(os.path.join(folder, *m.path, name))
    ]
    return Contents(path, members, {**identity, "member": "/".join(start), "changed": changed})


def _members(path: str, start: Path, external: bool) -> Iterator[Member]:
    import zarr

    store = folder_store(path, external)
    todo: list[Path] = [()]
    while todo:
        at = todo.pop()
        inside = "/".join((*start, *at))
        folder = os.path.join(path, *start, *at)
        if os.path.islink(folder) and at and not external:
            yield Member(at, why="a symbolic link: see --external")
            continue
        names = sorted(os.listdir(folder))
        has_metadata = any(name in names for name in _METADATA[:3])
        found: Any = None
        if has_metadata:
            try:
                with warnings.catch_warnings(action="ignore"):
                    found = zarr.open(store, path=inside, mode="r")
            except Exception as e:  # of a damaged file, or of another version
                yield Member(at, why=f"metadata that is not read: {explain(e)}", damaged=True)
                continue
        if isinstance(found, zarr.Array):
            yield _array(at, found, path)
            continue
        attrs, unkept = from_zarr(found.attrs) if found is not None else ({}, [])
        yield Member(at, attrs=attrs, unkept=unkept)
        below = [
            (*at, name)
            for name in names
            if name not in _METADATA and os.path.isdir(os.path.join(folder, name))
        ]
        todo += reversed(below)


def _array(at: Path, found: Any, path: str) -> Member:
    try:
        check_codecs(found, path)
        with warnings.catch_warnings(action="ignore"):
            source = array_source(found, {})
    except (Failure, OSError, TypeError, ValueError, RuntimeError, KeyError) as e:
        return Member(at, why=explain(e))
    if source.layout.dtype.hasobject or not source.layout.dtype.itemsize:
        return Member(at, why=f"elements of dtype {source.layout.dtype}")
    layout = source.layout
    return Member(
        at,
        layout,
        dict(source.attrs),
        source.left_out,
        open=partial(array_source, found, {}, layout),
    )
