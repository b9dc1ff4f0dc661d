"""Blocks that are mapped from Data.fs: when, how long, and which changes a client sees."""

import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import transaction
from support.child import check_child
from support.mapped import BLK, N, clean_and_dirty, make, maps, random_values
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import ram_reclaim
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.bigfile.virtmem.located import invalidate_loading
from wendelin.bigfile.zodb import blockfile
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.zodb import dbclose, dbopen


@pytest.fixture
def values():
    return random_values()


def test_blocks_are_mapped_and_cost_no_memory(path, values):
    dbclose(make(path, values))
    ram_reclaim()
    before = clean_and_dirty()
    root = dbopen(path)
    a = root["A"][:]
    assert np.array_equal(a, values)
    assert maps(path) == N
    assert clean_and_dirty() == before
    dbclose(root)


def test_after_an_ingest_there_is_no_copy_of_what_was_written(path, values):
    ram_reclaim()
    before = clean_and_dirty()
    root = dbopen(path)
    root["A"] = A = ZBigArray((0,), "f8")
    transaction.commit()
    view = None
    for part in np.split(values, 4):
        A.append(part)
        view = A[:]
        assert np.array_equal(view[-len(part) :], part)
        transaction.commit()
        assert clean_and_dirty() == before
    assert np.array_equal(view, values)
    assert clean_and_dirty() == before
    assert maps(path) == N
    dbclose(root)


