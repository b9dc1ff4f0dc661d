"""Trees that BTrees has written, read from their records: none of them is taken for damaged.

Trees grow and shrink as a seed says. There are 30, or as many as WENDELIN_CORE_TEST_TREES says. The
first seed is WENDELIN_CORE_TEST_SEED.
"""

import os
import random
from collections import Counter

import numpy as np
import pytest
import transaction
from BTrees.check import check
from BTrees.IOBTree import IOBTree, IOBTreePy
from BTrees.LLBTree import LLBTree
from BTrees.LOBTree import LOBTree, LOBTreePy
from BTrees.OLBTree import OLBTree
from BTrees.OOBTree import OOBTree, OOBTreePy
from persistent.mapping import PersistentMapping
from support.clients import Client
from transaction import TransactionManager
from ZODB import DB
from ZODB.DemoStorage import DemoStorage
from ZODB.POSException import ConflictError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.zodb.blocktable import BlockTable, stored_blocks
from wendelin.bigfile.zodb.btree import from_records, read_items, read_node, walk
from wendelin.bigfile.zodb.change import CHUNK
from wendelin.bigfile.zodb.inspect import inspect_blocks, stored_numbers
from wendelin.bigfile.zodb.verify import verify_blocks
from wendelin.cli.stored import Database, node_oids
from wendelin.cli.stored import items as stored_items
from wendelin.cli.stored import lookup as stored_lookup
from wendelin.lib.storage.record import RecordError, Ref
from wendelin.lib.zodb import zconn_load_all
from wendelin.zarr.keys import Keys

TREES = int(os.environ.get("WENDELIN_CORE_TEST_TREES", "30"))
SEED = int(os.environ.get("WENDELIN_CORE_TEST_SEED", "0"))
BLK = 4096

CLASSES = [LOBTree, LOBTree, IOBTree, LOBTreePy, IOBTreePy]


# ---- trees ----


@pytest.fixture
def small_nodes(monkeypatch):
    """Let nodes have at most four children."""
    for cls in CLASSES:
        monkeypatch.setattr(cls, "max_leaf_size", 4)
        monkeypatch.setattr(cls, "max_internal_size", 4)


class Tree:
    """A BTree that two clients change, and a third one reads from its records."""

    def __init__(self, cls, keys):
        self.kind = cls.__name__[:2]
        self.keys = keys
        self.db = DB(DemoStorage())
        self.conns = [self.db.open(TransactionManager()) for _ in range(3)]
        self.root = self.conns[0].root()
        self.root["tree"], self.root["value"] = cls(), PersistentMapping()
        self.conns[0].transaction_manager.commit()

    def close(self):
        for conn in self.conns:
            conn.transaction_manager.abort()
            conn.close()
        self.db.close()

    def change(self, rng, conn):
        tree, value = conn.root()["tree"], conn.root()["value"]
        for _ in range(rng.choice([1, 2, 5, 30, 200])):
            key, kind = rng.randrange(self.keys), rng.random()
            if kind < 0.5:
                tree[key] = value
            elif kind < 0.8:
                tree.pop(key, None)
            elif kind < 0.9:
                delete(tree, tree.keys(min=key))
            elif kind < 0.93:
                delete(tree, tree.keys(max=key))
            elif kind < 0.94:
                tree.clear()
            else:
                tree.update([(k, value) for k in range(key, min(key + 20, self.keys))])
        if rng.random() < 0.1:
            conn.transaction_manager.savepoint()

    def commit(self, rng, seen):
        """Let one or two clients change the tree at the same time."""
        writers = self.conns[: rng.choice([1, 1, 2])]
        for conn in writers:
            conn.transaction_manager.begin()
            if rng.random() < 0.3:
                conn.cacheMinimize()
            self.change(rng, conn)
        changed = []
        for conn in writers:
            own = {obj._p_oid for obj in conn._registered_objects}
            try:
                conn.transaction_manager.commit()
            except ConflictError:
                conn.transaction_manager.abort()
                seen["conflicts"] += 1
            else:
                changed.append(own)
        seen["resolved"] += len(changed) == 2 and not changed[0].isdisjoint(changed[1])

    def load_all(self, oids):
        return [bytes(self.conns[2]._normal_storage.load(oid)[0]) for oid in oids]

    def check(self, rng, seen):
        """Read the tree in all ways, and compare with what BTrees itself reads."""
        conn = self.conns[2]
        conn.transaction_manager.begin()
        conn.cacheMinimize()
        tree = conn.root()["tree"]
        check(tree)
        expected = {k: tree[k]._p_oid for k in range(self.keys) if k in tree}
        root = tree._p_oid
        found = read_items(
            Ref(root, ""), self.load_all, self.kind, "persistent.mapping.PersistentMapping"
        )
        assert found.oids == expected
        assert list(found.oids) == sorted(expected)
        try:
            tree._check()
        except AssertionError:
            assert not found.chained
            seen["chains that BTrees has broken"] += 1
        else:
            assert list(tree.keys()) == list(expected)
            assert found.chained
        for oid in found.nodes:
            node = read_node(self.load_all([oid])[0], self.kind)
            seen["one bucket inside"] += node.inline and len(node.oids) > 0
            seen["one child"] += len(node.children) == 1
            seen["many children"] += len(node.children) > 1
        start, stop = sorted(rng.choices(range(-2, self.keys + 3), k=2))
        part = {k: oid for k, oid in expected.items() if start <= k < stop}
        nodes = [
            node for _, node in walk(root, from_records(self.load_all, self.kind), start, stop)
        ]
        assert part.items() <= {k: o for node in nodes for k, o in node.oids.items()}.items()
        if self.kind == "LO":
            table = BlockTable(self.load_all)
            for key in rng.sample(range(self.keys), min(self.keys, 30)):
                assert table.lookup(root, key) == expected.get(key)
            assert table.between(root, start, stop) == part
            assert BlockTable(self.load_all).between(root, start, stop) == part
            assert stored_blocks(root, self.load_all, 10**9) == (list(expected), True)
            assert table.deletable(root, start) == [k for k in expected if k >= start]


