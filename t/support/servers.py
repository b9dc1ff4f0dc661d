"""Servers for tests: processes of their own, on free ports of 127.0.0.1, stopped by their pid.

It knows processes, ports and ZEO; NEO is in neocluster.py.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HOST = "127.0.0.1"
START = 60  # a server may take to start, on a loaded machine [s]


class NotStarted(Exception):  # noqa: N818  # says what happened
    """A server does not start."""


def free_port():
    """Return a port that was free just now."""
    with socket.socket() as s:
        s.bind((HOST, 0))
        return s.getsockname()[1]


def answers(port):
    """Say whether somebody listens at a port."""
    with suppress(OSError), socket.create_connection((HOST, port), 1):
        return True
    return False


def wait_until(condition, what, seconds=START, alive=lambda: True):
    """Wait for a condition.

    Raises
    ------
    NotStarted
        It did not become true, or what was to make it true is not alive.
    """
    end = time.monotonic() + seconds
    while not condition():
        if not alive() or time.monotonic() > end:
            raise NotStarted(what)
        time.sleep(0.05)


class Process:
    """A server process, with its output in a file."""

    def __init__(self, command, log, env=None):
        self.command, self.log, self.env = [str(c) for c in command], Path(log), env
        self.popen = None
        self.outlives = False  # it goes on when this process ends

    def start(self):
        """Start it, also again."""
        bound = [] if self.outlives else ["setpriv", "--pdeathsig", "TERM"]
        env = {**os.environ, **(self.env or {})}
        with open(self.log, "ab") as log:
            self.popen = subprocess.Popen(
                [*bound, *self.command],
                start_new_session=self.outlives,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
            )

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen is not None and self.popen.poll() is None

    def output(self):
        """Return the end of what it has said."""
        return self.log.read_text(errors="replace")[-4000:]

    def send(self, number):
        """Send a signal: SIGSTOP makes it hang, SIGCONT go on."""
        self.popen.send_signal(number)

    def kill(self):
        """End it at once: it has no time for anything."""
        self.stop(signal.SIGKILL)

    def stop(self, number=signal.SIGTERM):
        """End it, and wait for that."""
        if self.popen is None:
            return
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.send_signal(number)
        try:
            self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


class ZeoServer(Process):
    """runzeo, with FileStorages 1, 2, ... in a folder.

    Parameters
    ----------
    folder : Path
    storages : int
    options : str
        More lines of the section <zeo>.
    section : str
        What the storages are, with {n} and {path}.
    """

    def __init__(
        self,
        folder,
        storages=1,
        options="",
        section="<filestorage {n}>\n  path {path}\n</filestorage>\n",
    ):
        self.folder, self.options = Path(folder), options
        self.sections = "".join(
            section.format(n=n, path=self.folder / f"{n}.fs") for n in range(1, storages + 1)
        )
        conf = self.folder / "zeo.conf"
        runzeo = Path(sys.executable).with_name("runzeo")
        super().__init__([runzeo, "-C", conf], self.folder / "zeo.log")
        self.port = None

    def start(self):
        """Start it: where it was before, or, the first time, where a port is free."""
        for _ in range(5):
            port = self.port or free_port()
            (self.folder / "zeo.conf").write_text(
                f"%import wendelin.lib\n<zeo>\n  address {HOST}:{port}\n{self.options}</zeo>\n"
                f"{self.sections}"
            )
            super().start()
            with suppress(NotStarted):
                wait_until(lambda p=port: answers(p), "runzeo", alive=self.alive)
                if self.alive():
                    self.port = port
                    return
            self.stop()
        raise NotStarted(f"runzeo does not start:\n{self.output()}")

    @property
    def url(self):
        """URL of its first storage."""
        return f"zeo://{HOST}:{self.port}"
