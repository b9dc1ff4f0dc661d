"""wendelin export: an array into a file.

It is written to FILE.part, which becomes FILE when it is complete. FILE.part.json says how much
of it is there, where that can be gone on with after the program was killed: at the same state of
the database.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from typing import Any

import click

from wendelin.cli.address import Address, join
from wendelin.cli.arguments import (
    AddressType,
    at_option,
    delimiter_option,
    json_option,
    step_option,
)
from wendelin.cli.arrays import ArraySource
from wendelin.cli.database import opened
from wendelin.cli.errors import Failure
from wendelin.cli.files import File, Options, open_sink, parse_file
from wendelin.cli.files.base import Sink
from wendelin.cli.output import (
    Advance,
    layout_json,
    print_json,
    progress,
    shown_tid,
    shown_time,
    size_text,
)
from wendelin.cli.transfer import check_complete, parts
from wendelin.cli.tree import find_array
from wendelin.lib.zodb import zconn_at

__all__ = ["export"]


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
        """The state of the database that is exported; None: it is for us to say."""
        return None if self.state is None else bytes.fromhex(self.state["source"]["tid"])

    def begin(self, identity: dict[str, Any]) -> None:
        """Begin, or go on: with the same array, at the same state, only.

        Raises
        ------
        Failure
            What is there is of something else.
        """
        if self.state is None:
            self.remove()
            self.state = {"source": identity, "done": 0, "position": 0}
        elif self.state["source"] != identity:
            before = self.state["source"]
            differs = ", ".join(n for n in identity if before.get(n) != identity[n])
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


def write(source: ArraySource, sink: Sink, part: Part, step: int, tell: Advance) -> None:
    """Write an array, from where it is on, to its end."""
    assert part.state is not None
    done = int(part.state["done"])
    itemsize = source.layout.dtype.itemsize
    together = sink.together * itemsize
    step = max(together, step // together * together)
    for start, stop in parts(source, done, step, sink.sparse):
        start = start // sink.together * sink.together
        if start < stop:
            sink.write(start, source.read(start, stop))
        if sink.resumable:
            part.save(stop, sink.sync())
        tell((stop - done) * itemsize)
        done = stop
    sink.finish()


@click.command(
    short_help="Write an array into a file.",
    epilog="""\b
Examples:
  wendelin export data.fs#x x.npy
  wendelin export data.fs#run/velocity all.npz
  wendelin export zeo://host:9991#frames scan.h5:raw/frames
  wendelin export --at 2026-01-31T18:30 data.fs#ticks ticks.csv
  wendelin export --at 0x03f1a2b3c4d5e6f7 data.fs#t2m climate.zarr""",
)
@click.argument("address", metavar="URL#path", type=AddressType())
@click.argument("file", metavar="FILE[:NAME]")
@at_option
@delimiter_option
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@step_option
@json_option
def export(
    address: Address,
    file: str,
    at: bytes | None,
    delimiter: str | None,
    force: bool,
    step: int,
    as_json: bool,
) -> None:
    """Write an array into a file: .npy, .npz, .h5, .zarr, .csv, or raw bytes (.raw, .bin, .dat).

    What the file is to be, its suffix says. It is FILE.part until it is complete. If that was
    interrupted, the same command goes on, with the same state of the array; .npz and .h5 begin
    anew.
    """
    what = parse_file(file)
    if os.path.lexists(what.path) and not force:
        raise Failure(f"{what.path} is there already: --force replaces it")
    part = Part(what.path)
    before = part.state["done"] if part.state else None
    with opened(address.url, at=at or part.tid) as root:
        array = find_array(root, address)
        check_complete(root, address)
        source = ArraySource(array, {})
        tid = zconn_at(array._p_jar)
        part.begin(
            {
                "url": address.url,
                "path": list(address.path),
                "oid": array._p_oid.hex(),
                "tid": tid.hex(),
                "kind": what.kind,
                "member": what.member,
                **source.layout.as_dict(),
            }
        )
        size = array.nbytes
        _write(source, what, part, Options(delimiter=delimiter), step, address)
    part.finish()
    if as_json:
        facts = {"at": shown_tid(tid), "resumed_at": before and before * array.itemsize}
        print_json({"file": what.path, **layout_json(source.layout), **facts})
    else:
        again = f", gone on with, as it was at {shown_time(tid)}" if before else ""
        print(f"{file}: {size_text(size)}{again}")


def _write(
    source: ArraySource, what: File, part: Part, options: Options, step: int, address: Address
) -> None:
    assert part.state is not None
    done = int(part.state["done"])
    itemsize = source.layout.dtype.itemsize
    sink: Sink | None = None
    try:
        sink = open_sink(what, part.path, source.layout, address.path[-1], options, bool(done))
        if done:
            sink.resume(int(part.state["position"]))
        total = source.layout.size * itemsize
        with progress(
            f"export {join(address.path)}", total, in_bytes=True, done=done * itemsize
        ) as tell:
            write(source, sink, part, step, tell)
    except BaseException:
        if sink is not None:
            with suppress(Exception):
                sink.close()
        if sink is None or not sink.resumable:
            part.remove()
        raise
