"""The pager: files mapped in memory, page faults that load them, pages that were changed.

From the ground up: kernel, ram, pagemap, checksum and mapping; readahead, deadlock and page;
loading, ahead, touch, ready and fileh; failure, buffer, backend (BigFile), handle (BigFileH, VMA)
and pins; interpreter, signals, trampoline and pagefault. Python only: errors, stats, blocked.

This package knows files that load and store blocks of bytes. It knows nothing of databases.
"""

from wendelin.bigfile.virtmem import pagefault as _pagefault  # noqa: F401  serves faults from now on
from wendelin.bigfile.virtmem import trampoline as _trampoline  # noqa: F401  and this is how
from wendelin.bigfile.virtmem.backend import HOLE, BigFile
from wendelin.bigfile.virtmem.handle import (
    VMA,
    WRITEOUT_MARKSTORED,
    WRITEOUT_STORE,
    BigFileH,
    ram_reclaim,
)
from wendelin.bigfile.virtmem.ram import ram_set_limit

__all__ = [
    "HOLE",
    "VMA",
    "WRITEOUT_MARKSTORED",
    "WRITEOUT_STORE",
    "BigFile",
    "BigFileH",
    "ram_reclaim",
    "ram_set_limit",
]
