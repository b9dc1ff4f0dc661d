"""Servers for tests: processes of their own, on free ports of 127.0.0.1, stopped by their pid.

ZEO is here, NEO in neocluster.py, and processes and ports in wendelin/neogateway/process.py.
"""

import sys
from contextlib import suppress
from pathlib import Path

from wendelin.neogateway.process import (
    HOST,
    NotStarted,
    Process,
    answers,
    free_port,
    free_ports,
    wait_until,
)

__all__ = [
    "HOST",
    "NotStarted",
    "Process",
    "ZeoServer",
    "answers",
    "free_port",
    "free_ports",
    "wait_until",
]


class ZeoServer(Process):
    """runzeo, with FileStorages 1, 2, ... in a folder.

    Parameters
    ----------
    folder : Path
    storages : int
    options : str
        More lines of the section <zeo>.
    section : str
        Of a storage in the configuration, with {n} and {path}.
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
        """Start it at its previous port; the first time, at a port that is free."""
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
