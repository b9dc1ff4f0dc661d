"""Buckets read without unpickling: the result is the same, or they are left to unpickling."""

from array import array
from dataclasses import replace

import pytest
from BTrees.IOBTree import IOBTree
from BTrees.LOBTree import LOBTree, LOBucket
from hypothesis import given, settings
from hypothesis import strategies as st
from persistent.mapping import PersistentMapping
from ZODB.serialize import ObjectWriter
from ZODB.utils import p64

from wendelin.bigfile.file_zodb import ZBlk0, ZBlk1
from wendelin.bigfile.zodb import btree
from wendelin.bigfile.zodb.buckets import read_bucket, read_reference
from wendelin.bigfile.zodb.formats import ZData
from wendelin.lib.storage.record import RecordError

LO, TREE = b"BTrees.LOBTree\nLOBucket\n", b"BTrees.LOBTree\nLOBTree\n"


class Jar:
    """A Connection of objects that have oids already."""

    database_name = ""
    xrefs = True

    def db(self):
        return self

    def new_oid(self):
        raise AssertionError("all objects have one")


def record(keys, classes, oids, next_oid=None, *, tree=False):
    """Return the record of a bucket, or of a tree that has it in its own, as ZODB writes it."""
    bucket = LOBucket()
    state = []
    for key, cls, oid in zip(keys, classes, oids, strict=True):
        value = cls()
        value._p_oid, value._p_jar = oid, JAR
        state += [key, value]
    after = ()
    if next_oid is not None:
        following = LOBucket()
        following._p_oid, following._p_jar = next_oid, JAR
        after = (following,)
    bucket.__setstate__((tuple(state), *after))
    if tree:
        bucket = LOBTree()
        bucket.__setstate__((((tuple(state),),),) if state else None)
    bucket._p_oid, bucket._p_jar = p64(1), JAR
    return ObjectWriter(bucket).serialize(bucket)


def unpickled(written):
    """Return a node as it is read without read_bucket()."""
    tree = written.find(LO) < 0
    node = (btree._tree if tree else btree._bucket)(btree.state_of(written), "LO")
    return replace(node, keys=array("q", node.keys))


JAR = Jar()
KEYS = st.lists(st.integers(0, (1 << 63) - 1) | st.integers(0, 300), unique=True, max_size=70)
CLASSES = st.sampled_from([ZBlk0, ZBlk1, PersistentMapping])


@given(keys=KEYS, data=st.data())
@settings(max_examples=60)
def test_a_bucket_is_what_unpickling_reads(keys, data):
    keys.sort()
    classes = data.draw(st.lists(CLASSES, min_size=len(keys), max_size=len(keys)))
    oids = [p64(i + 7) for i in range(len(keys))]
    tree = data.draw(st.booleans())
    next_oid = None if tree else data.draw(st.sampled_from([None, p64(5)]))
    written = record(keys, classes, oids, next_oid, tree=tree)
    found = read_bucket(written, TREE if tree else LO, tree)
    if keys or tree:
        assert found is not None, written
    if found is not None:
        assert btree.read_node(written, "LO") == unpickled(written)


@given(tree=st.booleans(), n=st.integers(1, 4), data=st.data())
@settings(max_examples=200)
def test_damaged_bytes(tree, n, data):
    """Bytes that read_bucket() accepts mean the same when they are unpickled."""
    keys, after = [1, 300, 70_000, 1 << 40][:n], None if tree else p64(9)
    written = bytearray(record(keys, [ZBlk0] * n, map(p64, range(n)), after, tree=tree))
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(written) - 1))
        if data.draw(st.booleans()):
            written[at] = data.draw(
                st.integers(0, 255) | st.sampled_from(list(b"KMJ\x8aChq.ct(Q\x86\x85N"))
            )
        else:
            del written[at:]
            break
    damaged = bytes(written)
    if read_bucket(damaged, TREE if tree else LO, tree) is not None:
        assert btree.read_node(damaged, "LO") == unpickled(damaged)


def test_what_is_left_to_unpickling():
    good = record([1, 2], [ZBlk0, ZBlk0], [p64(7), p64(8)])
    assert read_bucket(good, LO) is not None
    assert read_bucket(good, b"BTrees.IOBTree\nIOBucket\n") is None
    for other in (b"", good[:-1], good + b".", good.replace(b"K\x02", b"K\x01")):
        assert read_bucket(other, LO) is None
    with pytest.raises(RecordError, match="keys not in order"):
        btree.read_node(good.replace(b"K\x02", b"K\x01"), "LO")
    empty = ObjectWriter().serialize(LOBTree())
    assert read_bucket(empty, LO) is None
    assert read_bucket(empty, LO, tree=True) is None
    assert read_bucket(empty, TREE, tree=True) is not None
    assert read_bucket(good, LO, tree=True) is None


@given(data=st.data(), n=st.integers(1, 20))
@settings(max_examples=100)
def test_the_chunks_of_a_block(data, n):
    """The record of a block in chunks, and its table, whole and damaged."""
    block, table = ZBlk1(), IOBTree()
    block.chunktab = table
    for i in range(n):
        table[131_072 * i] = chunk = ZData()
        chunk._p_oid, chunk._p_jar = p64(100 + i), JAR
    table._p_oid, table._p_jar = p64(2), JAR
    block._p_oid, block._p_jar = p64(1), JAR
    written = bytearray(ObjectWriter(block).serialize(block))
    assert read_reference(bytes(written)) == (p64(2), "BTrees.IOBTree.IOBTree")
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] = data.draw(st.integers(0, 255))
    found = read_reference(bytes(written))
    if found is not None:
        assert btree.state_of(bytes(written)) == found
    if n > 15:
        return  # BTrees may have split it
    whole = ObjectWriter(table).serialize(table)
    assert read_bucket(whole, b"BTrees.IOBTree\nIOBTree\n", tree=True) is not None
    node = btree.read_node(whole, "IO")
    assert node.oids == {131_072 * i: p64(100 + i) for i in range(n)}
    assert node == replace(btree._tree(btree.state_of(whole), "IO"), keys=node.keys)
