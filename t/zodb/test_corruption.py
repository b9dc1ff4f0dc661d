"""Damaged databases: an exception or right bytes; never a crash, a hang, or wrong bytes in silence.

A seed says how corruption_trials.py damages a database. Processes of their own try 100 of these
databases, or as many as WENDELIN_CORE_TEST_DAMAGED says. The first seed is WENDELIN_CORE_TEST_SEED.
Damages that are refused by name are in this module, tried with every storage.
"""

import codecs
import json
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import transaction
from BTrees.LOBTree import LOBucket
from persistent.mapping import PersistentMapping
from support import TESTS, corruption, corruption_trials
from support.clients import BLK, FIRST, Client, N, fill
from support.plain_zodb import Ref, decode, encode
from support.stateload import StateLoadError, reason
from support.threads import pending
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import POSKeyError

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError, DoomedError
from wendelin.bigfile.file_zodb import ZBigFile, ZBlk0, ZBlk1, ZData
from wendelin.bigfile.zodb.blocktable import BlockTable
from wendelin.lib.storage.record import RecordError
from wendelin.lib.zodb import zconn_at

pytestmark = pytest.mark.once


DAMAGED = int(os.environ.get("WENDELIN_CORE_TEST_DAMAGED", "100"))
SEED = int(os.environ.get("WENDELIN_CORE_TEST_SEED", "0"))
A_TEST = 100  # databases that one test tries: each test has a time limit
A_CHILD = 25  # databases that a process tries
LIMIT = 300  # for a process [s]

MISSING = b"\0\0\0\0\0\1\2\3"


def start(folder, first, stop):
    return subprocess.Popen(
        [sys.executable, "-P", corruption_trials.__file__, str(folder), str(first), str(stop)],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(SEED, SEED + DAMAGED, A_TEST))
def test_damaged_databases(tmp_path, first_seed):
    end = min(first_seed + A_TEST, SEED + DAMAGED)
    damaged = end - first_seed
    corruption.make_bases(tmp_path / "bases")
    seen = Counter()
    batches = [(i, min(i + A_CHILD, end)) for i in range(first_seed, end, A_CHILD)]
    running = []
    try:
        while batches or running:
            while batches and len(running) < (os.cpu_count() or 1):
                first, stop = batches.pop(0)
                running.append((first, stop, start(tmp_path, first, stop)))
            first, stop, child = running.pop(0)
            out, _ = child.communicate(timeout=LIMIT)
            # the child prints the seed that it was at
            assert child.returncode == 0, f"exit code {child.returncode}\n{out[-8000:]}"
            seen += json.loads(out.splitlines()[-1])
    finally:
        for _, _, child in running:
            child.kill()
            child.wait()
    print(f"of {damaged} damaged databases:", dict(seen))
    # damages must have an effect, and many databases must open nevertheless
    assert seen["opened"] > damaged // 2
    assert seen["refused"] > damaged // 5
    assert seen["committed"] > damaged // 2


# ---- by name ----


@pytest.fixture
def client(root):
    client = Client(root)
    yield client
    client.close()


class Records:
    """Loads and replaces records, as another client would."""

    def __init__(self, root):
        self.conn = Client(root).conn
        self.storage = self.conn._normal_storage

    def load(self, oid):
        """Return (record, serial)."""
        self.storage.poll_invalidations()
        return self.storage.load(oid)

    def get(self, oid):
        """Return (class, state)."""
        return decode(self.load(oid)[0])

    def put(self, oid, data):
        serial = self.load(oid)[1]
        txn = TransactionMetaData()
        self.storage.tpc_begin(txn)
        self.storage.store(oid, serial, data, "", txn)
        self.storage.tpc_vote(txn)
        self.storage.tpc_finish(txn)

    def put_state(self, oid, state, cls=None):
        self.put(oid, encode(cls or self.get(oid)[0], state))


@pytest.fixture
def records(root):
    records = Records(root)
    yield records
    records.conn.close()


def oid_of(A, *path):
    """Return the oid at a path: of the file; its "table"; a block; its "chunks"; a chunk."""
    obj = A.zfile
    for step in path:
        if step == "table":
            obj = obj.blktab
        elif step == "chunks":
            obj = obj.chunktab
        else:
            obj = obj[step]
    return obj._p_oid


def put_block(state, cls=ZBlk0):
    return lambda A, records: records.put_state(oid_of(A, "table", 1), state, cls)


def put_table(change):
    """Return a function that changes the flat bucket of the block table."""

    def act(A, records):
        oid = oid_of(A, "table")
        (((flat,),),) = records.get(oid)[1]
        records.put_state(oid, (((change(flat),),),))

    return act


