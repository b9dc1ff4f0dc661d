"""Which blocks are loaded ahead of a sequential reader."""

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
    assert max(table.found) == max(issued[-1])


@pytest.mark.parametrize("remote", [True, False])
def test_only_stored_blocks_are_loaded(remote, handle):
    table = Table(end=5)
    ahead = prefetch.ReadAhead(4096, remote, table.find)
    ahead.expect(0, 5)
    ahead.loading(handle, 0)
    assert sorted(handle.loaded) == [1, 2, 3, 4]


def test_a_block_that_fails_ends_the_loads_behind_it():
    handle = Handle(broken={3})
    prefetch.prefetch(handle, handle, range(100), 1)
    assert handle.loaded == [0, 1, 2, 3]


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize(
    ("n", "touched", "ahead"),
    [
        (prefetch.MANY, 0, True),
        (prefetch.MANY - 1, 0, False),  # a few blocks are read one by one
        (100, 1, False),  # random access
        (100, 50, False),
    ],
)
def test_a_reader_from_the_first_of_many_blocks_is_sequential(first, n, touched, ahead, handle):
    table, issued = Table(), handle.loaded
    reader = prefetch.ReadAhead(BLK, True, table.find)
    reader.expect(first, n)
    reader.loading(handle, first + touched)
    assert bool(issued) == ahead
    if ahead:
        assert min(issued) == first + 1
        assert max(issued) <= first + (32 << 20) // BLK
        issued.clear()
        reader.loading(handle, 1000)  # that does not make a reader elsewhere sequential
        assert not issued
        reader.loading(handle, first)  # nor one that comes back
        assert not issued
