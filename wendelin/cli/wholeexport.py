"""A group of a database that is written into a file: its groups, arrays and attributes.

The list of them is made first. Objects that are neither groups nor arrays are left out, and named.
A Zarr folder goes on where it was interrupted, array by array; an HDF5 file begins again.

This module knows objects that are read as data, and sinks for trees. It knows no kind of file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from wendelin.cli.address import Address, Path, join
from wendelin.cli.arrays import ArraySource, layout_of
from wendelin.cli.attributes import attrs_of
from wendelin.cli.compound import compound_of
from wendelin.cli.errors import Failure
from wendelin.cli.files import File
from wendelin.cli.files.base import Layout, Source
from wendelin.cli.files.names import METADATA, name_in_group
from wendelin.cli.files.treesinks import Hdf5Tree, TreeSink, ZarrTree
from wendelin.cli.output import Advance, progress, warn
from wendelin.cli.stored import Database, Stored, StoredArray, class_of, is_mapping, items, name_of
from wendelin.cli.transfer import element_ranges
from wendelin.cli.unfinished import UnfinishedFile
from wendelin.tree.containers import is_hidden

__all__ = ["WholeExport", "export_whole"]


@dataclass
class _Node:
    """A group, an array, or another name of one of them."""

    path: Path  # in the file
    ref: Any  # an object of the database, or a reference to it
    layout: Layout | None = None  # None: a group
    same: Path | None = None
    #: of what is made of several arrays: attributes of its group, or what reads one of the arrays
    attrs: tuple[dict[str, Any], list[str]] | None = None
    open: Callable[[], Source] | None = None


class WholeExport:
    """What of a group is written to a file.

    Parameters
    ----------
    database : Database
    address : Address
    group : Stored
    file : File
        With a member: the group in the file that it becomes.

    Raises
    ------
    Failure
        Two objects would have one name in the file.
    """

    def __init__(self, database: Database, address: Address, group: Stored, file: File) -> None:
        self._database, self._address, self._file = database, address, file
        #: (name, why) of what is left out
        self.left_out: list[tuple[str, str]] = []
        start = tuple(name for name in file.member.split("/") if name)
        self.nodes: list[_Node] = [_Node(start[:n], None) for n in range(len(start))]
        self._seen: dict[bytes, Path] = {}
        self.nodes += self._members(group, start)

    @property
    def layouts(self) -> list[Layout]:
        """Of all arrays, without those that are another name of one."""
        return [node.layout for node in self.nodes if node.layout is not None]

    @property
    def nbytes(self) -> int:
        """Size of all arrays [bytes]."""
        return sum(layout.size * layout.dtype.itemsize for layout in self.layouts)

    def _members(self, group: Stored, start: Path) -> Iterator[_Node]:
        todo: list[tuple[Path, Any]] = [(start, group)]
        self._seen[group.oid] = start
        while todo:
            at, found = todo.pop()
            yield _Node(at, found)
            names: dict[str, str] = {}
            below = []
            for key, ref in items(found):
                if is_hidden(key):
                    continue
                shown = name_of(key)
                name = name_in_group(shown)
                path = (*at, name)
                where = join((*at[len(start) :], shown))
                obj = self._database.get(ref)
                oid = getattr(obj, "oid", None) or getattr(obj, "_p_oid", None)
                known = isinstance(obj, StoredArray) or is_mapping(obj)
                try:
                    compound = None if known else compound_of(obj)
                except Failure as e:
                    self.left_out.append((where, str(e)))
                    continue
                if not known and compound is None:
                    self.left_out.append((where, f"a {class_of(obj)}"))
                    continue
                if self._file.kind == "zarr" and (name in METADATA or name.startswith("__")):
                    self.left_out.append((where, "a name that Zarr has for itself"))
                    continue
                if name in names:
                    raise Failure(
                        f"{self._address} has {names[name]!r} and {shown!r}, which would have the "
                        f"same name in {self._file.path}: rename one of them"
                    )
                names[name] = shown
                if oid in self._seen:
                    yield _Node(path, obj, same=self._seen[oid])
                    continue
                if oid is not None:
                    self._seen[oid] = path
                if compound is not None:
                    yield _Node(path, ref, attrs=(compound.attrs, compound.unread))
                    for inner, (layout, opens) in compound.arrays.items():
                        yield _Node((*path, inner), ref, layout, open=opens)
                elif isinstance(obj, StoredArray):
                    yield _Node(path, ref, layout_of(obj))
                else:
                    below.append((path, obj))
            todo += reversed(below)

    def write(self, sink: TreeSink, unfinished: UnfinishedFile, step: int, tell: Advance) -> None:
        """Write what is not written yet."""
        done = unfinished.done
        left: set[Path] = set()
        for number, node in enumerate(self.nodes):
            if number < done:
                continue
            try:
                if node.same is not None:
                    self._write_same(sink, node, left)
                elif node.layout is None:
                    attrs, unread = self._attrs_of_group(node)
                    self._unkept(node, [*unread, *sink.group(node.path, attrs)])
                else:
                    self._write_array(sink, node, step, tell)
            except Failure as e:
                if node.layout is None:
                    raise
                left.add(node.path)
                self.left_out.append(("/".join(node.path), str(e)))
            if sink.resumable:
                unfinished.save(number + 1, 0)
        sink.finish()

    def _write_same(self, sink: TreeSink, node: _Node, left: set[Path]) -> None:
        assert node.same is not None
        if node.same in left or not sink.same(node.path, node.same):
            why = f"another name of {'/'.join(node.same) or '/'}"
            self.left_out.append(("/".join(node.path), why))

    def _attrs_of_group(self, node: _Node) -> tuple[dict[str, Any], list[str]]:
        obj = self._database.get(node.ref) if node.attrs is None else None
        return node.attrs or (attrs_of(self._database, obj) if obj is not None else ({}, []))

    def _write_array(self, sink: TreeSink, node: _Node, step: int, tell: Advance) -> None:
        source: Source
        attrs: dict[str, Any] = {}
        unread: list[str] = []
        if node.open is not None:
            source = node.open()
        else:
            array = self._database.get(node.ref)
            source = ArraySource(array, {})
            attrs, unread = attrs_of(self._database, array)
        to, unkept = sink.array(node.path, source.layout, attrs)
        self._unkept(node, [*unread, *unkept])
        itemsize = source.layout.dtype.itemsize
        together = to.together * itemsize
        each, done = max(together, step // together * together), 0
        for start, stop in element_ranges(source, 0, each, to.sparse):
            start = start // to.together * to.together
            if start < stop:
                to.write(start, source.read(start, stop))
            tell((stop - done) * itemsize)
            done = stop

    def _unkept(self, node: _Node, names: list[str]) -> None:
        if names:
            self.left_out.append(("/".join(node.path) or "/", f"attributes {', '.join(names)}"))


def export_whole(
    whole: WholeExport, file: File, unfinished: UnfinishedFile, step: int, name: str
) -> None:
    """Write a group into a file; the unfinished file was begun.

    Raises
    ------
    Failure
        It was interrupted; the message says how much is done.
    """
    sink: TreeSink
    with unfinished.kept(len(whole.nodes), "arrays and groups", "group") as failed:
        if file.kind == "zarr":
            sink = ZarrTree(unfinished.path, whole.layouts)
        else:
            sink = Hdf5Tree(unfinished.path, file.path.lower().endswith((".nc", ".nc4")))
        failed.callback(sink.close)
        nodes = whole.nodes[: unfinished.done]
        done = sum(n.layout.size * n.layout.dtype.itemsize for n in nodes if n.layout is not None)
        with progress(f"export {name}", whole.nbytes, in_bytes=True, done=done) as tell:
            whole.write(sink, unfinished, step, tell)
    for where, why in whole.left_out:
        warn("export", f"left out, {where}: {why}")
