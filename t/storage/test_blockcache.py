"""lib/storage/blockcache.py: the folder of a cache. Its readers: t/zodb/test_cached.py."""

import errno
import fcntl
import os
import re
import time

import pytest
from ZODB.utils import p64, u64

from wendelin.lib.storage import blockcache
from wendelin.lib.storage.blockcache import Folder

BLK = 1 << 17  # [bytes]


def blocks(folder):
    """Return the files of blocks."""
    return [p for p in folder.glob("*/*-*") if re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{16}", p.name)]


def lineage(**changed):
    root = {"where": "x", "name": "x", "root_tid": p64(1), "root": b"r", "last": p64(9)}
    return blockcache.Lineage(**(root | changed), root_at=lambda tid: (b"r", tid))


def test_what_was_used_last_stays(tmp_path):
    folder = Folder(str(tmp_path / "cache"), 10 * (BLK + 4096))
    database = folder.database(lineage(), lambda _: True)
    for i in range(8):
        assert database.store(p64(i), p64(1), b"x" * BLK, BLK)
    now = time.time()
    for i, path in enumerate(sorted(blocks(tmp_path / "cache"))):
        os.utime(path, (now, now - 1000 + i))
    assert database.find(p64(0), p64(1), BLK)  # this is a use
    (path,) = (tmp_path / "cache").glob(f"*/{p64(1).hex()}-*")
    os.utime(path, (now + 3600, now + 3600))  # the clock was set back: it is as old as can be
    for i in range(8, 13):
        assert database.store(p64(i), p64(1), b"x" * BLK, BLK)
    kept = [int(p.name[:16], 16) for p in sorted(blocks(tmp_path / "cache"))]
    assert 0 in kept
    assert 1 not in kept
    assert kept[-5:] == [8, 9, 10, 11, 12]


def test_leftovers_of_killed_processes(tmp_path):
    folder = Folder(str(tmp_path / "cache"), 4 * BLK)
    database = folder.database(lineage(), lambda _: True)
    assert database.store(p64(1), p64(1), b"x" * BLK, BLK)
    (path,) = blocks(tmp_path / "cache")
    for name, age in ("~1-1", 3600), ("~2-1", 0), ("~3-1", -3600):
        (path.parent / name).write_bytes(b"x" * 100)
        os.utime(path.parent / name, (time.time() - age,) * 2)
    (path.parent / f"{p64(7).hex()}@{p64(8).hex()}").symlink_to(f"{p64(7).hex()}-{p64(1).hex()}")
    (tmp_path / "cache" / "state").write_bytes(b"torn")
    assert database.store(p64(2), p64(1), b"x" * BLK, BLK)
    assert {p.name for p in path.parent.glob("~*")} == {"~2-1"}
    assert not [p for p in path.parent.iterdir() if "@" in p.name]
    size = sum(p.stat().st_size for p in blocks(tmp_path / "cache"))
    assert folder.clear() + 100 >= size
    assert not blocks(tmp_path / "cache")


def test_a_block_without_a_note_counts(tmp_path):
    """Where there are no symbolic links, the limit is kept all the same."""
    folder = Folder(str(tmp_path / "cache"), 4 * BLK)
    database = folder.database(lineage(), lambda _: True)
    (path,) = (tmp_path / "cache").glob("*/about")
    (path.parent / "newest").mkdir()
    for i in range(1, 9):
        assert database.store(p64(i), p64(i << 20), b"x" * BLK, BLK)
        assert sum(p.stat().st_size for p in blocks(tmp_path / "cache")) <= 4 * BLK
    assert database.newest() == [(p64(8), p64(8 << 20))]
    assert not list(path.parent.glob("~*"))


@pytest.mark.parametrize("order", [1, -1])
def test_blocks_of_tids_that_are_close_are_compared(tmp_path, order):
    """The clock was set back: tids say less, and another database may have some of them."""
    folder = Folder(str(tmp_path / "cache"), 100 * BLK)
    database = folder.database(lineage(), lambda _: True)

    def store(*revisions):
        for oid, tid in revisions[::order]:
            assert database.store(p64(oid), p64(tid), b"x" * BLK, BLK)

    def newest():
        return sorted((u64(oid), u64(tid)) for oid, tid in database.newest())

    assert newest() == []
    store((1, 1 << 30), (2, 2 << 30), (3, 2 << 30))
    assert newest() in ([(2, 2 << 30)], [(3, 2 << 30)])
    close = [(1, 3 << 30), (2, (3 << 30) + 1), (3, (3 << 30) + 1), (4, (3 << 30) + 9)]
    store(*close)
    assert newest() == close
    store((1, 4 << 30))
    assert newest() == [(1, 4 << 30)]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_tids_that_are_close_cannot_be_noted(tmp_path, monkeypatch, links):
    """The disk is full just then: a block without the note would not be compared."""
    folder = Folder(str(tmp_path / "cache"), 100 * BLK)
    database = folder.database(lineage(), lambda _: True)
    assert database.store(p64(1), p64(1 << 30), b"x" * BLK, BLK)
    (kept,) = blocks(tmp_path / "cache")
    before = (tmp_path / "cache" / "state").read_bytes()

    def full(path, *args, **kwargs):
        if path == "close":
            raise OSError(errno.ENOSPC, "no space")
        return os_open(path, *args, **kwargs)

    def no_link(*args, **kwargs):
        raise OSError(errno.EPERM, "no links")

    os_open = os.open
    with monkeypatch.context() as m:
        m.setattr(os, "open", full)
        if not links:
            m.setattr(os, "link", no_link)
        assert database.store(p64(2), p64((1 << 30) + 1), b"x" * BLK, BLK) is None
    assert blocks(tmp_path / "cache") == [kept]
    assert (tmp_path / "cache" / "state").read_bytes() == before  # what is counted
    assert {p.name for p in kept.parent.iterdir()} == {"about", "newest", kept.name}


@pytest.mark.parametrize("note", ["blocks", "state"])
def test_states_are_not_noted_where_tids_are_close(tmp_path, note):
    """Another database may have another state of that name, and nothing to compare it with."""
    folder = Folder(str(tmp_path / "cache"), 100 * BLK)
    database = folder.database(lineage(), lambda _: True)
    first, last = p64(1 << 30), p64((4 << 30) + 1)
    assert database.store(p64(1), first, b"x" * BLK, BLK)
    database.see(p64(1), last, first)
    assert database.revision(p64(1), last) == first
    if note == "blocks":
        assert database.store(p64(2), p64(4 << 30), b"x" * BLK, BLK)
        assert database.store(p64(3), p64((4 << 30) - 1), b"x" * BLK, BLK)
    else:  # the block of the last transaction has not been read
        database.see(p64(3), last, p64((4 << 30) - 1))
    assert database.revision(p64(1), last) is None
    database.see(p64(5), last, first)
    (folder,) = {p.parent for p in (tmp_path / "cache").glob("*/*")}
    assert [p.name for p in folder.glob("*@*")] == [f"{p64(1).hex()}@{last.hex()}"]


def test_folders_without_blocks_are_removed(tmp_path):
    folder = Folder(str(tmp_path / "cache"), 100 * BLK)
    for where in "abc":
        database = folder.database(lineage(where=where), lambda _: True)
        assert database.store(p64(1), p64(1 << 30), b"x" * BLK, BLK)
        assert database.store(p64(2), p64((1 << 30) + 1), b"x" * BLK, BLK)
        database.see(p64(1), p64(9 << 30), p64(1 << 30))
    folder.clear()
    assert len(folder.databases()) == 3  # a process may use them just now
    for name, age in zip(folder.databases()[:2], (3600, -3600), strict=True):
        os.utime(f"{folder.path}/{name}", (time.time() - age,) * 2)
    folder.clear()
    assert len(folder.databases()) == 1
    assert folder.database(lineage(where="a"), lambda _: True).is_there()


def test_a_lock_that_stays_is_not_waited_for_again_and_again(tmp_path):
    """Its process may be stopped."""
    folder = Folder(str(tmp_path / "cache"), 4 * BLK)
    database = folder.database(lineage(), lambda _: True)
    with open(tmp_path / "cache" / "state", "rb") as state:
        fcntl.flock(state, fcntl.LOCK_EX)
        assert database.store(p64(1), p64(1), b"x" * BLK, BLK) is None
        with pytest.raises(TimeoutError, match="another process keeps its lock"):
            folder.clear()
    # it is free now, but this is not even tried
    assert database.store(p64(1), p64(1), b"x" * BLK, BLK) is None
    assert folder.database(lineage(), lambda _: True) is None
    assert folder.clear() == 0
