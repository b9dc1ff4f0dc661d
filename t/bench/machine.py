"""What works need of the machine: the page cache, memory cgroups, and a description of it."""

import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).parents[1]))  # `support` is there

from support import cgroup
from support.pagecache import cached_pages, evict


class Skip(Exception):  # noqa: N818  # it is not an error
    """This machine cannot do the work; says why."""


# ---- page cache ----


def warm(files: Iterable[Path]) -> None:
    """Bring files into the page cache by read(2), after they were taken out of it."""
    files = list(files)
    evict(files)
    buffer = bytearray(1 << 20)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def make_cold(files: Iterable[Path]) -> None:
    """Take files out of the page cache.

    Raises
    ------
    Skip
        The file system keeps them there.
    """
    files = list(files)
    evict(files)
    stay = [
        path.name
        for path in files
        if path.stat().st_size > 1 << 20 and cached_pages(path).mean() > 0.01
    ]
    if stay:
        raise Skip(f"the file system keeps {', '.join(stay)} in the page cache")


# ---- memory ----


def pss(pid: int) -> int:
    """Return the memory of a process [bytes]; what n processes share counts an n-th."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss: +(\d+) kB", text, re.M)[0]) << 10


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """Make a memory cgroup with a limit [bytes]; yield its cgroup.procs.

    Raises
    ------
    Skip
        This machine does not let us.
    """
    try:
        with cgroup.memory_cgroup(limit) as procs:
            yield procs
    except cgroup.NoCgroup as e:
        raise Skip(str(e)) from e


# ---- what it is ----


def file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    at = next(p for p in (folder.resolve(), *folder.resolve().parents) if str(p) in mounts)
    return mounts[str(at)]


def describe(folder: Path) -> str:
    """Return one line: processor, memory, file system, kernel, and versions."""
    models = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    libraries = []
    for name in ("NumPy", "ZODB", "h5py", "zarr", "tensorstore"):
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        f"{os.cpu_count()} CPUs ({models[0] if models else platform.machine()}), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory, {file_system(folder)}, "
        f"Linux {platform.release()}; Python {platform.python_version()}, {', '.join(libraries)}"
    )
