"""wendelin.core: NumPy arrays larger than RAM, kept in ZODB and changed in transactions.

wendelin.open()     a database, as a tree of arrays; wendelin.tree has what it is made of
wendelin.ZRagged    arrays of named pieces of different lengths
wendelin.ZSparse    sparse matrices
wendelin.bigarray   ndarray-like arrays over files mapped in memory, and in ZODB
wendelin.bigfile    files mapped in memory: the pager, and file backends
wendelin.zarr       groups of Zarr in the database
wendelin.xarray     groups as datasets of xarray
wendelin.cli        the command line
wendelin.lib        helpers
wendelin.demo       programs that show it
"""

import platform
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from wendelin.ragged import ZRagged
    from wendelin.sparse import ZSparse
    from wendelin.tree.group import Group, open
    from wendelin.tree.retry import transact

__all__ = ["Group", "ZRagged", "ZSparse", "__version__", "open", "transact"]

if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
    raise ImportError(
        f"wendelin.core runs on Linux on x86-64 and aarch64, and this is {sys.platform} on "
        f"{platform.machine()}: it serves page faults, which differ by system and processor"
    )

#: names that are imported when they are asked for: the command line needs none of it, say
_LATER = {
    "Group": "wendelin.tree.group",
    "ZRagged": "wendelin.ragged",
    "ZSparse": "wendelin.sparse",
    "open": "wendelin.tree.group",
    "transact": "wendelin.tree.retry",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("wendelin.core")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
