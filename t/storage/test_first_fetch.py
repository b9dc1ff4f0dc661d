"""What readers fetch from a server: bytes on the wire, by what they touch."""

import time

import numpy as np
import pytest
import transaction
from support.proxy import TO_CLIENT, Proxy
from support.servers import HOST, ZeoServer
from support.threads import wait_for_pool

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

pytestmark = pytest.mark.once

BLK = 1 << 19
N = 60  # blocks
SOME = 1 << 16  # for all that is not a block [bytes]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = ZeoServer(tmp_path_factory.mktemp("zeo"))
    server.start()
    root = dbopen(server.url)
    for name, zblk_fmt in ("A", "ZBlk0"), ("B", "auto"):
        root[name] = a = ZBigArray((N, BLK), np.uint8, blksize=BLK, zblk_fmt=zblk_fmt)
        transaction.commit()
        a[:] = np.arange(1, N + 1, dtype=np.uint8)[:, None]
        transaction.commit()
    dbclose(root)
    yield server
    server.stop()


@pytest.fixture
def fetched(server):
    """Return a function that calls one with an array, and returns how many blocks were sent."""
    proxy = Proxy(server.port)
    # so small that it keeps no block
    root = dbopen(f"zeo://{HOST}:{proxy.port}?cache_size=1MB")

    def fetched(act, name="A"):
        before = proxy.passed[TO_CLIENT]
        act(root[name])
        wait_for_pool()  # it may still load
        last = -1
        while last != proxy.passed[TO_CLIENT]:
            last = proxy.passed[TO_CLIENT]
            time.sleep(0.15)
        blocks, rest = divmod(last - before, BLK)
        assert rest < SOME
        return blocks

    yield fetched
    dbclose(root)
    proxy.close()


def some(view, rows):
    """Read a number of each of some rows."""
    for row in rows:
        assert view[row, 7] == row + 1


@pytest.mark.parametrize("rows", [[0], [N // 2], [50, 3, 41, 17, 4, 29], [5, 6], range(0, N, 4)])
def test_a_reader_fetches_what_it_touches(rows, fetched):
    """One block, also the first of a view; blocks at random; neighbours; a column in steps."""
    assert fetched(lambda A: some(A[:], rows)) == len(rows)


def test_two_blocks_show_that_a_reader_goes_on(fetched):
    """Little is loaded in vain."""
    assert fetched(lambda A: some(A[:], [0, 1])) == 3


def test_a_part_is_read_to_its_end_and_no_further(fetched):
    assert fetched(lambda A: A[10:40].sum()) == 30


def test_view_after_view_fetches_each_block_once(fetched):
    assert fetched(lambda A: [A[row : row + 4].sum() for row in range(0, N, 4)]) == N


@pytest.mark.parametrize("name", ["A", "B"])
def test_a_commit_fetches_what_it_changes_to_compare_it_and_for_nothing_else(name, fetched):
    """Its objects are not loaded once more: in one piece, cut into pieces, and of such pieces."""

    def change(a):
        with transaction.manager:
            a[7, BLK // 2] ^= 1

    for _ in range(3):
        assert fetched(lambda a: a[7, 0], name) <= 1  # the page
        assert fetched(change, name) == 1
