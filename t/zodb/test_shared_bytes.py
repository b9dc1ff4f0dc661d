"""Whole blocks on a file system whose files share bytes (XFS): a commit copies none of them."""

import errno
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import transaction
from support.smalldisk import NoDisk, xfs_disk
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage as StockFileStorage

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.virtmem.stats import stats
from wendelin.bigfile.virtmem.writeout import page_buffer
from wendelin.lib.storage import fswrite
from wendelin.lib.zodb import dbclose, dbopen

pytestmark = [pytest.mark.once, pytest.mark.slow]

BLK = 64 << 10  # [bytes]
N = BLK // 8  # elements


@pytest.fixture
def disk(tmp_path):
    try:
        with xfs_disk(tmp_path / "disk") as folder:
            yield folder
    except NoDisk as e:
        pytest.skip(str(e))


@pytest.fixture
def shared(monkeypatch):
    """Return the sizes of pieces that the database shared, and whether it could."""
    share_range, calls = fswrite.share_range, []

    def counted(source, offset, target, at, size):
        done = share_range(source, offset, target, at, size)
        calls.append((size, done))
        return done

    monkeypatch.setattr(fswrite, "share_range", counted)
    return calls


def opened(disk, **kw):
    root = dbopen(f"{disk}/x.fs")
    root["A"] = ZBigArray((0,), "f8", **{"blksize": BLK, **kw})
    transaction.commit()
    return root, root["A"]


def numbers(n, start=0):
    return np.arange(start, start + n, dtype="f8") + 0.5


def check(disk, want):
    """Compare with what is read by a new process, by `verify`, and by stock FileStorage."""
    program = """
        import sys, numpy as np
        from wendelin.lib.zodb import dbopen
        A = dbopen(f"file://{sys.argv[1]}?read_only=true")["A"]
        assert (A[:] == np.load(sys.argv[2])).all()
    """
    np.save(disk.parent / "want.npy", want)
    path = str(disk / "x.fs")
    for command in (
        [sys.executable, "-P", "-c", textwrap.dedent(program), path, str(disk.parent / "want.npy")],
        [os.path.join(os.path.dirname(sys.executable), "wendelin"), "verify", path],
    ):
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
    storage = StockFileStorage(path, read_only=True)
    assert sum(len(list(txn)) for txn in storage.iterator()) > 0
    storage.close()


def test_whole_blocks_are_shared(disk, shared):
    root, A = opened(disk)
    A.append(numbers(6 * N + 100))
    assert stats().spooled == 6 * BLK
    assert (A[:] == numbers(6 * N + 100)).all()
    transaction.commit()
    assert shared == [(BLK, True)] * 6
    assert stats().spooled == 0
    shared.clear()
    A[2 * N : 4 * N] = -numbers(2 * N)  # the first change of a transaction is a touch
    transaction.commit()
    assert shared == [(BLK, True)]
    want = numbers(6 * N + 100)
    want[2 * N : 4 * N] = -numbers(2 * N)
    assert (A[:] == want).all()
    dbclose(root)
    check(disk, want)


def test_they_take_no_page_memory(disk):
    """Not even where there is none left for changes."""
    root, A = opened(disk)
    before = stats().dirty
    A.append(numbers(64 * N))
    assert stats().dirty - before <= BLK
    transaction.abort()
    assert stats().spooled == 0
    dbclose(root)


def test_changes_after_it_savepoints_and_aborts(disk, shared):
    root, A = opened(disk)
    A.append(numbers(4 * N))
    view = A[:]
    view[N + 5] = -1
    saved = transaction.savepoint()
    view[N + 6] = -2
    saved.rollback()
    transaction.commit()
    want = numbers(4 * N)
    want[N + 5] = -1
    A[:N] = numbers(N, 100)
    transaction.abort()
    assert (A[:] == want).all()
    assert stats().spooled == 0
    dbclose(root)
    check(disk, want)


class Refuses:
    """It votes last, against the commit."""

    transaction_manager = transaction.manager

    def tpc_vote(self, txn):
        raise OSError(errno.EIO, "the disk is gone")

    def sortKey(self):
        return "~~~"

    def commit(self, txn):
        pass

    abort = tpc_begin = tpc_abort = tpc_finish = commit


def test_a_commit_that_fails_and_one_that_follows(disk):
    """The bytes of the first are in the file, behind its end, when the second one begins."""
    root, A = opened(disk)
    A.append(numbers(4 * N))
    transaction.get().join(Refuses())
    with pytest.raises(OSError, match="the disk is gone"):
        transaction.commit()
    transaction.abort()
    assert A.shape == (0,)
    A.append(numbers(2 * N, 7))
    transaction.commit()
    dbclose(root)
    check(disk, numbers(2 * N, 7))


