"""The program `wendelin`, as tests run it: the installed one, or its main() in this process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

PROGRAM = str(Path(sys.executable).parent / "wendelin")


class Done(NamedTuple):
    """How a call ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self):
        return json.loads(self.stdout)


def wendelin(*args, cwd=None, code=0, **env):
    """Run the program, and check that it ends with this code, and without a traceback."""
    done = subprocess.run(
        [PROGRAM, *map(str, args)],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return checked(Done(done.returncode, done.stdout, done.stderr), code)


def checked(done, code):
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    if code == 2:
        assert done.stderr.count("\n") == 1, done.stderr
    return done


class Caller:
    """Calls main() in this process: it does the same as the program, but faster."""

    def __init__(self, capsys):
        self._capsys = capsys

    def __call__(self, *args, code=0):
        from wendelin.cli.program import main

        self._capsys.readouterr()
        returned = main([str(arg) for arg in args])
        out, err = self._capsys.readouterr()
        return checked(Done(returned, out, err), code)


def ended_at(number, args, reached, cwd=None, seconds=100):
    """Run the program, and send it a signal as soon as reached() is true; return how it ended."""
    process = subprocess.Popen(
        # a process in the background ignores SIGINT, and its children inherit that
        ["env", "--default-signal=INT", PROGRAM, *map(str, args)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + seconds
    while process.poll() is None and not reached() and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=seconds)
    return Done(process.returncode, out, err)


def killed_at(args, reached, cwd=None):
    """Run the program, and kill it as soon as reached() is true; say whether it was in time."""
    return ended_at(signal.SIGKILL, args, reached, cwd).returncode == -signal.SIGKILL
