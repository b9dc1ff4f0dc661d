"""The pager: files mapped in memory, page faults that load them, pages that were changed.

From the ground up: kernel, ram, threads, frames, pagemap, checksum, mapping and trace; readahead,
deadlock, places and page; loading, ahead, touch, ready and fileh; failure, buffer, backend
(BigFile), handle (BigFileH, VMA), located, writeout and pins; interpreter, signals, trampoline and
pagefault. Python only: errors, stats, blocked.

This package knows files that load and store blocks of bytes. It knows nothing of databases.
"""

from importlib import import_module

from wendelin.bigfile.virtmem.backend import HOLE, BigFile
from wendelin.bigfile.virtmem.handle import (
    VMA,
    WRITEOUT_MARKSTORED,
    WRITEOUT_STORE,
    BigFileH,
    ram_reclaim,
)
from wendelin.bigfile.virtmem.ram import ram_set_limit

# They have no names for Python. Their import installs the handlers that serve faults.
import_module("wendelin.bigfile.virtmem.pagefault")
import_module("wendelin.bigfile.virtmem.trampoline")

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
