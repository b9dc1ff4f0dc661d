"""Checksums of blocks: a flipped bit is noticed, in every storage and after every copy."""

import os
import shutil

import numpy as np
import pytest
import transaction
import xxhash
from support.checksums import BLK, VALUES, check_copied, check_refused, damage, fill
from support.child import check_child
from support.corruption import DATA
from support.storages import SMALL
from ZODB.Connection import TransactionMetaData
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage as StockFileStorage

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BigFile, BlockLoadError, ram_reclaim
from wendelin.bigfile.virtmem import checksum
from wendelin.bigfile.virtmem.handle import counts
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.pad import BytesRecord, aligned, without_pad
from wendelin.lib.storage.record import (
    ChecksumError,
    RecordError,
    bytes_state,
    check,
    class_of,
    find_payload,
)
from wendelin.lib.zodb import dbclose, dbopen

pytestmark = pytest.mark.usefixtures("ends")

HEAD = b"\x80\x03cwendelin.bigfile.file_zodb\nZBlk0\nq\x01.\x80\x03"


def made(payload):
    """Return a record of a block."""
    return bytes(BytesRecord(HEAD, memoryview(payload)))


# ---- the record ----


def test_a_record_has_the_digest_of_its_payload():
    record = made(b"some bytes")
    digest = xxhash.xxh3_64_digest(b"some bytes")
    assert b"B\x0e\0\0\0wcXXH3" + digest + b"0B\x0a\0\0\0some bytes." in record
    assert find_payload(record).digest == digest
    assert bytes_state(record) == b"some bytes"


@pytest.mark.parametrize("at", [0, 1, 4070, 4075, 4076, 4077, 4080, 4095])
@pytest.mark.parametrize("size", [0, 10, BLK, 2 * BLK])
def test_a_checksum_stays_in_records_that_are_aligned_and_in_others(at, size):
    payload = memoryview(bytes(range(256)) * 32)[:size]
    record = made(payload)
    for data in record, BytesRecord(HEAD, payload):
        padded = b"".join(aligned(data, at, lambda n: BLK if n >= BLK else 1))
        found = find_payload(padded)
        assert found.digest == find_payload(record).digest
        assert (at + found.start) % BLK == 0 or size < BLK
        assert without_pad(padded) == record
        check(padded)
    assert len(padded) - len(record) < BLK


@pytest.mark.parametrize("pad", [b"", b"B\2\0\0\0\0\0000", b"B\x0f\0\0\0" + bytes(15) + b"0"])
def test_records_without_a_checksum_are_valid(pad):
    record = HEAD + pad + b"B\x0a\0\0\0some bytes."
    assert find_payload(record).digest is None
    assert bytes_state(record) == b"some bytes"
    check(record)
    assert find_payload(without_pad(record)).begin == find_payload(record).begin


