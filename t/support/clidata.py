"""Databases for tests of the program `wendelin`, with arrays in all kinds of places."""

import contextlib
import warnings

import numpy as np
import transaction
from BTrees.IOBTree import IOBTree
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigarray.plain import PlainContainerWarning
from wendelin.bigfile.file_zodb import ZBigFile
from wendelin.lib.zodb import dbclose, dbopen

BLK = 64 * 1024  # [bytes]

#: where stock() puts arrays, as `wendelin ls` prints them
PATHS = [
    "A",
    "file",
    "list/1/k/0",
    "mixed",
    "numbers/5",
    "thing/part",
    "tree/a%2Fb%23c%5B%25%5D",
]


@contextlib.contextmanager
def database(url):
    """Open a database, and yield its root; at the end, abort and close."""
    root = dbopen(url)
    try:
        with warnings.catch_warnings(action="ignore", category=PlainContainerWarning):
            yield root
    finally:
        transaction.abort()
        dbclose(root)


def filled(shape, dtype="f8", order="C", fmt="ZBlk0", blksize=BLK):
    """Return a new array, which is not in a database yet."""
    return ZBigArray(shape, dtype, order, blksize=blksize, zblk_fmt=fmt)


class Thing(Persistent):
    """An object with attributes."""

    def __init__(self, **kw):
        self.__dict__.update(kw)


def stock(url):
    """Fill a database with arrays in all kinds of places: PATHS."""
    with database(url) as root:
        root["A"] = A = filled((4 * BLK,))
        root["tree"] = tree = OOBTree()
        tree["a/b#c[%]"] = B = filled((100, 30), ">i4", "F", "ZBlk1")
        tree["back"] = root
        tree["z"] = PersistentMapping()
        root["numbers"] = IOBTree({5: filled((3,))})
        root["list"] = PersistentList([0, {"k": [filled((2,), "S3")]}])
        root["thing"] = thing = Thing(part=filled((7,)), _v_no=1)
        thing.itself = thing
        thing.again = A
        root["file"] = ZBigFile(BLK)
        root["mixed"] = M = filled((8 * BLK,), "u1", fmt="ZBlk0")
        transaction.commit()
        A[:BLK] = np.arange(1, BLK + 1)
        B[:] = np.arange(3000).reshape(100, 30)
        M[:BLK] = 1
        M[BLK] = 1
        transaction.commit()
        M._fileh().file.zblk_fmt = "ZBlk1"
        M[4 * BLK :: BLK] = 1
        transaction.commit()
