"""Progress of the demos: a bar of tqdm on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["progress"]

EVERY = 5.0  # between two lines [s]

_LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed}, {rate_fmt}{postfix}"


class _Lines:
    """A stream for tqdm: what it would write over the same line is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, ""

    def write(self, text: str) -> None:
        text = text.strip()
        if text and text != self._last:
            self._last = text
            self._stream.write(f"{text}\n")

    def flush(self) -> None:
        self._stream.flush()


def progress(**options: Any) -> Any:
    """Return tqdm(**options), for a terminal or not: then nothing is printed at first."""
    if sys.stderr.isatty():
        return tqdm(**options)
    lines: Any = _Lines(sys.stderr)
    slow = {"mininterval": EVERY, "delay": EVERY, "miniters": 1}
    return tqdm(file=lines, bar_format=_LINE, **(slow | options))
