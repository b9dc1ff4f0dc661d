"""The program neo-gateway: installs the environment of NEO if needed, and serves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from wendelin.neogateway.environment import NoPython2, environment
from wendelin.neogateway.gateway import PROGRAM, Gateway
from wendelin.neogateway.process import NotStarted

__all__ = ["main"]


class Address(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from 8.4 on
    """HOST:PORT, or several with spaces between."""

    name = "HOST:PORT"

    def __init__(self, several: bool = False) -> None:
        self.several = several

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address as it was given; it is one."""
        words = value.split()
        for word in words:
            found = re.fullmatch(r"([^\s:]+|\[[\da-fA-F:.]+\]):(\d{1,5})", word)
            if found is None or not 0 < int(found[2]) < 1 << 16:
                self.fail(f"{word!r} is not HOST:PORT, such as 127.0.0.1:10000", param, ctx)
        if len(words) != 1 and not (words and self.several):
            self.fail(f"{value!r} is not one HOST:PORT", param, ctx)
        return value


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--name", metavar="CLUSTER", help="Name of the cluster.")
@click.option(
    "--masters",
    type=Address(several=True),
    metavar='"HOST:PORT HOST:PORT..."',
    help="Masters of the cluster.",
)
@click.option(
    "--address",
    type=Address(),
    metavar="HOST:PORT",
    help="Where to listen.  [default: a free port of 127.0.0.1]",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    metavar="FILE",
    help="Configuration as for runzeo: TLS, limits and more; see docs/cluster.md.",
)
@click.version_option(package_name="wendelin.core", prog_name="neo-gateway")
def neo_gateway(
    name: str | None, masters: str | None, address: str | None, config: Path | None
) -> None:
    """Serve a NEO 1.12 cluster to clients of Python 3: a gateway, which is a ZEO server.

    With --name and --masters of the cluster, it prints the URL for dbopen(). Or --config has all
    settings. It runs until it is interrupted. NEO 1.12 runs on Python 2.7: the first time, it is
    installed into ~/.cache/wendelin.core, which takes some minutes.
    """
    if bool(config) == bool(name or masters or address):
        raise click.UsageError("give either --name and --masters, or --config")
    python = environment(lambda line: click.echo(line, err=True)) / "python"
    if config:
        sys.stdout.flush()
        os.execv(python, [str(python), "-E", str(PROGRAM), str(config)])  # signals are for it
    if not (name and masters):
        raise click.UsageError("give both --name and --masters")
    with tempfile.TemporaryDirectory(prefix="neo-gateway-") as folder:
        gateway = Gateway(Path(folder), masters, name, address)
        try:
            gateway.start()
            click.echo(gateway.url)
            sys.stdout.flush()
            if code := gateway.wait():
                raise NotStarted(f"the gateway ended with exit code {code}:\n{gateway.output()}")
        finally:
            gateway.stop()


def main() -> None:
    """Run the program; errors are printed without a traceback."""
    try:
        neo_gateway(standalone_mode=False)
    except click.ClickException as e:
        sys.exit(_told(e.format_message(), e.exit_code))
    except click.Abort:  # Ctrl-C
        sys.exit(130)
    except (NotStarted, NoPython2, OSError) as e:
        sys.exit(_told(str(e), 1))
    except subprocess.CalledProcessError as e:
        sys.exit(_told(f"{e}\n{(e.output or '')[-3000:]}", 1))


def _told(text: str, code: int) -> int:
    print(f"neo-gateway: {text}", file=sys.stderr)
    return code
