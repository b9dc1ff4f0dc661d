"""An array whose blocks are full of their numbers, for tests of transactions."""

import numpy as np
import transaction

from wendelin.bigarray.array_zodb import ZBigArray

BLK = 4096  # size of a block [bytes]
N = 8  # blocks
FIRST = [100 + i for i in range(N)]  # what of() returns at first


def fill(root):
    """Return a committed array of N blocks, each full of its number; its first byte is 100 more."""
    root["A"] = A = ZBigArray((N * BLK,), "u1", blksize=BLK)
    transaction.commit()
    A[:] = np.repeat(np.arange(N), BLK)
    A[::BLK] += 100
    transaction.commit()
    return A


def of(A):
    """Return the first byte of each block."""
    return A[::BLK].tolist()
