"""How a notebook shows an array: a table, and a picture of its blocks. Nothing is loaded for it.

This module knows an Overview of an array, figures of the pager, and HTML. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from wendelin.bigfile.virtmem.stats import HandleStats
from wendelin.lib.shown import shown
from wendelin.lib.sizes import size_text

__all__ = ["Overview", "to_html"]

_SIDE = 120  # of the longest axis [px]
_LEAST = 12  # of the shortest one [px]
_MOST_LINES = 40  # between blocks
_MOST_BANDS = 60  # of blocks

#: states of blocks and their colours
_FILLS = {
    "": "#ecb172",
    "stored": "#ecb172",
    "partly stored": "#f3d3ad",
    "not stored": "#fdf6ee",
    "unknown": "#dddddd",
    "changed": "#c8553d",
}


@dataclass
class Overview:
    """The facts about an array that are shown."""

    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    order: str
    nbytes: int
    blksize: int  # [bytes]
    memory: HandleStats | None = None
    #: blocks that the file has; None: unknown
    stored: Collection[int] | None = None
    all_stored: bool = True  # False: there are more
    #: their size in the file [bytes]; None: unknown
    stored_size: int | None = None
    changed: Collection[int] = ()  # blocks
    #: more rows of the table
    rows: list[tuple[str, str]] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        """Number of blocks that the array has bytes in."""
        return -(-self.nbytes // self.blksize)


def to_html(array: Overview) -> str:
    """Return an array as HTML."""
    rows = [
        ("Shape", " × ".join(map(str, array.shape)) or "()"),
        ("Data type", f"{array.dtype}, order {array.order}"),
        ("Bytes", size_text(array.nbytes)),
        ("Blocks", f"{array.blocks} of {size_text(array.blksize)}"),
    ]
    if array.stored is not None:
        n = len(array.stored)
        stored = f"{n} block{'s' * (n != 1)}"
        if not array.all_stored:
            stored = f"at least {stored}"
        elif array.stored_size is not None:
            stored += f", {size_text(array.stored_size)}"
        rows.append(("Stored", stored))
    memory = [size_text(array.memory.resident if array.memory else 0)]
    if array.memory and array.memory.mapped:
        memory.append(f"{size_text(array.memory.mapped)} mapped from the file")
    if array.memory and array.memory.dirty:
        memory.append(f"{size_text(array.memory.dirty)} of changes")
    rows += [("In memory", ", ".join(memory)), *array.rows]
    table = "".join(
        f'<tr><th style="text-align: left">{_escape(name)}</th>'
        f'<td style="text-align: left">{_escape(text)}</td></tr>'
        for name, text in rows
    )
    return (
        f'<table><tr><td><table style="border-collapse: collapse"><thead><tr>'
        f'<th colspan="2" style="text-align: left">{_escape(array.kind)}</th></tr></thead>'
        f"<tbody>{table}</tbody></table></td><td>{_picture(array)}</td></tr></table>"
    )


def _escape(text: str) -> str:
    """Return a text as HTML that only shows it."""
    from html import escape  # late: its table of entities is large

    return escape(shown(text))


# ---- the picture ----


def _picture(array: Overview) -> str:
    """Return an SVG: rows and columns are the first and the last axis, and others its depth.

    Blocks are drawn along the major axis.
    """
    if array.nbytes == 0 or not array.shape:
        return ""
    shape = array.shape
    longest = max(shape)
    # in the order of their lengths, not in proportion
    side = [max(_LEAST, _SIDE * (n / longest) ** 0.5) for n in shape]
    width = side[-1]
    height = side[0] if len(shape) > 1 else 2.0 * _LEAST
    depth = max(side[1:-1], default=0.0) / 3
    across = array.order == "C" and len(shape) > 1  # blocks are bands of rows
    x, y = 5.0, 5.0 + depth
    shapes = []
    if depth:
        top = [(x, y), (x + depth, y - depth), (x + width + depth, y - depth), (x + width, y)]
        right = [top[3], top[2], (x + width + depth, y - depth + height), (x + width, y + height)]
        for face in top, right:
            points = " ".join(f"{px:.1f},{py:.1f}" for px, py in face)
            shapes.append(f'<polygon points="{points}" fill="#e5c299" stroke="#555"/>')
    length = height if across else width
    for start, stop, what in _bands(array):
        at, end = (length * i / array.blocks for i in (start, stop))
        fx, fy, fw, fh = (x, y + at, width, end - at) if across else (x + at, y, end - at, height)
        blocks = f"block {start}" if stop == start + 1 else f"blocks {start} to {stop - 1}"
        title = f"{blocks}: {what}" if what else blocks
        shapes.append(
            f'<rect x="{fx:.1f}" y="{fy:.1f}" width="{fw:.1f}" height="{fh:.1f}" '
            f'fill="{_FILLS[what]}"><title>{_escape(title)}</title></rect>'
        )
    if array.blocks <= _MOST_LINES:
        for i in range(1, array.blocks):
            at = length * i * array.blksize / array.nbytes
            ends = (x, y + at, x + width, y + at) if across else (x + at, y, x + at, y + height)
            shapes.append(_line(*ends))
    shapes.append(
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="none" stroke="#555"/>'
    )
    shapes.append(_text(x + width / 2, y + height + 14, str(shape[-1]), "middle"))
    if len(shape) > 1:
        shapes.append(_text(x + width + depth + 5, y - depth + height / 2, str(shape[0]), "start"))
    if depth:
        middle = " × ".join(map(str, shape[1:-1]))
        shapes.append(_text(x + width + depth + 5, y - depth + 4, middle, "start"))
    w, h = x + width + depth + 75, y + height + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{w:.0f}" height="{h:.0f}" '
        f'font-size="11" font-family="sans-serif">{"".join(shapes)}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#555" '
        f'stroke-width="0.5"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">'
        f"{_escape(text)}</text>"
    )


def _bands(array: Overview) -> Iterator[tuple[int, int, str]]:
    """Yield (first block, block after the last, state) for runs of blocks in the same state.

    If there are many, several blocks are taken as one.
    """
    n = min(array.blocks, _MOST_BANDS)
    edges = [array.blocks * i // n for i in range(n + 1)]
    stored = np.sort(np.fromiter(array.stored or (), "i8"))
    changed = np.sort(np.fromiter(array.changed, "i8"))

    def count(of: np.ndarray[tuple[int], np.dtype[np.int64]], start: int, stop: int) -> int:
        return int(np.searchsorted(of, stop) - np.searchsorted(of, start))

    begun, last = 0, None
    for start, stop in pairwise(edges):
        have = count(stored, start, stop)
        if count(changed, start, stop):
            what = "changed"
        elif array.stored is None:
            what = ""
        elif have == stop - start:
            what = "stored"
        elif not array.all_stored:
            what = "unknown"
        else:
            what = "partly stored" if have else "not stored"
        if last is not None and what != last:
            yield begun, start, last
            begun = start
        last = what
    if last is not None:
        yield begun, array.blocks, last