def test_each_bit_that_flips_is_noticed_or_does_not_matter():
    payload = bytes(range(40, 120))
    record = b"".join(aligned(made(payload), 4090, lambda _: 16))
    start = find_payload(record).start
    for bit in range(8 * len(record)):
        data = bytearray(record)
        data[bit // 8] ^= 1 << bit % 8
        try:
            same = class_of(bytes(data)) == class_of(record)
            assert bytes_state(bytes(data)) == payload or not same, bit
            matters = False
        except ChecksumError:
            continue
        except RecordError:
            matters = True
        assert matters or not start <= bit // 8 < start + len(payload)


@pytest.mark.database
def test_blocks_have_a_checksum_in_every_storage(root):
    A = fill(root)
    conn = root._p_jar
    for zblk in A.zfile.blktab.values():
        record, _ = conn._normal_storage.load(zblk._p_oid)
        found = find_payload(record)
        assert found.digest == xxhash.xxh3_64_digest(record[found.start : found.stop])


@pytest.mark.database
def test_blocks_have_a_checksum_after_a_savepoint_too(root):
    A = fill(root)
    A[: 3 * BLK] = 5
    transaction.savepoint()
    root["x"] = 1
    A[BLK : 2 * BLK] = 6
    transaction.commit()
    for blk in range(3):
        record, _ = root._p_jar._normal_storage.load(A.zfile.blktab[blk]._p_oid)
        assert find_payload(record).digest is not None
        assert bytes_state(record)[:1] == bytes([6 if blk == 1 else 5])


# ---- where records go ----


def digests(storage):
    """Check all blocks of all revisions, and return their digests."""
    found = []
    for txn in storage.iterator():
        for r in txn:
            payload = find_payload(r.data) if r.data else None
            if payload is not None and payload.digest is not None:
                check(r.data)
                found.append(payload.digest)
    return found


def test_stock_zodb_reads_records_with_a_checksum(path, small):
    root = dbopen(small)
    fill(root)
    dbclose(root)
    db = DB(StockFileStorage(path))
    blocks = db.open().root()["A"].zfile.blktab
    data = b"".join(bytes(zblk.__getstate__() or zblk._v_data) for zblk in blocks.values())
    assert data == VALUES.tobytes()[:-100]
    db.close()


@pytest.mark.parametrize("kind", [AlignedFileStorage, StockFileStorage])
def test_copies_keep_checksums(path, tmp_path, small, kind):
    root = dbopen(small)
    A = fill(root)
    A[:BLK] = 1
    transaction.commit()
    db = root._p_jar.db()
    db.undo(db.undoLog(0, 1)[0]["id"])
    transaction.commit()
    there = kind(str(tmp_path / "y.fs"))
    there.copyTransactionsFrom(db.storage)
    assert len(digests(there)) == 22  # with that of the undo
    assert digests(there) == digests(db.storage)
    there.close()
    dbclose(root)
    root = dbopen(f"file://{tmp_path}/y.fs{SMALL}")
    assert np.array_equal(root["A"][:-100], VALUES[:-100])
    dbclose(root)


def test_undo_and_pack_keep_checksums(path, small):
    root = dbopen(small)
    A = fill(root)
    A[:BLK] = 1
    transaction.commit()
    db = root._p_jar.db()
    db.undo(db.undoLog(0, 1)[0]["id"])
    transaction.commit()
    record, _ = db.storage.load(A.zfile.blktab[0]._p_oid)
    assert find_payload(record).digest is not None
    db.pack()
    root._p_jar.sync()
    assert len(digests(db.storage)) == 20
    assert np.array_equal(A[:-100], VALUES[:-100])
    located = db.storage.locate(
        [zblk._p_oid for zblk in A.zfile.blktab.values()], b"\x7f" + b"\xff" * 7
    )
    assert [found.offset % BLK for found in located[:-1]] == [0] * 19
    assert all(found.digest for found in located)
    dbclose(root)


def test_checksums_over_a_demo_storage(path, small):
    root = dbopen(small)
    fill(root)
    oid = root["A"].zfile.blktab[3]._p_oid
    dbclose(root)
    damage(path, [3])
    root = dbopen(f"demo:({small})/(memory://)")
    A = root["A"]
    A[:BLK] = 1
    transaction.commit()
    storage = root._p_jar.db().storage
    assert find_payload(storage.load(A.zfile.blktab[0]._p_oid)[0]).digest is not None
    with pytest.raises(BlockLoadError, match=f"block 3 .*0x{oid.hex()}"):
        A.read()
    dbclose(root)


# ---- what is loaded ----


COPIED = ["?align=0", "?align=1", "?read_only=1"]


@pytest.mark.parametrize("options", COPIED)
def test_what_is_copied_is_compared(path, options):
    """The pager compares blocks that are too small to be aligned."""
    assert checksum.AVAILABLE
    check_copied(path, options)


#: the extension module of xxhash hides the functions of XXH3
HIDDEN = """
import sys
import xxhash
sys.modules["xxhash._xxhash"] = None
from wendelin.bigfile.virtmem import checksum
assert not checksum.AVAILABLE
"""


def test_what_is_copied_is_compared_in_python(tmp_path):
    """The pager cannot compare it."""
    code = """
from support.checksums import check_copied
for i, options in enumerate(sys.argv[2:]):
    check_copied(f"{sys.argv[1]}/{i}.fs", options)
"""
    check_child(HIDDEN + code, str(tmp_path), *COPIED)


def test_what_is_loaded_ahead_is_compared(path):
    """Threads of the pager load ahead. The reader gets their failure when it reads the block."""
    root = dbopen(path)
    fill(root, 200)
    dbclose(root)
    damage(path, [150])
    root = dbopen(path)
    A = root["A"]
    a = A[:]
    for blk in range(150):
        assert a[blk * BLK] == VALUES[blk % 20 * BLK]
    with pytest.raises(BlockLoadError, match="block 150 of"):
        assert a[150 * BLK : 151 * BLK].sum() >= 0
        for _ in range(1000):
            pass
    transaction.abort()
    assert a[151 * BLK] == VALUES[151 % 20 * BLK]
    # and after its memory was given back
    ram_reclaim()
    with pytest.raises(BlockLoadError, match="block 150 of"):
        A.read()
    A.prefetch(slice(None))
    dbclose(root)


@pytest.mark.database
@pytest.mark.only("fscopy", "zeo", "neo")
def test_what_a_storage_gives_is_compared(root, testdb):
    fill(root)
    oid = root["A"].zfile.blktab[7]._p_oid
    storage = root._p_jar.db().storage
    record, serial = root._p_jar._normal_storage.load(oid)
    found = find_payload(record)
    damaged = bytearray(record)
    damaged[found.start + 17] ^= 2
    txn = TransactionMetaData()
    storage.tpc_begin(txn)
    storage.store(oid, serial, bytes(damaged), "", txn)
    storage.tpc_vote(txn)
    tid = storage.tpc_finish(txn)
    testdb.close(root)
    root = testdb.open()
    check_refused(root["A"], {7: (oid, tid)})
    # the earlier state can be read
    past = root._p_jar.db().open(at=serial)
    assert np.array_equal(past.root()["A"][:-100], VALUES[:-100])
    past.close()


def test_a_past_connection_refuses_a_damaged_block(path):
    """A block that is in memory already can be changed: then its newest record is good."""
    root = dbopen(path)
    A = fill(root)
    assert A[5 * BLK] == VALUES[5 * BLK]
    tid = root._p_jar.db().storage.lastTransaction()
    damaged = damage(path, [5])
    A[5 * BLK] += 1
    transaction.commit()
    past = root._p_jar.db().open(at=tid)
    check_refused(past.root()["A"], damaged)
    past.close()
    dbclose(root)
    root = dbopen(path)
    assert np.count_nonzero(root["A"][:-100] != VALUES[:-100]) == 1
    dbclose(root)


# ---- what is mapped ----


def test_a_mapped_block_that_is_changed_is_compared(path, small):
    """Otherwise the commit would compute a new checksum of the damaged bytes."""
    root = dbopen(small)
    fill(root)
    dbclose(root)
    damaged = damage(path, [2, 6])
    root = dbopen(small)
    A = root["A"]
    assert np.count_nonzero(A[2 * BLK : 3 * BLK] != VALUES[2 * BLK : 3 * BLK]) == 1  # mapped
    a = A[:]
    with pytest.raises(BlockLoadError, match=f"block 2 of .*0x{damaged[2][0].hex()}"):
        a[2 * BLK] = 1
        for _ in range(1000):
            pass
    transaction.abort()
    assert A[2 * BLK] == a[2 * BLK]
    A[3 * BLK] = 1
    transaction.commit()
    dbclose(root)


def test_a_commit_does_not_compute_a_checksum_of_damaged_bytes(path, small):
    """The pager does not compare here what it copies; the commit does."""
    code = """
import pytest, transaction
from support.checksums import BLK, VALUES, damage, fill, payloads
from wendelin.bigfile import BlockLoadError
from wendelin.lib.zodb import dbclose, dbopen

path, small = sys.argv[1:]
root = dbopen(small)
fill(root)
dbclose(root)
((oid, tid),) = damage(path, [2]).values()
root = dbopen(small)
root["A"][2 * BLK] = 1
with pytest.raises(BlockLoadError, match=rf"block 2 of .* cannot be changed: .*{tid.hex()}"):
    transaction.commit()
transaction.abort()
# the block becomes a hole, and is filled anew
del root["A"].zfile.blktab[2]
transaction.commit()
assert not root["A"][2 * BLK : 3 * BLK].any()
root["A"][2 * BLK : 3 * BLK] = VALUES[2 * BLK : 3 * BLK]
transaction.commit()
root._p_jar.db().pack()
dbclose(root)
assert oid not in payloads(path)
"""
    check_child(HIDDEN + code, path, small)


def test_wendelin_core_verify_compares_mapped_blocks(path, small, monkeypatch):
    root = dbopen(small)
    fill(root)
    dbclose(root)
    damaged = damage(path, [0, 3, 11])
    monkeypatch.setenv("WENDELIN_CORE_VERIFY", "1")
    root = dbopen(small)
    A = root["A"]
    check_refused(A, damaged)
    # good blocks are mapped, and each was read once
    (file,) = A._fileh().file.mapped_from
    assert len(file.matched) == 16  # 19 can be mapped, and 3 of them are damaged
    reads = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, *a: reads.append(fd) or preadv(fd, *a))
    A._fileh().invalidate_page(1)
    assert A[BLK] == VALUES[BLK]
    assert file.fd not in reads
    # blocks that are written now are compared, too
    A[BLK] += 1
    A[5 * BLK : 6 * BLK] = 0
    transaction.commit()
    A._fileh().invalidate_page(1)
    assert A[BLK] == np.uint8(VALUES[BLK] + 1)
    assert file.fd in reads
    assert not A[5 * BLK : 6 * BLK].any()
    assert counts(A._fileh())[2] >= BLK  # mapped [bytes]
    dbclose(root)


