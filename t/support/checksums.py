"""Arrays whose blocks have checksums, and flips of bits of these blocks in a Data.fs."""

import random
from pathlib import Path

import numpy as np
import pytest
import transaction
from ZODB.FileStorage import FileStorage as StockFileStorage

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError
from wendelin.lib.storage.record import ChecksumError, class_of, find_payload
from wendelin.lib.zodb import dbclose, dbopen

BLK = 4096  # [bytes]
VALUES = np.random.default_rng(3).integers(1, 256, 20 * BLK, "u1")


def fill(root, n=20, fmt="ZBlk0"):
    """Return an array of n blocks, committed; the last is not full."""
    root["A"] = A = ZBigArray((n * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
    transaction.commit()
    A[:] = np.resize(VALUES, len(A))
    A[-100:] = 0
    transaction.commit()
    return A


def payloads(path):
    """Return {oid: (offset, size, tid)} of the newest payload of each ZBlk0 in a Data.fs."""
    storage = StockFileStorage(str(path), read_only=True)
    found = {}
    raw = Path(path).read_bytes()
    at = 0
    for txn in storage.iterator():
        for r in txn:
            if r.data and class_of(r.data) == "wendelin.bigfile.file_zodb.ZBlk0":
                at = raw.index(r.data, at)
                payload = find_payload(r.data)
                found[r.oid] = (at + payload.start, payload.stop - payload.start, r.tid)
    storage.close()
    return found


def flip(path, offset, bit=0):
    """Flip a bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def damage(path, blks):
    """Flip a bit in each of some blocks of the array; return {blk: (oid, tid)}."""
    root = dbopen(f"file://{path}?read_only=1")
    oids = {blk: root["A"].zfile.blktab[blk]._p_oid for blk in blks}
    dbclose(root)
    rng = random.Random(5)
    where = payloads(path)
    result = {}
    for blk, oid in oids.items():
        start, size, tid = where[oid]
        flip(path, start + rng.randrange(size), rng.randrange(8))
        result[blk] = oid, tid
    return result


def check_refused(A, damaged, blks=range(20)):
    """Check that only the damaged blocks are refused, by name; read them in a random order."""
    for blk in random.Random(4).sample(list(blks), len(blks)):
        part = slice(blk * BLK, (blk + 1) * BLK - 100)
        if blk in damaged:
            oid, tid = damaged[blk]
            why = (
                f"block {blk} of .*object 0x{oid.hex()}.*transaction 0x{tid.hex()} wrote.*checksum"
            )
            with pytest.raises(BlockLoadError, match=why) as e:
                A.read(part)
            assert isinstance(e.value.__cause__, ChecksumError)
            with pytest.raises(BlockLoadError, match=why):
                np.sum(A[part])
                for _ in range(1000):
                    pass
            transaction.abort()
        else:
            assert np.array_equal(A[part], VALUES[part])


def check_copied(path, options):
    """Damage blocks that are not aligned, and check that these are refused: they are copied."""
    root = dbopen(path)
    fill(root)
    dbclose(root)
    damaged = damage(path, [0, 3, 4, 11, 19])
    root = dbopen(f"file://{path}{options}")
    check_refused(root["A"], damaged)
    dbclose(root)
