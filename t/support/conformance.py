"""What each backend must do: a class of tests for each contract. A backend adds fixtures to it.

BigFileTests    a file in blocks, as the pager uses it
StorageTests    a storage of ZODB, as arrays use it
FormatTests     a format of blocks in a database
"""

import gc
import tracemalloc

import numpy as np
import pytest
import transaction

from support.clients import BLK as ZBLK
from support.clients import FIRST, Client, N, changed, fill, in_database, newest, stored
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import WRITEOUT_MARKSTORED, WRITEOUT_STORE, ram_reclaim
from wendelin.bigfile.file_zodb import ZData

BLK = 4096
BOTH = WRITEOUT_STORE | WRITEOUT_MARKSTORED


def view(fileh, start=0, n=8):
    """Return blocks of a handle as bytes."""
    return np.frombuffer(fileh.mmap(start, n), "u1")


class BigFileTests:
    """A file of any kind. A backend gives make(), raw_read() and raw_write()."""

    def test_a_new_file_is_zeros(self, make):
        assert not view(make(BLK).fileh_open()).any()

    def test_what_is_there_is_read(self, make):
        file = make(BLK)
        self.raw_write(file, 3, b"abc")
        a = view(file.fileh_open())
        assert a[3 * BLK :][:4].tobytes() == b"abc\0"
        assert a.sum() == sum(b"abc")

    def test_write_out(self, make):
        file = make(2 * BLK)
        fileh = file.fileh_open()
        a = view(fileh)
        a[2 * 2 * BLK] = 5
        a[5 * 2 * BLK + 7] = 6
        assert fileh.isdirty()
        assert fileh.dirty_blocks() == [2, 5]
        fileh.dirty_writeout(BOTH)
        assert not fileh.isdirty()
        assert self.raw_read(file, 2)[0] == 5
        assert self.raw_read(file, 5)[7] == 6
        ram_reclaim()
        assert a.sum() == 11
        b = view(make(2 * BLK, file).fileh_open())
        assert b.sum() == 11

    def test_discard(self, make):
        fileh = make(BLK).fileh_open()
        a = view(fileh)
        a[3 * BLK :] = 7
        fileh.dirty_discard()
        assert not fileh.isdirty()
        assert not a.any()

    def test_truncate(self, make):
        file = make(BLK)
        fileh = file.fileh_open()
        a = view(fileh)
        a[:] = 1
        fileh.dirty_writeout(BOTH)
        fileh.truncate(3)
        assert fileh.isdirty()
        assert a.sum() == 3 * BLK
        fileh.dirty_discard()
        assert a.sum() == 8 * BLK
        fileh.truncate(3)
        a[6 * BLK] = 9
        fileh.dirty_writeout(BOTH)
        ram_reclaim()
        assert a.sum() == 3 * BLK + 9
        assert view(make(BLK, file).fileh_open()).sum() == 3 * BLK + 9

    @pytest.mark.parametrize("blksize", [4096, 3 * 4096, 1 << 16, 2 << 20])
    def test_block_sizes(self, make, blksize):
        fileh = make(blksize).fileh_open()
        a = view(fileh, 0, 3)
        assert a.nbytes == 3 * blksize
        a[:] = values = np.arange(a.size) % 251
        fileh.dirty_writeout(BOTH)
        ram_reclaim()
        assert (a == values).all()


class StorageTests:
    """A storage of any kind. A backend gives `root`, of a new database."""

    def test_what_is_committed_is_seen_and_what_is_aborted_is_not(self, root, fmt):
        A = fill(root, fmt)
        client = Client(root)
        b = client["A"][:]
        assert np.array_equal(b, FIRST)
        A[0] = A[-1] = 1
        transaction.commit()
        A[ZBLK] = 9
        transaction.abort()
        ram_reclaim()
        root._p_jar.cacheMinimize()
        assert np.array_equal(A[:], changed((0, 1), (-1, 1)))
        assert np.array_equal(b, FIRST)
        client.tm.begin()
        assert np.array_equal(b, A[:])
        client.close()

    def test_a_past_state(self, root, fmt):
        A = fill(root, fmt)
        at = root._p_jar.db().lastTransaction()
        A[0] = A[-1] = 1
        A.append([7])
        transaction.commit()
        old = Client(root, at=at)
        B = old["A"]
        b = B[:]
        assert np.array_equal(b, FIRST)
        A[ZBLK] = 2
        transaction.commit()
        old.tm.begin()
        ram_reclaim()
        assert np.array_equal(b, FIRST)
        assert np.array_equal(B[:], FIRST)
        with pytest.raises(ValueError, match="read-only"):
            b[0] = 3
        old.tm.commit()
        assert np.array_equal(b, FIRST)
        with pytest.raises(ValueError, match="read-only"):
            B.append([3])
            old.tm.commit()
        old.close()


