"""Threads that block SIGSEGV: if one touches memory that is not shown, the kernel ends the process.

No handler runs then, so there is no message. Therefore a warning is logged before, once: when a
view is taken that is not ready, and there are such threads. ZeroMQ has them, libraries for
asynchronous I/O, and others that block all signals in their own threads.

This module knows /proc, but not views.
"""

from __future__ import annotations

import logging
import signal
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["blocked_threads", "warn_of_blocked_threads"]

log = logging.getLogger("wendelin.bigfile")

#: threads of the pager, and of an allocator: they touch no view
_HARMLESS = {"wendelin.core", "jemalloc_bg_thd"}
_INTERVAL = 1.0  # between looks [s]
_UNNAMED = 0.05  # [s]

_next_look = 0.0
_said: set[str] = set()


def blocked_threads() -> list[str]:
    """Return the names of this process's threads that block SIGSEGV, without the pager's own."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError, ValueError, KeyError):  # a thread that has ended
            lines = (task / "status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            mask = int(status["SigBlk"], 16)
            if mask >> (signal.SIGSEGV - 1) & 1 and status["Name"] not in _HARMLESS:
                found.append(status["Name"])
    return sorted(found)


def warn_of_blocked_threads(view: str) -> None:
    """Log a warning if there are threads that block SIGSEGV, once for each name; check seldom."""
    global _next_look
    now = time.monotonic()
    if now < _next_look:
        return
    _next_look = now + _INTERVAL
    names = set(blocked_threads()) - _said
    if names:
        # a thread of the pager has its name a moment after it was made
        time.sleep(_UNNAMED)
        names &= set(blocked_threads())
    if names:
        _said.update(names)
        log.warning(
            "threads of this process block SIGSEGV (%s). If one of them touches memory of %s "
            "that is not loaded, the kernel ends the process, without a message. Load rows before "
            "you give them to such code: with A.load(rows) as a: ...",
            ", ".join(sorted(names)),
            view,
        )
