"""Memory cgroups, for processes that have to run with little memory."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoCgroup(Exception):  # noqa: N818  # it is not an error
    """No memory cgroup can be made; says what would help."""


def _cgroup_roots() -> Iterator[tuple[Path, str]]:
    """Yield where memory cgroups can be made, in v1 or v2, and the file that has the limit."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                if Path(mount + path, "memory.current").exists() or path == "/":
                    yield Path(mount + path), "memory.max"
        elif "memory" in controllers.split(","):
            yield Path("/sys/fs/cgroup/memory" + path), "memory.limit_in_bytes"


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """Make a memory cgroup with a limit [bytes]; yield its cgroup.procs.

    Raises
    ------
    NoCgroup
        This machine does not let us.
    """
    for root, name in _cgroup_roots():
        group = root / f"wendelin-{uuid.uuid4().hex[:8]}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            with open(group / name, "r+") as file:  # not "w": the folder may not be a cgroup
                file.write(str(limit))
        except OSError:
            group.rmdir()
            continue
        try:
            yield group / "cgroup.procs"
        finally:
            group.rmdir()
        return
    raise NoCgroup("no memory cgroup can be made here: run as root, or delegate one")
