"""wendelin.core: NumPy arrays larger than RAM, kept in ZODB and changed in transactions.

wendelin.bigarray   ndarray-like arrays over files mapped in memory, and in ZODB
wendelin.bigfile    files mapped in memory: the pager, and file backends
wendelin.lib        helpers
wendelin.demo       programs that show it
"""

import platform
import sys
from importlib.metadata import version

__all__ = ["__version__"]

if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
    raise ImportError(
        f"wendelin.core runs on Linux on x86-64 and aarch64, and this is {sys.platform} on "
        f"{platform.machine()}: it serves page faults, which differ by system and processor"
    )

__version__ = version("wendelin.core")
