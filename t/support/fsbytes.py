"""Objects in a Data.fs whose state is bytes, like that of blocks, and where these bytes lie."""

import os

import transaction
from persistent import Persistent
from ZODB.Connection import TransactionMetaData
from ZODB.DB import DB
from ZODB.utils import p64, u64, z64

from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsalign import ALIGNMENT


class Bytes(Persistent):
    """An object whose state is bytes, as blocks are."""

    def __init__(self, data=b""):
        self.data = data

    def __getstate__(self):
        return self.data

    def __setstate__(self, state):
        self.data = state


def data_of(seed, pages=16):
    """Return whole pages of bytes that end with the seed."""
    return os.urandom(16) * (pages * ALIGNMENT // 16 - 1) + f"{seed:16}".encode()


def current(storage):
    """Return a tid that comes after all that is committed."""
    return p64(u64(storage.lastTransaction()) + 1)


def located(storage, obj, before=None):
    """Return an object's bytes, read where locate() says; None if it finds none, or not aligned."""
    (found,) = storage.locate([obj._p_oid], before or current(storage))
    if found is None or found.offset % ALIGNMENT != 0:
        return None
    return os.pread(found.file.fd, found.size, found.offset)


def write(path, *values, storage=AlignedFileStorage):
    """Make a database with an object for each value; return (db, root)."""
    db = DB(storage(path))
    root = db.open().root()
    for i, value in enumerate(values):
        root[i] = Bytes(value)
    transaction.commit()
    return db, root


def commit(storage, *records):
    """Commit records, (number, data); return the tid."""
    txn = TransactionMetaData()
    storage.tpc_begin(txn)
    for number, data in records:
        try:
            old = storage.getTid(p64(number))
        except KeyError:
            old = z64
        storage.store(p64(number), old, data, "", txn)
    storage.tpc_vote(txn)
    return storage.tpc_finish(txn)
