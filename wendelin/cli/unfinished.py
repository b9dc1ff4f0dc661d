"""A file that is written as FILE.part, and becomes FILE when it is complete.

FILE.part.json says that FILE.part is ours, and which state of the database it has. If the export
can go on after the program was killed, it also says how much is done. It is written first, and
removed last: a FILE.part without it is of another program, and is left alone.

This module knows names of files, and not what is in a file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from wendelin.cli.errors import Failure, explain

__all__ = ["UnfinishedFile"]


class UnfinishedFile:
    """A file that is not complete yet, and how much of it is done.

    Parameters
    ----------
    path : str
        Of the complete file.
    """

    def __init__(self, path: str) -> None:
        self._path = path.rstrip("/")
        self.path = f"{self._path}.part"
        self._state_path = f"{self.path}.json"
        self._old = f"{self._path}.old~"  # where a folder that is replaced goes
        self.state = self._read()

    def _read(self) -> dict[str, Any] | None:
        """Return the notes of an interrupted export; None if there is none."""
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
        """The state of the database that is exported; None if there is none yet."""
        return bytes.fromhex(self.state["tid"]) if self.state and self.done else None

    @property
    def done(self) -> int:
        """Elements that are on the disk."""
        return 0 if self.state is None else int(self.state["done"])

    @property
    def position(self) -> int:
        """What the sink's sync() returned for these."""
        return 0 if self.state is None else int(self.state["position"])

    def begin(self, source: dict[str, Any], tid: bytes) -> None:
        """Begin, or go on, but only with the same state of the same array.

        Parameters
        ----------
        source : dict
            Plain values that identify the array, and the file.
        tid : bytes
            The state of the database.

        Raises
        ------
        Failure
            The unfinished file that is there is of another export.
        """
        if self.state is not None and self.state["source"] != source:
            before = self.state["source"]
            differs = ", ".join(n for n in source if before.get(n) != source[n])
            raise Failure(
                f"{self.path} is of another export ({differs}): remove it and "
                f"{self._state_path}, to begin again"
            )
        if self.done:
            return
        if self.state is not None:
            _remove(self.path)
        for path in self.path, self._old:
            if os.path.lexists(path):
                raise Failure(
                    f"{path} exists, and is not of an export: this export needs that name until it "
                    f"is complete, so move it elsewhere, or remove it"
                )
        self.state = {"source": source, "tid": tid.hex(), "done": 0, "position": 0, "old": False}
        self.save(0, 0)

    def save(self, done: int, position: int) -> None:
        """Note how many elements are on the disk."""
        assert self.state is not None
        self.state.update(done=done, position=position)
        new = f"{self._state_path}~"
        with open(new, "w") as file:
            json.dump(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._state_path)

    @contextmanager
    def kept(self, size: int, elements: str, of: str) -> Iterator[ExitStack]:
        """If the export fails, keep what the same command goes on with, or else remove the file.

        Parameters
        ----------
        size : int
            How many elements there will be.
        elements : str
            What save() counts, in the plural.
        of : str
            What is exported.

        Yields
        ------
        ExitStack
            What is to be closed first, if the export fails.

        Raises
        ------
        Failure
            The export failed; the message says how much is done.
        """
        failed = ExitStack()
        try:
            yield failed
        except (Exception, KeyboardInterrupt) as e:
            with suppress(Exception):
                failed.close()
            if not self.done:
                self.remove()
                raise
            raise Failure(
                f"{explain(e)}: {self.path} has {self.done} of {size} {elements}; the same command "
                f"goes on with the same state of the {of}; it begins again if that is removed"
            ) from e

    def finish(self) -> None:
        """Give the file its name."""
        assert self.state is not None
        if os.path.isfile(self.path):
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
        if os.path.isdir(self.path) and os.path.exists(self._path):
            # a rename does not replace a folder
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
        """Remove it, and the notes."""
        _remove(self.path)
        _remove(self._state_path)


def _is_state(state: Any) -> bool:
    """Say whether a value is of the kind that save() writes."""
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