def put_chunks(change):
    """Return a function that changes the flat bucket of the chunk table of block 1."""

    def act(A, records):
        if type(A.zfile.blktab[1]) is not ZBlk1:
            pytest.skip("of ZBlk1")
        oid = oid_of(A, "table", 1, "chunks")
        (((flat,),),) = records.get(oid)[1]
        records.put_state(oid, (((change(flat),),),))

    return act


def put_chunk_table(cls):
    """Return a function that gives block 1 a reference of another class to its chunk table."""

    def act(A, records):
        block = A.zfile.blktab[1]
        if type(block) is not ZBlk1:
            pytest.skip("of ZBlk1")
        records.put_state(block._p_oid, Ref(block.chunktab._p_oid, cls))

    return act


def cut_record(A, records):
    oid = oid_of(A, "table", 1)
    records.put(oid, records.load(oid)[0][:-1])


def end_record(A, records):
    oid = oid_of(A, "table", 1)
    records.put(oid, records.load(oid)[0][:-1] + b"x")


def put_chunk(state, cls=ZData):
    def act(A, records):
        if type(A.zfile.blktab[1]) is not ZBlk1:
            pytest.skip("of ZBlk1")
        records.put_state(oid_of(A, "table", 1, "chunks", 4096), state, cls)

    return act


DAMAGES = {
    "a block longer than blksize": (put_block(b"1" * (BLK + 1)), rf"{BLK + 1} bytes.*{BLK}"),
    "a block that is not bytes": (put_block(["1"]), "bytes were expected, not list"),
    "a block that is text": (put_block("text"), "bytes were expected, not str"),
    "a record that is cut": (cut_record, "damaged record"),
    "a record without an end": (end_record, "damaged record"),
    "another class": (put_block(b"1" * BLK, ZData), "ZData, which is not a block format"),
    "a ZBlk1 without chunks": (put_block(b"1" * BLK, ZBlk1), "ZBlk1 with a bytes"),
    "a missing record": (
        put_table(lambda flat: (*flat[:3], Ref(MISSING, ZBlk0), *flat[4:])),
        "POSKeyError: 0x010203",
    ),
    "a foreign object in the table": (
        put_table(lambda flat: (*flat[:3], Ref(b"\0" * 8, None), *flat[4:])),
        "PersistentMapping, which is not a block format",
    ),
    "a value in the table": (put_table(lambda flat: (*flat[:3], 7, *flat[4:])), "damaged LOBTree"),
    "a table that is not in order": (
        put_table(lambda flat: (*flat[2:4], *flat[:2], *flat[4:])),
        r"bucket with keys not in order: \(1, 0",
    ),
    "a table with keys that are none": (
        put_table(lambda flat: (*flat[:2], True, *flat[3:])),
        "bucket with keys",
    ),
    "chunks that overlap": (
        put_chunks(lambda flat: (*flat[:2], 4000, *flat[3:])),
        rf"bytes \[4000, .*ends at 4096, and the block at {BLK}",
    ),
    "a chunk that ends past the block": (
        put_chunks(lambda flat: (*flat[:-2], BLK - 5, flat[-1])),
        f"and the block at {BLK}",
    ),
    "a chunk before the block": (
        put_chunks(lambda flat: (-4096, *flat[1:])),
        r"bytes \[-4096, 0\)",
    ),
    "a missing chunk": (
        put_chunks(lambda flat: (*flat[:3], Ref(MISSING, ZData), *flat[4:])),
        "POSKeyError: 0x010203",
    ),
    "a chunk of another class": (put_chunk(b"1", ZBlk0), "ZBlk0, not a ZData"),
    # ZODB gives an object the class of the reference
    "a reference to a chunk, of another class": (
        put_chunks(lambda flat: (*flat[:3], Ref(flat[3].oid, ZBlk0), *flat[4:])),
        "ZBlk0 in the place of a .*ZData",
    ),
    "a reference to chunks, of another class": (
        put_chunk_table(LOBucket),
        "LOBucket.* in the place of a IOBTree",
    ),
    "a chunk that is not bytes": (put_chunk(None), "bytes were expected, not NoneType"),
}


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("where", ["view", "read"])
def test_refused_by_name(root, client, records, fmt, what, where):
    A = fill(root, fmt)
    act, why = DAMAGES[what]
    intact = {o: records.load(o)[0] for o in (oid_of(A, "table"), oid_of(A, "table", 1))}
    act(A, records)
    client.tm.begin()
    B = client["A"]
    b = B[:]
    with pytest.raises(BlockLoadError, match=why) as e:
        if where == "view":
            b[BLK + 1]
            pending()
        else:
            B.read(slice(BLK, BLK + 2))
    error = e.value
    assert isinstance(error.file.zfile, ZBigFile)
    assert error.file.zfile._p_oid == B.zfile._p_oid
    assert error.blk in (0, 1)  # if the table is damaged: the first block that was looked for
    assert error.tid == zconn_at(client.conn)
    assert error.tid.hex() in str(error)
    assert isinstance(error.__cause__, RecordError | ValueError | POSKeyError)
    if where == "view":
        with pytest.raises(DoomedError):
            client.tm.commit()
    client.tm.abort()
    # after a repair the values are right
    for oid, data in intact.items():
        records.put(oid, data)
    if "chunk" not in what:
        client.tm.begin()
        assert np.array_equal(B[:], FIRST)


