"""Threads that block SIGSEGV: where one touches what is not shown, the kernel ends the process.

No handler runs then, ours or another's, and nobody can say why. So it is said before, once, when a
view is given out that is not ready, and there are such threads: of ZeroMQ, of libraries for
asynchronous I/O, and of others that block all signals in threads of their own.

It knows /proc. What a view is, it does not know.
"""

from __future__ import annotations

import logging
import signal
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["blocked_threads", "warn_of_blocked_threads"]

log = logging.getLogger("wendelin.bigfile")

# the pager's own, and an allocator's: they touch no view
_HARMLESS = {"wendelin.core", "jemalloc_bg_thd"}
_INTERVAL = 1.0  # between looks [s]

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
    """Log a warning if there are threads that block SIGSEGV, once for each name; looks seldom."""
    global _next_look
    now = time.monotonic()
    if now < _next_look:
        return
    _next_look = now + _INTERVAL
    names = set(blocked_threads()) - _said
    if names:
        _said.update(names)
        log.warning(
            "threads of this process block SIGSEGV (%s). Where one of them touches memory of %s "
            "that is not loaded, the kernel ends the process, without a message. Load what such "
            "code is given: with A.load(rows) as a: ...",
            ", ".join(sorted(names)),
            view,
        )
