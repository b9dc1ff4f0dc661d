"""Arrays in HDF5 files, by h5py, which need not be installed.

An HDF5 file may refer to bytes in other files, of any path: by external storage, by parts of
virtual datasets, by external links. None of these is followed unless the user says so. Otherwise a
stranger's file could bring bytes of any of the user's files into an array.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from wendelin.cli.errors import Failure
from wendelin.cli.files.attributes import from_hdf5, to_hdf5
from wendelin.cli.files.base import Layout
from wendelin.cli.files.convert import packed, plain, without_titles
from wendelin.cli.files.datasets import DatasetSink, DatasetSource, chunks_of, library
from wendelin.cli.files.flat import only_member

__all__ = ["hdf5_sink", "hdf5_source"]

_LINKS = 16  # all links on the way to a dataset: the limit of HDF5 itself
_DEEP = 16  # levels of virtual datasets
_PARTS = 10_000  # parts of all virtual datasets of virtual datasets


class _Inside:
    """Finds datasets of a file that are in the file, with all of their bytes.

    Parameters
    ----------
    h5py : module
    file : h5py.File
    path : str
        Of the file, as the user named it.
    """

    def __init__(self, h5py: Any, file: Any, path: str) -> None:
        self._h5py, self._file, self._path = h5py, file, path
        self._links = 0  # followed, on the way to what is looked for
        self._parts = 0  # of virtual datasets that others are made of

    def find(self, name: str) -> Any:
        """Return the object of a name; None if there is none.

        Raises
        ------
        Failure
            It is behind a link to another file.
        """
        self._links = 0
        return self._find(name)

    def _find(self, name: str, start: Any = None) -> Any:
        h5py = self._h5py
        at = self._file if start is None or name.startswith("/") else start
        for part in name.split("/"):
            if part in ("", "."):
                continue
            if not isinstance(at, h5py.Group):
                return None
            try:
                link = at.get(part, getlink=True)
            except (TypeError, ValueError) as e:  # of a kind that h5py does not know
                raise self._refuse(name, f"is behind a link of an unknown kind: {e}") from e
            if link is None:
                return None
            if isinstance(link, h5py.ExternalLink):
                raise self._refuse(name, f"is behind a link to another file, {link.filename!r}")
            if isinstance(link, h5py.HardLink):
                at = at[part]
            elif self._links == _LINKS:
                raise Failure(f"{self._path}:{name} is behind more than {_LINKS} links")
            else:
                self._links += 1
                at = self._find(link.path, at)
        return at

    def check(self, dataset: Any, depth: int = 0) -> None:
        """Check that all bytes of a dataset are in the file, and that HDF5 ends when it reads them.

        Raises
        ------
        Failure
            They are not.
        """
        how = dataset.id.get_create_plist()
        if how.get_external_count():
            file = how.get_external(0)[0].decode(errors="backslashreplace")
            raise self._refuse(dataset.name, f"has its bytes in another file, {file!r}")
        if how.get_layout() != self._h5py.h5d.VIRTUAL:
            return
        if depth == _DEEP:
            raise Failure(
                f"{self._path}:{dataset.name} has virtual datasets in more than {_DEEP} levels"
            )
        for i in range(how.get_virtual_count()):
            file, name = how.get_virtual_filename(i), how.get_virtual_dsetname(i)
            if file != "." or "%" in name:  # which stands for numbers
                raise self._refuse(dataset.name, f"is made of datasets of other files, {file!r}")
            # HDF5 opens a dataset again wherever it is a part: their number may be exponential
            self._parts += depth > 0
            if self._parts > _PARTS:
                raise Failure(
                    f"{self._path}:{dataset.name}: a virtual dataset of others, with "
                    f"more than {_PARTS:,} parts"
                )
            part = self.find(name)
            if isinstance(part, self._h5py.Dataset):
                self.check(part, depth + 1)

    def _refuse(self, name: str, what: str) -> Failure:
        return Failure(
            f"{self._path}:{name.strip('/')} {what}: it is read only with --external, if you trust "
            f"the file"
        )


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


def hdf5_source(path: str, member: str, external: bool, identity: dict[str, Any]) -> DatasetSource:
    """Return a dataset of an HDF5 file; the only one, if no name is given.

    Raises
    ------
    Failure
        There is none; or it has bytes in other files and external is False.
    """
    h5py = library("h5py", "hdf5")
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise
    except OSError as e:
        raise Failure(f"{path} is not a readable HDF5 file: {e}") from e
    try:
        inside = _Inside(h5py, file, path)
        name = member
        dataset = None
        if member:
            dataset = file.get(member) if external else inside.find(member)
        if not isinstance(dataset, h5py.Dataset):
            names: list[str] = []
            # it follows no link out of the file
            file.visititems(
                lambda name, obj: names.append(name) if isinstance(obj, h5py.Dataset) else None
            )
            name = only_member(path, member, names)
            dataset = file[name]
        if not external:
            inside.check(dataset)
        if dataset.shape is None:
            raise Failure(f"{path}:{name} is an empty dataset, without a shape")
        identity = {**identity, "member": name}
        chunk = dataset.chunks or ()
        stored, attributes = _stored(h5py, dataset), from_hdf5(h5py, dataset)
        return DatasetSource(dataset, chunk, identity, file.close, stored, attributes)
    except BaseException:
        file.close()
        raise


def _dtype_for(h5py: Any, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype for h5py: times are opaque, with a tag that h5py knows."""
    if dtype.subdtype is not None:
        return np.dtype((_dtype_for(h5py, dtype.base), dtype.shape))
    if dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
        return np.dtype(
            {
                "names": list(dtype.names),
                "formats": [_dtype_for(h5py, field[0]) for field in fields],
                "offsets": [field[1] for field in fields],
                "itemsize": dtype.itemsize,
            }
        )
    opaque: np.dtype[Any] = h5py.opaque_dtype(dtype) if dtype.kind in "Mm" else dtype
    return opaque


def hdf5_sink(path: str, layout: Layout, member: str) -> DatasetSink:
    """Return a new HDF5 file with one dataset.

    Raises
    ------
    Failure
        HDF5 has no such dtype.
    """
    h5py = library("h5py", "hdf5")
    dtype = without_titles(layout.dtype)
    file = h5py.File(path, "w")
    try:
        chunks = chunks_of(layout) if layout.shape and layout.size else None
        for known in dtype, packed(dtype):  # fields may overlap
            told = _dtype_for(h5py, known)
            dataset = file.create_dataset(member, layout.shape, told, chunks=chunks)
            if plain(dataset.dtype) == known:
                set_attrs = partial(to_hdf5, h5py)
                return DatasetSink(dataset, layout, told, file.close, set_attrs=set_attrs)
            del file[member]
        raise TypeError(f"h5py makes {dataset.dtype} of it")
    except (TypeError, ValueError) as e:
        file.close()
        raise Failure(f"an HDF5 file cannot have dtype {layout.dtype}: {e}") from e
    except BaseException:
        file.close()
        raise