def test_a_chunk_that_another_object_says_is_something_else_is_not_stored_as_that(root, records):
    """ZODB gives an object the class of the reference that it has loaded first."""
    A = fill(root, "ZBlk1")
    root["o"] = PersistentMapping()
    transaction.commit()
    oid = oid_of(A, "table", 0, "chunks", 0)
    cls, state = records.get(root["o"]._p_oid)
    state["data"]["x"] = Ref(oid, PersistentMapping)
    records.put_state(root["o"]._p_oid, state, cls)
    client = Client(root)
    assert client["o"]["x"]._p_oid == oid
    client["A"][0] ^= 1
    with pytest.raises(RecordError, match=f"{oid.hex()} cannot be changed.*PersistentMapping"):
        client.tm.commit()
    client.close()
    transaction.begin()
    assert np.array_equal(A[:], FIRST)
    assert records.get(oid)[0] is ZData


def test_blocks_that_are_not_damaged_are_read_and_changed(root, client, records, fmt):
    A = fill(root, fmt)
    put_block(b"1" * (BLK + 1))(A, records)
    client.tm.begin()
    b = client["A"][:]
    for blk in range(N):
        if blk != 1:
            assert np.array_equal(b[blk * BLK :][:BLK], FIRST[blk * BLK :][:BLK])
    b[0] = b[-1] = 77
    client.tm.commit()
    assert (b[0], b[-1]) == (77, 77)
    with pytest.raises(BlockLoadError):
        client["A"].read(BLK)


@pytest.fixture
def large(root):
    """Return an array with a table of several buckets."""
    root["L"] = L = ZBigArray((200 * 4096,), "u1", blksize=4096, zblk_fmt="ZBlk0")
    transaction.commit()
    L[::4096] = 1
    transaction.commit()
    return L


def buckets(records, L):
    """Return the oids of the buckets of the table, in order."""
    return [ref.oid for ref in records.get(L.zfile.blktab._p_oid)[1][0][0::2]]


def test_a_bucket_in_the_place_of_another_is_refused(client, records, large):
    """Otherwise its blocks would be holes."""
    first, second, *_ = buckets(records, large)
    data = records.load(first)[0]
    records.put(second, data)
    client.tm.begin()
    blk = records.get(large.zfile.blktab._p_oid)[1][0][1]
    with pytest.raises(BlockLoadError, match=r"a node with keys.*, not in"):
        client["L"].read(blk * 4096)
    assert client["L"].read(0) == 1


def test_nodes_of_two_states_are_not_taken_for_damage(records, large):
    """A thread may look up blocks while the Connection moves to another state."""
    first, second, *_ = buckets(records, large)
    root, before = large.zfile.blktab._p_oid, {}
    table = BlockTable(lambda oids: [before.get(oid) or records.load(oid)[0] for oid in oids])
    flat, _after = records.get(second)[1]
    # the root as it was when the bucket had other keys
    cls, ((one, key, two, *rest), bucket) = records.get(root)
    before[root] = encode(cls, ((one, key + 5, two, *rest), bucket))
    assert table.lookup(root, 0) == records.get(first)[1][0][1].oid
    del before[root]
    assert table.lookup(root, key + 8) == dict(zip(flat[::2], flat[1::2], strict=True))[key + 8].oid
    assert table.between(root, key, key + 3).keys() == {key, key + 1, key + 2}


def test_parts_of_two_states_are_not_taken_for_damage(root, client, records):
    A = fill(root, "ZBlk1")
    oid = oid_of(A, "table", 1, "chunks")
    now, before = records.load(oid)[0], records.get(oid)
    (((flat,),),) = before[1]
    other = encode(before[0], ((((*flat[:2], 4000, *flat[3:]),),),))
    client.tm.begin()
    file = client["A"]._fileh().file
    seen = []

    def load_all(oids):
        seen.extend(oids)
        old = oid in oids and seen.count(oid) == 1
        return [other if old and o == oid else records.load(o)[0] for o in oids]

    file.records.load_all = load_all
    file.verify = True  # so that chunks are loaded, and not mapped
    assert np.array_equal(client["A"][:], FIRST)
    assert seen.count(oid) == 2
    assert now == records.load(oid)[0]


