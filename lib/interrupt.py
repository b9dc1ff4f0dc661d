"""Ctrl-C that comes where it would do harm: in the middle of a few steps that belong together.

Python raises KeyboardInterrupt between any two of its instructions. Code that has begun what cannot
be undone, and has not yet written down that it did, is told afterwards.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["interrupts_later"]


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Have a Ctrl-C that comes inside of this handled at the end of it.

    For what ends soon. Only the main thread has them; and what is not a handler of Python, such as
    SIG_IGN, stays.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda *args: came.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[-1])
