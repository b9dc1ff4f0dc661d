"""Files mapped in memory: the public face.

virtmem     the pager
zodb        blocks in a database
file_file   an ordinary file, as a BigFile
file_zodb   a file in ZODB; pickles name this module
statserver  counters of the pager, for `wendelin stats`
"""

import os as _os

from wendelin.bigfile.virtmem import (
    HOLE,
    VMA,
    WRITEOUT_MARKSTORED,
    WRITEOUT_STORE,
    BigFile,
    BigFileH,
    ram_reclaim,
    ram_set_limit,
)
from wendelin.bigfile.virtmem.abilities import FileRange
from wendelin.bigfile.virtmem.errors import (
    BigFileError,
    BlockLoadError,
    DoomedError,
    ForkError,
    PageMemoryError,
)
from wendelin.bigfile.virtmem.stats import HandleStats, Stats, stats

__all__ = [
    "HOLE",
    "VMA",
    "WRITEOUT_MARKSTORED",
    "WRITEOUT_STORE",
    "BigFile",
    "BigFileError",
    "BigFileH",
    "BlockLoadError",
    "DoomedError",
    "FileRange",
    "ForkError",
    "HandleStats",
    "PageMemoryError",
    "Stats",
    "ram_reclaim",
    "ram_set_limit",
    "stats",
]

if _os.environ.get("WENDELIN_CORE_STATS") == "1":
    from wendelin.bigfile.statserver import serve_stats as _serve_stats

    _serve_stats()
