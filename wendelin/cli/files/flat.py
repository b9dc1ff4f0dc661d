"""Arrays whose elements lie in a file as in memory: .npy, members of .npz, raw bytes.

This module knows these files, but not the database that arrays are copied from, or to.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
import zipfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from wendelin.bigarray.array import Order
from wendelin.cli.errors import Failure
from wendelin.cli.files.base import FileSource, Layout, Sink
from wendelin.cli.files.convert import as_bytes, is_described, packed, plain
from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.storage.fscopy import copy_range, share_range
from wendelin.lib.utils import override

__all__ = [
    "FlatSink",
    "FlatSource",
    "NpzSink",
    "npy_source",
    "npz_source",
    "only_member",
    "raw_source",
    "write_npy_header",
]

_BLOCK = 4096  # of a file system, at least [bytes]
LARGE = 64 << 20  # a .npy whose elements begin with a block [bytes]
_HEADER = 1 << 20  # the longest header of a .npy: it has all fields of a structure [bytes]


class FlatSource(FileSource):
    """Elements that follow each other in a file.

    Parameters
    ----------
    file : binary file
        Closed together with the source.
    layout : Layout
    offset : int
        Of the first element [bytes].
    size : int
        Of the file, from there on [bytes].
    identity : dict
        See Source.
    sparse : bool
        The file is one of the system's, not buffered, so it can say where its holes are.

    Raises
    ------
    Failure
        The file is too short.
    """

    def __init__(
        self,
        file: IO[bytes],
        layout: Layout,
        offset: int,
        size: int,
        identity: dict[str, Any],
        sparse: bool = True,
    ) -> None:
        super().__init__(identity, file.close)
        self._file = file
        self.layout = layout
        self._offset = offset
        self._sparse = sparse
        if size < layout.size * layout.dtype.itemsize:
            self._fail(size)

    def _fail(self, size: int) -> None:
        raise Failure(
            f"{self._identity['file']} has {size} bytes of data instead of "
            f"{self.layout.size * self.layout.dtype.itemsize}"
        )

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        itemsize = self.layout.dtype.itemsize
        self._file.seek(self._offset + start * itemsize)
        data = np.empty((stop - start) * itemsize, np.uint8)
        view, at = data.data, 0
        while at < len(view):
            n = self._file.readinto(view[at:])  # type: ignore[attr-defined]
            if not n:
                self._fail(start * itemsize + at)
            at += n
        return data.view(self.layout.dtype)

    def next_data(self, start: int) -> int:
        """See Source: holes of the file are zeros."""
        if not self._sparse:
            return start
        itemsize = self.layout.dtype.itemsize
        try:
            at = os.lseek(self._file.fileno(), self._offset + start * itemsize, os.SEEK_DATA)
        except OSError as e:
            return self.layout.size if e.errno == errno.ENXIO else start
        return min(max(start, (at - self._offset) // itemsize), self.layout.size)


def _read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether in Fortran order, and dtype.

    Raises
    ------
    ValueError
        It is not a .npy file.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file, _HEADER)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file, _HEADER)
    if version != (3, 0):
        raise ValueError(f"its version is {version[0]}.{version[1]}, not 1.0, 2.0 or 3.0")
    # NumPy has no public name for it. It is 2.0 with another encoding: in literals of Python, as
    # names of fields are, an escape may stand for a character.
    head = file.read(4)
    length = struct.unpack("<I", head)[0] if len(head) == 4 else _HEADER + 1
    text = file.read(length) if length <= _HEADER else b""
    if len(text) != length:
        raise ValueError(f"its header is truncated, or has more than {_HEADER} bytes")
    latin = text.decode().encode("latin-1", "backslashreplace")
    header = io.BytesIO(struct.pack("<I", len(latin)) + latin)
    return np.lib.format.read_array_header_2_0(header, 8 * _HEADER)


def _npy_layout(file: IO[bytes], name: str) -> Layout:
    """Return what the header of a .npy says; leave the file behind it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Python 2 wrote it
            shape, fortran, dtype = _read_npy_header(file)
        if any(n < 0 for n in shape):
            raise ValueError(f"its shape is {shape}")
        return Layout(shape, plain(dtype), "F" if fortran and len(shape) > 1 else "C").with_axes()
    except OSError:
        raise
    except Exception as e:  # also those of Python's parser
        raise Failure(f"{name} is not a readable .npy file: {e}") from e


def npy_source(path: str, identity: dict[str, Any]) -> FlatSource:
    """Return the array of a .npy file."""
    file = open(path, "rb", buffering=0)  # noqa: SIM115  # it is the source's
    try:
        layout = _npy_layout(file, path)
        size = os.fstat(file.fileno()).st_size - file.tell()
        return FlatSource(file, layout, file.tell(), size, identity)
    except BaseException:
        file.close()
        raise


class _NpzSource(FlatSource):
    """A member of a .npz file."""

    archive: zipfile.ZipFile

    @override
    def close(self) -> None:
        super().close()
        self.archive.close()


def npz_source(path: str, member: str, identity: dict[str, Any]) -> FlatSource:
    """Return an array of a .npz file; the only one, if no name is given."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as e:
        raise Failure(f"{path} is not an .npz file: {e}") from e
    try:
        names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        name = only_member(path, member, names)
        file = archive.open(f"{name}.npy")
        layout = _npy_layout(file, f"{path}:{name}")
        size = archive.getinfo(f"{name}.npy").file_size - file.tell()
        identity = {**identity, "member": name}
        source = _NpzSource(file, layout, file.tell(), size, identity, sparse=False)
        source.archive = archive
        return source
    except BaseException:
        archive.close()
        raise


def only_member(path: str, member: str, names: list[str]) -> str:
    """Return the name of an array in a file; the only one, if none is given.

    Raises
    ------
    Failure
        There is none of that name; or there are several, and none is given.
    """
    have = ", ".join(names[:8]) + (", ..." if names[8:] else "") or "no arrays"
    if member in names:
        return member
    if member:
        raise Failure(f"{path} has no array {member!r}: it has {have}")
    if len(names) != 1:
        raise Failure(f"{path} has {have}: name one of them, as in {path}:NAME")
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
    file = open(path, "rb", buffering=0)  # noqa: SIM115  # it is the source's
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
        return FlatSource(file, layout, offset, size, {**identity, "offset": offset})
    except BaseException:
        file.close()
        raise


# ---- sinks ----


def _npy_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that a .npy has for a dtype: its header describes only fields in order."""
    return dtype if is_described(dtype) else packed(dtype)


