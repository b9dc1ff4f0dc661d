"""Blocks without bytes, put into a file's table before several clients store blocks there.

Two clients that fill different holes change the same nodes of the table. BTrees resolves that, but
not where a node is split or is the first one: a table that grows has such conflicts all the time,
and each is found after the bytes of all blocks went to the server. Where a block is there already,
a commit changes the block, and not the table.

This module knows tables and formats. It does not know pages.
"""

from __future__ import annotations

from wendelin.bigfile.zodb.file import ZBigFile
from wendelin.bigfile.zodb.formats import FORMATS, ZBlk0, ZBlkBase, format_name

__all__ = ["reserve"]


def reserve(file: ZBigFile, start: int, stop: int, zblk_fmt: str | None = None) -> int:
    """Put blocks without bytes, which read as zeros, into the holes of blocks [start, stop).

    Parameters
    ----------
    file : ZBigFile
    start, stop : int
    zblk_fmt : {'ZBlk0', 'ZBlk1', 'auto', None}
        Format in which the blocks will be stored; None: that of WENDELIN_CORE_ZBLK_FMT.

    Returns
    -------
    int
        How many holes there were.
    """
    cls = FORMATS.get(format_name(zblk_fmt), ZBlk0)  # auto: a block that is filled is one object
    there = set(file.blktab.keys(start, stop, excludemax=True))
    holes = [blk for blk in range(start, stop) if blk not in there]
    for blk in holes:
        file.blktab[blk] = _empty(cls)
    return len(holes)


def _empty(cls: type[ZBlkBase]) -> ZBlkBase:
    zblk = cls()
    if isinstance(zblk, ZBlk0):
        zblk.__setstate__(b"")
    return zblk