def delete(tree, keys):
    for key in list(keys):
        tree.pop(key, None)


def test_trees_that_grow_and_shrink(small_nodes):
    seen = Counter()
    for seed in range(SEED, SEED + TREES):
        rng = random.Random(seed)
        tree = Tree(rng.choice(CLASSES), rng.choice([1, 3, 8, 20, 100, 400]))
        try:
            for _ in range(rng.choice([3, 10, 20])):
                tree.commit(rng, seen)
                tree.check(rng, seen)
        except Exception as e:
            e.add_note(f"seed {seed}")
            raise
        finally:
            tree.close()
    print(f"of {TREES} trees:", dict(seen))
    for what in "one bucket inside", "one child", "many children", "conflicts", "resolved":
        assert seen[what] > TREES // 10, what


def leave_one_new_bucket(tree, value, unit=1):
    """Give a tree of 12 keys 30 keys, and an inner node whose only bucket is new."""
    # this changes the root before its last bucket: so the root is stored first
    delete(tree, [0, unit])
    tree.update([(key * unit, value) for key in range(12, 40)])
    node = tree
    while isinstance(node.__getstate__()[0][-1], type(tree)):
        node = node.__getstate__()[0][-1]
    delete(tree, tree.keys(min=node.__getstate__()[0][1]))
    assert len(node.__getstate__()) == 1
    assert node is not tree


@pytest.mark.parametrize("cls", [LOBTree, LOBTreePy])
def test_a_new_bucket_alone_in_an_inner_node(small_nodes, cls):
    """BTrees stores the bucket in the node, and once more for the chain of the buckets."""
    tree = Tree(cls, 100)
    try:
        tree.root["tree"].update([(key, tree.root["value"]) for key in range(12)])
        tree.conns[0].transaction_manager.commit()
        leave_one_new_bucket(tree.root["tree"], tree.root["value"])
        tree.conns[0].transaction_manager.commit()
        seen = Counter()
        tree.check(random.Random(0), seen)
        assert seen["chains that BTrees has broken"] == 1
    finally:
        tree.close()


@pytest.mark.parametrize("left", [0, 1, 20, 27, 28, 29, 30])
def test_a_shrink_of_a_table_with_a_new_bucket_alone_in_an_inner_node(small_nodes, root, left):
    root["A"] = A = ZBigArray((60 * BLK,), "u1", blksize=BLK, zblk_fmt="ZBlk0")
    transaction.commit()
    A[: 12 * BLK : BLK] = 1
    transaction.commit()
    table = A.zfile.blktab
    leave_one_new_bucket(table, table[11])
    blocks = list(table)
    transaction.commit()
    other = Client(root)
    A = other["A"]
    assert (np.flatnonzero(A[:]) == np.array(blocks) * BLK).all()
    A.resize((left * BLK,))
    other.tm.commit()
    A.resize((60 * BLK,))
    blocks = [blk for blk in blocks if blk < left]
    assert (np.flatnonzero(A[:]) == np.array(blocks, int) * BLK).all()
    A[55 * BLK] = 1
    other.tm.commit()
    transaction.begin()
    assert (np.flatnonzero(root["A"][:]) == np.array([*blocks, 55]) * BLK).all()
    other.close()


