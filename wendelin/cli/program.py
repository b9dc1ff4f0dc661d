"""The program `wendelin`: its commands, and how it ends.

This module knows click and exit codes. It imports a command when the command is called.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from wendelin.cli.summary import summary_of
from wendelin.lib.shown import shown
from wendelin.lib.utils import override

__all__ = ["main", "wendelin"]

#: in pyproject.toml
GROUP = "wendelin.commands"


class Commands(click.Group):
    """Commands that are loaded when they are needed."""

    @cached_property
    def _found(self) -> dict[str, EntryPoint]:
        # each look reads what every installed package says
        return {ep.name: ep for ep in entry_points(group=GROUP)}

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._found)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click.Group: no command is loaded that can be described without."""
        found = self._found
        limit = formatter.width - 6 - max(map(len, found), default=0)
        rows = []
        for name in sorted(found):
            text = summary_of(found[name].module, found[name].attr, limit)
            if text is None:
                command = self.get_command(ctx, name)
                if command is None or command.hidden:
                    continue
                text = command.get_short_help_str(limit)
            rows.append((name, text))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click.Group: of a command that is not there, say which may be meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as e:
            alike = get_close_matches(args[0], self._found, 1)
            if not alike:
                raise
            text = f"{e.message.rstrip('.')}: did you mean {alike[0]!r}?"
            raise click.UsageError(text, ctx) from None

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = self._found.get(cmd_name)
        command: click.Command | None = None if found is None else found.load()
        return command


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Errors are one line; the exit code is 2 for a wrong call, and 1 for a failure. "
    "docs/command-line.md says more, and how the shell can complete commands.",
)
@click.version_option(package_name="wendelin.core", prog_name="wendelin")
@click.pass_context
def wendelin(ctx: click.Context) -> None:
    """Show arrays in databases; fill, copy and check them.

    URL is a path of a file (data.fs), or a URL of a database (zeo://host:9991, file://...).
    URL#path is an object in it, by keys and attributes from the root: data.fs#runs/2024/A.
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
    elif isinstance(ctx.obj, _Call):
        ctx.obj.command = f"{ctx.command_path} {ctx.invoked_subcommand}"


@dataclass
class _Call:
    """A call of the program."""

    command: str  # named in error messages

    def tell(self, text: str) -> None:
        print(shown(f"{self.command}: error: {text}"), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    # Libraries also raise what they log; the log would go to stderr, with tracebacks.
    logging.getLogger().addHandler(logging.NullHandler())
    call = _Call("wendelin")
    try:
        result: Any = wendelin.main(argv, prog_name=call.command, standalone_mode=False, obj=call)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.UsageError as e:
        call.command = e.ctx.command_path if e.ctx is not None else call.command
        call.tell(f"{_line(e)} (--help shows the usage)")
        return 2
    except BrokenPipeError:
        # the reader, such as `head`, has closed the pipe; Python must not flush it again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, click.Abort):
        call.tell("interrupted")
        return 1
    except Exception as e:
        call.tell(_line(e))
        return 2 if _is_setting(e) else 1


def _line(error: Exception) -> str:
    # late: a wrong WENDELIN_CORE_RAM makes the import of the pager fail, which is reported as well
    try:
        from wendelin.cli.errors import explain
    except ValueError as e:
        return str(e)
    return explain(error)


def _is_setting(error: Exception) -> bool:
    return isinstance(error, ValueError) and str(error).startswith("WENDELIN_CORE_")


if __name__ == "__main__":
    sys.exit(main())
