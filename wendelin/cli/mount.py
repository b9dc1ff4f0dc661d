"""wendelin mount: the arrays of a database as .npy files, for any program.

libfuse calls Operations in threads of its own. Files do not change, so the kernel keeps what it has
read. libfuse unmounts at SIGINT, SIGTERM and SIGHUP. A watcher unmounts if the process is killed:
see _unmounted_if_killed().

It knows FUSE, by mfusepy: what is shown is in `mounted`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from wendelin.bigfile.virtmem.abilities import FileRange
from wendelin.cli.address import Address
from wendelin.cli.arguments import AddressType, at_option
from wendelin.cli.database import opened, tid_time
from wendelin.cli.errors import Failure
from wendelin.cli.mounted import File, Tree
from wendelin.cli.output import say, shown_time, warn
from wendelin.cli.stored import Stored
from wendelin.cli.tree import find
from wendelin.lib.zodb import zconn_at

__all__ = ["mount"]

_DAY = 86400  # the kernel asks for names again after it [s]


def _mfusepy() -> Any:
    """Return mfusepy.

    Raises
    ------
    Failure
        It cannot work here: the text says what to install.
    """
    try:
        import mfusepy
    except ImportError as e:
        raise Failure(
            "mfusepy is needed, but not installed: pip install 'wendelin.core[fuse]'"
        ) from e
    except OSError as e:  # it looks for libfuse at once
        raise Failure(
            f"libfuse is needed, but not installed ({e}): apt-get install fuse3, say"
        ) from e
    if not os.path.exists("/dev/fuse"):
        raise Failure("/dev/fuse is missing: load the kernel's module fuse, or allow it here")
    return mfusepy


_libc = ctypes.CDLL(None, use_errno=True)
_libc.calloc.restype = _libc.malloc.restype = ctypes.c_void_p
_libc.calloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
_libc.malloc.argtypes = (ctypes.c_size_t,)

#: struct fuse_bufvec with one buffer: count, index, offset; size, flags, memory, fd, position
_ONE = struct.Struct("@NNNNi4xPi4xq")
_ROOM = 256  # what a later libfuse adds to it is zeros [bytes]
_IS_FD, _FD_SEEK = 2, 4


def _answer(answer: Any, piece: bytes | FileRange) -> None:
    """Answer a read by memory, or by a place in a file, from where the kernel moves it.

    libfuse frees what is allocated here.
    """
    vec = _libc.calloc(1, _ROOM)
    memory, fd, position, flags = 0, -1, 0, 0
    if isinstance(piece, FileRange):
        size, fd, position, flags = piece.size or 0, piece.fd, piece.offset, _IS_FD | _FD_SEEK
    else:
        size = len(piece)
        memory = _libc.malloc(max(1, size))
        if memory:
            ctypes.memmove(memory, piece, size)
    if not vec or (not memory and fd < 0):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    ctypes.memmove(vec, _ONE.pack(1, 0, 0, size, flags, memory, fd, position), _ONE.size)
    ctypes.cast(answer, ctypes.POINTER(ctypes.c_void_p))[0] = vec


def _operations(mfusepy: Any, tree: Tree, seconds: float) -> Any:
    """Return what libfuse calls."""
    mode = {"st_uid": os.getuid(), "st_gid": os.getgid()}
    times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), int(seconds * 1e9))

    opened_files: dict[int, File] = {}  # by handle; a file has one
    handles: dict[int, int] = {}  # id of a file -> handle

    class Operations(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True
        begun = False

        def init(self, path: str) -> None:
            self.begun = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            found = tree.find(path)
            if isinstance(found, File):
                size = {"st_size": found.size, "st_blocks": -(-found.size // 512)}
                return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, **size, **mode, **times}
            return {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2, **mode, **times}

        def readdir(self, path: str, fh: int) -> Any:
            return [".", "..", *tree.names(path)]

        def open(self, path: str, flags: int) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            file = tree.file(path)
            handle = handles.setdefault(id(file), len(handles) + 1)
            opened_files[handle] = file
            return handle

        def read_buf(self, path: str, answer: Any, size: int, offset: int, fh: int) -> int:
            try:
                _answer(answer, opened_files[fh].read(offset, size))
            except OSError as e:
                warn("mount", f"{path}: {e.strerror or e}")
                raise
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}

    return Operations()


@contextmanager
def _unmounted_if_killed(folder: str) -> Iterator[None]:
    """Have another process unmount if this one ends without the end of the block, by SIGKILL say.

    That waits on a pipe, whose other end only this process has.
    """
    script = 'read -r done || fusermount3 -quz "$1" 2>&- || umount -l "$1"'
    with subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", folder], stdin=subprocess.PIPE, start_new_session=True
    ) as watcher:
        assert watcher.stdin is not None
        try:
            yield
        finally:
            watcher.stdin.write(b"done\n")


def _check_folder(path: str) -> None:
    """Check that a database can be mounted on a folder.

    Raises
    ------
    Failure
        It is not one, or has something in it.
    """
    try:
        names = os.listdir(path)
    except OSError as e:
        if e.errno == errno.ENOTCONN:
            raise Failure(
                f"{path} is a mount whose program was killed: fusermount3 -u {path}, then again"
            ) from e
        raise
    if names:
        raise Failure(f"{path} is not empty: mount on an empty folder, which shows the arrays then")


@click.command(
    short_help="Show arrays as .npy files in a folder.",
    epilog="""\b
Examples:
  wendelin mount data.fs /mnt/data
  wendelin mount zeo://host:9991#runs/2024 runs
  wendelin mount --at "3 days ago" data.fs past""",
)
@click.argument("address", metavar="URL[#path]", type=AddressType("possible"))
@click.argument("folder", metavar="DIR")
@at_option
def mount(address: Address, folder: str, at: bytes | str | None) -> None:
    """Show the arrays of a database as .npy files, in folders as groups have them.

    Any program reads them: np.load(path, mmap_mode="r"), cp, a program in C. They are as they were
    at one moment: later commits do not show. Nothing can be changed, and no code runs that the
    database names. A sparse matrix is a folder of three arrays. Ctrl-C unmounts.
    """
    _check_folder(folder)
    mfusepy = _mfusepy()
    with opened(address.url, at=at) as database:
        start = find(database, address)
        if not isinstance(start, Stored):
            raise Failure(f"{address} is not a group: give the path of one, or no path")
        tid = zconn_at(database.conn)
        tree = Tree(database, start, lambda text: warn("mount", text))
        tree.find("/")
        operations = _operations(mfusepy, tree, tid_time(tid).timestamp())
        say(f"{folder} shows {address} of {shown_time(tid)}; Ctrl-C unmounts")
        options: dict[str, Any] = {"ro": True, "kernel_cache": True}
        options.update(dict.fromkeys(("entry_timeout", "attr_timeout"), _DAY))
        try:
            with _unmounted_if_killed(os.path.abspath(folder)):
                mfusepy.FUSE(
                    operations,
                    os.path.abspath(folder),
                    foreground=True,
                    fsname="wendelin",
                    **options,
                )
        except RuntimeError as e:
            if operations.begun:
                return  # it ended by a signal
            raise Failure(
                f"{folder} cannot be mounted (libfuse's error {e}); its message is above"
            ) from e
