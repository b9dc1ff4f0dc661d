"""A file that is written as FILE.part, and becomes FILE when it is complete.

FILE.part.json says that FILE.part is ours, of which state of the database it is, and how much of it
is there, where that can be gone on with after the program was killed. It is written first, and
removed last: what has none is somebody else's, and is left alone.
"""

from __future__ import annotations

import json
import os
import re
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
        self._old = f"{self._path}.old~"  # where a folder is put aside
        self.state = self._read()

    def _read(self) -> dict[str, Any] | None:
        """Return what was written of an interrupted export; None: there is none."""
        try:
            with open(self._state_path) as file:
                state = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError:
            state = None
        if not _is_state(state):
            raise Failure(
                f"{self._state_path} is not of an export, or is damaged: move it and {self.path} "
                f"elsewhere, or remove them"
            )
        return state if os.path.lexists(self.path) else None

    @property
    def tid(self) -> bytes | None:
        """The state of the database that is exported; None: nothing is there of one."""
        return bytes.fromhex(self.state["tid"]) if self.state and self.done else None

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
        if self.state is not None and self.state["source"] != source:
            before = self.state["source"]
            differs = ", ".join(n for n in source if before.get(n) != source[n])
            raise Failure(
                f"{self.path} was begun by another export ({differs}): remove it and "
                f"{self._state_path}, to begin anew"
            )
        if self.done:
            return
        if self.state is not None:
            _remove(self.path)
        for path in self.path, self._old:
            if os.path.lexists(path):
                raise Failure(
                    f"{path} is there, and is not of an export: this one needs that name until it "
                    f"is complete, so move it elsewhere, or remove it"
                )
        self.state = {"source": source, "tid": tid.hex(), "done": 0, "position": 0, "old": False}
        self.save(0, 0)

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
        assert self.state is not None
        if os.path.isfile(self.path):
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
        if os.path.isdir(self.path) and os.path.exists(self._path):
            # a folder does not replace another
            self.state["old"] = True
            self.save(self.done, self.position)
            os.rename(self._path, self._old)
        os.replace(self.path, self._path)
        if self.state.get("old"):
            _remove(self._old)
        _remove(self._state_path)
        folder = os.open(os.path.dirname(os.path.abspath(self._path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self) -> None:
        """Remove what was begun."""
        _remove(self.path)
        _remove(self._state_path)


def _is_state(state: Any) -> bool:
    """Say whether something is what save() writes."""
    return (
        isinstance(state, dict)
        and isinstance(state.get("source"), dict)
        and re.fullmatch("[0-9a-f]{16}", str(state.get("tid"))) is not None
        and all(type(state.get(n)) is int and state[n] >= 0 for n in ("done", "position"))
    )


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