@pytest.mark.parametrize("dtype", ["i8", "u4", "i2", "f4"])
def test_small_numbers_end_in_zeros_and_are_mapped(path, dtype):
    values = np.arange(2 * BLK // np.dtype(dtype).itemsize).astype(dtype) % 100 + 1
    root = make(path, values)
    a = root["A"][:]
    ram_reclaim()
    assert np.array_equal(a, values)
    assert maps(path) == 2
    dbclose(root)


def test_what_is_cut_short_is_copied(path, values):
    root = make(path, values)
    root["A"][-3 * BLK // 2 // 8 :] = 0
    transaction.commit()
    values[-3 * BLK // 2 // 8 :] = 0
    ram_reclaim()
    before = clean_and_dirty()
    a = root["A"][:]
    assert np.array_equal(a, values)
    assert maps(path) == N - 2  # one is cut, one is empty
    assert clean_and_dirty() == (before[0] + BLK, before[1])
    dbclose(root)


def test_a_write_to_a_mapped_block_changes_memory_and_not_the_file(path, values):
    root = make(path, values)
    a = root["A"][:]
    b = root["A"]._fileh().mmap(0, N)
    b = np.frombuffer(b, "f8")
    before = Path(path).read_bytes()
    _, dirty = clean_and_dirty()
    a[5 * BLK // 8 + 1] = 7
    values[5 * BLK // 8 + 1] = 7
    assert np.array_equal(a, values)
    assert np.array_equal(b, values)
    assert Path(path).read_bytes() == before
    assert clean_and_dirty()[1] == dirty + BLK
    transaction.abort()
    assert a[5 * BLK // 8 + 1] != 7
    a[0] = 8
    transaction.commit()
    assert clean_and_dirty()[1] == dirty
    assert a[0] == b[0] == 8
    dbclose(root)


def test_stock_filestorage_reads_it_and_the_other_way_round(path, values, tmp_path):
    dbclose(make(path, values))
    stock = DB(FileStorage(path))
    A = stock.open().root()["A"]
    assert np.array_equal(A[:], values)
    for blk, zblk in A.zfile.blktab.items():
        zblk._p_activate()
        assert zblk._v_data == values.tobytes()[blk * BLK : (blk + 1) * BLK]
    stock.close()
    old = str(tmp_path / "old.fs")
    make(old, values, FileStorage)._p_jar.db().close()
    root = dbopen(old)
    a = root["A"][:]
    ram_reclaim()
    assert np.array_equal(a, values)
    assert maps(old) == 0  # nothing is aligned: all is copied
    assert ram_stat()[1] >= BLK
    root._p_jar.db().pack()
    transaction.begin()
    ram_reclaim()
    assert np.array_equal(a, values)
    assert maps(old) == N
    dbclose(root)


def test_other_clients_see_their_own_moment(path, values):
    root = make(path, values)
    tm = transaction.TransactionManager()
    other = root._p_jar.db().open(tm).root()
    a, b = root["A"][:], other["A"][:]
    assert np.array_equal(a, b)
    _, dirty = clean_and_dirty()
    a[:: BLK // 8] = -1
    transaction.commit()
    assert np.array_equal(b, values)
    tm.begin()
    assert np.array_equal(a, b)
    assert clean_and_dirty()[1] == dirty
    tm.abort()
    other._p_jar.close()
    dbclose(root)


def test_history(path, values):
    root = make(path, values)
    db = root._p_jar.db()
    at = db.lastTransaction()
    a = root["A"][:]
    a[:] = 0
    transaction.commit()
    old = db.open(at=at, transaction_manager=transaction.TransactionManager())
    b = old.root()["A"][:]
    assert np.array_equal(b, values)
    assert maps(path) == N
    assert not a.any()
    old.close()
    dbclose(root)


def test_undo(path, values):
    root = make(path, values)
    a = root["A"][:]
    a[:] = 0
    transaction.commit()
    assert a.sum() == 0
    root._p_jar.db().undo(root._p_jar.db().undoLog(0, 1)[0]["id"])
    transaction.commit()
    assert np.array_equal(a, values)
    assert maps(path) == N
    dbclose(root)


def test_pack_under_open_views(path, values):
    root = make(path, values)
    a = root["A"][:]
    a[: BLK // 8] = 1
    transaction.commit()
    values[: BLK // 8] = 1
    assert np.array_equal(a, values)
    root._p_jar.db().pack()
    assert np.array_equal(a, values)  # a reads the old file
    gone = f"{path} (deleted)"  # the kernel names the old file so, though it has the name .old, too
    assert maps(gone) == N
    os.unlink(path + ".old")
    assert np.array_equal(a, values)
    transaction.begin()
    assert np.array_equal(a, values)
    assert maps(path) == N
    assert maps(gone) == 0
    open_files = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    ]
    assert gone not in open_files
    a[0] = 5
    transaction.commit()
    assert a[0] == 5
    dbclose(root)


@pytest.mark.parametrize("storage", [AlignedFileStorage, FileStorage])
def test_touches_at_the_boundary_after_a_pack_read_the_old_file(path, values, storage, monkeypatch):
    """The old file's descriptor stays open until the last page lets it go."""
    make(path, values, storage)._p_jar.db().close()
    root = dbopen(path)
    root["A"][: BLK // 8] = values[: BLK // 8] = 1
    transaction.commit()
    transaction.begin()
    a = root["A"][:]
    a[3 * BLK // 8]
    handle = root["A"]._fileh()
    file = handle.file
    old = [weakref.ref(f) for f in file.mapped_from]
    fd = old[0]().fd
    root._p_jar.db().pack()
    others, got = [], []

    def while_dropping(handle):  # any thread may touch a page then
        invalidate_loading(handle)
        others.extend(os.open("/dev/zero", os.O_RDONLY) for _ in range(9))
        got.extend(a[i * BLK // 8 + 1] for i in range(6))

    with monkeypatch.context() as m:
        m.setattr(blockfile, "invalidate_loading", while_dropping)
        transaction.begin()
    for other in others:
        os.close(other)
    assert fd not in others
    assert got == [values[i * BLK // 8 + 1] for i in range(6)]
    assert np.array_equal(a, values)
    assert [ref() for ref in old] == [None]  # not by number: the new file may have the same one
    dbclose(root)


def test_wherever_reads_go_the_bytes_are_right(path, values):
    """Blocks are read in several orders: forwards, backwards, random, every second, in jumps."""
    dbclose(make(path, values))
    rng = np.random.default_rng(5)
    orders = [
        range(N),
        range(N)[::-1],
        rng.permutation(N),
        [*range(0, N, 2), *range(1, N, 2)],
        [0, 5, 6, 7, 8, 9, 10, 3, 4, 5],
    ]
    for order in orders:
        root = dbopen(path)
        a = root["A"][:]
        for blk in order:
            part = slice(blk * BLK // 8, (blk + 1) * BLK // 8)
            assert np.array_equal(a[part], values[part])
        dbclose(root)


def test_a_file_that_is_cut_raises_and_does_not_kill(path, values):
    dbclose(make(path, values))
    check_child(
        """
        import os, sys, transaction, numpy as np
        from wendelin.bigfile import BlockLoadError
        from wendelin.lib.zodb import dbopen
        path, = sys.argv[1:]
        root = dbopen(path)
        a = root["A"][:]
        a[0]
        a[-1]
        size = os.path.getsize(path)
        content = open(path, "rb").read()
        os.truncate(path, size // 2)
        for i in range(2):
            try:
                np.sum(a)
            except BlockLoadError as e:
                print(e)
            else:
                raise AssertionError
        try:
            a[len(a) - 1] = 2
            for i in range(1000): pass
        except Exception as e:
            print(type(e).__name__, e)
        else:
            raise AssertionError
        open(path, "r+b").write(content)
        transaction.abort()
        print(a[-1], a.sum())
        """,
        path,
    )
