"""A cache of blocks in a folder, which all processes of a user share: a file for each block.

What a file has never changes: a revision of an object is named by its oid and tid. So nothing has
to be invalidated. Processes map the files, and the kernel has one copy for all of them. The cache
works without a process of its own: a process that would pass the limit removes the files that were
not used for longest.

    DIR/state                       how much there is [bytes]; its lock
    DIR/DATABASE/about              which database it is (see Lineage)
    DIR/DATABASE/OID-TID            a block; the oids of its parts; a trailer
    DIR/DATABASE/OID@BEFORE         a symbolic link to the revision of the state before a tid
    DIR/DATABASE/newest             a symbolic link to the block of the last transaction
    DIR/DATABASE/close              is there if tids do not all come from a clock; then the links
                                    OID@BEFORE are not used
    DIR/DATABASE/~PID-N             a file that is being written

The files themselves are in cachefile.

This module knows files. It does not know Connections, nor what the bytes mean.

Locking: _turn > a file lock (flock) on `state`; both held to count, and to scan. They are leaves. A
process that cannot have the file's within LOCK_WAIT leaves the cache out for a while: another one
may be stopped while it has it, and to wait for each block would take minutes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from wendelin.lib.sizes import parse_size
from wendelin.lib.storage.cachefile import ALIAS, NAME, TOUCH, Database

__all__ = ["Checked", "Folder", "Lineage", "Usage", "cache_folder"]

log = logging.getLogger("wendelin.cache")

LOCK_WAIT = 0.2  # for the lock of the folder [s]
_LEFT_OUT = 10.0  # after it was waited for in vain [s]
_TEMPORARY = 600  # a file that is being written is not older [s]

_MAGIC = b"wcCACHE1"
_STATE = Struct("<8s16sQ")  # magic, boot, total [bytes]
_NOTES = "about", "close", "newest"  # without the first, nobody looks at the others
_FOLDER = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}")


def _boot() -> bytes:
    """Return the id of this boot of the machine."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    return bytes.fromhex(text.strip().replace("-", ""))


class Usage(NamedTuple):
    """What a folder has of one database."""

    name: str  # of the database, for people
    blocks: int
    size: int  # [bytes]
    used: float  # when a process used one of them last [s since 1970]; 0: there is none


class Checked(NamedTuple):
    """The result of a check of all files."""

    blocks: int
    damaged: int  # which were thrown away


class Lineage(NamedTuple):
    """What tells a database from another one.

    Two databases may have the same oids and tids. They can only be the same if they have the same
    address, and the later one has the root object that the earlier one had, in the same
    transaction. See also Folder.database().
    """

    where: str  # its address, all of it
    name: str  # for people
    root_tid: bytes
    root: bytes  # the record of the root object
    last: bytes  # the tid of its last transaction
    root_at: Callable[[bytes], tuple[bytes, bytes] | None]  # tid -> record and tid, then

    @property
    def prefix(self) -> str:
        """The beginning of the names of folders of databases at this address."""
        return sha256(self.where.encode()).hexdigest()[:16]

    def follows(self, about: dict[str, str]) -> bool:
        """Say whether it is the database that a folder is of."""
        tid = bytes.fromhex(about["root_tid"])
        if self.last < bytes.fromhex(about["last"]) or self.root_tid < tid:
            return False
        found = (self.root, self.root_tid) if tid == self.root_tid else self.root_at(tid)
        return found is not None and found[1] == tid and _digest(found[0]) == about["root"]

    def about(self) -> dict[str, str]:
        """Return what a folder notes of it."""
        return {
            "name": self.name,
            "root": _digest(self.root),
            "root_tid": self.root_tid.hex(),
            "last": self.last.hex(),
        }


def _digest(record: bytes) -> str:
    return sha256(record).hexdigest()