@pytest.mark.parametrize("name", ["py310-2.0a4-1", "3.0-ZBlk0", "3.0-auto", "py37-0.13-1"])
def test_old_databases_have_no_checksums_and_are_read(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WENDELIN_CORE_VERIFY", "1")
    root = dbopen(shutil.copy(DATA / f"{name}.fs", tmp_path))
    with np.load(DATA / f"{name}.npz") as expected:
        for n in expected.files:
            assert np.array_equal(root[n][:], expected[n])
    dbclose(root)


def test_wendelin_core_verify_is_0_or_1(path, monkeypatch):
    monkeypatch.setenv("WENDELIN_CORE_VERIFY", "yes")
    root = dbopen(path)
    root["A"] = ZBigArray((10,), "u1")
    transaction.commit()
    with pytest.raises(ValueError, match=r"WENDELIN_CORE_VERIFY is 'yes': it must be 0 or 1"):
        root["A"][0]
    dbclose(root)


# ---- the pager ----


def test_a_file_whose_blocks_have_digests(tmp_path):
    """Any BigFile can give digests. Without mismatch() the message is the pager's."""
    path = tmp_path / "f"
    data = VALUES[: 3 * BLK].tobytes()
    path.write_bytes(b"x" * BLK + data)
    digest = xxhash.xxh3_64_digest

    class Digests(BigFile):
        def __init__(self, file):
            super().__init__(BLK)
            self.fd = file.fileno()

        def mapblk(self, blk):
            if blk == 0:
                return self.fd, BLK, BLK, digest(data[:BLK])
            if blk == 1:
                return self.fd, BLK + 5, 100, digest(data[5:105])
            return self.fd, BLK + 5, 100, digest(data[5:106])

    with open(path, "rb") as file:
        fileh = Digests(file).fileh_open()
        a = np.asarray(fileh.mmap(0, 3))
        assert bytes(a[:BLK]) == data[:BLK]
        a[0] = 1
        assert bytes(a[1:BLK]) == data[1:BLK]
        assert bytes(a[BLK : 2 * BLK]) == data[5:105].ljust(BLK, b"\0")
        with pytest.raises(BlockLoadError, match=r"block 2 of .*does not match its digest"):
            fileh.load(2, 1)
        del a, fileh


def test_a_thread_that_has_no_gil_compares():
    """A thread of C touches an array while its caller holds the GIL, as with OpenMP."""
    check_child(
        """
        import ctypes, tempfile
        import numpy as np, transaction
        from wendelin.bigarray.array_zodb import ZBigArray
        from wendelin.lib.zodb import dbopen, dbclose

        with tempfile.TemporaryDirectory() as folder:
            root = dbopen(f"{folder}/x.fs")
            root["A"] = A = ZBigArray((8 << 20,), "u1")
            transaction.commit()
            A[: 7 << 20] = 7
            transaction.commit()
            dbclose(root)
            root = dbopen(f"{folder}/x.fs")
            a = root["A"][:]
            assert a[0] == 7
            libc = ctypes.PyDLL(None)  # the GIL is held
            thread = ctypes.c_ulong()
            address = a.ctypes.data + (6 << 20)  # of the block that is not full: it is copied
            strlen = ctypes.cast(libc.strlen, ctypes.c_void_p)
            assert not libc.pthread_create(ctypes.byref(thread), None, strlen,
                                           ctypes.c_void_p(address))
            found = ctypes.c_void_p()
            assert not libc.pthread_join(thread, ctypes.byref(found))
            assert found.value == 1 << 20
            del a
            dbclose(root)
        """
    )
