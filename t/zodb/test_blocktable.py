"""Reads of the block table: which nodes a lookup asks the database for, and how often."""

import pytest
import transaction
from BTrees.LOBTree import LOBTree
from persistent.mapping import PersistentMapping
from ZODB import DB
from ZODB.utils import load_current

from wendelin.bigfile.zodb.blocktable import BlockTable, stored_blocks

N = 120_000  # blocks: so many that there are nodes between the root and the buckets
EVERY = 3  # one block of three is stored, the others are holes


class Table:
    """A block table in a database, and the nodes that its reader asked for."""

    def __init__(self, conn):
        conn.root()["table"] = tree = LOBTree()
        block = conn.root()["block"] = PersistentMapping()
        for blk in range(0, N, EVERY):
            tree[blk] = block
        transaction.commit()
        self.root, self.block = tree._p_oid, block._p_oid
        self.storage = conn.db().storage
        self.asked = []
        self.table = BlockTable(self.load_all)

    def load_all(self, oids):
        self.asked.append(oids)
        return [load_current(self.storage, oid)[0] for oid in oids]

    def nodes(self):
        return [oid for oids in self.asked for oid in oids]


@pytest.fixture
def table():
    db = DB(None)
    yield Table(db.open())
    transaction.abort()
    db.close()


def blocks(table, start, stop):
    return dict.fromkeys(range(-(-start // EVERY) * EVERY, min(stop, N), EVERY), table.block)


@pytest.mark.parametrize(("start", "stop"), [(0, N), (0, 1), (5000, 5400), (N - 7, 2 * N), (9, 9)])
def test_nodes_of_a_range_are_asked_for_together(table, start, stop):
    found = table.table.between(table.root, start, stop)
    assert found == blocks(table, start, stop)
    assert list(found) == sorted(found)
    nodes, calls = table.nodes(), len(table.asked)
    assert len(nodes) == len(set(nodes)), "a node was asked for twice"
    # a bucket has at least 30 blocks, half of what fits; and the range has two ends
    assert len(nodes) <= (stop - start) / EVERY / 25 + 8
    assert calls <= 4 + len(nodes) / 16
    # known nodes are not asked for again
    assert table.table.between(table.root, start, stop) == found
    for blk in list(found)[:: len(found) // 9 or 1]:
        assert table.table.lookup(table.root, blk) == table.block
    assert len(table.asked) == calls


def test_one_block_takes_one_node_of_each_level(table):
    assert table.table.lookup(table.root, EVERY) == table.block
    assert table.table.lookup(table.root, EVERY + 1) is None
    assert len(table.asked) == 3
    assert all(len(oids) == 1 for oids in table.asked)


def test_only_nodes_that_changed_are_asked_for_again(table):
    table.table.between(table.root, 0, N)
    bucket = table.asked[2][0]
    table.asked.clear()
    assert table.table.changed({bucket})
    assert table.table.between(table.root, 0, N) == blocks(table, 0, N)
    assert table.asked == [[bucket]]
    assert not table.table.changed({table.block})


def test_stored_blocks_are_all_or_those_of_a_limited_number_of_nodes(table):
    found, is_all = stored_blocks(table.root, table.load_all, 2000)
    assert (sorted(found), is_all) == (list(range(0, N, EVERY)), True)
    table.asked.clear()
    found, is_all = stored_blocks(table.root, table.load_all, 10)
    assert not is_all
    assert len(table.nodes()) <= 10 + 64
    assert set(found) <= set(range(0, N, EVERY))
