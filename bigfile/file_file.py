"""A BigFile over an ordinary OS file.

This module knows files, and of the pager only BigFile.
"""

import os
import stat

from wendelin.bigfile.virtmem.backend import BigFile

__all__ = ["BigFile_File"]


class BigFile_File(BigFile):
    """An ordinary file in blocks.

    Blocks past the end of the file read as zeros; storing one makes the file longer, in whole
    blocks.

    Parameters
    ----------
    path_or_fd : str, os.PathLike or int
        Path of the file, which is made if it does not exist; or a descriptor, which is duplicated,
        and stays the caller's.
    blksize : int
        Block size [bytes], a multiple of the OS page.

    Raises
    ------
    OSError
        The file cannot be opened, or is not a regular file.
    """

    def __init__(self, path_or_fd: str | os.PathLike[str] | int, blksize: int) -> None:
        super().__init__(blksize)
        self._fd = -1
        if isinstance(path_or_fd, int):
            self._fd = os.dup(path_or_fd)
        else:
            self._fd = os.open(path_or_fd, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise OSError(f"{path_or_fd!r} is not a regular file")
        self._name = path_or_fd

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return f"<BigFile_File {self._name!r}>"

    def loadblk(self, blk: int, buf: memoryview) -> None:
        """Read a block."""
        done = 0
        while done < len(buf):
            n = os.preadv(self._fd, [buf[done:]], blk * self.blksize + done)
            if n == 0:
                break
            done += n

    def storeblk(self, blk: int, buf: memoryview) -> None:
        """Write a block."""
        done = 0
        while done < len(buf):
            done += os.pwrite(self._fd, buf[done:], blk * self.blksize + done)

    def truncate(self, blk: int) -> None:
        """Cut the file at the start of a block."""
        if os.fstat(self._fd).st_size > blk * self.blksize:
            os.ftruncate(self._fd, blk * self.blksize)
