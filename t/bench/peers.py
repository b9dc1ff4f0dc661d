"""Other libraries for arrays on disk, in chunks as large as our blocks, not compressed.

Each library that is installed is a column of the table.
"""

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np
from stores import ITEMS, Mode, Store


class ChunkedStore(Store):
    """A store that copies what is read: so it is read chunk by chunk."""

    since: ClassVar[int] = 0  # major version of the library
    end = 0  # of what append() has written [elements]

    def append(self, values: np.ndarray) -> None:
        self.a[self.end : self.end + len(values)] = values
        self.end += len(values)
        self.flush()

    def sum(self) -> float:
        n = self.size // 8
        return sum(float(np.sum(self.a[i : i + ITEMS])) for i in range(0, n, ITEMS))

    def get(self, i: int) -> Any:
        return np.asarray(self.a[i])

    def change(self, indices: Iterable[int]) -> None:
        for i in indices:
            self.a[i] = self.get(i) + 1
        self.flush()

    def flush(self) -> None:
        """Do nothing: what is assigned is on disk, or the library cannot bring it there."""

    def close(self) -> None:
        """Do nothing, as nothing is open."""


class H5py(ChunkedStore):
    """h5py; flush() and fsync(2) bring it to disk."""

    suffix = ".h5"

    def create(self) -> None:
        import h5py

        self.file = h5py.File(self.path, "w")
        self.a = self.file.create_dataset("A", (self.size // 8,), "f8", chunks=(ITEMS,))

    def open(self, mode: Mode) -> None:
        import h5py

        self.file = h5py.File(self.path, mode)
        self.a = self.file["A"]

    def flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.id.get_vfd_handle())

    def close(self) -> None:
        self.file.close()


class Zarr(ChunkedStore):
    """zarr 3, a file a chunk; it has no way to bring them to disk."""

    suffix = ".zarr"
    since = 3

    def create(self) -> None:
        import zarr

        self.a = zarr.create_array(
            self.path, shape=(self.size // 8,), chunks=(ITEMS,), dtype="f8", compressors=None
        )

    def open(self, mode: Mode) -> None:
        import zarr

        self.a = zarr.open_array(self.path, mode=mode)


class TensorStore(ChunkedStore):
    """tensorstore, in the format of zarr 3; each chunk is brought to disk as it is written."""

    suffix = ".ts"

    def _open(self, **options: Any) -> None:
        import tensorstore

        place = {"driver": "file", "path": str(self.path.absolute())}
        spec = {"driver": "zarr3", "kvstore": place}
        self.a = tensorstore.open(spec, **options).result()

    def create(self) -> None:
        import tensorstore

        layout = tensorstore.ChunkLayout(chunk_shape=[ITEMS])
        shape = [self.size // 8]
        self._open(create=True, dtype="float64", shape=shape, chunk_layout=layout)

    def open(self, mode: Mode) -> None:
        self._open(open=True, read=True, write=mode == "r+")


PEERS: dict[str, type[ChunkedStore]] = {"h5py": H5py, "zarr": Zarr, "tensorstore": TensorStore}


def installed(name: str) -> bool:
    """Say whether a side can run: a library if it is installed, any other side always."""
    if name not in PEERS:
        return True
    try:
        return int(version(name).split(".")[0]) >= PEERS[name].since
    except PackageNotFoundError:
        return False
