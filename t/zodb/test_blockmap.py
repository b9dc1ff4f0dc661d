"""BlockMap and PartMap against dicts; and how few entries of them a lookup visits."""

from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from ZODB.utils import p64

from wendelin.bigfile.zodb.blockmap import BlockMap, PartMap

# blocks: few, so that they occur again; neighbours; far ones, which need a wide index
# objects: some of few, so that several blocks have the same one
blks = st.integers(0, 200) | st.integers(0, 40).map(lambda i: i << 40)
oids = st.integers(0, 30).map(p64) | st.integers(0, (1 << 64) - 1).map(p64)
steps = st.one_of(
    st.tuples(st.just("set"), blks, st.none() | oids),
    st.tuples(st.just("default"), blks, st.none() | oids),
    st.tuples(st.just("discard"), blks),
)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(steps, max_size=200), blks, blks, st.dictionaries(blks, oids), st.sets(oids))
def test_a_block_map_is_like_a_dict(steps, start, stop, now, some):
    known, model = BlockMap(), {}
    for what, blk, *oid in steps:
        if what == "set":
            known[blk] = model[blk] = oid[0]
        elif what == "default":
            assert known.setdefault(blk, oid[0]) == model.setdefault(blk, oid[0])
        else:
            known.discard(blk)
            model.pop(blk, None)
        assert known.get(blk, b"none") == model.get(blk, b"none")
    start, stop = sorted((start, stop))
    inside = {blk: oid for blk, oid in model.items() if start <= blk < stop}
    now = {blk: oid for blk, oid in now.items() if start <= blk < stop}
    assert len(known) == len(model)
    assert all(blk in known for blk in model)
    assert known.blocks() == sorted(model)
    assert known.blocks(start, stop) == sorted(inside)
    assert known.knows(start, stop) == bool(inside)
    assert known.oids() == set(model.values()) - {None}
    some |= set(list(known.oids())[:3])
    assert known.blocks_of(some) == {blk for blk, oid in model.items() if oid in some}
    different = {blk for blk, oid in inside.items() if oid != now.get(blk)}
    assert sorted(known.differing(start, stop, now)) == sorted(different)
    spans = known.spans(start, stop)
    assert all(start <= lo < hi <= stop and hi - lo <= 4096 for lo, hi in spans)
    assert [blk for lo, hi in spans for blk in known.blocks(lo, hi)] == sorted(inside)
    known.clear()
    assert len(known) == 0
    assert known.blocks_of(some) == set()


@settings(max_examples=examples(20), deadline=None)
@given(st.lists(st.tuples(blks, st.frozensets(oids, max_size=9)), max_size=60), st.sets(oids))
def test_a_part_map_is_like_a_dict(steps, some):
    parts, model = PartMap(), {}
    for blk, of in steps:
        parts.put(blk, of)
        model[blk] = of
        if len(of) == 3:
            parts.discard(blk)
            del model[blk]
    model = {blk: of for blk, of in model.items() if of}
    assert len(parts) == len(model)
    assert all(parts.of(blk) == of for blk, of in model.items())
    assert parts.oids() == frozenset().union(*model.values())
    some |= set(list(parts.oids())[:3])
    assert parts.blocks_of(some) == {blk for blk, of in model.items() if of & some}


def test_only_what_is_asked_for_is_looked_at():
    known = BlockMap()
    for blk in range(100_000):
        known[blk] = p64(blk + 10) if blk % 2 else None
    assert known.blocks_of([p64(5011)]) == {5001}
    now = {blk: p64(blk + 10) for blk in range(5001, 5061, 2)}
    assert known.differing(5000, 5061, now) == []
    assert known.knows(99_000, 1 << 62)
    # 30 blocks, as in a bucket, and the chunks of 64 blocks that have them
    assert known.visits < 40