class FormatTests:
    """A format of blocks. A backend gives `fmt`, its name."""

    def test_a_hole_becomes_a_block_and_a_block_a_hole(self, A, other):
        b = other["A"][:]
        assert np.array_equal(b, FIRST)
        A[-1] = 1
        transaction.commit()
        assert np.array_equal(b, FIRST)
        other.tm.begin()
        assert np.array_equal(b, changed((-1, 1)))
        A.resize(ZBLK)
        transaction.commit()
        assert np.array_equal(b, changed((-1, 1)))
        other.tm.begin()
        assert np.array_equal(b[:ZBLK], FIRST[:ZBLK])
        assert not b[ZBLK:].any()

    def test_equal_bytes_are_not_stored_again(self, root, A, fmt):
        storage = root._p_jar.db().storage
        tid = newest(storage).lastTransaction()
        A[0] = 0
        A[:] = FIRST
        transaction.commit()
        # of a transaction without records, RelStorage keeps nothing
        assert newest(storage).lastTransaction() == tid or stored(storage) == []
        A[:] = changed((ZBLK, 0))
        transaction.commit()
        blocks = [name for name in stored(storage) if name.startswith("ZBlk")]
        # with auto, a block of chunks takes the place of a whole block
        assert blocks == (["ZBlk0", "ZBlk1"] if fmt == "auto" else [fmt])
        A[:] = changed((ZBLK, 0), (ZBLK + 1, 0))
        transaction.commit()
        small = type(A.zfile.blktab[1]).__name__ == "ZBlk1"
        assert stored(storage) == (["ZBlk1", "ZData"] if small else ["ZBlk0"])

    @pytest.mark.slow
    def test_a_commit_takes_little_memory_besides_the_pages(self, root, fmt):
        blksize = 3 << 17
        size = 64 * blksize  # whatever it is, 4 MB are taken, and by RelStorage 12 MB more
        root["A"] = A = ZBigArray((size,), "u1", blksize=blksize, zblk_fmt=fmt)
        transaction.commit()
        a = A[:]
        for value in (1, 2):  # first new blocks, then blocks that exist
            a[:] = value
            gc.collect()
            tracemalloc.start()
            try:
                transaction.commit()
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < size
        assert (in_database(A) == 2).all()

    def test_no_ghosts_are_left(self, root, fmt, testdb):
        fill(root, fmt)
        testdb.close(root)
        A = testdb.open()["A"]

        def objects():
            gc.collect()
            everything = gc.get_objects()
            return len(A._p_jar._cache), sum(isinstance(obj, ZData) for obj in everything)

        a = A[:]
        before = objects()
        assert np.array_equal(a, FIRST)
        assert objects() == before
        for i in range(3):  # a commit needs objects while it runs
            A[i : 3 * ZBLK] += 1
            transaction.commit()
            after = objects()
            if i == 0:
                known, chunks = after  # nodes of the block table, and ghosts of blocks in it
                assert known <= before[0] + N + 3
                assert chunks <= before[1]
            assert after == (known, chunks)
            assert A._p_jar._cache.cache_non_ghost_count < 8

    @pytest.mark.parametrize("between", ["nothing", "a commit", "a reclaim"])
    def test_what_was_past_the_end_does_not_come_back(self, root, A, testdb, between):
        a = A[:]
        size = ZBLK + 100
        expected = changed((slice(size, None), 0))
        A.resize(size)
        if between == "a commit":
            transaction.commit()
        if between == "a reclaim":
            ram_reclaim()
        assert np.array_equal(a, expected)
        A.resize(N * ZBLK)
        assert np.array_equal(A[:], expected)
        transaction.commit()
        ram_reclaim()
        assert np.array_equal(A[:], expected)
        A[-1] = 1
        transaction.commit()
        expected[-1] = 1
        assert np.array_equal(in_database(A), expected)
        testdb.close(root)
        assert np.array_equal(testdb.open()["A"][:], expected)
