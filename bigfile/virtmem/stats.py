"""Counters of the pager.

This module knows handles. It changes nothing, and waits only for the pager lock.
"""

from __future__ import annotations

from typing import NamedTuple

from wendelin.bigfile.virtmem.abilities import CountsCache, able
from wendelin.bigfile.virtmem.frames import spare
from wendelin.bigfile.virtmem.handle import BigFileH, counts, handles, ram_stat
from wendelin.bigfile.virtmem.mapping import mappings
from wendelin.bigfile.virtmem.spool import spooled

__all__ = ["HandleStats", "Stats", "stats", "stats_of"]


class HandleStats(NamedTuple):
    """Counters of one open file, since it was opened. Sizes are in bytes."""

    file: str  #: its name
    blksize: int  #: size of a block
    faults: int  #: touches that called the pager
    loads: int  #: blocks that the file was asked for, or that were copied
    mapped: int  #: blocks now mapped from a file; page cache, not memory of this process
    resident: int  #: blocks now in page memory, including changed ones
    dirty: int  #: of it, of blocks with uncommitted changes
    reclaims: int  #: blocks whose memory was given back because memory got short
    failures: int  #: touches and loads that failed
    waits: int  #: waits for another thread that loaded or stored
    spooled: int  #: blocks with uncommitted changes that are in a file of WENDELIN_CORE_SPOOL
    hits: int  #: blocks that were found in the cache of the machine; 0 without one
    misses: int  #: blocks that were not, and were loaded from the database


class Stats(NamedTuple):
    """Counters of this process. Sizes are in bytes."""

    limit: int  #: of page memory, WENDELIN_CORE_RAM
    clean: int  #: page memory that can be given back
    dirty: int  #: page memory of changes
    spare: int  #: page memory of no block, kept for the next ones; given back after some seconds
    spooled: int  #: changes that are in files of WENDELIN_CORE_SPOOL, and not in page memory
    mappings: int  #: mappings of the kernel, about; see vm.max_map_count
    handles: list[HandleStats]  #: all open files


def stats() -> Stats:
    """Return counters of the pager, for this process and for each handle.

    Cheap enough to be called every second. Different connections to one file have different
    handles.
    """
    return Stats(*ram_stat(), spare(), spooled(), mappings(), sorted(map(stats_of, list(handles))))


def stats_of(handle: BigFileH) -> HandleStats:
    """Return the counters of a handle."""
    cache = handle.file.cache_counts if able(handle.file, CountsCache) else (0, 0)
    return HandleStats(repr(handle.file), handle.blksize, *counts(handle), *cache)
