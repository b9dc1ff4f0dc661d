"""What the pager does, in figures.

It knows handles. It changes nothing, and waits for nobody but the pager lock.
"""

from __future__ import annotations

from typing import NamedTuple

from wendelin.bigfile.virtmem.handle import BigFileH, handles, ram_stat
from wendelin.bigfile.virtmem.mapping import mappings

__all__ = ["HandleStats", "Stats", "stats", "stats_of"]


class HandleStats(NamedTuple):
    """Of one opened file, since it was opened. Sizes are in bytes."""

    file: str  #: what it is called
    blksize: int  #: size of a block
    faults: int  #: touches that the pager was called for
    loads: int  #: blocks that were asked for, or copied
    mapped: int  #: now mapped from a file; page cache, no memory of this process
    resident: int  #: now in page memory, changed ones included
    dirty: int  #: of them, changed and not committed
    reclaims: int  #: blocks whose memory was given back because it got short
    failures: int  #: touches and loads that failed
    waits: int  #: for another thread, that loaded or stored


class Stats(NamedTuple):
    """Of this process. Sizes are in bytes."""

    limit: int  #: of page memory, WENDELIN_CORE_RAM
    clean: int  #: page memory that can be given back
    dirty: int  #: page memory of changes
    mappings: int  #: of the kernel's, about; see vm.max_map_count
    handles: list[HandleStats]  #: all that are open


def stats() -> Stats:
    """Return what the pager has done, and holds: for all of this process, and by handle.

    Cheap enough to be asked every second. Handles of different connections to one file are
    different handles.
    """
    return Stats(*ram_stat(), mappings(), sorted(map(stats_of, list(handles))))


def stats_of(handle: BigFileH) -> HandleStats:
    """Return what the pager has done for a handle, and holds."""
    return HandleStats(repr(handle.file), handle.blksize, *handle.counts())
