"""Files mapped in memory: the pager, and file backends.

From the ground up: ram and pagemap, mapping, readahead, waits, page; loading, ahead, touch and
fileh; failure, buffer, virtmem; trampoline and pagefault (compiled, the pager); stats;
file_file and, over ZODB, zblk, blktab and file_zodb.
"""

from wendelin.bigfile import pagefault as _pagefault  # noqa: F401  serves faults from now on
from wendelin.bigfile import trampoline as _trampoline  # noqa: F401  and this is how
from wendelin.bigfile.backend import HOLE, BigFile
from wendelin.bigfile.errors import (
    BigFileError,
    BlockLoadError,
    DoomedError,
    ForkError,
    PageMemoryError,
)
from wendelin.bigfile.ram import ram_set_limit
from wendelin.bigfile.stats import HandleStats, Stats, stats
from wendelin.bigfile.virtmem import (
    VMA,
    WRITEOUT_MARKSTORED,
    WRITEOUT_STORE,
    BigFileH,
    ram_reclaim,
)

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
    "ForkError",
    "HandleStats",
    "PageMemoryError",
    "Stats",
    "ram_reclaim",
    "ram_set_limit",
    "stats",
]
