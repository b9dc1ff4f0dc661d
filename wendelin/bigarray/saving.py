"""An array of any size written to a file, in batches, in bounded memory.

This module knows an array by its shape, dtype and order, and by load().
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from wendelin.bigfile.virtmem.handle import ram_stat

if TYPE_CHECKING:
    from wendelin.bigarray.loaded import Loaded

__all__ = ["Saving"]

File = str | os.PathLike[str] | IO[bytes]

#: (bytes that are written, all bytes) -> None
Progress = Callable[[int, int], object]

_BATCH = 16 << 20  # at most in memory at a time; or a row, if that is more [bytes]


def _opened(file: File, suffix: str = "") -> AbstractContextManager[IO[bytes]]:
    """Return a file to write to; one that is open already stays open."""
    if not isinstance(file, str | os.PathLike):
        if not hasattr(file, "write"):
            raise TypeError(f"a path, or a file that is open to write, was expected, not {file!r}")
        return nullcontext(file)
    path = os.fspath(file)
    return open(path if path.endswith(suffix) else path + suffix, "wb")


def _write_all(f: IO[bytes], data: memoryview) -> None:
    while data:
        n = f.write(data)  # a raw file may write less
        data = data[len(data) if n is None else n :]


class Saving:
    """Methods that write an array to files."""

    if TYPE_CHECKING:  # attributes of an array
        _order: str
        load: Callable[..., Loaded]

        @property
        def shape(self) -> tuple[int, ...]: ...  # noqa: D102
        @property
        def dtype(self) -> np.dtype[Any]: ...  # noqa: D102
        @property
        def ndim(self) -> int: ...  # noqa: D102
        @property
        def nbytes(self) -> int: ...  # noqa: D102

    def tofile(
        self,
        file: File,
        sep: str = "",
        format: str = "%s",
        *,
        progress: Progress | None = None,
    ) -> None:
        """Write all elements to a file as ndarray.tofile() does, in C order, in batches.

        Parameters
        ----------
        file : path or file object
            Opened in binary mode, to write.
        sep, format : str
            See ndarray.tofile(): text, if sep is not empty.
        progress : callable, optional
            Called as progress(bytes written, all bytes) after each batch.

        Raises
        ------
        BlockLoadError
            A block cannot be loaded. Bytes written before it stay in the file.
        """
        if sep:
            np.asarray(self).tofile(file, sep, format)
            return
        with _opened(file) as f:
            self._write(f, 0, progress)

    def save(self, file: File, *, progress: Progress | None = None) -> None:
        """Write a .npy file as numpy.save() does, in batches; see tofile().

        The file has the array's order, also Fortran order.
        """
        fortran = self._order == "F" and self.ndim > 1
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": fortran,
            "shape": self.shape,
        }
        with _opened(file, ".npy") as f:
            try:
                np.lib.format.write_array_header_1_0(f, header)
            except ValueError:  # the header is longer: there are many fields
                np.lib.format.write_array_header_2_0(f, header)
            self._write(f, self.ndim - 1 if fortran else 0, progress)

    def _write(self, f: IO[bytes], axis: int, progress: Progress | None) -> None:
        """Write all elements: in C order, or, if `axis` is the last one, in Fortran order."""
        done = 0
        for idx in self._batches(axis):
            with self.load(idx) as batch:
                data = np.ascontiguousarray(batch if axis == 0 else batch.T)
                _write_all(f, data.reshape(-1).view(np.uint8).data)
            done += data.nbytes
            if progress is not None:
                progress(done, self.nbytes)

    def _batches(self, axis: int) -> Iterator[Any]:
        """Yield indices of batches along an axis: of _BATCH bytes, or an eighth of page memory."""
        if self.nbytes and not self.ndim:
            yield ...
        elif self.nbytes:
            n = self.shape[axis]
            step = max(1, min(_BATCH, ram_stat()[0] // 8) * n // self.nbytes)
            for i in range(0, n, step):
                rows = slice(i, min(i + step, n))
                yield rows if axis == 0 else (..., rows)

    def __array_function__(
        self, func: Callable[..., Any], types: object, args: Any, kwargs: Any
    ) -> Any:
        """Let numpy.save() work in batches; give all other functions the view of all."""
        if func is np.save:
            return _save(*args, **kwargs)
        return func(*_views(args), **_views(kwargs))


def _save(file: File, arr: Any, allow_pickle: bool = True) -> None:
    """Do numpy.save() of an array."""
    arr.save(file)


def _views(x: Any) -> Any:
    """Return the arguments of a function, with views in place of arrays."""
    if isinstance(x, Saving):
        return np.asarray(x)
    if type(x) in (list, tuple):
        return type(x)(_views(y) for y in x)
    if type(x) is dict:
        return {key: _views(value) for key, value in x.items()}
    return x