def test_a_change_of_chunks_with_a_new_bucket_alone_in_an_inner_node(small_nodes, root):
    """BTrees' own code must not follow the chain of the buckets: they are written anew."""
    root["A"] = A = ZBigArray((40 * CHUNK,), "u1", blksize=40 * CHUNK, zblk_fmt="ZBlk1")
    transaction.commit()
    A[: 12 * CHUNK : CHUNK] = 1
    transaction.commit()
    table = A.zfile.blktab[0].chunktab
    leave_one_new_bucket(table, table[11 * CHUNK], CHUNK)
    expected = np.zeros(40 * CHUNK, "u1")
    expected[list(table)] = 1
    A.zfile.blktab[0]._p_changed = True
    transaction.commit()
    other = Client(root)
    assert (other["A"][:] == expected).all()
    other["A"][20 * CHUNK :] = expected[20 * CHUNK :] = 0
    other["A"][39 * CHUNK] = expected[39 * CHUNK] = 5
    other.tm.commit()
    other.close()
    transaction.begin()
    assert (A[:] == expected).all()
    other = Client(root)
    assert (other["A"][:] == expected).all()
    other["A"].zfile.blktab[0].chunktab._check()
    other.close()


# ---- arrays whose trees lose nodes ----


@pytest.mark.parametrize("left", [1, 10, 40, 0])
def test_a_block_table_with_one_bucket_left_after_deletes(testdb, root, left):
    root["A"] = A = ZBigArray((300 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    A[::BLK] = np.arange(300) % 251 + 1
    transaction.commit()
    A.resize((left * BLK,))
    transaction.commit()
    expected = np.arange(left) % 251 + 1
    assert (A[::BLK] == expected).all()
    other = Client(root)
    assert (other["A"][::BLK] == expected).all()
    assert list(stored_numbers(other["A"].zfile)) == list(range(left))
    assert [s.blk for some in inspect_blocks(other["A"].zfile) for s in some] == list(range(left))
    assert not any(c.bad for c in verify_blocks(other["A"].zfile))
    other["A"].resize((300 * BLK,))
    other["A"][::BLK] = 7
    other.tm.commit()
    other.close()
    transaction.begin()
    assert (A[::BLK] == 7).all()


def test_a_chunk_table_with_one_bucket_left_after_deletes(root):
    root["A"] = A = ZBigArray((200 * CHUNK,), "u1", blksize=200 * CHUNK, zblk_fmt="ZBlk1")
    transaction.commit()
    A[::CHUNK] = 1
    transaction.commit()
    A[10 * CHUNK :] = 0
    transaction.commit()
    other = Client(root)
    assert (np.flatnonzero(other["A"][:]) == np.arange(10) * CHUNK).all()
    assert not any(c.bad for c in verify_blocks(other["A"].zfile))
    other.close()


# ---- all readers of trees ----


def put_in_first_bucket(tree, key, value):
    """Put a key into the first bucket, where a lookup of BTrees would not find it."""
    node = tree
    while isinstance(node, type(tree)):
        node = node.__getstate__()[0][0]
    node[key] = value


@pytest.mark.parametrize("cls", [OOBTree, OOBTreePy, LOBTree, OLBTree, LLBTree])
def test_other_readers_go_down_like_btrees_itself(cls, monkeypatch):
    """The command line reads any tree, and Zarr reads its keys; both refuse a damaged tree."""
    monkeypatch.setattr(cls, "max_leaf_size", 4)
    monkeypatch.setattr(cls, "max_internal_size", 4)
    db = DB(DemoStorage())
    conn = db.open()
    root = conn.root()
    text = cls.__name__[0] == "O"
    value = 7 if cls.__name__[1] == "L" else PersistentMapping()
    keys = [f"{n:03}" if text else n for n in range(200)]
    root["tree"], root["value"] = tree, _ = cls(), value
    tree.update(dict.fromkeys(keys, value))
    transaction.commit()
    for key in keys[20:120]:
        del tree[key]
    keys[20:120] = []
    transaction.commit()

    def readers():
        stored = Database(conn).get(Ref(tree._p_oid, ""))
        yield lambda: [k for k, _ in stored_items(stored)]
        yield lambda: [k for k in keys if stored_lookup(stored, k)]
        if cls.__name__.startswith("OO"):
            of_zarr = Keys(lambda oids: zconn_load_all(conn, oids), lambda: None)
            yield lambda: [k for k, ref in of_zarr.find(tree._p_oid, keys).items() if ref]
            yield lambda: [k for k in keys if of_zarr.find_kept(tree._p_oid, k)]
            yield lambda: [k for k, _ in of_zarr.between(tree._p_oid, "", None)]

    for read in readers():
        assert sorted(read()) == keys
    stored = Database(conn).get(Ref(tree._p_oid, ""))
    assert stored_lookup(stored, "050" if text else 50) == []
    assert node_oids(stored)[0] == tree._p_oid
    # at least 25 buckets, and the nodes above them
    assert len(set(node_oids(stored))) == len(node_oids(stored)) > 25
    put_in_first_bucket(tree, "190x" if text else 190, value)
    transaction.commit()
    for read in readers():
        with pytest.raises(RecordError, match="a node with keys"):
            read()
    db.close()
