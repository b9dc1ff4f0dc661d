"""A file that is written as FILE.part, and becomes FILE when it is complete.

FILE.part.json says how much of it is there, where that can be gone on with after the program was
killed, and of which state of the database it is.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from typing import Any

from wendelin.cli.errors import Failure

__all__ = ["Part"]


class Part:
    """A file that is not complete yet, and how far it is.

    Parameters
    ----------
    path : str
        Of the file, when it is complete.
    """

    def __init__(self, path: str) -> None:
        self._path = path.rstrip("/")
        self.path = f"{self._path}.part"
        self._state_path = f"{self.path}.json"
        self.state = self._read()

    def _read(self) -> dict[str, Any] | None:
        """Return what was written of an interrupted export; None: there is none."""
        try:
            with open(self._state_path) as file:
                state = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError as e:
            raise Failure(f"{self._state_path} is damaged: remove it ({e})") from e
        return state if os.path.exists(self.path) else None

    @property
    def tid(self) -> bytes | None:
        """The state of the database that is exported; None: nothing was begun."""
        return None if self.state is None else bytes.fromhex(self.state["tid"])

    @property
    def done(self) -> int:
        """Elements that are on the disk."""
        return 0 if self.state is None else int(self.state["done"])

    @property
    def position(self) -> int:
        """What the sink's sync() returned with these."""
        return 0 if self.state is None else int(self.state["position"])

    def begin(self, source: dict[str, Any], tid: bytes) -> None:
        """Begin, or go on: with the same array, at the same state, only.

        Parameters
        ----------
        source : dict
            What tells what is exported, and to what: plain values.
        tid : bytes
            The state of the database.

        Raises
        ------
        Failure
            What is there is of something else.
        """
        if self.state is None:
            self.remove()
            self.state = {"source": source, "tid": tid.hex(), "done": 0, "position": 0}
        elif self.state["source"] != source:
            before = self.state["source"]
            differs = ", ".join(n for n in source if before.get(n) != source[n])
            raise Failure(
                f"{self.path} was begun by another export ({differs}): remove it and "
                f"{self._state_path}, to begin anew"
            )

    def save(self, done: int, position: int) -> None:
        """Note that so many elements are on the disk."""
        assert self.state is not None
        self.state.update(done=done, position=position)
        new = f"{self._state_path}~"
        with open(new, "w") as file:
            json.dump(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._state_path)

    def finish(self) -> None:
        """Have the file under its name."""
        if os.path.isfile(self.path):
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
        old = f"{self._path}.old~"
        if os.path.isdir(self.path) and os.path.exists(self._path):
            os.rename(self._path, old)  # a folder does not replace another
        os.replace(self.path, self._path)
        _remove(old)
        _remove(self._state_path)
        folder = os.open(os.path.dirname(os.path.abspath(self._path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self) -> None:
        """Remove what was begun."""
        _remove(self._state_path)
        _remove(self.path)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
