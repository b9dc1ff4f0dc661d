"""Commits of a long command: one after each step, or, with --atomic, one for all.

A command that works in steps tells of each, by step_done(). It may be interrupted after any of
them, and the same command goes on. With --atomic, a step does not commit, and nothing is left of a
command that did not end.

This module knows transactions. It does not know what a step is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

import transaction

from wendelin.cli.address import Address
from wendelin.cli.errors import Failure, explain

__all__ = ["all_or_nothing", "in_steps", "step_done"]

_in_steps: ContextVar[bool] = ContextVar("_in_steps", default=True)


@contextmanager
def all_or_nothing(wanted: bool, address: Address) -> Iterator[None]:
    """Commit all steps within this context at its end, if that is wanted.

    Parameters
    ----------
    wanted : bool
        False: each step commits.
    address : Address
        Of what is made.

    Raises
    ------
    Failure
        The commit failed, and nothing was changed.
    """
    before = _in_steps.set(not wanted)
    try:
        yield
    finally:
        _in_steps.reset(before)
    if not wanted:
        return
    try:
        step_done(repr(address.path[-1] if address.path else "/"), "complete")
    except (Exception, KeyboardInterrupt) as e:
        with suppress(Exception):
            transaction.abort()
        raise Failure(f"{explain(e)}: nothing was imported") from e


def in_steps() -> bool:
    """Say whether each step commits; else a failure leaves nothing."""
    return _in_steps.get()


def step_done(what: str, note: str, *, make: bool = False) -> None:
    """Commit a step, if each of them is.

    Parameters
    ----------
    what, note : str
        What is made, and what was done, for the description of the transaction.
    make : bool
        New objects must be in the database now, as they are written next.
    """
    if in_steps():
        transaction.get().note(f"wendelin: {what} {note}")
        transaction.commit()
    elif make:
        transaction.savepoint()
