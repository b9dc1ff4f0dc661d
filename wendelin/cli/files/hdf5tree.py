"""All that is in an HDF5 file, of netCDF-4, MATLAB 7.3, NWB or AnnData too: see Contents.

Groups, arrays and attributes are as they are. Names of dimensions come from dimension scales, or
labels of axes. A hard or soft link to what is imported anyway is a second name of it. MATLAB writes
axes in reverse order, and complex numbers as structures: an array has its axes and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from wendelin.cli.errors import Failure, explain
from wendelin.cli.files.attributes import from_hdf5
from wendelin.cli.files.base import Layout, Source
from wendelin.cli.files.contents import DIMS, ENUM, Contents, Member, Path
from wendelin.cli.files.datasets import DatasetSource, library
from wendelin.cli.files.derived import ArrayInMemory, TextSource, Viewed, text_layout
from wendelin.cli.files.hdf5links import Inside
from wendelin.cli.files.recognize import MATLAB_73

__all__ = ["Datasets", "hdf5_contents", "opened_hdf5"]

_ONLY_DIMENSION = b"This is a netCDF dimension but not a netCDF variable"
_NOT_COORDINATE = "_nc4_non_coord_"  # a variable that has the name of a dimension, and other axes
_OF_MATLAB = ("#refs#", "#subsystem#")


def opened_hdf5(path: str) -> tuple[Any, Any]:
    """Return h5py, and a file that is opened to be read.

    Raises
    ------
    Failure
        It is not an HDF5 file, or h5py is not installed.
    """
    h5py = library("h5py", "hdf5")
    with suppress(ImportError):
        import_module("hdf5plugin")  # more compressions
    try:
        return h5py, h5py.File(path, "r")
    except FileNotFoundError:
        raise
    except OSError as e:
        raise Failure(f"{path} is not a readable HDF5 file: {e}") from e


def hdf5_contents(path: str, member: str, external: bool, identity: dict[str, Any]) -> Contents:
    """Return the contents of an HDF5 file, or of a group in it.

    Raises
    ------
    Failure
        It is not a file of HDF5; it has no such group.
    """
    h5py, file = opened_hdf5(path)
    try:
        found = Datasets(h5py, file, path, external, identity)
        start = file.get(member) if external else found.inside.find(member)
        if not isinstance(start, h5py.Group):
            raise Failure(f"{path} has no group {member!r}")
        members = list(found.members(start))
        return Contents(path, members, {**identity, "member": member.strip("/")}, file.close)
    except BaseException:
        file.close()
        raise


class Datasets:
    """Makes the members of an HDF5 file.

    Parameters
    ----------
    h5py : module
    file : h5py.File
    path : str
    external : bool
        Other files are read, if it names them.
    identity : dict
        See Source.
    close
        What a source does at its end.
    """

    def __init__(
        self,
        h5py: Any,
        file: Any,
        path: str,
        external: bool,
        identity: dict[str, Any],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._h5py, self._file, self._path = h5py, file, path
        self._external, self._identity, self._close = external, identity, close
        self.inside = Inside(h5py, file, path)
        with open(path, "rb") as head:
            self._matlab = head.read(len(MATLAB_73)) == MATLAB_73
        self._dimensions: dict[int, str] = {}  # names by number, as netCDF-4 has them
        self._names: dict[tuple[int, ...], str] = {}  # of datasets, as they are imported

    def members(self, start: Any) -> Iterator[Member]:
        """Yield the members under a group."""
        h5py = self._h5py
        seen: dict[tuple[int, ...], Path] = {}  # object -> its first path
        links: list[tuple[Path, Any]] = []  # looked at when all names are known
        todo: list[tuple[Path, Any]] = [((), start)]
        arrays: list[tuple[Path, Any]] = []
        while todo:
            at, group = todo.pop()
            seen[_key(h5py, group)] = at
            try:
                attrs, unkept = from_hdf5(h5py, group)
                names = list(group)
            except (KeyError, OSError, TypeError, ValueError, RuntimeError) as e:
                yield Member(at, why=f"what is not read: {explain(e)}", damaged=True)
                continue
            yield Member(at, attrs=attrs, unkept=unkept)
            below = []
            for name in names:
                path = (*at, name)
                if self._matlab and not at and name in _OF_MATLAB:
                    yield Member(path, why="contents of cells of MATLAB")
                    continue
                try:
                    link = group.get(name, getlink=True)
                    if isinstance(link, h5py.ExternalLink) and not self._external:
                        why = f"a link to another file, {link.filename!r}: see --external"
                        yield Member(path, why=why)
                        continue
                    if isinstance(link, h5py.SoftLink):
                        links.append((path, self.inside.find(f"{group.name}/{name}")))
                        continue
                    obj = group[name]
                    key = _key(h5py, obj)
                except (KeyError, OSError, TypeError, ValueError, RuntimeError, Failure) as e:
                    why = f"an object that cannot be opened: {explain(e)}"
                    yield Member(path, why=why, damaged=not isinstance(e, Failure))
                    continue
                if key in seen:
                    links.append((path, obj))
                elif isinstance(obj, h5py.Group):
                    seen[key] = path
                    below.append((path, obj))
                elif isinstance(obj, h5py.Dataset):
                    seen[key] = path
                    arrays.append((path, obj))
                    self._names[key] = name.removeprefix(_NOT_COORDINATE)
                    if h5py.h5ds.is_scale(obj.id):
                        with suppress(Exception):
                            self._dimensions[int(obj.attrs["_Netcdf4Dimid"])] = name
                else:
                    yield Member(path, why="a type with a name", quiet=True)
            todo += reversed(below)
        left = set()
        for path, dataset in arrays:
            member = self.member(path, dataset)
            if member.why:
                left.add(path)
            yield member
        for path, obj in links:
            same = seen.get(_key(h5py, obj)) if obj is not None else None
            if not same or same in left:
                yield Member(path, why="a link to what is not imported")
            else:
                yield Member(path, same=same)

    def member(self, path: Path, dataset: Any) -> Member:
        """Return a dataset as a member."""
        h5py = self._h5py
        *way, name = path
        if name.startswith(_NOT_COORDINATE):
            path = (*way, name.removeprefix(_NOT_COORDINATE))
        scale = h5py.h5ds.is_scale(dataset.id)
        title = _bytes(h5py, dataset, "NAME") if scale else b""
        if title.startswith(_ONLY_DIMENSION):
            return Member((*path[:-1], path[-1]), why="a dimension without values", quiet=True)
        try:
            if not self._external:
                self.inside.check(dataset)
            why = self._why_not(dataset)
            if why:
                return Member(path, why=why)
            source = self.source(dataset)
        except Failure as e:
            return Member(path, why=f"bytes elsewhere: {e}")
        except (OSError, TypeError, ValueError, RuntimeError, OverflowError) as e:
            damaged = isinstance(e, OSError | RuntimeError)
            return Member(path, why=f"what is not read: {explain(e)}", damaged=damaged)
        attrs, unkept = dict(source.attrs), list(source.left_out)
        layout = source.layout
        if layout.dtype.itemsize == 0:
            return Member(path, why="elements without bytes")
        return Member(path, layout, attrs, unkept, open=partial(self.source, dataset, layout))

    def _why_not(self, dataset: Any) -> str:
        """Return why a dataset cannot be an array; '' if it can."""
        h5py = self._h5py
        if dataset.shape is None:
            return "an empty dataset, without a shape"
        how = dataset.id.get_create_plist()
        for i in range(how.get_nfilters()):
            number, _, _, name = how.get_filter(i)
            if not h5py.h5z.filter_avail(number):
                text = name.decode(errors="backslashreplace") or "unknown"
                return f"a compression that h5py does not have, {number} ({text}): see hdf5plugin"
        dtype = dataset.dtype
        what = _objects(h5py, dtype)
        is_text = h5py.check_string_dtype(dtype) is not None
        return "" if is_text or not what else what

    def source(self, dataset: Any, layout: Layout | None = None) -> Source:
        """Return a source of a dataset; texts of variable length are read for it without layout."""
        h5py = self._h5py
        attributes = self._attributes(dataset)
        identity = {**self._identity, "member": dataset.name.strip("/")}
        if dataset.dtype.kind == "O":
            told = text_layout(dataset) if layout is None else layout
            return TextSource(dataset, told, identity, self._close, attributes)
        chunk, stored = dataset.chunks or (), _stored(h5py, dataset)
        source = DatasetSource(dataset, chunk, identity, self._close, stored, attributes)
        return self._of_matlab(dataset, source) if self._matlab else source

    def _of_matlab(self, dataset: Any, source: Source) -> Source:
        shape, dtype, _ = source.layout
        if "MATLAB_empty" in dataset.attrs:  # its values are the shape
            shape = tuple(int(n) for n in np.asarray(dataset[...]).reshape(-1))
            if 0 not in shape:
                raise ValueError(f"MATLAB's empty array has shape {shape}")
            kind = np.dtype("f8")
            layout = Layout(shape, kind, "C")
            empty = ArrayInMemory(np.empty(shape, kind), layout, source.identity(), self._close)
            empty.attrs, empty.left_out = source.attrs, source.left_out
            return empty
        if dtype.names == ("real", "imag") and dtype["real"] in (np.dtype("f8"), np.dtype("f4")):
            dtype = np.dtype(f"c{dtype.itemsize}")
        return Viewed(source, Layout(shape[::-1], dtype, "F" if len(shape) > 1 else "C"))

    def _attributes(self, dataset: Any) -> tuple[dict[str, Any], list[str]]:
        h5py = self._h5py
        attrs, unkept = from_hdf5(h5py, dataset)
        dims = self._dims(dataset)
        if dims is not None and DIMS not in attrs:
            attrs[DIMS] = dims
        values = h5py.check_enum_dtype(dataset.dtype)
        if values is not None and dataset.dtype.kind != "b" and ENUM not in attrs:
            attrs[ENUM] = {name: int(number) for name, number in values.items()}
        return attrs, unkept

    def _dims(self, dataset: Any) -> list[str] | None:
        """Return the names of dimensions; None if they have none."""
        h5py = self._h5py
        n = len(dataset.shape or ())
        if n == 0:
            return None
        if h5py.h5ds.is_scale(dataset.id) and n == 1:
            return [self._name(dataset)]
        with suppress(Exception):
            numbers = [int(i) for i in dataset.attrs["_Netcdf4Coordinates"]]
            if len(numbers) == n and all(i in self._dimensions for i in numbers):
                return [self._dimensions[i] for i in numbers]
        names = []
        for axis in range(n):
            name = ""
            with suppress(Exception):  # of a damaged or a hostile file
                dim = dataset.dims[axis]
                if len(dim):
                    name = self._name(dim[0])
                name = name or dim.label
            names.append(name)
        return names if any(names) else None

    def _name(self, dataset: Any) -> str:
        own = (dataset.name or "").rpartition("/")[2].removeprefix(_NOT_COORDINATE)
        return self._names.get(_key(self._h5py, dataset), own)


def _key(h5py: Any, obj: Any) -> tuple[int, ...]:
    info = h5py.h5o.get_info(obj.id)
    return info.fileno, info.addr


def _bytes(h5py: Any, obj: Any, name: str) -> bytes:
    try:
        return bytes(np.asarray(obj.attrs.get(name, b"")).item() or b"")
    except Exception:  # of a damaged file
        try:
            return str(obj.attrs.get(name, "")).encode()
        except Exception:
            return b""


def _objects(h5py: Any, dtype: np.dtype[Any]) -> str:
    """Return what a dtype has that has no fixed length; '' if there is nothing."""
    if dtype.subdtype is not None:
        return _objects(h5py, dtype.base)
    if dtype.names is not None:
        for name in dtype.names:
            what = _objects(h5py, dtype[name])
            if what:
                return f"a field {name!r} with {what}"
        return ""
    if not dtype.hasobject:
        return ""
    if h5py.check_ref_dtype(dtype) is not None:
        return "references to objects of the file"
    if h5py.check_string_dtype(dtype) is not None:
        return "texts of variable length"
    return "rows of variable length"


def _stored(h5py: Any, dataset: Any) -> list[tuple[int, ...]] | None:
    """Return where stored chunks begin, if others are zeros; None if all may be stored."""
    how, low = dataset.id.get_create_plist(), dataset.id
    if how.fill_value_defined() == h5py.h5d.FILL_VALUE_UNDEFINED:
        return None
    if dataset.dtype.hasobject or np.asarray(dataset.fillvalue).tobytes().strip(b"\0"):
        return None
    if how.get_layout() == h5py.h5d.CHUNKED and dataset.size and hasattr(low, "chunk_iter"):
        total = 1
        for n, chunk in zip(dataset.shape, dataset.chunks, strict=True):
            total *= -(-n // chunk)
        if low.get_num_chunks() < total:
            found: list[tuple[int, ...]] = []
            low.chunk_iter(lambda chunk: found.append(chunk.chunk_offset))
            return found
    is_whole = how.get_layout() == h5py.h5d.CONTIGUOUS and not how.get_external_count()
    return [] if is_whole and low.get_offset() is None else None
