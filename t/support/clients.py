"""For tests of transactions: an array, other clients, and what the database has stored."""

from contextlib import suppress

import numpy as np
import transaction
from transaction import TransactionManager
from transaction.interfaces import NoTransaction
from ZODB.utils import get_pickle_metadata

from wendelin.bigarray.array_zodb import ZBigArray

BLK = 4 * 4096  # [bytes]; four chunks
N = 6  # blocks of the array that tests have
HOLES = 2  # blocks at its end that are holes

FIRST = (np.arange(N * BLK) % 251 + 5).astype("u1")
FIRST[-HOLES * BLK :] = 0


def fill(root, fmt):
    """Return a committed array of N blocks, of which the last HOLES are holes."""
    root["A"] = A = ZBigArray((N * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
    transaction.commit()
    A[: -HOLES * BLK] = FIRST[: -HOLES * BLK]
    transaction.commit()
    return A


def zeros(root, fmt=None):
    """Return a committed array of 20 blocks of 4096 zeros."""
    root["A"] = A = ZBigArray((20 * 4096,), "u1", blksize=4096, zblk_fmt=fmt)
    transaction.commit()
    return A


class Client:
    """Another Connection of the same database, with its own transactions."""

    def __init__(self, root, explicit=False, **kw):
        self.tm = TransactionManager(explicit)
        self.conn = root._p_jar.db().open(self.tm, **kw)

    @property
    def root(self):
        return self.conn.root()

    def __getitem__(self, name):
        return self.root[name]

    def close(self):
        with suppress(NoTransaction):
            self.tm.abort()
        self.conn.close()


class Manager:
    """A data manager that calls act() in one phase of a commit; managers act in order of `key`."""

    def __init__(self, phase, act, key="~", tm=transaction.manager):
        self.phase, self.act, self.key, self.transaction_manager = phase, act, key, tm

    def sortKey(self):
        return self.key

    def __getattr__(self, name):
        if name not in ("tpc_begin", "commit", "tpc_vote", "tpc_finish", "tpc_abort", "abort"):
            raise AttributeError(name)
        return lambda txn: self.act() if name == self.phase else None


def in_database(A):
    """Return the bytes of an array as the database has them now, read from objects, not a view."""
    conn = A._p_jar.db().open(TransactionManager())
    conn.cacheMinimize()
    B = conn.get(A._p_oid)
    data = np.zeros(B.nbytes, "u1")
    for blk, zblk in B.zfile.blktab.items():
        zblk._p_activate()
        chunks = zblk.chunktab.items() if type(zblk).__name__ == "ZBlk1" else [(0, zblk)]
        for start, chunk in chunks:
            chunk._p_activate()
            raw = np.frombuffer(chunk._v_data, "u1")
            at = blk * B.zfile.blksize + start
            assert at + len(raw) <= -(-B.nbytes // BLK) * BLK
            data[at : at + len(raw)] = raw[: B.nbytes - at]
    conn.cacheMinimize()
    conn.close()
    return data


def changed(*changes, of=FIRST):
    """Return a copy of an array in which bytes are changed, each by (index, byte)."""
    result = of.copy()
    for i, byte in changes:
        result[i] = byte
    return result


def newest(storage):
    """Return a storage; that of RelStorage looks at its database again."""
    if hasattr(storage, "poll_invalidations"):
        storage.poll_invalidations()
    return storage


def stored(storage):
    """Return the sorted names of the classes of all records that the last transaction stored."""
    tid = newest(storage).lastTransaction()
    transactions = storage.iterator(tid, tid)
    classes = sorted(get_pickle_metadata(record.data)[1] for record in next(transactions))
    if hasattr(transactions, "close"):  # FileStorage's iterator
        transactions.close()
    return classes
