"""How many bytes the default format stores for appends, a bulk load and small changes."""

import os
from contextlib import contextmanager

import numpy as np
import pytest
import transaction
from BTrees.IOBTree import IOBTree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.mapped import maps
from transaction import TransactionManager
from ZODB.POSException import ConflictError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import ram_reclaim
from wendelin.bigfile.file_zodb import ZBlk0, ZBlk1, ZData
from wendelin.bigfile.virtmem.stats import stats_of
from wendelin.bigfile.zodb.change import CELLS
from wendelin.bigfile.zodb.formats import load_block
from wendelin.bigfile.zodb.records import Records
from wendelin.lib.storage import fsrecord
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.zodb import dbclose, dbopen

BLK = 1 << 20  # [bytes]


@contextmanager
def client(root):
    """Yield the Connection and the transaction manager of another client."""
    txn = TransactionManager()
    conn = root._p_jar.db().open(txn)
    try:
        yield conn, txn
    finally:
        txn.abort()
        conn.close()


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.delenv("WENDELIN_CORE_ZBLK_FMT", raising=False)
    return str(tmp_path / "1.fs")


@pytest.fixture
def root(path):
    root = dbopen(path)
    yield root
    transaction.abort()
    dbclose(root)


def new(root, size=0, blksize=BLK, **kw):
    root["A"] = A = ZBigArray((size,), "u1", blksize=blksize, **kw)
    transaction.commit()
    return A


def random(n, seed=1):
    return np.random.default_rng(seed).integers(1, 256, n, "u1")


def stored(root, change):
    """Call change() and commit; return how much the file grows [bytes]."""
    storage = root._p_jar.db().storage
    before = storage.getSize()
    change()
    transaction.commit()
    return storage.getSize() - before


def kinds(A):
    return [type(zblk).__name__ for zblk in A.zfile.blktab.values()]