@pytest.mark.parametrize("chain", ["no bucket", "a tree", "a block", "the one before"])
@pytest.mark.parametrize("left", [1, 70])
def test_a_shrink_over_a_chain_that_is_damaged_is_refused(client, records, large, chain, left):
    """BTrees' own code would crash, or never end."""
    oids = buckets(records, large)
    flat, after = records.get(oids[2])[1]
    states = {
        "no bucket": (flat, {}),
        "a tree": (flat, Ref(large.zfile.blktab._p_oid, after.cls)),
        "a block": (flat, Ref(flat[1].oid, None)),
        "the one before": (flat, Ref(oids[1], after.cls)),
    }
    records.put_state(oids[2], states[chain])
    client.tm.begin()
    client["L"].resize((left * 4096,))
    with pytest.raises(RecordError, match="damaged"):
        client.tm.commit()
    client.tm.abort()
    assert client["L"].shape == (200 * 4096,)
    assert client["L"].read(0) == 1


def test_a_shrink_where_the_bucket_before_is_followed_by_something_else(client, records, large):
    """BTrees changes this bucket, too, if all keys of the next one are deleted."""
    oids = buckets(records, large)
    first = records.get(oids[1])[1][0][0]
    flat, _ = records.get(oids[0])[1]
    records.put_state(oids[0], (flat, Ref(flat[1].oid, None)))
    client.tm.begin()
    client["L"].resize((first * 4096,))
    with pytest.raises(RecordError, match="damaged"):
        client.tm.commit()


def test_a_chain_that_ends_early_hides_no_blocks(client, records, large):
    """BTrees writes such a chain after it has put a new bucket into its tree: see btree.walk()."""
    oids = buckets(records, large)
    flat, _ = records.get(oids[2])[1]
    records.put_state(oids[2], (flat,))
    client.tm.begin()
    L = client["L"]
    assert (L[::4096] == 1).all()
    L.resize((4096,))
    client.tm.commit()
    L.resize((200 * 4096,))
    assert np.flatnonzero(L[:]).tolist() == [0]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("_shape", None, "shape|integer"),
        ("_shape", (3.5,), "integer"),
        ("_shape", (-1,), "negative"),
        ("_dtype", "u1", "its dtype"),
        ("_dtype", np.dtype("O"), "objects"),
        ("_order", "X", "order is 'X'"),
        ("_zblk_fmt", "ZBlk9", "ZBlk9"),
    ],
)
def test_arrays_of_wrong_types_are_refused_by_name(root, client, records, name, value, why):
    A = fill(root, "ZBlk0")
    attributes, slots = records.get(A._p_oid)[1]
    records.put_state(A._p_oid, (attributes | {name: value}, slots))
    client.tm.begin()
    with pytest.raises(StateLoadError) as e:
        client["A"].shape
    assert re.search(f"damaged ZBigArray.*({why})", reason(e))


def test_an_array_whose_elements_are_arrays_opens_as_it_is(root, client):
    # earlier versions could make it; today the array would have more axes
    root["A"] = A = ZBigArray((8,), "f4", blksize=4096)
    A._init((8,), "(2,)f4", "C")
    transaction.commit()
    A[...] = 7
    transaction.commit()
    client.tm.begin()
    assert (client["A"].shape, client["A"].dtype) == ((8,), np.dtype("(2,)f4"))
    assert np.array_equal(client["A"][...], np.full((8, 2), 7))


@pytest.mark.parametrize("state", [None, (4096,), (4096, None), ("4096", "table")])
def test_files_of_wrong_types_are_refused_by_name(root, client, records, state):
    A = fill(root, "ZBlk0")
    records.put_state(A.zfile._p_oid, state)
    client.tm.begin()
    with pytest.raises(StateLoadError) as e:
        client["A"][0]
    assert "damaged ZBigFile" in reason(e)


@pytest.mark.parametrize("blksize", [0, -4096, 4097, 1 << 70])
def test_block_sizes_that_cannot_be_are_refused_by_name(root, client, records, blksize):
    A = fill(root, "ZBlk0")
    records.put_state(A.zfile._p_oid, (blksize, records.get(A.zfile._p_oid)[1][1]))
    client.tm.begin()
    with pytest.raises((ValueError, OverflowError), match=f"blksize is {blksize}"):
        client["A"][0]


class Calls:
    """An object that is pickled as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [(os.getpid, ()), (codecs.encode, ("x", "rot13")), (codecs.encode, (b"x", "zlib"))],
    ids=["a function", "a codec", "another codec"],
)
def test_a_touch_calls_nothing_that_a_record_names(root, client, records, call):
    A = fill(root, "ZBlk0")
    records.put_state(oid_of(A, "table", 1), Calls(*call), ZBlk0)
    client.tm.begin()
    with pytest.raises(BlockLoadError, match=r"calls .*only plain states are read here"):
        client["A"].read(BLK)
