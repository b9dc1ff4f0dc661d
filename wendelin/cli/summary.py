"""What a command does, in a line, read from its source: nothing of it is imported for `--help`.

All commands together import NumPy, ZODB and more, which takes a second. It knows how click's
decorators look. Locking: none.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import click

__all__ = ["summary_of"]


def summary_of(module: str, name: str, limit: int) -> str | None:
    """Return the summary of a command; None: its source does not say.

    Parameters
    ----------
    module, name : str
        Of the command, in its entry point.
    limit : int
        Characters.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    for node in ast.parse(Path(spec.origin).read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _summary(node, limit)
    return None


def _summary(function: ast.FunctionDef, limit: int) -> str | None:
    text, short = ast.get_docstring(function), None
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call) or not _is_command(decorator):
            continue
        for keyword in decorator.keywords:
            if keyword.arg == "short_help" and isinstance(keyword.value, ast.Constant):
                short = str(keyword.value.value)
            elif keyword.arg in ("hidden", "deprecated", "help", "short_help"):
                return None  # click is to say it
    if not text and not short:
        return None
    return click.Command(None, help=text, short_help=short).get_short_help_str(limit)


def _is_command(decorator: ast.Call) -> bool:
    return isinstance(decorator.func, ast.Attribute) and decorator.func.attr in ("command", "group")
