"""A file that is written as FILE.part, and becomes FILE when it is complete.

FILE.part.json says that FILE.part is ours, and which state of the database it has. If the export
can go on after the program was killed, it also says how much is done. It is written first, and
removed last: a FILE.part without it is of another program, and is left alone.

The export that writes FILE.part has a lock of FILE.part.json, by flock(2). Another one of the same
FILE is refused: it would remove what the first one writes, or write behind its end.

This module knows names of files, and not what is in a file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from wendelin.cli.errors import Failure, explain

__all__ = ["UnfinishedFile"]

_CANNOT_LOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # of a file system


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
        self._lock: int | None = None  # a descriptor of the notes
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
            The unfinished file that is there is of another export, or is being written by one.
        """
        self._take()
        try:
            self._begin(source, tid)
        except BaseException:
            self._let_go()
            raise

    def _take(self) -> None:
        """Have the lock of the notes, if there are some."""
        while self._lock is None:
            try:
                fd = os.open(self._state_path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            try:
                _flock(fd)
                with suppress(FileNotFoundError):  # it was removed, or replaced, meanwhile
                    if os.path.samestat(os.fstat(fd), os.stat(self._state_path)):
                        self._lock, fd = fd, -1
            except BlockingIOError:
                raise self._busy() from None
            finally:
                if fd >= 0:
                    os.close(fd)

    def _busy(self) -> Failure:
        return Failure(
            f"another export is writing {self.path}: wait for its end, or export into another file"
        )

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _begin(self, source: dict[str, Any], tid: bytes) -> None:
        if self._read() != self.state:
            raise Failure(f"another export has written {self.path} meanwhile: try again")
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
        first = self._lock is None
        new = f"{self._state_path}~{os.getpid() if first else ''}"
        lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            with open(lock, "w", closefd=False) as file:
                json.dump(self.state, file)
            os.fsync(lock)
            _flock(lock)  # before it has its name, and the other lock is given up
            if first:
                self._name_first(new)
            else:
                os.replace(new, self._state_path)
        except BaseException:
            os.close(lock)
            raise
        self._let_go()
        self._lock = lock

    def _name_first(self, new: str) -> None:
        """Give the first notes their name, if no other export has begun."""
        try:
            os.link(new, self._state_path)
        except FileExistsError:
            raise self._busy() from None
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            os.rename(new, self._state_path)  # there are no hard links
        finally:
            _remove(new)

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
            self._let_go()
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
        self._let_go()

    def remove(self) -> None:
        """Remove it, and the notes."""
        _remove(self.path)
        _remove(self._state_path)
        self._let_go()


def _flock(fd: int) -> None:
    """Lock a file; BlockingIOError: another export has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as e:
        if e.errno not in _CANNOT_LOCK:
            raise


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
