"""Arrays whose elements lie in a file as they lie in memory: .npy, members of .npz, raw bytes."""

from __future__ import annotations

import os
import zipfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from wendelin.bigarray.array import Order
from wendelin.cli.errors import Failure
from wendelin.cli.files.base import Layout, Sink, Source

__all__ = ["FlatSink", "FlatSource", "NpzSink", "npy_source", "npz_source", "raw_source"]


class FlatSource(Source):
    """Elements that follow each other in a file.

    Parameters
    ----------
    file : binary file
        Which is closed with the source.
    layout : Layout
    offset : int
        Of the first element [bytes].
    identity : dict
        See Source.
    """

    def __init__(
        self, file: IO[bytes], layout: Layout, offset: int, identity: dict[str, Any]
    ) -> None:
        self._file = file
        self.layout = layout
        self._offset = offset
        self._identity = identity

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See Source."""
        itemsize = self.layout.dtype.itemsize
        self._file.seek(self._offset + start * itemsize)
        size = (stop - start) * itemsize
        data = self._file.read(size)
        if len(data) != size:
            raise Failure(
                f"{self._identity['file']} ends after {start * itemsize + len(data)} bytes of "
                f"data, of {self.layout.size * itemsize}"
            )
        return np.frombuffer(data, self.layout.dtype)

    def identity(self) -> dict[str, Any]:
        """See Source."""
        return self._identity

    def close(self) -> None:
        """See Source."""
        self._file.close()


def _npy_layout(file: IO[bytes], name: str) -> Layout:
    """Return what the header of a .npy says; the file is behind it then."""
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"it is of version {version[0]}.{version[1]}, and not 1.0 or 2.0")
    except ValueError as e:
        raise Failure(f"{name} is no .npy that can be read: {e}") from e
    return Layout(shape, dtype, "F" if fortran and len(shape) > 1 else "C")


def npy_source(path: str, identity: dict[str, Any]) -> FlatSource:
    """Return the array of a .npy file."""
    file = open(path, "rb")  # noqa: SIM115  # it is the source's
    try:
        layout = _npy_layout(file, path)
        return FlatSource(file, layout, file.tell(), identity)
    except BaseException:
        file.close()
        raise


class _NpzSource(FlatSource):
    """A member of a .npz file."""

    archive: zipfile.ZipFile

    def close(self) -> None:
        """See Source."""
        super().close()
        self.archive.close()


def npz_source(path: str, member: str, identity: dict[str, Any]) -> FlatSource:
    """Return an array of a .npz file; the only one, if no name is given."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as e:
        raise Failure(f"{path} is no .npz file: {e}") from e
    try:
        names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        name = only_member(path, member, names)
        file = archive.open(f"{name}.npy")
        layout = _npy_layout(file, f"{path}:{name}")
        source = _NpzSource(file, layout, file.tell(), {**identity, "member": name})
        source.archive = archive
        return source
    except BaseException:
        archive.close()
        raise


def only_member(path: str, member: str, names: list[str]) -> str:
    """Return the name of an array in a file that has some; the only one, if none is given.

    Raises
    ------
    Failure
        There is none of that name; or there are others, and none is given.
    """
    have = ", ".join(names[:8]) + (", ..." if names[8:] else "") or "no arrays"
    if member in names:
        return member
    if member:
        raise Failure(f"{path} has no array {member!r}: it has {have}")
    if len(names) != 1:
        raise Failure(f"{path} has {have}: say which one, as in {path}:NAME")
    return names[0]


def raw_source(
    path: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...] | None,
    order: Order,
    offset: int,
    identity: dict[str, Any],
) -> FlatSource:
    """Return the bytes of a file, from an offset on, as an array; 1-d, if no shape is given."""
    file = open(path, "rb")  # noqa: SIM115  # it is the source's
    try:
        size = os.fstat(file.fileno()).st_size - offset
        if size < 0:
            raise Failure(f"{path} has {size + offset} bytes: --offset {offset} is past its end")
        if shape is None:
            shape = (size // dtype.itemsize,)
        layout = Layout(shape, dtype, order)
        if layout.size * dtype.itemsize != size:
            raise Failure(
                f"{path} has {size} bytes from {offset} on, and an array of shape {shape} "
                f"and dtype {dtype} has {layout.size * dtype.itemsize}"
            )
        return FlatSource(file, layout, offset, {**identity, "offset": offset})
    except BaseException:
        file.close()
        raise


# ---- sinks ----


def _write_npy_header(file: IO[bytes], layout: Layout) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(layout.dtype),
        "fortran_order": layout.order == "F",
        "shape": layout.shape,
    }
    try:
        np.lib.format.write_array_header_1_0(file, header)
    except ValueError:  # many fields
        np.lib.format.write_array_header_2_0(file, header)


class FlatSink(Sink):
    """A .npy file, or one of raw bytes.

    Parameters
    ----------
    path : str
    layout : Layout
    npy : bool
        With a header.
    """

    resumable = True
    sparse = True

    def __init__(self, path: str, layout: Layout, npy: bool) -> None:
        # not emptied: what another one wrote may be gone on with
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        self._layout = layout
        if npy:
            _write_npy_header(self._file, layout)
        self._offset = self._file.tell()
        self._resumed = False

    def resume(self, position: int) -> None:
        """See Sink."""
        self._resumed = True

    def write(self, start: int, values: NDArray[Any]) -> None:
        """See Sink."""
        self._begin()
        self._file.seek(self._offset + start * self._layout.dtype.itemsize)
        self._file.write(values.view(np.uint8).data)

    def _begin(self) -> None:
        if not self._resumed:
            self._resumed = True
            self._file.flush()
            self._file.truncate(self._offset)

    def sync(self) -> int:
        """See Sink."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return 0

    def finish(self) -> None:
        """See Sink."""
        self._begin()
        self._file.flush()
        self._file.truncate(self._offset + self._layout.size * self._layout.dtype.itemsize)
        self.sync()
        self.close()

    def close(self) -> None:
        """See Sink."""
        self._file.close()


class NpzSink(Sink):
    """A .npz file of one array."""

    def __init__(self, path: str, layout: Layout, member: str) -> None:
        self._path = path
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._file = self._archive.open(f"{member}.npy", "w", force_zip64=True)
        _write_npy_header(self._file, layout)

    def write(self, start: int, values: NDArray[Any]) -> None:
        """See Sink."""
        self._file.write(values.view(np.uint8).data)

    def finish(self) -> None:
        """See Sink."""
        self.close()
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """See Sink."""
        self._file.close()
        self._archive.close()
