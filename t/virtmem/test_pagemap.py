"""The map from block numbers to pages, compared with a dict."""

from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from wendelin.bigfile.virtmem.pagemap import selftest

# few keys, so that operations meet them again; neighbours; strides; the ends of the range
keys = (
    st.integers(0, 40)
    | st.integers(0, 40).map(lambda i: i << 44)
    | st.integers(0, (1 << 63) - 1)
    | st.sampled_from([0, (1 << 63) - 1])
)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["set", "set", "del", "get"]), keys), max_size=300))
def test_as_a_dict(operations):
    assert selftest(operations) == len(operations)


def test_many_neighbours_come_and_go():
    grow = [("set", blk) for blk in range(50_000)]
    shrink = [("del", blk) for blk in range(50_000)]
    assert selftest(grow + shrink) == 100_000
