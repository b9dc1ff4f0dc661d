"""Arrays in a Data.fs whose blocks can be mapped, and how much of them is mapped."""

from pathlib import Path

import numpy as np
import transaction
from ZODB.DB import DB

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.lib.zodb import dbopen

BLK = 2 << 20  # [bytes]
N = 24  # blocks of the array that tests have


def random_values():
    """Return what an array of N blocks is filled with."""
    return np.random.default_rng(3).random(N * BLK // 8)


def make(path, values, storage=None, **kw):
    """Write an array; return the root, open."""
    root = DB(storage(path)).open().root() if storage else dbopen(path)
    root["A"] = ZBigArray(values.shape, values.dtype, **kw)
    transaction.commit()
    root["A"][:] = values
    transaction.commit()
    return root


def maps(path):
    """Return how many mappings of a file this process has."""
    return Path("/proc/self/maps").read_text().count(f"{path}\n")


def clean_and_dirty():
    """Return the memory of clean pages, and that of changed pages [bytes]."""
    return ram_stat()[1:]
