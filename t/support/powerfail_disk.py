"""What a disk may have after a power failure: states of a folder, from a log of what was done.

It reads logs of powerfail_record.c. It knows files, names and syncs, but not what is in the files.

Models
------
On the disk is all that a sync has promised, and a part of what came later. A model says which parts
are possible: see MODELS. A sync that has not returned promises nothing.

- fsync(file) promises the file's bytes and its size, and not its name. In "names by any sync" it
  promises all names, too: that is what the journals of ext4, XFS and Btrfs do.
- fsync(folder) promises the names in that folder, and nothing of the files.
- A rename is atomic: the name is that of the old file or of the new one.
- Of a unit - a sector of 512 bytes, or a page of 4096 - all is written, or nothing. A unit that no
  write has touched since the sync stays as it was.
- What a truncation has cut may come back in the unit where it cut, and nowhere else. In that unit,
  zeros may be there before the size is.

A disk that loses, or damages, what was synced is not simulated.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR, PAGE = 512, 4096
_HEAD = struct.Struct("<8sQqqQII")

#: name -> what is on the disk at the power failure
MODELS = {
    "in order": "all that was done before, and nothing else",
    "torn at 512": "in order; of the last write, the sectors before one of them",
    "torn at 4096": "in order; of the last write, the pages before one of them",
    "size after data": "names in order; unsynced pages in any order, and a size that covers only "
    "what has arrived",
    "size before data": "names in order; the size as it was last, and of unsynced writes those "
    "before one of them: zeros behind",
    "pages in any order": "names in order; each unsynced page as it was at any time since the "
    "sync, or zeros; the size as it was at any time",
    "sectors in any order": "the same of sectors",
    "names by any sync": "bytes in order; of changes of names since the last sync of anything, "
    "those before one of them",
    "names by the folder's sync": "bytes in order; of changes of names since the last sync of "
    "their folder, those before one of them",
    "anything unsynced": "sectors in any order; of changes of names since the last sync of their "
    "folder, any",
}
_TORN = {"torn at 512": SECTOR, "torn at 4096": PAGE}


class Unrecorded(Exception):  # noqa: N818  # it is the recorder's
    """Something was done that the log does not have, or that has no model here."""


@dataclass
class Event:
    """A record of the log."""

    kind: str
    inode: int
    a: int
    b: int
    name: str
    to: str
    data: bytes


def read_log(path: Path) -> list[Event]:
    """Read what powerfail_record.c wrote.

    Raises
    ------
    Unrecorded
        The program did something that the recorder does not know.
    """
    log = path.read_bytes()
    events, pos = [], 0
    while pos < len(log):
        kind, inode, a, b, size, name, to = _HEAD.unpack_from(log, pos)
        pos += _HEAD.size
        names = log[pos : pos + name].decode(), log[pos + name : pos + name + to].decode()
        pos += name + to
        event = Event(kind.rstrip(b"\0").decode(), inode, a, b, *names, log[pos : pos + size])
        if event.kind == "unknown":
            raise Unrecorded(f"{event.name}: {event.to}")
        events.append(event)
        pos += size
    return events


# ---- files ----


@dataclass(eq=False)
class File:
    """A file: its bytes as of the last sync, what was done since, and its bytes as they are now."""

    inode: int
    synced: bytes = b""
    ops: list[Event] = field(default_factory=list)
    now: bytearray = field(default_factory=bytearray)

    def do(self, op: Event) -> None:
        """Do a write, "size" or "zeros"."""
        self.ops.append(op)
        if op.kind == "size":
            _resize(self.now, op.a)
        else:
            data = _data(op)
            _resize(self.now, max(len(self.now), op.a + len(data)))
            self.now[op.a : op.a + len(data)] = data

    def sync(self) -> None:
        """Note that all of it is on the disk."""
        if self.ops:
            self.synced, self.ops = bytes(self.now), []

    def sizes(self) -> list[int]:
        """Return the size at the sync, and after each operation."""
        sizes = [len(self.synced)]
        for op in self.ops:
            end = op.a if op.kind == "size" else max(sizes[-1], op.a + len(_data(op)))
            sizes.append(end)
        return sizes


def _data(op: Event) -> bytes:
    return bytes(op.b) if op.kind == "zeros" else op.data


def _resize(content: bytearray, size: int) -> None:
    if size <= len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def mixed(file: File, until: dict[int, int], default: int, at: int, unit: int) -> bytes:
    """Return the bytes of a file whose units are as they were at different times.

    Parameters
    ----------
    until : dict
        unit number -> how many of file.ops it has seen.
    default : int
        For all other units.
    at : int
        The size is that after this many operations.
    """
    content = bytearray(file.synced)
    sizes = file.sizes()
    _resize(content, max(sizes))
    for i, op in enumerate(file.ops):
        if op.kind == "size":
            for n in range(op.a // unit, -(-sizes[i] // unit)):
                start, stop = max(n * unit, op.a), min((n + 1) * unit, sizes[i])
                # a unit that was cut as a whole is zeros, if the size is one after that cut
                gone = i < at and n * unit >= op.a
                if start < stop and (gone or until.get(n, default) > i):
                    content[start:stop] = bytes(stop - start)
            continue
        data, pos = _data(op), op.a
        while pos < op.a + len(data):
            n = pos // unit
            stop = min((n + 1) * unit, op.a + len(data))
            if until.get(n, default) > i:
                content[pos:stop] = data[pos - op.a : stop - op.a]
            pos = stop
    _resize(content, sizes[at])
    return bytes(content)


def _units(file: File, unit: int) -> list[int]:
    """Return the units that the operations since the sync have changed."""
    changed: set[int] = set()
    for i, op in enumerate(file.ops):
        start, stop = op.a, op.a + len(_data(op))
        if op.kind == "size":
            stop = max(file.sizes()[i], op.a)
        changed.update(range(start // unit, -(-stop // unit)))
    return sorted(changed)


def _any_order(file: File, unit: int, rng: random.Random) -> bytes:
    n = len(file.ops)
    newest = rng.choice([0.1, 0.5, 0.9, 0.98])  # how likely a unit is the newest one
    until = {u: n if rng.random() < newest else rng.randint(0, n) for u in _units(file, unit)}
    at = n if rng.random() < newest else rng.randint(0, n)
    return mixed(file, until, n, at, unit)


def _size_after_data(file: File, rng: random.Random) -> bytes:
    n = len(file.ops)
    sizes = file.sizes()
    at = rng.choice([n, rng.randint(0, n)])
    grown = min(sizes[: at + 1])  # what is after it must have arrived
    until = {}
    for u in _units(file, PAGE):
        least = at if (u + 1) * PAGE > grown else 0
        until[u] = rng.choice([n, least, rng.randint(least, n)])
    return mixed(file, until, n, at, PAGE)


def _size_before_data(file: File, rng: random.Random) -> bytes:
    n = len(file.ops)
    return mixed(file, {}, rng.randint(0, n), n, SECTOR)


def content(file: File, model: str, rng: random.Random) -> bytes:
    """Return bytes that a file may have by a model."""
    if file.ops:
        if model == "size after data":
            return _size_after_data(file, rng)
        if model == "size before data":
            return _size_before_data(file, rng)
        if model == "pages in any order":
            return _any_order(file, PAGE, rng)
        if model in ("sectors in any order", "anything unsynced"):
            return _any_order(file, SECTOR, rng)
    return bytes(file.now)


# ---- names ----


@dataclass
class _Change:
    """A change of names: `name` becomes that of the file, or of a folder; `gone` is removed."""

    name: str
    file: File | None
    gone: str

    def do(self, names: dict[str, File | None]) -> None:
        names.pop(self.gone, None)
        if self.name:
            names[self.name] = self.file
        if self.name and self.gone and self.file is None:  # a folder, with what is in it
            for name in [n for n in names if n.startswith(f"{self.gone}/")]:
                names[self.name + name[len(self.gone) :]] = names.pop(name)

    def folders(self) -> set[str]:
        return {n.rpartition("/")[0] for n in (self.name, self.gone) if n}


class _Names:
    """Names of files, and of folders (file None): those at the last sync, and changes since."""

    def __init__(self) -> None:
        self.synced: dict[str, File | None] = {}
        self.changes: list[_Change] = []

    def sync(self, folder: str | None) -> None:
        rest = []
        for change in self.changes:
            if folder is None or folder in change.folders():
                change.do(self.synced)
            else:
                rest.append(change)
        self.changes = rest

    def some(self, some: list[_Change]) -> dict[str, File | None]:
        names = dict(self.synced)
        for change in some:
            change.do(names)
        return names


@dataclass(eq=False)
class Found:
    """A file on the disk."""

    inode: int  # as it was recorded
    data: bytes


#: name in the folder -> what is there: a file, maybe one with several names, or None for a folder
State = dict[str, Found | None]


def write_state(state: State, folder: Path) -> dict[int, int]:
    """Make a folder as a disk has it; return {inode number: the number that was recorded}."""
    folder.mkdir()
    made: dict[int, Path] = {}
    inodes = {}
    for name, found in state.items():
        path = folder / name
        if found is None:
            path.mkdir()
        elif id(found) in made:
            path.hardlink_to(made[id(found)])
        else:
            path.write_bytes(found.data)
            made[id(found)] = path
            inodes[path.stat().st_ino] = found.inode
    return inodes


class Disk:
    """What a folder is after a part of the log, and what a disk may have of it.

    Parameters
    ----------
    folder : str
        As the log names it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.names: dict[str, File | None] = {}
        self._files: dict[int, File] = {}  # by inode; a removed file's number is used again
        self._by_any, self._by_folder = _Names(), _Names()

    def do(self, event: Event) -> None:
        """Do the next event.

        Raises
        ------
        Unrecorded
            It is about a file that the log does not have.
        """
        kind = event.kind
        if kind == "create":
            self._files[event.inode] = File(event.inode)
            self._change(_Change(event.name, self._files[event.inode], ""))
        elif kind == "mkdir":
            self._change(_Change(event.name, None, ""))
        elif kind == "link":
            self._change(_Change(event.name, self._file(event), ""))
        elif kind == "rename":
            is_folder = self.names.get(event.name, self) is None
            file = None if is_folder else self._file(event)
            self._change(_Change(event.to, file, event.name))
        elif kind == "unlink":
            self._change(_Change("", None, event.name))
        elif kind in ("write", "size", "zeros"):
            self._file(event).do(event)
        elif kind in ("sync", "names"):
            self._by_any.sync(None)
            if kind == "names":
                self._by_folder.sync(event.name)
            else:
                self._file(event).sync()
        elif kind == "syncall":
            self._by_any.sync(None)
            self._by_folder.sync(None)
            for file in self._files.values():
                file.sync()
        else:
            assert kind == "mark", kind

    def _file(self, event: Event) -> File:
        try:
            return self._files[event.inode]
        except KeyError:
            raise Unrecorded(f"{event.kind} of {event.name}, of which nothing is known") from None

    def _change(self, change: _Change) -> None:
        change.do(self.names)
        self._by_any.changes.append(change)
        self._by_folder.changes.append(change)

    def checksums(self) -> dict[str, int | None]:
        """Return the checksum of each file, and None for folders, by their names in the folder."""
        return {
            name[len(self.folder) + 1 :]: None if file is None else zlib.crc32(file.now)
            for name, file in self.names.items()
        }

    def state(self, model: str, rng: random.Random, event: Event | None) -> State:
        """Return what a disk may have.

        Parameters
        ----------
        event
            What is being done when the power fails.
        """
        names = self.names
        if model == "names by any sync":
            changes = self._by_any.changes
            names = self._by_any.some(changes[: rng.randint(0, len(changes))])
        elif model == "names by the folder's sync":
            changes = self._by_folder.changes
            names = self._by_folder.some(changes[: rng.randint(0, len(changes))])
        elif model == "anything unsynced":
            share = rng.choice([0.1, 0.5, 0.9])
            changes = [c for c in self._by_folder.changes if rng.random() < share]
            names = self._by_folder.some(changes)
        torn = None
        if model in _TORN and event is not None and event.kind == "write":
            torn = self._file(event)
        there: State = {}
        found: dict[int, Found] = {}  # a file with two names is the same
        for name, file in sorted(names.items(), key=lambda item: item[0]):
            inside = name[len(self.folder) + 1 :]
            parent = inside.rpartition("/")[0]
            if parent and parent not in there:
                continue  # its folder is not there
            if file is None:
                there[inside] = None
                continue
            if id(file) not in found:
                if file is torn and event is not None:
                    data = _torn(file, event, _TORN[model], rng)
                else:
                    data = content(file, model, rng)
                found[id(file)] = Found(file.inode, data)
            there[inside] = found[id(file)]
        return there


def _torn(file: File, event: Event, unit: int, rng: random.Random) -> bytes:
    ends = range(event.a // unit + 1, (event.a + len(event.data) - 1) // unit + 1)
    end = rng.choice(ends) * unit - event.a if ends else rng.choice([0, len(event.data)])
    result = bytearray(file.now)
    if end:
        _resize(result, max(len(result), event.a + end))
        result[event.a : event.a + end] = event.data[:end]
    return bytes(result)


def sweep(folder: str, events: list[Event], points: list[int]) -> Iterator[tuple[int, Disk]]:
    """Yield (point, the disk before that event) for sorted points."""
    disk, done = Disk(folder), 0
    for point in points:
        for event in events[done:point]:
            disk.do(event)
        done = max(done, point)
        yield point, disk
