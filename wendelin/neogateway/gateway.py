"""Gateway: the server process of a gateway, for a cluster whose masters are known.

It knows the configuration of the server, but not how it serves.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from wendelin.neogateway.environment import environment
from wendelin.neogateway.process import HOST, NotStarted, Process, answers, free_port, wait_until

__all__ = ["PROGRAM", "Gateway"]

#: what Python 2.7 runs
PROGRAM = Path(__file__).with_name("py27") / "gateway.py"


class Gateway(Process):
    """A gateway before a cluster, without TLS.

    Parameters
    ----------
    folder : Path
        Of its configuration and log.
    masters, name : str
        Of the cluster: HOST:PORT[ HOST:PORT...], and its name.
    address : str or None
        HOST:PORT where it listens; None: a free port of 127.0.0.1.
    """

    def __init__(self, folder: Path, masters: str, name: str, address: str | None = None) -> None:
        self.folder, self.masters, self.name = Path(folder), masters, name
        self.address = address
        self.conf = self.folder / "gateway.conf"
        command = [environment() / "python", "-E", PROGRAM, self.conf]
        super().__init__(command, self.folder / "gateway.log")

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises
        ------
        NotStarted
            It ended, or does not answer; the text has its output.
        """
        for _ in range(3):
            address = self.address or f"{HOST}:{free_port()}"
            self.conf.write_text(
                f"%import neo.client\n"
                f"<zeo>\n  address {address}\n  msgpack true\n</zeo>\n"
                f"<NEOStorage 1>\n  master_nodes {self.masters}\n  name {self.name}\n"
                f"  compress false\n</NEOStorage>\n"
            )
            super().start()
            with suppress(NotStarted):
                wait_until(partial(_answers, address), "gateway", alive=self.alive)
                if self.alive():
                    self.address = address
                    return
            if self.alive() or self.address:
                break
            # another process was quicker to have the port
        self.stop()
        raise NotStarted(f"the gateway does not start:\n{self.output()}")

    @property
    def port(self) -> int:
        """Where it listens."""
        return _split(self._address)[1]

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"zeo://{self._address}"

    @property
    def _address(self) -> str:
        assert self.address is not None, "it was not started"
        return self.address


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _answers(address: str) -> bool:
    host, port = _split(address)
    return answers(port, HOST if host in ("", "0.0.0.0", "::") else host)
