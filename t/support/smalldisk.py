"""File systems for tests: one that is full, one whose files share bytes, and one over another."""

import lzma
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE = Path(__file__).parents[1] / "data" / "xfs.image.xz"


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
    with _mounted(["-t", "tmpfs", "-o", f"size={size}", "tmpfs"], folder):
        yield folder


@contextmanager
def xfs_disk(folder: Path) -> Iterator[Path]:
    """Make a folder, mount an XFS of 64 MiB there, and yield it.

    t/data/xfs.image.xz is what `mkfs.xfs -d size=64m --unsupported` of xfsprogs 6.1 made.

    Raises
    ------
    NoDisk
        This machine does not let us.
    """
    folder.mkdir()
    image = folder.with_suffix(".image")
    image.write_bytes(lzma.decompress(IMAGE.read_bytes()))
    with _mounted(["-t", "xfs", "-o", "loop,nouuid", str(image)], folder):
        yield folder


@contextmanager
def overlay(folder: Path) -> Iterator[Path]:
    """Make a folder, mount an overlayfs there, as containers have one, and yield it.

    Raises
    ------
    NoDisk
        This machine does not let us.
    """
    layers = [folder.with_suffix(f".{name}") for name in ("lower", "upper", "work")]
    for new in (folder, *layers):
        new.mkdir()
    lower, upper, work = layers
    what = f"lowerdir={lower},upperdir={upper},workdir={work}"
    with _mounted(["-t", "overlay", "-o", what, "overlay"], folder):
        yield folder


@contextmanager
def _mounted(what: list[str], folder: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        raise NoDisk("a file system can be mounted by root only")
    mounted = subprocess.run(["mount", *what, str(folder)], capture_output=True, text=True)
    if mounted.returncode != 0:
        raise NoDisk(f"{what[1]} cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
