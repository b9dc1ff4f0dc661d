"""Errors of commands, for the user: one line, and an exit code.

Exit codes: 2, the call itself is wrong; 1, the command failed.

With WENDELIN_DEBUG=1, the traceback is before the line: it helps to find a bug of ours.

This module knows exceptions, but not what commands do.
"""

from __future__ import annotations

import os
import sys
import traceback

import click
from ZODB.POSException import ConflictError, POSKeyError, ReadOnlyError

from wendelin.bigfile.virtmem.errors import BigFileError, BlockLoadError, DoomedError
from wendelin.lib.shown import shown
from wendelin.lib.storage.record import RecordError

__all__ = ["Failure", "explain"]


class Failure(click.ClickException):
    """A command failed; the text says why, and what to do."""

    exit_code = 1


def explain(error: BaseException) -> str:
    """Return one line that explains an exception."""
    if os.environ.get("WENDELIN_DEBUG", "0") not in ("", "0"):
        print(shown("".join(traceback.format_exception(error)), keep="\n"), file=sys.stderr)
    return " ".join(_explain(error).split())


def _was_interrupted(error: BaseException | None) -> bool:
    """Say whether Ctrl-C caused an exception: it also makes the load of a block fail."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explain(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, BigFileError | KeyboardInterrupt) and _was_interrupted(error):
        return "interrupted"
    if isinstance(error, DoomedError) and error.__cause__ is not None:
        return _explain(error.__cause__)  # the first failure, which caused this one
    if isinstance(error, BlockLoadError) and error.__cause__ is not None:
        return f"{error}: {_explain(error.__cause__)}"
    if isinstance(error, POSKeyError):
        oid = error.args[0] if error.args else None
        which = f"object 0x{oid.hex()}" if isinstance(oid, bytes) else "an object"
        return f"{which} is missing in the database"
    if isinstance(error, ReadOnlyError):
        return "the database is read-only"
    if isinstance(error, ConflictError):
        return f"a conflict: another client changed the same data at the same time: {error}"
    if isinstance(error, RecordError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if str(error) else "not enough memory"
    if isinstance(error, OSError) and error.errno is not None:
        name = f"{error.filename}: " if error.filename else ""
        # a library's text may be longer than the system's
        what = error.strerror or str(error)
        return f"{name}{what}"
    text = str(error)
    name = type(error).__name__
    return f"{name}: {text}" if text else name
