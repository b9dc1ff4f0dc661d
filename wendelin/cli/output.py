"""What commands print: tables and texts for people, JSON for programs; progress of long work.

This module knows texts and numbers, but no command.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from wendelin.cli.database import tid_time
from wendelin.cli.files.base import Layout
from wendelin.cli.files.convert import describe
from wendelin.lib.shown import shown
from wendelin.lib.sizes import size_text
from wendelin.lib.utils import override

__all__ = [
    "Advance",
    "console",
    "layout_json",
    "layout_texts",
    "print_json",
    "progress",
    "say",
    "shown_tid",
    "shown_time",
    "size_text",
    "table",
    "warn",
]

Advance = Callable[[int], None]

EVERY = 5.0  # between two lines of progress [s]

_GAP = 2  # between columns, as rich has it

_WIDE = 100_000  # the width if there is no terminal: a row is a line


def console() -> Console:
    """Return the console for output to people."""
    plain = Console(highlight=False, markup=False, emoji=False)
    if plain.is_terminal:
        return plain
    return Console(highlight=False, markup=False, emoji=False, width=_WIDE)


def print_json(data: Any) -> None:
    """Print JSON."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def say(text: str) -> None:
    """Print a line, for people."""
    print(shown(text))


def warn(command: str, text: str) -> None:
    """Print a warning, which does not end the command."""
    print(shown(f"wendelin {command}: {' '.join(text.split())}"), file=sys.stderr)


def shown_time(tid: bytes) -> str:
    """Return the time of a transaction, in local time; '' if there is none."""
    if not int.from_bytes(tid, "big"):
        return "-"
    return tid_time(tid).strftime("%Y-%m-%d %H:%M:%S")


def shown_tid(tid: bytes) -> dict[str, str] | None:
    """Return a transaction for JSON: its tid, and its time."""
    if not int.from_bytes(tid, "big"):
        return None
    time: datetime = tid_time(tid).astimezone(UTC)
    return {"tid": tid.hex(), "time": time.isoformat().replace("+00:00", "Z")}


def dtype_text(dtype: np.dtype[Any]) -> str:
    """Return a short text for a dtype."""
    plain = dtype.isnative and dtype.kind in "biufc"
    return dtype.name if plain else str(dtype)


def layout_texts(layout: Layout | None) -> tuple[str, str, str]:
    """Return shape, dtype and order."""
    if layout is None:
        return "-", "-", "-"
    return str(layout.shape).replace(" ", ""), dtype_text(layout.dtype), layout.order


def layout_json(layout: Layout | None) -> dict[str, Any]:
    """Return these for JSON; the dtype as .npy files have it, or as np.dtype() takes it."""
    if layout is None:
        return {"shape": None, "dtype": None, "order": None}
    dtype = describe(layout.dtype)
    return {"shape": list(layout.shape), "dtype": dtype, "order": layout.order}


def table(
    columns: Sequence[str], rows: Iterable[Iterable[str]], right: str = "", less: str = ""
) -> Table:
    """Return a table that fits the terminal.

    Parameters
    ----------
    columns : sequence of str
    rows : iterable of iterable of str
    right : str
        Names of columns of numbers, separated by spaces.
    less : str
        Names of columns that are left out on a narrow terminal, the first one first.
    """
    texts = [[shown(text) for text in row] for row in rows]
    keep = _fitting(columns, texts, less.split())
    result = Table(box=None, pad_edge=False, header_style="bold")
    for i in keep:
        name = columns[i]
        result.add_column(
            Text(name),
            justify="right" if name in right.split() else "left",
            overflow="fold",
        )
    for row in texts:
        result.add_row(*(Text(row[i]) for i in keep))
    return result


def _fitting(columns: Sequence[str], texts: list[list[str]], less: list[str]) -> list[int]:
    """Return the indices of the columns that are shown."""
    widths = [max(map(cell_len, column)) for column in zip(columns, *texts, strict=True)]
    keep = list(range(len(columns)))
    width = console().width
    for name in less:
        if sum(widths[i] + _GAP for i in keep) - _GAP <= width:
            break
        keep.remove(columns.index(name))
    return keep


# ---- progress ----


class _Done(ProgressColumn):
    """How much is done, of how much."""

    @override
    def render(self, task: Task) -> Text:
        show = size_text if task.fields["in_bytes"] else lambda n: f"{int(n):,}"
        done = show(task.completed)
        return Text(done if task.total is None else f"{done} of {show(task.total)}")


class _Speed(ProgressColumn):
    """How fast it is."""

    @override
    def render(self, task: Task) -> Text:
        if task.speed is None:
            return Text("")
        show = size_text(task.speed) if task.fields["in_bytes"] else f"{task.speed:,.0f}"
        return Text(f"{show}/s")


class _Lines:
    """Progress where there is no terminal: a line every few seconds, on stderr."""

    def __init__(
        self, what: str, total: int | None, in_bytes: bool, done: int, every: float
    ) -> None:
        self._what, self._total, self._done, self._every = what, total, done, every
        self._show = size_text if in_bytes else lambda n: f"{int(n):,}"
        self._first, self._begin = done, time.monotonic()
        self._next = self._begin + every

    def advance(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every
        of = "" if self._total is None else f" of {self._show(self._total)}"
        speed = (self._done - self._first) / max(now - self._begin, 1e-9)
        text = f"{self._what}: {self._show(self._done)}{of}, {self._show(int(speed))}/s"
        print(shown(text), file=sys.stderr, flush=True)


@contextmanager
def progress(
    what: str,
    total: int | None = None,
    *,
    in_bytes: bool = False,
    done: int = 0,
    every: float = EVERY,
) -> Iterator[Advance]:
    """Show progress: a bar on a terminal, else a line every few seconds.

    Yields a function to call with each amount done.

    Parameters
    ----------
    what : str
        The name of the work.
    total, done : int
        How much there is to do, if that is known, and how much was done before.
    in_bytes : bool
        Bytes are counted.
    """
    where = Console(stderr=True)
    if not where.is_terminal:
        yield _Lines(what, total, in_bytes, done, every).advance
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Done(),
        _Speed(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=where) as bar:
        task = bar.add_task(shown(what), total=total, completed=done, in_bytes=in_bytes)
        yield lambda n: bar.advance(task, n)
