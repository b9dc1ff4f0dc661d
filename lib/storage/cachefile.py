"""A block in a file of its own: the files of one database in a cache (blockcache).

States of a file
----------------
    (none) ── store: created ──► ~PID-N ── link ──► OID-TID ── evict, damaged, clear ──► (none)
                                   │
                                   └── the process was killed: a scan removes it ──► (none)

A file has its name only when it is complete. It is not synced: after a crash of the machine, it may
have anything. So its trailer says in which boot it was written. If that was another one, the first
process that finds it reads it through, and compares it with its checksum. It throws a damaged file
away, and writes the present boot into the trailer of a good one.

A removed file stays as long as it is mapped somewhere; the kernel takes care of that.

This module knows a folder of such files. It does not know other folders, nor how large all of them
may be.

Locking: none. What others do to the same files at the same time is harmless: they have names only
when they are complete, and never change.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from errno import EEXIST, EMLINK, EOPNOTSUPP, EPERM
from itertools import pairwise
from struct import Struct
from typing import NamedTuple, Protocol

from ZODB.utils import u64, z64

from wendelin.lib.storage.record import digest_of

__all__ = ["ALIAS", "NAME", "TOUCH", "Database", "Entry", "Room"]

log = logging.getLogger("wendelin.cache")

NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")  #: of a block: oid, tid
ALIAS = re.compile(r"[0-9a-f]{16}@[0-9a-f]{16}")  #: oid, and the state before a tid
TOUCH = 1.0  #: a file that is used again within this time need not be touched [s]

_READ = 1 << 20  # that is compared at a time [bytes]
#: Tids are times, in units of 14 ns, and no database has two transactions within 15 us. Where the
#: clock was set back, each tid is the previous one and 1. Only then a database that was restored
#: from a backup may have the tids of transactions that were lost.
_CLOSE = 1 << 10
_MAGIC = b"wcBLOCK1"
#: magic, boot, bytes that are not cut zeros, block size, number of parts, latest, XXH3-64 of these
#: bytes, and of parts and trailer
_TRAILER = Struct("<8s16sQQQ8s8s8s")

_numbers = itertools.count()


class Room(Protocol):
    """The folder of the cache, as files see it."""

    path: str
    boot: bytes  # the id of this boot of the machine

    def reserve(self, size: int, change: Callable[[], None]) -> bool:
        """Make room for a file [bytes]. False: it does not fit, or it cannot be known.

        `change`, which makes the file, is called when nobody counts; see Folder.
        """

    def failed(self, e: OSError) -> None:
        """A file cannot be written: say so once."""


class Entry(NamedTuple):
    """What is known of a block that is there, besides its bytes."""

    boot: bytes  # in which it was written, or compared
    size: int  # without zeros at the end [bytes]
    blksize: int  # [bytes]
    latest: bytes  # the last tid of its parts, if that is after the block's own; else zeros
    digest: bytes  # XXH3-64 of the bytes, without zeros at the end
    parts: bytes = b""  # oids of objects, besides itself, that it was made of

    @property
    def length(self) -> int:
        """Size of the file [bytes]."""
        return self.blksize + len(self.parts) + _TRAILER.size

    def oids(self) -> list[bytes]:
        """Return its parts."""
        return [self.parts[i : i + 8] for i in range(0, len(self.parts), 8)]

    def pack(self) -> bytes:
        """Return what is behind the block."""
        boot, size, blksize, latest, digest, parts = self
        counts = size, blksize, len(parts) // 8
        data = parts + _TRAILER.pack(_MAGIC, boot, *counts, latest, digest, b"\0" * 8)[:-8]
        return data + digest_of([data])

    @classmethod
    def read(cls, fd: int, length: int) -> Entry | None:
        """Read it from a file of this length; None: it is damaged."""
        data = os.pread(fd, _TRAILER.size, max(0, length - _TRAILER.size))
        if len(data) != _TRAILER.size:
            return None
        magic, boot, size, blksize, count, latest, digest, _ = _TRAILER.unpack(data)
        if magic != _MAGIC or size > blksize or length != blksize + 8 * count + _TRAILER.size:
            return None
        entry = cls(boot, size, blksize, latest, digest, os.pread(fd, 8 * count, blksize))
        return entry if entry.pack()[-8:] == data[-8:] else None


class Database:
    """The files of one database. In any thread.

    Attributes
    ----------
    fd : int
        A descriptor of the folder, open as long as this object lives.
    """

    def __init__(self, folder: Room, path: str) -> None:
        self._folder = folder
        self._newest = ""  # the block in `newest`, or an earlier one
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        weakref.finalize(self, os.close, self.fd).atexit = False

    def is_there(self) -> bool:
        """Say whether the folder is still there."""
        return os.fstat(self.fd).st_nlink > 0

    def find(
        self,
        oid: bytes,
        tid: bytes,
        blksize: int | None = None,
        digest: bytes | None = None,
        *,
        check: bool = False,
        touch: bool = True,
    ) -> Entry | None:
        """Return what is known of a block, if it is there, and note that it is used.

        Parameters
        ----------
        oid, tid : bytes
        blksize : int, optional
            It must have this size [bytes].
        digest : bytes, optional
            XXH3-64 of its bytes, without zeros at the end, if the database says it.
        check : bool
            Compare it with its checksum in any case.
        touch : bool
            False: that is not a use.
        """
        name = f"{oid.hex()}-{tid.hex()}"
        try:
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.fd)
        except OSError:
            return None
        try:
            of = os.fstat(fd)
            entry = Entry.read(fd, of.st_size)
            doubted = check or (entry is not None and entry.boot != self._folder.boot)
            if entry is None or (doubted and not _matches(fd, entry)):
                log.warning("%s: block %s is damaged, and thrown away", self._folder.path, name)
                self.throw_away(oid, tid)
                return None
            if blksize not in (None, entry.blksize) or digest not in (None, entry.digest):
                self.throw_away(oid, tid)  # of another database
                return None
            if entry.boot != self._folder.boot:
                os.pwrite(fd, entry._replace(boot=self._folder.boot).pack(), entry.blksize)
                os.utime(fd, ns=(of.st_atime_ns, of.st_mtime_ns))
            if touch and not -TOUCH < of.st_mtime - time.time() <= 0:
                os.utime(fd)
            return entry
        except OSError as e:
            self._folder.failed(e)
            return None
        finally:
            os.close(fd)

    def throw_away(self, oid: bytes, tid: bytes) -> None:
        """Remove a block, if it is there."""
        with suppress(OSError):
            os.unlink(f"{oid.hex()}-{tid.hex()}", dir_fd=self.fd)

    def store(
        self,
        oid: bytes,
        tid: bytes,
        data: memoryview | bytes,
        blksize: int,
        parts: Iterable[bytes] = (),
        latest: bytes = z64,
        digest: bytes | None = None,
    ) -> Entry | None:
        """Keep a block: its bytes, and zeros up to its size. None: it is not kept.

        For `parts`, `latest` and `digest` see Entry; no digest: it is computed.
        """
        digest = digest or digest_of([data])
        entry = Entry(self._folder.boot, len(data), blksize, latest, digest, b"".join(parts))
        size = entry.length
        name, temporary = f"{oid.hex()}-{tid.hex()}", f"~{os.getpid()}-{next(_numbers)}"
        fds: list[int] = []
        reserved = False
        try:
            reserved = self._folder.reserve(size, lambda: self._make(temporary, size, fds))
            if not reserved:
                return None
            _write(fds[0], data, 0)
            _write(fds[0], entry.pack(), blksize)
            self._note_close(name)  # before others see it: without the note it may not be there
            self._name(temporary, name)
            self._note_newest(name, temporary)
            self._remove(temporary)  # its other name stays
            return entry
        except OSError as e:
            if reserved:
                with suppress(OSError):
                    self._folder.reserve(-size, lambda: self._remove(temporary))
            if e.errno == EEXIST:  # another process was faster
                return self.find(oid, tid, blksize)
            self._folder.failed(e)
            return None
        finally:
            for fd in fds:
                os.close(fd)

    def _make(self, temporary: str, size: int, fds: list[int]) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, 0o600, dir_fd=self.fd)
        try:
            os.ftruncate(fd, size)  # so that it counts
        except OSError:
            os.close(fd)
            raise
        fds.append(fd)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    def _name(self, temporary: str, name: str) -> None:
        """Give a file its name; FileExistsError: there is one, which others may have mapped."""
        try:
            os.link(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as e:
            if e.errno not in (EPERM, EOPNOTSUPP, EMLINK):
                raise
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def newest(self) -> list[tuple[bytes, bytes]]:
        """Return oids and tids of blocks that another database does not have; see _CLOSE.

        If it has the same tid as one here, it has the same transaction, and all before: so this is
        a block of the last transaction that there is. Where tids are close, it is each block of the
        last ones that are. It is empty if there is no block.
        """
        with suppress(OSError):
            name = os.readlink("newest", dir_fd=self.fd)
            found = NAME.fullmatch(name) and os.access(name, os.F_OK, dir_fd=self.fd)
            if found and not self._is_close():
                return [_named(name)]
        names = sorted(filter(NAME.fullmatch, os.listdir(self.fd)), key=_tid_of, reverse=True)
        last = names[:1]
        for later, name in pairwise(names):
            if not _are_close(_tid_of(name), _tid_of(later)):
                break
            last.append(name)
        one = len(set(map(_tid_of, last))) < 2
        return [_named(name) for name in (last[:1] if one else last)]

    def _note_newest(self, name: str, temporary: str) -> None:
        if _tid_of(name) > _tid_of(self._newest):
            self._newest = name
            try:
                os.symlink(name, f"{temporary}-n", dir_fd=self.fd)
                os.rename(f"{temporary}-n", "newest", src_dir_fd=self.fd, dst_dir_fd=self.fd)
            except OSError:  # the block is there, and counts; without a note all names are read
                self._remove("newest")
                self._remove(f"{temporary}-n")

    def _note_close(self, name: str) -> None:
        """Note if a block's tid is close to that of the newest one; OSError: it cannot be noted."""
        known = [self._newest]
        if _tid_of(name) > _tid_of(self._newest):
            with suppress(OSError):
                self._newest = os.readlink("newest", dir_fd=self.fd)
                known.append(self._newest)
        tids = {_tid_of(of) for of in filter(NAME.fullmatch, known)} - {_tid_of(name)}
        if any(_are_close(tid, _tid_of(name)) for tid in tids):
            self._make_close()

    def _make_close(self) -> None:
        os.close(os.open("close", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=self.fd))

    def _is_close(self) -> bool:
        return os.access("close", os.F_OK, dir_fd=self.fd)

    # ---- aliases ----

    # A state is named by a tid. Where tids are close (see _CLOSE), a database that was restored may
    # have another state of that name, and an alias has no bytes that could be compared.

    def revision(self, oid: bytes, before: bytes) -> bytes | None:
        """Return which revision of an object the state before a tid has, as see() has noted."""
        with suppress(OSError):
            if self._is_close():
                return None
            target = os.readlink(f"{oid.hex()}@{before.hex()}", dir_fd=self.fd)
            if NAME.fullmatch(target) and target.startswith(oid.hex()):
                return bytes.fromhex(target[17:])
        return None

    def see(self, oid: bytes, before: bytes, tid: bytes) -> None:
        """Note which revision of an object the state before a tid has. That never changes."""
        with suppress(OSError):
            if 0 < u64(before) - 1 - u64(tid) <= _CLOSE:  # transactions of which no block is here
                self._make_close()
            if not self._is_close():
                alias = f"{oid.hex()}@{before.hex()}"
                os.symlink(f"{oid.hex()}-{tid.hex()}", alias, dir_fd=self.fd)

    def forget_states(self) -> None:
        """Remove what see() has noted: the database may have other states of these names."""
        for name in filter(ALIAS.fullmatch, os.listdir(self.fd)):
            self._remove(name)


def _named(name: str) -> tuple[bytes, bytes]:
    return bytes.fromhex(name[:16]), bytes.fromhex(_tid_of(name))


def _tid_of(name: str) -> str:
    return name[17:]


def _are_close(a: str, b: str) -> bool:
    return abs(int(a, 16) - int(b, 16)) <= _CLOSE


def _write(fd: int, data: memoryview | bytes, at: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        n = os.pwrite(fd, view, at)
        view, at = view[n:], at + n


def _matches(fd: int, entry: Entry) -> bool:
    def pieces() -> Iterator[memoryview]:
        data, done = memoryview(bytearray(_READ)), 0
        while done < entry.blksize:
            n = os.preadv(fd, [data[: entry.blksize - done]], done)
            if n == 0:
                return
            has = max(0, min(n, entry.size - done))
            yield data[:has]
            if has < n and bytes(data[has:n]).strip(b"\0"):
                yield memoryview(b"not zeros")
            done += n

    return digest_of(pieces()) == entry.digest
