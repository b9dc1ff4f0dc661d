"""NEO clusters for tests: masters, storage nodes and an admin, and a gateway that speaks ZEO.

It knows how NEO 1.12 is installed and started; what it is used for, storages.py and neo-cluster
say. NEO 1.12 is of Python 2.7, so it gets an environment of its own (environment()).
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from support.servers import HOST, NotStarted, Process, answers, free_port, wait_until

NAME = "test"
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


# ---- the environment of NEO ----


def find_python2():
    """Return the path of a Python 2.7.

    Raises
    ------
    NoPython2
        There is none.
    """
    found = [shutil.which("python2.7"), shutil.which("pypy")]
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found += sorted(pyenv.glob("versions/2.7.*/bin/python2.7"))
    for path in filter(None, found):
        # pyenv's shims are there without what they stand for
        ask = [str(path), "-c", "import sys, pip; print(sys.version_info[:2] == (2, 7))"]
        if subprocess.run(ask, capture_output=True, text=True).stdout.strip() == "True":
            return Path(path)
    raise NoPython2(
        "NEO 1.12 needs Python 2.7 with pip, and there is none: install it with pyenv "
        "(pyenv install 2.7.18), or Debian's pypy"
    )


def folder():
    """Return where environments are kept, one for each list of requirements."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    key = hashlib.sha256(repr((REQUIREMENTS, VIRTUALENV)).encode()).hexdigest()[:12]
    return cache / "wendelin.core" / f"neo-{key}"


def missing():
    """Return why there can be no NEO here, and what to install; None: there can be."""
    if (folder() / "complete").exists():
        return None
    try:
        find_python2()
    except NoPython2 as e:
        return str(e)
    return None


def environment(say=lambda line: None):
    """Return the folder of NEO's programs; it is installed first, if it is not there.

    Raises
    ------
    NoPython2
    subprocess.CalledProcessError
        The installation failed; `output` says why.
    """
    target = folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    # one installs, and others wait
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "complete").exists():
            shutil.rmtree(target, ignore_errors=True)
            _install(target, say)
            (target / "complete").touch()
    return target / "bin"


def _install(target, say):
    python2 = find_python2()
    say(f"installing NEO 1.12 with {python2} to {target}: it takes some minutes, once")
    # pyenv's shims choose by it; and Python 3's paths are not for Python 2
    env = {k: v for k, v in os.environ.items() if k not in ("PYENV_VERSION", "PYTHONPATH")}
    with tempfile.TemporaryDirectory() as tools:
        _run([python2, "-m", "pip", "install", "-q", "--target", tools, VIRTUALENV], env)
        _run([python2, "-m", "virtualenv", "-q", target], {**env, "PYTHONPATH": tools})
    _run([target / "bin" / "pip", "install", "-q", *REQUIREMENTS], env)


def _run(command, env):
    subprocess.run(
        [str(c) for c in command],
        env=env,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# ---- a cluster ----


class NeoCluster:
    """A master, storage nodes with SQLite, an admin, on free ports of 127.0.0.1.

    Parameters
    ----------
    folder : Path
        Of databases and logs.
    storages : int
        How many storage nodes.
    replicas : int
        Copies of each partition, besides the first.
    storage_ports : list of int or None
        Where storage nodes are; None: on free ports.
    """

    PARTITIONS = 12

    def __init__(self, folder, storages=2, replicas=1, storage_ports=None):
        self.folder, self.replicas = Path(folder), replicas
        self.bin = environment()
        self.master_port, self.admin_port = free_port(), free_port()
        self.masters = f"{HOST}:{self.master_port}"
        common = ["-c", NAME, "-m", self.masters]
        self.master = self._process(
            "master",
            "neomaster",
            *common,
            *("-b", self.masters, "-r", replicas, "-p", self.PARTITIONS, "-A", storages),
        )
        self.admin = self._process("admin", "neoadmin", *common, "-b", f"{HOST}:{self.admin_port}")
        self.storage_ports = storage_ports or [free_port() for _ in range(storages)]
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


class Gateway(Process):
    """gateway.py before a cluster.

    Parameters
    ----------
    folder : Path
    masters, name : str
        Of the cluster: HOST:PORT[ HOST:PORT...], and what it is called.
    address : str or None
        HOST:PORT where it listens; None: a free port of 127.0.0.1.
    """

    def __init__(self, folder, masters, name=NAME, address=None):
        self.folder, self.masters, self.name = Path(folder), masters, name
        self.address = address
        self.conf = self.folder / "gateway.conf"
        super().__init__(
            [environment() / "python", Path(__file__).with_name("gateway.py"), self.conf],
            self.folder / "gateway.log",
        )

    def start(self):
        """Start it, and wait until it answers."""
        for _ in range(3):
            address = self.address or f"{HOST}:{free_port()}"
            self.conf.write_text(
                f"%import neo.client\n"
                f"<zeo>\n  address {address}\n  msgpack true\n</zeo>\n"
                f"<NEOStorage 1>\n  master_nodes {self.masters}\n  name {self.name}\n"
                f"  compress false\n</NEOStorage>\n"
            )
            super().start()
            port = int(address.rpartition(":")[2])
            with suppress(NotStarted):
                wait_until(lambda p=port: answers(p), "gateway", alive=self.alive)
                if self.alive():
                    self.address = address
                    return
            if self.alive() or self.address:
                break
            # somebody was quicker to have the port
        self.stop()
        raise NotStarted(f"the gateway does not start:\n{self.output()}")

    @property
    def port(self):
        return int(self.address.rpartition(":")[2])

    @property
    def url(self):
        return f"zeo://{self.address}"


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
