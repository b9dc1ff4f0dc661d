"""Server processes on this machine: started, waited for until they answer, stopped by their pid.

It knows processes and ports, but not the work of a server.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

__all__ = ["HOST", "NotStarted", "Process", "answers", "free_port", "free_ports", "wait_until"]

HOST = "127.0.0.1"
START = 60  # a server may take to start, on a loaded machine [s]


class NotStarted(Exception):  # noqa: N818  # says what happened
    """A server does not start."""


def free_port() -> int:
    """Return a port that was free just now."""
    return free_ports(1)[0]


def free_ports(n: int) -> list[int]:
    """Return ports that were free just now, no two of them equal."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind((HOST, 0))
        return [s.getsockname()[1] for s in sockets]


def answers(port: int, host: str = HOST) -> bool:
    """Say whether a server listens at a port."""
    with suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


def wait_until(
    condition: Callable[[], object],
    what: str,
    seconds: float = START,
    alive: Callable[[], bool] = lambda: True,
) -> None:
    """Wait for a condition.

    Raises
    ------
    NotStarted
        It did not become true in time, or the process that makes it true has ended.
    """
    end = time.monotonic() + seconds
    while not condition():
        if not alive() or time.monotonic() > end:
            raise NotStarted(what)
        time.sleep(0.05)


class Process:
    """A server process, with its output in a file.

    Parameters
    ----------
    command : sequence
        The program, and its arguments.
    log : Path
        Where its output goes.
    """

    def __init__(
        self,
        command: Sequence[object],
        log: str | Path,
    ) -> None:
        self.command, self.log = [str(c) for c in command], Path(log)
        self.popen: subprocess.Popen[bytes] | None = None
        self.outlives = False  # it goes on when this process ends

    def start(self) -> None:
        """Start it, or start it again."""
        bound = [] if self.outlives else ["setpriv", "--pdeathsig", "TERM"]
        with open(self.log, "ab") as log:
            self.popen = subprocess.Popen(
                [*bound, *self.command],
                start_new_session=self.outlives,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """The pid of the process that was started last."""
        return self._started.pid

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self.popen is not None, "it was not started"
        return self.popen

    def alive(self) -> bool:
        """Say whether it runs."""
        return self.popen is not None and self.popen.poll() is None

    def wait(self) -> int:
        """Wait until it ends; return its exit code."""
        return self._started.wait()

    def output(self) -> str:
        """Return the end of its output."""
        return self.log.read_text(errors="replace")[-4000:]

    def send(self, number: int) -> None:
        """Send a signal: SIGSTOP makes it hang, SIGCONT go on. It hangs when this returns."""
        self._started.send_signal(number)
        if number == signal.SIGSTOP and self.alive():
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def kill(self) -> None:
        """Kill it."""
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, and wait for that."""
        if self.popen is None:
            return
        if self.popen.poll() is None:
            if number != signal.SIGKILL:  # which ends one that hangs, too
                self.popen.send_signal(signal.SIGCONT)
            self.popen.send_signal(number)
        try:
            self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
