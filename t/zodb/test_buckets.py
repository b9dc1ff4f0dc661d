"""Buckets read without unpickling: the result is the same, or they are left to unpickling."""

import pytest
from BTrees.LOBTree import LOBTree, LOBucket
from hypothesis import given, settings
from hypothesis import strategies as st
from persistent.mapping import PersistentMapping
from ZODB.serialize import ObjectWriter
from ZODB.utils import p64

from wendelin.bigfile.file_zodb import ZBlk0, ZBlk1
from wendelin.bigfile.zodb import btree
from wendelin.bigfile.zodb.buckets import read_bucket
from wendelin.lib.storage.record import RecordError

LO = b"BTrees.LOBTree\nLOBucket\n"


class Jar:
    """A Connection of objects that have oids already."""

    database_name = ""
    xrefs = True

    def db(self):
        return self

    def new_oid(self):
        raise AssertionError("all objects have one")


def record(keys, classes, oids, next_oid=None):
    """Return the record of a bucket, as ZODB writes it."""
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
    bucket._p_oid, bucket._p_jar = p64(1), JAR
    return ObjectWriter(bucket).serialize(bucket)


def unpickled(written):
    """Return a node as it is read without read_bucket()."""
    return btree._bucket(btree.state_of(written), "LO")


JAR = Jar()
KEYS = st.lists(st.integers(0, (1 << 63) - 1) | st.integers(0, 300), unique=True, max_size=70)
CLASSES = st.sampled_from([ZBlk0, ZBlk1, PersistentMapping])


@given(keys=KEYS, data=st.data())
@settings(max_examples=60)
def test_a_bucket_is_what_unpickling_reads(keys, data):
    keys.sort()
    classes = data.draw(st.lists(CLASSES, min_size=len(keys), max_size=len(keys)))
    oids = [p64(i + 7) for i in range(len(keys))]
    next_oid = data.draw(st.sampled_from([None, p64(5)]))
    written = record(keys, classes, oids, next_oid)
    found = read_bucket(written, LO)
    if len(keys) >= 2:
        assert found is not None, written
    if found is not None:
        assert btree.read_node(written, "LO") == unpickled(written)


@given(data=st.data())
@settings(max_examples=150)
def test_damaged_bytes(data):
    """Bytes that read_bucket() accepts mean the same when they are unpickled."""
    written = bytearray(record([1, 300, 70_000, 1 << 40], [ZBlk0] * 4, map(p64, range(4)), p64(9)))
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(written) - 1))
        if data.draw(st.booleans()):
            written[at] = data.draw(
                st.integers(0, 255) | st.sampled_from(list(b"KMJ\x8aChq.ct(Q\x86"))
            )
        else:
            del written[at:]
            break
    damaged = bytes(written)
    if read_bucket(damaged, LO) is not None:
        assert btree.read_node(damaged, "LO") == unpickled(damaged)


def test_what_is_left_to_unpickling():
    good = record([1, 2], [ZBlk0, ZBlk0], [p64(7), p64(8)])
    assert read_bucket(good, LO) is not None
    assert read_bucket(good, b"BTrees.IOBTree\nIOBucket\n") is None
    for other in (b"", good[:-1], good + b".", good.replace(b"K\x02", b"K\x01")):
        assert read_bucket(other, LO) is None
    with pytest.raises(RecordError, match="keys not in order"):
        btree.read_node(good.replace(b"K\x02", b"K\x01"), "LO")
    assert read_bucket(ObjectWriter().serialize(LOBTree()), LO) is None
