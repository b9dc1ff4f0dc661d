"""The environment of Python 2.7 in which NEO 1.12 runs: installed once, into ~/.cache.

It knows pip and virtualenv of Python 2.7, but not the programs in the environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["NoPython2", "environment", "find_python2", "folder"]

REQUIREMENTS = [
    "neoppod[master,storage-sqlite,admin,ctl,client]==1.12.0",
    "ZEO==5.4.1",
    "ZODB==5.8.1",
    "msgpack==0.6.2",  # the last that is compiled for Python 2.7
    "zodburi==2.6.0",
]
VIRTUALENV = "virtualenv<20.22"  # the last that makes environments of Python 2.7


class NoPython2(Exception):  # noqa: N818  # says what to do
    """There is no Python 2.7; says what to install."""


def find_python2() -> Path:
    """Return the path of a Python 2.7.

    Raises
    ------
    NoPython2
        There is none.
    """
    found = [shutil.which("python2.7"), shutil.which("pypy")]
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found += [str(path) for path in sorted(pyenv.glob("versions/2.7.*/bin/python2.7"))]
    for path in filter(None, found):
        # pyenv's shims are there without what they stand for
        ask = [path, "-c", "import sys, pip; print(sys.version_info[:2] == (2, 7))"]
        said = subprocess.run(ask, check=False, capture_output=True, text=True).stdout
        if said.strip() == "True":
            return Path(path)
    raise NoPython2(
        "NEO 1.12 needs Python 2.7 with pip, and there is none: install it with pyenv "
        "(pyenv install 2.7.18), or Debian's pypy"
    )


def folder() -> Path:
    """Return the folder of environments, one for each list of requirements."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    key = hashlib.sha256(repr((REQUIREMENTS, VIRTUALENV)).encode()).hexdigest()[:12]
    return cache / "wendelin.core" / f"neo-{key}"


def environment(say: Callable[[str], None] = lambda line: None) -> Path:
    """Return the folder of NEO's programs; install it first if it does not exist.

    Parameters
    ----------
    say : callable
        Called with a line when the installation begins.

    Raises
    ------
    NoPython2
    subprocess.CalledProcessError
        The installation failed; `output` says why.
    """
    target = folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    # one process installs, and others wait
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "complete").exists():
            shutil.rmtree(target, ignore_errors=True)
            _install(target, say)
            (target / "complete").touch()
    return target / "bin"


def _install(target: Path, say: Callable[[str], None]) -> None:
    python2 = find_python2()
    say(f"installing NEO 1.12 with {python2} to {target}: it takes some minutes, once")
    # pyenv's shims choose by it; and Python 3's paths are not for Python 2
    env = {k: v for k, v in os.environ.items() if k not in ("PYENV_VERSION", "PYTHONPATH")}
    with tempfile.TemporaryDirectory() as tools:
        _run([python2, "-m", "pip", "install", "-q", "--target", tools, VIRTUALENV], env)
        _run([python2, "-m", "virtualenv", "-q", target], {**env, "PYTHONPATH": tools})
    _run([target / "bin" / "pip", "install", "-q", *REQUIREMENTS], env)


def _run(command: list[str | Path], env: dict[str, str]) -> None:
    subprocess.run(
        [str(c) for c in command],
        env=env,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