class Folder:
    """The folder of a cache.

    Parameters
    ----------
    path : str
        Made if it is not there; of this user, and of nobody else.
    limit : int, optional
        How much it may have [bytes]; by default a tenth of the file system.

    Raises
    ------
    PermissionError
        It belongs to another user, or other users may look into it.
    OSError
        It cannot be made, or used.
    """

    def __init__(self, path: str, limit: int | None = None) -> None:
        self.path = path
        with suppress(FileExistsError):
            os.makedirs(path, 0o700)
        _check_owner(path, os.lstat(path))
        room = os.statvfs(path)
        self.limit = limit or room.f_blocks * room.f_frsize // 10
        self.boot = _boot()
        self._warned = False
        self._left_out = 0.0  # until when, by time.monotonic()
        self._turn = threading.Lock()  # threads of this process need not poll for the file's lock
        self._databases: weakref.WeakValueDictionary[str, Database] = weakref.WeakValueDictionary()

    # ---- how much there is ----

    @property
    def is_left_out(self) -> bool:
        """Say whether its lock was waited for in vain, just now."""
        return time.monotonic() < self._left_out

    @contextmanager
    def _locked(self, *, again: bool = False) -> Iterator[int | None]:
        """Have the lock, and `state` open; None: not in time. Again: after it was left out, too."""
        out = self.is_left_out and not again
        if out or not self._turn.acquire(timeout=LOCK_WAIT):
            yield None
            return
        fd = -1
        try:
            # opened each time: a child of a fork would share the lock
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(f"{self.path}/state", flags, 0o600)
            until = time.monotonic() + LOCK_WAIT
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        self._left_out = time.monotonic() + _LEFT_OUT
                        yield None
                        return
                    time.sleep(0.002)
            yield fd
        finally:
            if fd >= 0:
                os.close(fd)
            self._turn.release()

    def _total(self, fd: int) -> int | None:
        """Return how much there is [bytes]; None: that is not known."""
        data = os.pread(fd, _STATE.size, 0)
        if len(data) != _STATE.size:
            return None
        magic, boot, total = _STATE.unpack(data)
        return int(total) if magic == _MAGIC and boot == self.boot else None

    def _set_total(self, fd: int, total: int) -> None:
        os.pwrite(fd, _STATE.pack(_MAGIC, self.boot, max(0, total)), 0)

    def reserve(self, size: int, change: Callable[[], None]) -> bool:
        """Make room for a file. False: it does not fit, or it cannot be known.

        Parameters
        ----------
        size : int
            [bytes]; negative: a file was not written after all.
        change : () -> None
            Makes the file, in its full length, or removes it. It is called with the lock, so that a
            scan of another process counts what is reserved, once.
        """
        with self._locked() as fd:
            if fd is None:
                return False
            total = self._total(fd)
            if total is None or total + size > self.limit:
                total = self._evict(max(0, self.limit - self.limit // 16 - size))
            fits = total + size <= self.limit
            self._set_total(fd, total + size if fits else total)
            try:
                if fits:
                    change()
            except OSError:
                self._set_total(fd, total)
                raise
            return fits

    def failed(self, e: OSError) -> None:
        """A file cannot be written: say so once."""
        if self._warned:
            return
        self._warned = True
        why = "the disk is full" if e.errno in (ENOSPC, EDQUOT) else str(e)
        log.warning("%s: blocks are not kept there (WENDELIN_CORE_CACHE): %s", self.path, why)

    # ---- its files ----

    def databases(self) -> list[str]:
        """Return the names of the folders of databases."""
        return sorted(name for name in os.listdir(self.path) if _FOLDER.fullmatch(name))

    def _evict(self, keep: int) -> int:
        """Remove files until there is at most `keep` [bytes]; return how much there is.

        The files that were not used for longest go first. After the clock was set back, a file may
        have been used in the future: nobody knows how long ago that was, and it goes first, too.
        """
        now = time.time()
        found: list[tuple[float, int, str]] = []
        aliases: list[str] = []
        total = 0
        for path, entry in self._entries():
            with suppress(FileNotFoundError):
                of = os.lstat(path)
                if entry.startswith("~"):
                    if not -TOUCH <= now - of.st_mtime < _TEMPORARY:
                        os.unlink(path)
                        continue
                elif ALIAS.fullmatch(entry):
                    aliases.append(path)
                    continue
                else:
                    used = of.st_mtime if of.st_mtime <= now + TOUCH else 0.0
                    found.append((used, of.st_size, path))
                total += of.st_size
        for _, size, path in sorted(found):
            if total <= keep:
                break
            with suppress(OSError):
                os.unlink(path)
                total -= size
        for path in aliases:
            if not os.path.exists(path):
                with suppress(OSError):
                    os.unlink(path)
        self._remove_empty(now)
        return total

    def _remove_empty(self, now: float) -> None:
        """Remove folders of databases that have no blocks, if that has been so for a while."""
        for database in self.databases():
            path = f"{self.path}/{database}"
            with suppress(OSError):
                fresh = -TOUCH <= now - os.stat(path).st_mtime < _TEMPORARY
                if not fresh and set(os.listdir(path)) <= set(_NOTES):
                    for name in _NOTES:
                        with suppress(FileNotFoundError):
                            os.unlink(f"{path}/{name}")
                    os.rmdir(path)

    def _entries(self) -> Iterator[tuple[str, str]]:
        """Yield path and name of each file of ours: blocks, aliases, temporary ones."""
        for database in self.databases():
            with suppress(FileNotFoundError):
                for name in os.listdir(f"{self.path}/{database}"):
                    if name[0] == "~" or NAME.fullmatch(name) or ALIAS.fullmatch(name):
                        yield f"{self.path}/{database}/{name}", name

    # ---- databases ----

    def database(self, lineage: Lineage, same: Callable[[Database], bool]) -> Database | None:
        """Return what is kept of a database; None: not now, as others keep the lock.

        Parameters
        ----------
        lineage : Lineage
        same : Database -> bool
            Says whether the database has what is kept of it. Called without the lock.
        """
        agreed: str | None = None
        refused: set[str] = set()
        while True:
            with self._locked() as fd:
                if fd is None:
                    return None
                path = self._path_of(lineage, refused)
                if path is None:
                    path = agreed = f"{self.path}/{lineage.prefix}-{os.urandom(4).hex()}"
                    os.mkdir(path, 0o700)
                if path == agreed:
                    with open(f"{path}/~about", "w", encoding="utf-8", opener=_private) as f:
                        json.dump(lineage.about(), f)
                    os.rename(f"{path}/~about", f"{path}/about")
                database = self._databases.get(path)
                if database is None or not database.is_there():
                    database = self._databases[path] = Database(self, path)
                if path == agreed:
                    return database
            if same(database):
                agreed = path
            else:
                refused.add(path)

    def _path_of(self, lineage: Lineage, refused: set[str]) -> str | None:
        for name in self.databases():
            path = f"{self.path}/{name}"
            if name.startswith(f"{lineage.prefix}-") and path not in refused:
                about = self._about(name)
                if about is not None and lineage.follows(about):
                    return path
        return None

    def _about(self, name: str) -> dict[str, str] | None:
        try:
            with open(f"{self.path}/{name}/about", encoding="utf-8") as f:
                about = json.load(f)
            if {"name", "root", "root_tid", "last"} <= about.keys():
                return dict(about)
        except (OSError, ValueError, AttributeError):
            pass  # the machine crashed before it was on the disk
        return None

    # ---- for people ----

    def usage(self) -> list[Usage]:
        """Return what there is of each database."""
        found = []
        for database in self.databases():
            blocks, size, used = 0, 0, 0.0
            for name in os.listdir(f"{self.path}/{database}"):
                if NAME.fullmatch(name):
                    with suppress(FileNotFoundError):
                        of = os.lstat(f"{self.path}/{database}/{name}")
                        blocks, size, used = blocks + 1, size + of.st_size, max(used, of.st_mtime)
            about = self._about(database)
            found.append(Usage("?" if about is None else about["name"], blocks, size, used))
        return found

    def verify(self) -> Checked:
        """Compare all blocks with their checksums, and throw damaged ones away."""
        blocks = damaged = 0
        for name in self.databases():
            database = Database(self, f"{self.path}/{name}")
            for entry in os.listdir(f"{self.path}/{name}"):
                if NAME.fullmatch(entry):
                    oid, tid = map(bytes.fromhex, entry.split("-"))
                    found = database.find(oid, tid, check=True, touch=False)
                    blocks += 1
                    damaged += found is None and not os.path.lexists(f"{self.path}/{name}/{entry}")
        return Checked(blocks, damaged)

    def clear(self) -> int:
        """Remove all blocks; return how much that was [bytes]. What is mapped stays until then."""
        with self._locked(again=True) as fd:
            if fd is None:
                raise TimeoutError(f"{self.path}: another process keeps its lock")
            before = sum(usage.size for usage in self.usage())
            total = self._evict(0)
            self._set_total(fd, total)
        return before - total


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _check_owner(path: str, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"WENDELIN_CORE_CACHE: {path} is not a folder")
    if found.st_uid != os.geteuid():
        raise PermissionError(
            f"WENDELIN_CORE_CACHE: {path} belongs to user {found.st_uid}, and not to "
            f"{os.geteuid()}: take a folder of your own"
        )
    if found.st_mode & 0o077:
        raise PermissionError(
            f"WENDELIN_CORE_CACHE: other users may look into {path}, or change it (mode "
            f"{stat.S_IMODE(found.st_mode):03o}): chmod 700 {path}"
        )


# ---- the folder of this process ----

_folders: dict[str, Folder] = {}


def cache_folder() -> Folder | None:
    """Return the folder that WENDELIN_CORE_CACHE names; None: it is off.

    Raises
    ------
    ValueError
        It is neither `off` nor `DIR` or `DIR:SIZE`.
    OSError
        See Folder.
    """
    text = os.environ.get("WENDELIN_CORE_CACHE", "off")
    if text in ("", "off"):
        return None
    if text not in _folders:
        _folders[text] = Folder(*_parsed(text))
    return _folders[text]


def _parsed(text: str) -> tuple[str, int | None]:
    path, colon, size = text.rpartition(":")
    if not colon:
        path = text
    try:
        limit = parse_size(size) if colon else None
    except ValueError as e:
        raise ValueError(f"WENDELIN_CORE_CACHE is {text!r}: {e}") from None
    if not os.path.isabs(path):
        raise ValueError(
            f"WENDELIN_CORE_CACHE is {text!r}: it must be off, or DIR or DIR:SIZE with an "
            f"absolute path"
        )
    return os.path.normpath(path), limit