@pytest.mark.parametrize(
    ("step", "most"), [(64 << 10, 3), (8 << 10, 4), (8000, 4), (40_000, 3), (300 << 10, 3)]
)
@pytest.mark.slow
def test_appends_store_at_most_a_few_bytes_for_each_byte(root, step, most):
    A = new(root)
    storage = root._p_jar.db().storage
    before = storage.getSize()
    data = random(2 * BLK + BLK // 4)
    for i in range(0, len(data), step):
        A.append(data[i : i + step])
        transaction.commit()
        n = len(data[: i + step])
        if n >= BLK:
            assert storage.getSize() - before <= most * n
    assert kinds(A) == ["ZBlk0", "ZBlk0", "ZBlk1"]  # full blocks are stored whole
    assert np.array_equal(A[:], data)


def test_a_bulk_load_stores_blocks(root):
    A = new(root, 8 * BLK)
    grown = stored(root, lambda: A[:].__setitem__(slice(None), random(8 * BLK)))
    assert kinds(A) == ["ZBlk0"] * 8
    assert grown < 1.01 * 8 * BLK


def test_scattered_changes_store_a_block_at_first_and_a_quarter_at_most_from_then_on(root):
    A = new(root, 4 * BLK)
    data = random(4 * BLK)
    stored(root, lambda: A[:].__setitem__(slice(None), data))

    def change(i):
        data[i::BLK] ^= 1
        A[:][i::BLK] = data[i::BLK]

    first = stored(root, lambda: change(BLK // 3))
    assert kinds(A) == ["ZBlk1"] * 4
    assert first <= 1.2 * 4 * BLK
    for zblk in A.zfile.blktab.values():
        assert [start * CELLS / BLK for start in zblk.chunktab] == [0, 4, 5, 6, 8, 12]
    for i, cells in [(5, 4), (BLK // 2, 4), (BLK - 1, 4), (BLK // 3, 1), (BLK // 4, 1)]:
        assert stored(root, lambda i=i: change(i)) <= 1.2 * 4 * BLK * cells / CELLS
    for zblk in A.zfile.blktab.values():
        assert len(zblk.chunktab) <= CELLS  # few objects to read
    assert np.array_equal(A[:], data)
    stored(root, lambda: A[:].__setitem__(slice(None), data[::-1]))
    assert kinds(A) == ["ZBlk0"] * 4


# cells of 1, 2 and 32 pages; and blocks that are not whole quarters
SIZES = [20 << 10, 32 << 10, 64 << 10, 68 << 10, 124 << 10, 132 << 10, 2 << 20]


@pytest.mark.parametrize("blksize", SIZES)
@pytest.mark.parametrize(
    ("before", "fmt"),
    [(before, fmt) for before in ("ZBlk0", "auto", "auto in chunks") for fmt in ("auto", "ZBlk1")]
    + [("ZBlk1", "ZBlk1")],
)
def test_of_a_full_block_the_second_small_change_stores_a_piece(root, before, fmt, blksize):
    """And the third one, near it, the smallest piece. So with ZBlk1, whose pieces are pages."""
    A = new(root, blksize, blksize, zblk_fmt=before.split()[0])
    data = random(blksize)

    def change(at):
        data[at] ^= 1
        A[at] = data[at]

    stored(root, lambda: A.__setitem__(slice(None), data))
    if before == "auto in chunks":
        stored(root, lambda: change(1))
        assert kinds(A) == ["ZBlk1"]
    A._fileh().file.zblk_fmt = fmt
    stored(root, lambda: change(2))
    pages = blksize // 4096
    cell = max(1, pages // CELLS) if fmt == "auto" else 1
    quarter = -(-pages // cell // 4) * cell if fmt == "auto" else 1
    middle, last = blksize // 2, blksize - 1
    for at, most in (middle, quarter), (middle + 1, cell), (last, quarter), (3, cell):
        grown = stored(root, lambda at=at: change(at))
        assert 4096 < grown <= 1.2 * most * 4096
        assert kinds(A) == ["ZBlk1"]
    assert np.array_equal(dbread(root), data)


@pytest.mark.slow
def test_many_small_changes_do_not_leave_a_block_in_many_pieces(root):
    A = new(root, BLK)
    rng = np.random.default_rng(3)
    data = np.zeros(BLK, "u1")
    most = 0
    for i in rng.permutation(BLK // 4096)[:200]:
        A[i * 4096] = data[i * 4096] = 1
        transaction.commit()
        (zblk,) = A.zfile.blktab.values()
        if type(zblk) is ZBlk1:
            most = max(most, len(zblk.chunktab))
    assert most <= BLK // 4096 // 2 + 1
    assert np.array_equal(A[:], data)


def test_changes_of_one_block_conflict_and_those_of_different_blocks_do_not(root):
    """The first change of a block changes its format, too. The blocks are far from each other."""
    blksize = 64 << 10
    A = new(root, 200 * blksize, blksize)
    A[:] = random(A.size)
    transaction.commit()
    with client(root) as (conn, other):
        B = conn.root()["A"]
        for i in 5, 6:
            A[i], B[150 * blksize + i] = 7, 8
            transaction.commit()
            other.commit()
        A[100 * blksize + 5], B[100 * blksize + 7] = 7, 8
        transaction.commit()
        with pytest.raises(ConflictError):
            other.commit()
        other.abort()
        A._p_jar.sync()
        assert (A[5], A[150 * blksize + 6], A[100 * blksize + 5]) == (7, 8, 7)


@pytest.mark.parametrize("whole_first", [False, True])
def test_a_block_that_changes_its_format_and_is_changed_in_place_is_a_conflict(root, whole_first):
    A = new(root, 2 * BLK)
    A[:] = random(2 * BLK)
    transaction.commit()
    with client(root) as (conn, other):
        B = conn.root()["A"]
        A[7] ^= 1  # becomes chunks
        B[:BLK] = random(BLK, 2)  # stays whole
        first, second = (other, transaction) if whole_first else (transaction, other)
        first.commit()
        with pytest.raises(ConflictError):
            second.commit()
        second.abort()


def old_bytes(zblk):
    """Return a block as wendelin.core 0.13 and 2.x read it from its object."""
    if type(zblk) is ZBlk0:
        return zblk.__getstate__()
    chunks = dict(zblk.chunktab.items())
    if not chunks:
        return b""
    tail = max(chunks)
    data = bytearray(tail + len(chunks[tail].__getstate__()))
    stop = 0
    for start, chunk in sorted(chunks.items()):
        chunk._p_activate()
        piece = chunk.__getstate__()
        assert start >= stop
        stop = start + len(piece)
        data[start:stop] = piece
    return bytes(data)


PAGES = [32, 16, 17]  # in a block
small = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
changes = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, 2 * max(PAGES) * 4096 - 1),
            st.sampled_from([1, 100, 4096, 5000, 30_000, 70_000, 140_000]),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=8,
)


@given(
    changes,
    st.lists(st.sampled_from(["auto", "ZBlk1", "ZBlk0"]), min_size=8, max_size=8),
    st.sampled_from(PAGES),
)
@small
def test_any_changes_are_read_back_here_and_by_earlier_versions(
    tmp_path_factory, commits, fmts, pages
):
    path = str(tmp_path_factory.mktemp("auto") / "1.fs")
    blksize = pages * 4096
    expected = np.zeros(2 * blksize, "u1")
    root = dbopen(path)
    try:
        A = new(root, len(expected), blksize)
        for commit, fmt in zip(commits, fmts, strict=False):
            A._fileh().file.zblk_fmt = fmt
            for start, size, value in commit:
                start %= len(expected)
                expected[start : start + size] = value
                A[start : start + size] = value
            transaction.commit()
            A._fileh().file.zblk_fmt = "auto"
            conn = root._p_jar
            for blk, zblk in A.zfile.blktab.items():
                block = load_block(zblk._p_oid, Records(conn), blksize)
                here = expected[blk * blksize :][:blksize].tobytes()
                assert bytes(block.data).ljust(blksize, b"\0") == here
                assert block.has_checksum or not block.data.nbytes
                assert block.regular
        conn.cacheMinimize()
        with client(root) as (other, _):
            for blk, zblk in other.root()["A"].zfile.blktab.items():
                zblk._p_activate()
                here = expected[blk * blksize :][:blksize].tobytes()
                assert old_bytes(zblk).ljust(blksize, b"\0") == here
    finally:
        transaction.abort()
        dbclose(root)


def test_chunks_of_any_size_and_place_are_read_and_changed(root):
    """Other writers may make chunks that are large, at odd offsets, or across borders of cells."""
    A = new(root, 2 * BLK)
    data = np.zeros(2 * BLK, "u1")
    A.zfile.blktab[0] = zblk = ZBlk1()
    root._p_jar.add(zblk)
    zblk.chunktab = IOBTree()
    for start, stop in (0, 100), (4096, 300_000), (300_001, 300_002), (400_000, BLK):
        zblk.chunktab[start] = chunk = ZData()
        chunk._p_changed = True
        chunk._v_data = data[start:stop] = random(stop - start, start)
        chunk._v_data = chunk._v_data.tobytes()
    transaction.commit()
    A._fileh().invalidate_page(0)
    A._fileh().file.table.drop()
    assert np.array_equal(A[:], data)
    A[7] = data[7] = 0
    transaction.commit()
    assert np.array_equal(dbread(root), data)


def dbread(root):
    with client(root) as (conn, _):
        return conn.root()["A"][:].copy()


def test_no_chunk_is_stored_for_what_became_zeros(root):
    A = new(root, BLK)
    A[:] = random(BLK)
    transaction.commit()
    A[3] ^= 1
    transaction.commit()
    (zblk,) = A.zfile.blktab.values()
    assert list(zblk.chunktab) == [BLK * i // CELLS for i in (0, 1, 2, 4, 8, 12)]
    A[: BLK // CELLS] = 0
    transaction.commit()
    (zblk,) = A.zfile.blktab.values()
    assert list(zblk.chunktab) == [BLK * i // CELLS for i in (1, 2, 4, 8, 12)]
    assert not dbread(root)[: BLK // CELLS].any()


def test_the_default_is_auto(root):
    assert "WENDELIN_CORE_ZBLK_FMT" not in os.environ
    A = new(root, BLK)
    A[0] = 1
    transaction.commit()
    assert kinds(A) == ["ZBlk0"]  # of one chunk
    A[5000] = 1
    transaction.commit()
    assert kinds(A) == ["ZBlk1"]


# ---- full blocks in chunks are mapped ----

NBLK = 8


@pytest.fixture
def changed(path):
    """A database of an array whose blocks were changed a little, twice; and what it has."""
    root = dbopen(path)
    A = new(root)
    values = random(NBLK * BLK)
    A.append(values)
    transaction.commit()
    for turn in (1, 2):
        at = np.arange(NBLK) * BLK + turn * (BLK // 3)
        A[:][at] = values[at] = turn
        transaction.commit()
    assert all(isinstance(A.zfile.blktab[blk], ZBlk1) for blk in range(NBLK))
    dbclose(root)
    root = dbopen(path)
    yield root, values
    transaction.abort()
    dbclose(root)


def copied(A):
    """Return how many blocks of the array are mapped, and how many have page memory."""
    counts = stats_of(A._fileh())
    return counts.mapped // BLK, counts.resident // BLK


def test_they_are_mapped(changed):
    root, values = changed
    A = root["A"]
    assert (A[:] == values).all()
    assert copied(A) == (NBLK, 0)
    A[5] = values[5] = 77  # only the block that changes is copied
    assert (A[:] == values).all()
    assert copied(A) == (NBLK - 1, 1)
    transaction.abort()


def test_few_mappings_for_a_block_that_is_changed_in_one_place(path):
    root = dbopen(path)
    A = new(root)
    values = random(NBLK * BLK)
    A.append(values)
    transaction.commit()
    A[:][::BLK] = values[::BLK] = 1
    transaction.commit()
    dbclose(root)
    root = dbopen(path)
    view = root["A"][:]
    assert (view == values).all()
    assert maps(path) == 6 * NBLK
    del view
    dbclose(root)


def test_to_find_chunks_each_head_is_read_once(changed, monkeypatch):
    """And no record is loaded besides: they are small, and read on the way."""
    monkeypatch.setenv("WENDELIN_CORE_READY", "100")  # else a touch asks for what follows, too
    root, values = changed
    asked, loaded = [], []
    read_heads, load = fsrecord.read_heads, AlignedFileStorage.loadBefore

    def counted(fd, flags, oids, *args):
        result = read_heads(fd, flags, oids, *args)
        asked.extend(oids[: len(result)])
        return result

    def noted(self, oid, tid):
        loaded.append(oid)
        return load(self, oid, tid)

    A = root["A"]
    zfile, blktab = A.zfile, A.zfile.blktab
    assert zfile.blksize == BLK
    monkeypatch.setattr(fsrecord, "read_heads", counted)
    monkeypatch.setattr(AlignedFileStorage, "loadBefore", noted)
    view = A[:]
    assert loaded == [blktab._p_oid]
    chunks = [chunk._p_oid for zblk in blktab.values() for chunk in zblk.chunktab.values()]
    tables = [zblk.chunktab._p_oid for zblk in blktab.values()]
    blocks = [zblk._p_oid for zblk in blktab.values()]
    assert sorted(set(asked)) == sorted(blocks + tables + chunks)
    assert len(asked) <= len(set(asked)) + 1  # the first chunk says what the others are like
    assert (view == values).all()


def test_a_change_of_another_client_is_seen(changed):
    root, values = changed
    A, view = root["A"], root["A"][:]
    assert (view == values).all()
    with client(root) as (conn, txn):
        conn.root()["A"][3 * BLK + 7] = 200
        txn.commit()
        assert (view == values).all()
        transaction.begin()
        values[3 * BLK + 7] = 200
        assert (view == values).all()
        # as an earlier wendelin.core does, which changes a chunk and not the block's object
        chunk = conn.root()["A"].zfile.blktab[2].chunktab[BLK // 2]
        start = 2 * BLK + BLK // 2
        chunk._p_activate()
        n = len(chunk._v_data)
        chunk._v_data = bytes([9]) * n
        chunk._p_changed = True
        txn.commit()
    transaction.begin()
    values[start : start + n] = 9
    assert (view == values).all()
    assert copied(A) == (NBLK - 1, 1)  # a chunk without a checksum is loaded


def test_a_pack_and_what_was_before(changed, path):
    root, values = changed
    A = root["A"]
    view = A[:]
    assert (view == values).all()
    root._p_jar.db().pack()
    assert (view == values).all()
    transaction.begin()
    assert (view == values).all()
    A[:4] = values[:4] = 1
    transaction.commit()
    ram_reclaim()
    assert (A[:] == values).all()


def test_a_damaged_chunk_is_found_by_who_asks(changed, path, monkeypatch):
    root, values = changed
    dbclose(root)
    with open(path, "r+b") as f:
        data = f.read()
        at = data.rindex(values[BLK + BLK // 2 :][:1000].tobytes())
        f.seek(at)
        f.write(bytes([data[at] ^ 1]))
    monkeypatch.setenv("WENDELIN_CORE_VERIFY", "1")
    root = dbopen(path)
    with pytest.raises(Exception, match="checksum"):
        root["A"].load(slice(BLK, 2 * BLK))
    transaction.abort()
    dbclose(root)
