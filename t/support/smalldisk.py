"""A small file system, for tests of a disk that is full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoDisk(Exception):  # noqa: N818  # it is not an error
    """No file system can be mounted; says what would help."""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Make a folder, mount a tmpfs there, and yield it; size is in bytes.

    Raises
    ------
    NoDisk
        This machine does not let us.
    """
    folder.mkdir()
    if os.geteuid() != 0:
        raise NoDisk("a file system can be mounted by root only")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        raise NoDisk(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
