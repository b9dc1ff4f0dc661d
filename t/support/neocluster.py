"""NEO clusters for tests: masters, storage nodes and an admin, and the gateway in front.

This module knows how NEO 1.12 is started; storages.py and neo_cluster.py use it. As a program, it
installs NEO's environment.
"""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from support.servers import HOST, NotStarted, Process, answers, free_ports, wait_until
from wendelin.neogateway import gateway
from wendelin.neogateway.environment import NoPython2, environment, find_python2, folder

NAME = "test"


def missing():
    """Return why NEO cannot run here, and what to install; None if it can."""
    if (folder() / "complete").exists():
        return None
    try:
        find_python2()
    except NoPython2 as e:
        return str(e)
    return None


# ---- a cluster ----


class NeoCluster:
    """A master, storage nodes with SQLite, an admin, on free ports of 127.0.0.1.

    Parameters
    ----------
    folder : Path
        Where databases and logs are.
    storages : int
        How many storage nodes.
    replicas : int
        Copies of each partition, besides the first.
    storage_ports : list of int or None
        Ports of the storage nodes; None: free ones.
    """

    PARTITIONS = 12

    def __init__(self, folder, storages=2, replicas=1, storage_ports=None):
        self.folder, self.replicas = Path(folder), replicas
        self.bin = environment()
        self.master_port, self.admin_port, *ports = free_ports(2 + storages)
        self.masters = f"{HOST}:{self.master_port}"
        common = ["-c", NAME, "-m", self.masters]
        self.master = self._process(
            "master",
            "neomaster",
            *common,
            *("-b", self.masters, "-r", replicas, "-p", self.PARTITIONS, "-A", storages),
        )
        self.admin = self._process("admin", "neoadmin", *common, "-b", f"{HOST}:{self.admin_port}")
        self.storage_ports = storage_ports or ports
        self.storages = [
            self._process(
                f"storage{i}",
                "neostorage",
                *common,
                *("-b", f"{HOST}:{port}", "-a", "SQLite", "-d", self.folder / f"{i}.sqlite"),
            )
            for i, port in enumerate(self.storage_ports, 1)
        ]

    def _process(self, name, program, *args):
        log = self.folder / f"{name}.neolog"
        return Process([self.bin / program, *args, "-l", log], self.folder / f"{name}.log")

    @property
    def processes(self):
        return [self.master, self.admin, *self.storages]

    def start(self):
        """Start all, and wait until the cluster runs."""
        for process in self.processes:
            process.start()
        self.wait()

    def wait(self):
        """Wait until the cluster runs."""
        try:
            wait_until(self.is_running, "NEO", alive=lambda: all(p.alive() for p in self.processes))
        except NotStarted:
            said = "\n".join(f"{p.log.name}: {p.output()}" for p in self.processes)
            self.stop()
            raise NotStarted(f"the NEO cluster does not start:\n{said}") from None

    def ctl(self, *args):
        """Return what neoctl says."""
        command = [self.bin / "neoctl", "-a", f"{HOST}:{self.admin_port}", *args]
        result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        return result.stdout.strip()

    def is_running(self):
        return answers(self.admin_port) and self.ctl("print", "cluster").endswith("RUNNING")

    def is_replicated(self):
        """Say whether all copies are up to date."""
        rows = self.ctl("print", "pt")
        return "O" not in rows.replace("OK", "") and "U" in rows

    def stop(self):
        """Stop all that runs."""
        for process in [self.admin, *self.storages, self.master]:
            with suppress(OSError):
                process.stop()

    @property
    def url(self):
        """URL for a client of NEO itself."""
        return f"neo://{NAME}@{self.masters}"


class Gateway(gateway.Gateway):
    """A gateway before a cluster, as `neo-gateway` starts it."""

    def __init__(self, folder, masters, name=NAME, address=None):
        super().__init__(folder, masters, name, address)


if __name__ == "__main__":
    if missing() and "CI" not in os.environ:
        print(f"tests of NEO are skipped: {missing()}")
        sys.exit()
    try:
        print(environment(lambda line: print(line, file=sys.stderr, flush=True)))
    except NoPython2 as e:
        sys.exit(str(e))
    except subprocess.CalledProcessError as e:
        sys.exit(f"{e}\n{e.output[-3000:]}")
