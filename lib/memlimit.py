"""How much memory this process may use: limits of the machine, the cgroup and the user.

Read from /proc and /sys/fs/cgroup, both versions of cgroups: see cgroups(7), and
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the kernel.
"""

import os
import re
from fractions import Fraction
from pathlib import Path

from wendelin.lib.sizes import parse_size

__all__ = ["memory_limit", "parse_share", "ram_limit"]


def memory_limit(root: str = "/") -> int:
    """Return how much memory this process may use [bytes].

    The least of the machine's memory and the limits of the process's cgroup and all above it. A
    limit that cannot be read is ignored.

    Parameters
    ----------
    root : str
        Where /proc and /sys are; for tests.
    """
    base = Path(root)
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _read(base / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            mounts, name = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], "memory.max"
        elif "memory" in controllers.split(","):
            mounts, name = ["sys/fs/cgroup/memory"], "memory.limit_in_bytes"
        else:
            continue
        folders = [p for p in path.split("/") if p not in ("", "..")]
        for mount in mounts:
            for n in range(len(folders) + 1):
                text = _read(base.joinpath(mount, *folders[:n], name)).strip()
                if text.isdigit():
                    limits.append(int(text))
    return min(limits)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def parse_share(text: str) -> int:
    """Return a size [bytes] as parse_size() does: '512M'; or a part of memory_limit(): '25%'.

    Raises
    ------
    ValueError
        It is neither of these, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*%\s*", text)
    share = Fraction(match[1]) / 100 if match else Fraction(0)
    if share <= 1 and (size := int(memory_limit() * share)):
        return size
    try:
        return parse_size(text)
    except ValueError as e:
        raise ValueError(f"{e}; or a part of the memory, as in 25%") from None


def ram_limit() -> int:
    """Return the limit of page memory [bytes]: WENDELIN_CORE_RAM, or half of memory_limit().

    Raises
    ------
    ValueError
        WENDELIN_CORE_RAM is not a size.
    """
    text = os.environ.get("WENDELIN_CORE_RAM")
    if text is None:
        return memory_limit() // 2
    try:
        return parse_share(text)
    except ValueError as e:
        raise ValueError(f"WENDELIN_CORE_RAM: {e}") from None
