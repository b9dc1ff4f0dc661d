"""Ctrl-C in the middle of steps that belong together is raised after them.

Python raises KeyboardInterrupt between any two of its instructions. Code that has begun a step that
cannot be undone, and has not yet noted it, gets the exception afterwards.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["handlers_optional", "interrupts_later"]

log = logging.getLogger(__name__)


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Handle a Ctrl-C that comes inside of this context at its end.

    Use it for short steps only. Only the main thread gets a Ctrl-C. A handler that is not one of
    Python, such as SIG_IGN, stays.
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


_no_handlers: set[int] = set()  # threads that are in handlers_optional(); protected by: _patching
_patching = threading.Lock()


@contextmanager
def handlers_optional() -> Iterator[None]:
    """Let this thread import, or make, an object that sets signal handlers on the way.

    Python lets only the main thread set handlers, and raises in others. In this context, a call in
    another thread sets none.
    """
    if threading.current_thread() is threading.main_thread():
        yield
        return
    me = threading.get_ident()
    with _patching:
        _no_handlers.add(me)
        if not isinstance(signal.signal, _Signal):
            signal.signal = _Signal(signal.signal)
    try:
        yield
    finally:
        with _patching:
            _no_handlers.discard(me)
            if not _no_handlers and isinstance(signal.signal, _Signal):
                signal.signal = signal.signal.original


class _Signal:
    """signal.signal() while a thread is in handlers_optional(), and for code that has kept it."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(self, signalnum: int, handler: Any) -> Any:
        if threading.get_ident() in _no_handlers:
            log.info("a handler of signal %d is not set: this is not the main thread", signalnum)
            return signal.getsignal(signalnum)
        return self.original(signalnum, handler)
