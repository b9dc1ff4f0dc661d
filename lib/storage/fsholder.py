"""Which process has a file locked, so that messages can name it.

This module knows Linux's list of locks, and the contents of zc.lockfile's files.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

__all__ = ["lock_holder"]

_LOCK = re.compile(r"^\d+: FLOCK\s+ADVISORY\s+WRITE (\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.M)


def lock_holder(path: str) -> str:
    """Return a phrase that names the process with the lock of a database file; "" if unknown.

    Parameters
    ----------
    path : str
        Of the file; its lock file is beside it.
    """
    try:
        pid = _from_kernel(path) or _from_kernel(f"{path}.lock")
    except OSError:  # this system has no such list
        pid = _from_file(f"{path}.lock")
    if pid is None:
        return ""
    if pid == os.getpid():
        return f"process {pid}, this one"
    name = ""
    with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        name = file.read().strip()
    return f"process {pid} ({name})" if name.isprintable() and name else f"process {pid}"


def _from_kernel(path: str) -> int | None:
    """Return the process that has a lock of a file, by /proc/locks."""
    with open("/proc/locks", encoding="ascii", errors="replace") as file:
        locks = file.read()
    try:
        stat = os.stat(path)
    except OSError:
        return None
    wanted = os.major(stat.st_dev), os.minor(stat.st_dev), stat.st_ino
    for pid, major, minor, inode in _LOCK.findall(locks):
        if (int(major, 16), int(minor, 16), int(inode)) == wanted and int(pid) > 0:
            return int(pid)
    return None


def _from_file(path: str) -> int | None:
    """Return the process that a lock file names, if there is such a process."""
    try:
        with open(path, "rb") as file:
            pid = int(file.read(64).split()[0])
        os.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError, IndexError, OverflowError):
        return None
    return pid
