"""wendelin copy URL#path URL#path: arrays and groups, in steps that can go on.

An array is filled as by an import: see transfer. A group is made under its name and `~import`. Its
attributes say there which arrays are complete, and in which state each was copied. So a copy that
was interrupted goes on with the array that was not complete, and repeats those that have changed.
The last transaction puts the group in its place.

This module knows what is read as data, and targets. It knows no kind of file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import click
import transaction
from persistent import Persistent

from wendelin.cli.address import Address, Path, join
from wendelin.cli.arrays import ArraySource
from wendelin.cli.attributes import attrs_of
from wendelin.cli.building import Contents, GroupContents, RaggedContents, build
from wendelin.cli.changing import group_at
from wendelin.cli.database import opened, opened_to_write
from wendelin.cli.errors import Failure
from wendelin.cli.globs import expand
from wendelin.cli.ls import rows_of
from wendelin.cli.output import layout_json, print_json, progress, say, size_text, warn
from wendelin.cli.stored import Database, StoredArray, class_of, is_mapping
from wendelin.cli.storedragged import StoredRagged
from wendelin.cli.storedzarr import StoredZarr
from wendelin.cli.transfer import Target, fill
from wendelin.cli.tree import PROGRESS, SUFFIX, Found, children, find, known
from wendelin.tree.containers import is_container, new_container, put
from wendelin.tree.group import Group

__all__ = ["copy_objects"]

Facts = dict[str, Any]

#: what is copied as a whole
_ALONE = (StoredArray, StoredZarr, StoredRagged)
_COUNTED = (GroupContents.what, RaggedContents.what)


def copy_objects(
    source: Address, to: Address, same: bool, replace: bool, step: int, as_json: bool
) -> None:
    """Copy the arrays and groups that an address means.

    Parameters
    ----------
    source, to : Address
    same : bool
        They are in one database.
    replace : bool
        Replace what is there, when the copy is complete.
    step : int
        Of a transaction [bytes].
    as_json : bool

    Raises
    ------
    Failure, click.UsageError
    """
    with opened(source.url) as here, opened_to_write(to.url) as root:
        paths = expand(here, source)
        several = paths != [source.path]
        if several:
            _check_names(source, paths)
        done = []
        for path in paths:
            at = Address(source.url, path)
            target = Address(to.url, (*to.path, path[-1]) if several else to.path)
            if same and target.path[: len(path)] == path:
                what = "are the same" if target.path == path else "is in the first one:"
                raise click.UsageError(f"{at} and {target} {what}")
            obj = find(here, at)
            if isinstance(obj, _ALONE):
                done.append(_copy_alone(here, obj, at, root, target, replace, step))
            elif is_mapping(obj):
                done.append(_copy_group(here, obj, at, root, target, replace, step))
            else:
                raise Failure(f"{at} is a {class_of(obj)}, neither an array nor a group")
            if not as_json:
                _tell(target, done[-1])
    if as_json:
        print_json(done if several else done[0])


def _check_names(source: Address, paths: list[Path]) -> None:
    names: dict[str, Path] = {}
    for path in paths:
        if path[-1] in names:
            raise Failure(
                f"{source} means {join(names[path[-1]])} and {join(path)}, which would have one "
                f"name: copy them one by one"
            )
        names[path[-1]] = path


def _tell(target: Address, facts: Facts) -> None:
    if "arrays" in facts:
        say(f"{target}: {facts['arrays']} arrays, {size_text(facts['bytes'])}")
        if facts["left"]:
            warn("copy", f"not copied: {', '.join(facts['left'])}")
    else:
        begun = facts["resumed_at"]
        again = "" if begun is None else f", from {size_text(begun)} on"
        counts = "".join(f"{facts[what]} {what}, " for what in _COUNTED if what in facts)
        say(f"{target}: {counts}{size_text(facts['bytes'])}{again}")
    if left := facts["attributes_left"]:
        warn("copy", f"attributes are not copied: {', '.join(map(repr, left))}")


def _copy_alone(
    here: Database, obj: Any, source: Address, root: Any, to: Address, replace: bool, step: int
) -> Facts:
    """Copy an array; or a ZarrGroup, or a part of one, byte for byte; or a ZRagged."""
    if isinstance(obj, StoredArray):
        return _copy_array(here, obj, source, root, to, replace, step)
    contents: Contents
    if isinstance(obj, StoredZarr):
        contents = GroupContents(obj, source.url)
    else:
        contents = RaggedContents(obj, source.url)
    total = sum(contents.sizes)
    with progress(f"copy {join(source.path)}", total, in_bytes=True) as tell:
        before = build(root, to, contents, replace, step, tell)
    return {
        contents.what: len(contents.sizes),
        "bytes": total,
        "attributes_left": _left(here, obj),
        "resumed_at": before or None,
    }


def _left(here: Database, obj: Any) -> list[str]:
    """Return the names of the attributes that a copy of an array, or another object, has not."""
    if isinstance(obj, StoredArray):
        return sorted([*obj.others, *attrs_of(here, obj)[1]])
    unread = attrs_of(here, obj)[1] if isinstance(obj, StoredRagged) else []
    return sorted([*(name for name, _ in obj.others), *unread])


def _copy_array(
    here: Database,
    array: StoredArray,
    source: Address,
    root: Any,
    to: Address,
    replace: bool,
    step: int,
) -> Facts:
    of = {"url": source.url, "path": list(source.path), "oid": array._p_oid.hex()}
    with closing(ArraySource(array, of)) as reader:
        reader.attrs, _ = attrs_of(here, array)
        target = Target(root, to, reader, replace, array.zfile.blksize, array._zblk_fmt)
        before = target.done * array.itemsize
        what = f"copy {join(source.path)}"
        with progress(what, array.nbytes, in_bytes=True, done=before) as tell:
            fill(target, reader, step, tell)
        return {
            **layout_json(reader.layout),
            "bytes": array.nbytes,
            "attributes_left": _left(here, array),
            "resumed_at": before if target.resumed else None,
        }


def _copy_group(
    here: Database, obj: Any, source: Address, root: Any, to: Address, replace: bool, step: int
) -> Facts:
    *way, name = to.path
    parent = group_at(root, to.url, tuple(way))
    if name in parent.obj and not replace:
        raise Failure(f"{to} exists already: --replace replaces it")
    stage = _stage(parent, name, to)
    copied = Group(stage).attrs
    if copied:
        there = {join(path) for path, found in _contents(here, obj)}
        if not there.issuperset(copied):  # an array was removed meanwhile
            del parent.obj[name + SUFFIX]
            stage = _stage(parent, name, to)
            copied = Group(stage).attrs
    facts: Facts = {"arrays": 0, "bytes": 0, "left": [], "attributes_left": []}
    for path, found in _contents(here, obj):
        if isinstance(found, _ALONE):
            state = rows_of(Found((), found), lambda n: None)[0].tid.hex()
            key = join(path)
            if copied.get(key) != state:
                into = Address(to.url, (*way, name + SUFFIX, *path))
                at = Address(source.url, (*source.path, *path))
                done = _copy_alone(here, found, at, root, into, True, step)
                facts["bytes"] += done["bytes"]
                copied[key] = state
                transaction.commit()
            # also of one that an interrupted copy had completed: that one has told nothing
            facts["attributes_left"] += [f"{key}: {a}" for a in _left(here, found)]
            facts["arrays"] += 1
        elif is_mapping(found):
            attrs, left = attrs_of(here, found)
            group_at(stage, to.url, path).attrs.update(attrs)
            facts["attributes_left"] += [f"{join(path)}: {a}" for a in left]
        else:
            facts["left"].append(f"{join((*source.path, *path))} ({class_of(found)})")
    attrs, left = attrs_of(here, obj)
    facts["attributes_left"] += left
    copied.clear()
    copied.update(attrs)
    if name in parent.obj:
        del parent.obj[name]
    put(parent.obj, name, stage, str(to))
    del parent.obj[name + SUFFIX]
    transaction.get().note(f"wendelin: copy {join(source.path)} {join(to.path)}")
    transaction.commit()
    return facts


def _stage(parent: Group, name: str, to: Address) -> Any:
    """Return the container in which a group is made: a new one, or one to go on with."""
    found = parent.obj.get(name + SUFFIX)
    if found is None:
        found = new_container()
        put(parent.obj, name + SUFFIX, found, str(to))
        transaction.commit()
    elif not is_container(found) or not isinstance(found, Persistent) or set(found) == PROGRESS:
        raise Failure(
            f"{to}{SUFFIX} is there, of an import that was not complete: `wendelin rm` removes it"
        )
    return found


def _contents(here: Database, obj: Any) -> Iterator[tuple[Path, Any]]:
    """Yield (path, object) of what is in a group; a group in itself is entered once."""
    todo: list[tuple[Path, Any]] = [((), obj)]
    seen = {obj.oid}
    while todo:
        at, group = todo.pop()
        for name, value in children(group):
            found = known(here.get(value))
            yield (*at, name), found
            if is_mapping(found) and found.oid not in seen:
                seen.add(found.oid)
                todo.append(((*at, name), found))
