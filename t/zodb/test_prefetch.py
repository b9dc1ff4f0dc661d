"""Which blocks are loaded ahead of a sequential reader."""

import pytest

from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.bigfile.zodb import prefetch

BLK = 2 << 20


class Table:
    """What knows where blocks are; and a pool that looks there at once."""

    def __init__(self):
        self.found = set()

    def find(self, start, stop):
        self.found.update(range(start, stop))

    def submit(self, work, *args):
        work(*args)


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("start", [0, 1, 5000])
def test_a_sequential_reader_loads_a_few_blocks_itself(remote, start, monkeypatch):
    issued, table = [], Table()
    monkeypatch.setattr(
        prefetch, "prefetch", lambda owner, fileh, pages, threads: issued.append(list(pages))
    )
    ahead = prefetch.ReadAhead(BLK, remote, table.find)
    most = min(32 << 20 if remote else 16 << 20, ram_stat()[0] // 16) // BLK
    itself = []
    for blk in range(start, start + 300):
        if not any(blk in pages for pages in issued):
            under_way = [page for pages in issued for page in pages if page > blk]
            assert len(itself) < 4 or most < 4 or under_way, "nothing is under way"
            itself.append(blk)
            ahead.loading(None, blk)
            assert all(blk < page <= blk + most for page in issued[-1:] and issued[-1])
    pages = [page for window in issued for page in window]
    assert len(pages) == len(set(pages)), "asked for twice"
    assert not set(pages) & set(itself)
    assert len(itself) <= 4 + 300 // max(1, most // 2)


def test_others_get_nothing_ahead(monkeypatch):
    issued = []
    monkeypatch.setattr(prefetch, "prefetch", lambda *args: issued.append(args))
    ahead = prefetch.ReadAhead(BLK, True, Table().find)
    for blk in 7, 3, 9, 2, 40, 38:
        ahead.loading(None, blk)
    assert issued == []


def test_blocks_larger_than_the_window(monkeypatch):
    issued = []
    monkeypatch.setattr(prefetch, "prefetch", lambda owner, fileh, pages, _: issued.extend(pages))
    ahead = prefetch.ReadAhead(1 << 40, True, Table().find)
    for blk in range(1, 20):
        if blk not in issued:
            ahead.loading(None, blk)
    assert issued
    assert max(issued) <= 20


def test_where_blocks_are_is_looked_up_a_window_before(monkeypatch):
    issued, table = [], Table()
    monkeypatch.setattr(prefetch, "submit", table.submit)
    monkeypatch.setattr(prefetch, "prefetch", lambda owner, fileh, pages, _: issued.extend(pages))
    ahead = prefetch.ReadAhead(BLK, True, table.find)
    for blk in range(300):
        if blk not in issued:
            before, known = len(issued), set(table.found)
            ahead.loading(None, blk)
            assert not before or known.issuperset(issued[before:])
    assert issued


def test_on_this_machine_nothing_is_looked_up_before(monkeypatch):
    table = Table()
    monkeypatch.setattr(prefetch, "submit", table.submit)
    monkeypatch.setattr(prefetch, "prefetch", lambda *args: None)
    ahead = prefetch.ReadAhead(BLK, False, table.find)
    for blk in range(20):
        ahead.loading(None, blk)
    assert not table.found


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize(
    ("n", "touched", "ahead"),
    [
        (prefetch.MANY, 0, True),
        (prefetch.MANY - 1, 0, False),  # few are read for themselves
        (100, 1, False),  # random access
        (100, 50, False),
    ],
)
def test_who_begins_with_the_first_of_many_is_a_sequential_reader(
    first, n, touched, ahead, monkeypatch
):
    issued = []
    monkeypatch.setattr(prefetch, "prefetch", lambda owner, fileh, pages, _: issued.extend(pages))
    reader = prefetch.ReadAhead(BLK, True, Table().find)
    reader.expect(first, n)
    reader.loading(None, first + touched)
    assert bool(issued) == ahead
    if ahead:
        assert min(issued) == first + 1
        assert max(issued) <= first + (32 << 20) // BLK
        issued.clear()
        reader.loading(None, 1000)  # a reader of another place is none because of it
        assert not issued
        reader.loading(None, first)  # nor does a reader that comes back
        assert not issued