def test_the_disk_is_full(disk):
    """It is an error, the transaction is aborted, and what was committed stays."""
    root, A = opened(disk)
    A.append(numbers(8 * N))
    transaction.commit()
    with open(disk / "full", "wb") as file:
        room = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, (room.f_bavail - 64) * room.f_frsize)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        A.append(numbers(64 * N))
        transaction.commit()
    transaction.abort()
    os.unlink(disk / "full")
    assert (A[:] == numbers(8 * N)).all()
    A.append(numbers(8 * N, 3))
    transaction.commit()
    dbclose(root)
    check(disk, np.concatenate([numbers(8 * N), numbers(8 * N, 3)]))


@pytest.mark.parametrize("zblk_fmt", ["auto", "ZBlk0", "ZBlk1"])
def test_parts_of_a_block_are_never_shared_from_another_place(disk, shared, zblk_fmt):
    """A chunk is a part of the page's memory: its bytes are not those where this begins."""
    n = 16 * N  # elements of a block: with `auto`, it has chunks that are large enough
    root, A = opened(disk, zblk_fmt=zblk_fmt, blksize=16 * BLK)
    want = numbers(4 * n)
    A.append(want)
    transaction.commit()
    rng = random.Random(8)
    for i in range(8):
        start = rng.randrange(3) * n
        values = want[start : start + 2 * n].copy()
        for _ in range(3):
            at = rng.randrange(2 * n)
            values[at : at + rng.randrange(n // 16)] = i
        A[start : start + 2 * n] = values
        want[start : start + 2 * n] = values
        if rng.random() < 0.5:
            k = rng.randrange(len(want))
            A[k : k + 1] = want[k] = -i
        transaction.commit() if i % 3 else transaction.savepoint()
        assert (A[:] == want).all()
    transaction.commit()
    sizes = {size for size, done in shared if done}
    assert sizes >= ({BLK} if zblk_fmt == "auto" else {16 * BLK} if zblk_fmt == "ZBlk0" else set())
    dbclose(root)
    check(disk, want)


def test_a_spool_on_another_disk_is_not_used_for_them(disk, tmp_path, monkeypatch, shared):
    monkeypatch.setenv("WENDELIN_CORE_SPOOL", str(tmp_path))
    root, A = opened(disk)
    A.append(numbers(4 * N))
    assert stats().spooled == 0
    transaction.commit()
    assert not shared
    dbclose(root)
    check(disk, numbers(4 * N))


@pytest.mark.parametrize("saved", [False, True], ids=["abort", "savepoint"])
def test_a_buffer_that_is_kept_shows_no_other_block(disk, saved):
    """Not even when its block is gone, and another one could get its place in the spool."""
    root, A = opened(disk)
    A.append(numbers(4 * N))
    kept = np.frombuffer(page_buffer(A._fileh(), 1), "f8")
    assert (kept == numbers(N, N)).all()
    transaction.savepoint() if saved else transaction.abort()
    for _ in range(3):
        A.append(-numbers(6 * N))
        assert stats().spooled >= 4 * BLK
        assert (kept >= 0).all()  # as it was, or a hole
        transaction.abort()
    A.append(-numbers(2 * N))
    transaction.commit()
    assert (kept >= 0).all()
    dbclose(root)
    check(disk, -numbers(2 * N))


@pytest.mark.parametrize("first", [True, False], ids=["after the first block", "before"])
def test_the_folder_is_moved(disk, shared, first):
    """What is written then has page memory, and nothing fails."""
    (disk / "a").mkdir()
    root, A = opened(disk / "a")
    if first:
        A.append(numbers(3 * N))
        transaction.commit()
        assert shared == [(BLK, True)] * 3
    (disk / "a").rename(disk / "b")
    A.append(numbers(3 * N, len(A)))
    transaction.commit()
    assert len(shared) == (3 if first else 0)
    (disk / "b").rename(disk / "a")
    A.append(numbers(3 * N, len(A)))
    transaction.commit()
    assert shared == ([(BLK, True)] * 6 if first else [])
    n = len(A)
    dbclose(root)
    check(disk / "a", numbers(n))


def test_a_pack_and_a_restart(disk):
    root, A = opened(disk)
    for i in range(3):
        A[:] = numbers(len(A), i)
        A.append(numbers(4 * N, i))
        transaction.commit()
    want = A[:].copy()
    root._p_jar.db().pack()
    assert (A[:] == want).all()
    dbclose(root)
    db = DB(StockFileStorage(str(disk / "x.fs")))
    db.pack()
    db.close()
    check(disk, want)
