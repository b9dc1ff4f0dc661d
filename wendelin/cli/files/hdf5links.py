"""Links and references in HDF5 files: which of them stay in the file.

An HDF5 file may refer to bytes in other files, of any path: by external storage, by the
sources of virtual datasets, by external links. None of these is followed unless the user says so.
Otherwise a stranger's file could bring bytes of any of the user's files into an array.
"""

from __future__ import annotations

from typing import Any

from wendelin.cli.errors import Failure

__all__ = ["Inside"]

_LINKS = 16  # all links on the way to a dataset: the limit of HDF5 itself
_DEEP = 16  # levels of virtual datasets
_SOURCES = 10_000  # of all virtual datasets of virtual datasets


class Inside:
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
        self._sources = 0  # of virtual datasets that others are made of

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
        for step in name.split("/"):
            if step in ("", "."):
                continue
            if not isinstance(at, h5py.Group):
                return None
            try:
                link = at.get(step, getlink=True)
            except (TypeError, ValueError) as e:  # of a kind that h5py does not know
                raise self._refuse(name, f"is behind a link of an unknown kind: {e}") from e
            if link is None:
                return None
            if isinstance(link, h5py.ExternalLink):
                raise self._refuse(name, f"is behind a link to another file, {link.filename!r}")
            if isinstance(link, h5py.HardLink):
                at = at[step]
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
            # HDF5 opens a dataset again wherever it is a source: their number may be exponential
            self._sources += depth > 0
            if self._sources > _SOURCES:
                raise Failure(
                    f"{self._path}:{dataset.name}: a virtual dataset of others, with "
                    f"more than {_SOURCES:,} sources"
                )
            source = self.find(name)
            if isinstance(source, self._h5py.Dataset):
                self.check(source, depth + 1)

    def _refuse(self, name: str, what: str) -> Failure:
        return Failure(
            f"{self._path}:{name.strip('/')} {what}: it is read only with --external, if you trust "
            f"the file"
        )
