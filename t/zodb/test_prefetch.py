"""Which blocks are loaded ahead of a sequential reader."""

import numpy as np
import pytest

from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.bigfile.zodb import prefetch

BLK = 2 << 20


class Table:
    """A table of stored blocks: those below `end`."""

    def __init__(self, end=1 << 40):
        self.found, self.end = set(), end

    def find(self, start, stop):
        self.found.update(range(start, stop))
        return range(start, min(stop, self.end))


class Handle:
    """A handle that loads blocks, except those of `broken`."""

    def __init__(self, broken=()):
        self.loaded, self.broken = [], broken

    def load(self, blk, n):
        self.loaded.append(blk)
        if blk in self.broken:
            raise OSError(blk)


@pytest.fixture
def handle():
    return Handle()


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Let jobs of the pool run at once, in the thread that submits them."""
    monkeypatch.setattr(prefetch, "submit", lambda work, *args: work(*args))


@pytest.fixture
def issued(monkeypatch):
    """Return the windows that are loaded ahead: lists of blocks."""
    issued = []
    monkeypatch.setattr(
        prefetch, "prefetch", lambda owner, fileh, pages, threads: issued.append(list(pages))
    )
    return issued


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("start", [0, 1, 5000])
def test_a_sequential_reader_loads_a_few_blocks_itself(remote, start, issued, handle):
    table = Table()
    ahead = prefetch.ReadAhead(BLK, remote, table.find)
    most = min(32 << 20 if remote else 16 << 20, ram_stat()[0] // 16) // BLK
    itself = []
    for blk in range(start, start + 300):
        if not any(blk in pages for pages in issued):
            under_way = [page for pages in issued for page in pages if page > blk]
            assert len(itself) < 4 or most < 4 or under_way, "nothing is under way"
            itself.append(blk)
            ahead.loading(handle, blk)
            assert all(blk < page <= blk + most for page in issued[-1:] and issued[-1])
    pages = [page for window in issued for page in window]
    assert len(pages) == len(set(pages)), "asked for twice"
    assert not set(pages) & set(itself)
    assert len(itself) <= 4 + 300 // max(1, most // 2)


def test_other_readers_get_nothing_ahead(issued, handle):
    table = Table()
    ahead = prefetch.ReadAhead(BLK, True, table.find)
    for blk in 7, 3, 9, 2, 40, 38:
        ahead.loading(handle, blk)
    assert issued == []


def test_blocks_larger_than_the_window(handle):
    table = Table()
    ahead = prefetch.ReadAhead(1 << 40, True, table.find)
    for blk in range(1, 20):
        if blk not in handle.loaded:
            ahead.loading(handle, blk)
    assert handle.loaded
    assert max(handle.loaded) <= 20


def test_places_of_blocks_are_looked_up_a_window_ahead(handle):
    table = Table()
    ahead = prefetch.ReadAhead(BLK, True, table.find)
    for blk in range(300):
        if blk not in handle.loaded:
            before, known = len(handle.loaded), set(table.found)
            ahead.loading(handle, blk)
            assert not before or known.issuperset(handle.loaded[before:])
    assert handle.loaded


def test_on_this_machine_only_what_is_loaded_is_looked_up(issued, handle):
    table = Table()
    ahead = prefetch.ReadAhead(BLK, False, table.find)
    for blk in range(3):
        ahead.loading(handle, blk)
    assert issued
    assert max(table.found) == max(issued[-1]) + 1  # the reader's own


@pytest.mark.parametrize("remote", [True, False])
def test_only_stored_blocks_are_loaded(remote, handle):
    table = Table(end=5)
    ahead = prefetch.ReadAhead(4096, remote, table.find)
    ahead.expect(0, 9)
    ahead.loading(handle, 0)
    ahead.loading(handle, 1)
    assert sorted(handle.loaded) == [2, 3, 4]


def test_a_block_that_fails_ends_the_loads_behind_it():
    handle = Handle(broken={3})
    prefetch.prefetch(handle, handle, range(100), 1)
    assert handle.loaded == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("view", "touches", "ahead"),
    [
        ((0, 100), [0], []),  # one touch
        ((0, 100), [0, 1], [2]),  # from the beginning of a view on: two show it
        ((7, 100), [7, 8], [9]),
        ((0, 100), [5, 6], []),  # two neighbours
        ((0, 100), [5, 6, 7], [8]),
        ((0, 100), [0, 1, 3], [2, 4, 5, 7]),
        ((0, 3), [0, 1], [2]),  # not past the view
        ((0, 2), [0, 1], []),
        ((0, 5), [0, 1, 3], [2, 4]),
        ((0, 100), [0, 50], []),
        ((0, 100), [0, 10, 20], []),  # equal steps
        ((0, 100), [0, 10, 20, 30], [40]),
        ((0, 100), [0, 10, 20, 30, 50], [40, 60, 70, 90]),
        ((0, 100), [40, 39, 38, 37], [36]),
        ((0, 100), [6, 4, 2, 0], []),
        ((0, 100), [0, 60, 1, 61], [2]),  # two readers
        ((0, 100), [0, 60, 1, 61, 62], [2, 63]),
        ((0, 100), [50, 51, 52, 53], [53]),  # the reader is faster than the threads
        ((0, 100), [0, 1000, 0], []),
        ((0, 100), [5, 5, 5, 5], []),
    ],
)
def test_what_touches_show_to_be_wanted(view, touches, ahead, handle):
    table = Table()
    reader = prefetch.ReadAhead(BLK, True, table.find)
    reader.expect(view[0], view[1] - view[0])
    for blk in touches:
        reader.loading(handle, blk)
    assert sorted(handle.loaded) == ahead


def test_views_one_after_the_other_are_one_reader(handle):
    table = Table()
    reader = prefetch.ReadAhead(BLK, True, table.find)
    for start in range(0, 60, 4):
        reader.expect(start, 4)
        for blk in range(start, start + 4):
            if blk not in handle.loaded:
                reader.loading(handle, blk)
    assert max(handle.loaded) >= 60
    assert len(handle.loaded) == len(set(handle.loaded))
    assert len(handle.loaded) > 40


def test_random_readers_get_nothing_ahead(handle):
    """Neither of blocks of a view, nor of rows of two blocks; a few by chance."""
    random, table = np.random.default_rng(1), Table()
    for rows in 1, 2:
        reader = prefetch.ReadAhead(BLK, True, table.find)
        for blk in random.permutation(500)[:250].tolist():
            reader.expect(rows * blk, rows)
            for i in range(rows):
                reader.loading(handle, rows * blk + i)
    assert len(handle.loaded) <= 8