def write_npy_header(file: IO[bytes], layout: Layout) -> None:
    """Write the header of a .npy of an array."""
    header = {
        "descr": np.lib.format.dtype_to_descr(_npy_dtype(layout.dtype)),
        "fortran_order": layout.order == "F",
        "shape": layout.shape,
    }
    for write in np.lib.format.write_array_header_1_0, np.lib.format.write_array_header_2_0:
        try:
            write(file, header)
            return
        except UnicodeEncodeError:  # names of fields
            break
        except ValueError:  # many fields
            pass
    # version 3, for which NumPy has no public name, byte for byte as it writes it
    text = "".join(f"{name!r}: {value!r}, " for name, value in sorted(header.items()))
    data = f"{{{text}}}".encode()
    if layout.shape:  # space for the major axis, which may grow
        major = layout.shape[-1 if layout.order == "F" else 0]
        data += b" " * (21 - len(repr(major)))
    data += b" " * (64 - (12 + len(data) + 1) % 64) + b"\n"
    file.write(np.lib.format.magic(3, 0) + struct.pack("<I", len(data)) + data)


def _aligned(header: bytes) -> bytes:
    """Return a header with more spaces: then elements begin with a block of a file system.

    So these can share blocks with a database. It is as long as NumPy takes it.
    """
    if len(header) >= _BLOCK:
        return header
    size = 2 if header[6] == 1 else 4  # of its length, behind magic and version
    length = int.from_bytes(header[8 : 8 + size], "little") + _BLOCK - len(header)
    spaces = b" " * (_BLOCK - len(header))
    return header[:8] + length.to_bytes(size, "little") + header[8 + size : -1] + spaces + b"\n"


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
        # not truncated: an interrupted export may go on
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        self.dtype = _npy_dtype(layout.dtype) if npy else layout.dtype
        self._size = layout.size * self.dtype.itemsize  # [bytes]
        if npy:
            try:
                header = io.BytesIO()
                write_npy_header(header, layout)
                data = header.getvalue()
                self._file.write(_aligned(data) if self._size >= LARGE else data)
            except BaseException:
                self._file.close()
                raise
        self._offset = self._file.tell()
        self._resumed = False
        self.shares = True  # until it is found out that the file system cannot
        self.worth_saving = False

    @override
    def resume(self, position: int) -> None:
        self._resumed = True

    def _write(self, start: int, values: NDArray[Any]) -> None:
        self.worth_saving = True
        self._begin()
        self._file.seek(self._offset + start * self.dtype.itemsize)
        self._file.write(as_bytes(values).data)

    def _begin(self) -> None:
        if not self._resumed:
            self._resumed = True
            self._file.flush()
            self._file.truncate(self._offset)

    def has_bytes_of(self, layout: Layout) -> bool:
        """Say whether the file has the same bytes as an array, also between fields."""
        return layout.dtype == self.dtype and layout.dtype.names is None

    def write_bytes(self, at: int, data: NDArray[np.uint8]) -> None:
        """Write bytes from byte `at` of the elements on."""
        self.worth_saving = True
        self._begin()
        self._file.seek(self._offset + at)
        self._file.write(data.data)

    def share(self, at: int, fd: int, offset: int, size: int) -> bool:
        """Share bytes of another file, as those at byte `at` of the elements, if it is possible."""
        to = self._offset + at
        if not self.shares or (to | offset | size) % ALIGNMENT:
            return False
        self._begin()
        self._file.flush()
        self.shares = share_range(fd, offset, self._file.fileno(), to, size)
        return self.shares

    def copy(self, at: int, fd: int, offset: int, size: int) -> None:
        """Copy bytes of another file to byte `at` of the elements; by the kernel if it can.

        Raises
        ------
        OSError
            The other file ends before.
        """
        self.worth_saving = True
        self._begin()
        self._file.flush()
        done = 0
        while done < size:
            to = self._offset + at + done
            n = copy_range(fd, offset + done, self._file.fileno(), to, size - done)
            if n == 0:
                raise OSError(errno.EIO, "the database's file ends in a block")
            done += n

    @override
    def sync(self) -> int:
        self._file.flush()
        os.fsync(self._file.fileno())
        self.worth_saving = False
        return 0

    @override
    def finish(self) -> None:
        self._begin()
        self._file.flush()
        self._file.truncate(self._offset + self._size)
        self.sync()
        self.close()

    @override
    def close(self) -> None:
        self._file.close()


class NpzSink(Sink):
    """A .npz file of one array."""

    def __init__(self, path: str, layout: Layout, member: str) -> None:
        self._path = path
        self.dtype = _npy_dtype(layout.dtype)
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._file = self._archive.open(f"{member}.npy", "w", force_zip64=True)
        write_npy_header(self._file, layout)

    def _write(self, start: int, values: NDArray[Any]) -> None:
        self._file.write(as_bytes(values).data)

    @override
    def finish(self) -> None:
        self.close()
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())

    @override
    def close(self) -> None:
        self._file.close()
        self._archive.close()
