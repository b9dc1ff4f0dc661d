"""Python code in a child process, for tests that can crash, hang, or take much memory."""

import os
import signal
import subprocess
import sys
import textwrap

from support import TESTS

#: for code that must end by itself [s]
TIMEOUT = 60


def start_child(code: str, *args: str, stdout=None, stderr=None, **env: str) -> subprocess.Popen:
    """Start a process that runs Python code; its output is text."""
    return subprocess.Popen(_command(code, args), **_options(env), stdout=stdout, stderr=stderr)


def run_child(code: str, *args: str, timeout: float = TIMEOUT, **env: str):
    """Run Python code; return the CompletedProcess, output as text.

    If it does not end in time, its own children end with it: one that lives on keeps what it has
    inherited open, such as the connection to a server, which then waits for its transaction.
    """
    command, pipe = _command(code, args), subprocess.PIPE
    with subprocess.Popen(
        command, **_options(env), stdout=pipe, stderr=pipe, start_new_session=True
    ) as child:
        try:
            out, err = child.communicate(timeout=timeout)
        except BaseException:  # the time is over, or Ctrl-C, which does not reach another session
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def _command(code, args):
    # -P: the working directory may hold the sources, which are not what is tested
    return [sys.executable, "-P", "-c", textwrap.dedent(code), *args]


def _options(env):
    return {
        "env": os.environ | {"PYTHONPATH": str(TESTS)} | env,
        "text": True,
    }


def check_child(code: str, *args: str, **kw) -> str:
    """Run Python code that must end well; return what it printed."""
    done = run_child(code, *args, **kw)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
